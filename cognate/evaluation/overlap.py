"""How much of the evaluation items stands in the training text: shared runs of 13 words.

The training text is that of the packed tokens themselves, decoded, so a mistake in choosing rows would show. Words are in
lower case, without punctuation. An item counts with its prompt and its right answer.

Source: Brown et al., arXiv:2005.14165, appendix C (13-grams). Where we differ: no item is removed; they are counted, and the score
without them is given beside the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from cognate.config import DatasetName, RunConfig
from cognate.data.corpus import Documents, load_corpus
from cognate.data.files import DataMissing
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.items import Item
from cognate.evaluation.suite import Report

WORDS: Final = 13
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """items = short + checked, where short ones have fewer than 13 words. touched: items that share a run; mostly: half of theirs"""

    items: int
    short: int
    touched: frozenset[int]  # places in the items
    mostly: int

    @property
    def checked(self) -> int:
        return self.items - self.short

    @property
    def share(self) -> float | None:
        """Of the checked items."""
        return len(self.touched) / self.checked if self.checked else None


def check(
    report: Report,
    config: RunConfig,
    data_dir: Path | None,
    cache_dir: Path | None,
    tokenizer: Tokenizer,
    fingerprint: str,
    digests: Mapping[str, str] | None,
) -> dict[str, Any]:
    """Of each dataset of the report with what a run of `config` was trained on, as plain JSON. Raises DataMissing, DataUnreadable.

    fingerprint, digests: of the corpus that the checkpoint was trained on, and of its files (None where it does not know)
    score_without: the headline figure of the items that share nothing
    """
    corpus = load_corpus(config, data_dir, cache_dir, tokenizer, digests)
    if corpus.fingerprint != fingerprint:
        raise DataMissing("the data have changed since")
    each = overlaps(texts(corpus.training, tokenizer), {result.dataset: result.items for result in report.results})
    found: dict[str, Any] = {}
    for result in report.results:
        overlap = each[result.dataset]
        clean = [right for place, right in enumerate(result.right) if place not in overlap.touched]
        found[result.dataset] = {
            "items": overlap.items,
            "short": overlap.short,
            "touched": len(overlap.touched),
            "share": overlap.share,
            "mostly": overlap.mostly,
            "score_without": fmean(clean) if clean and result.dataset != "wikitext" else None,  # whose score is not a mean over items
        }
    return found


def overlaps(training: Iterable[str], items: Mapping[DatasetName, Sequence[Item]]) -> dict[DatasetName, Overlap]:
    """Of each dataset's items with all the training documents."""
    grams = {name: [frozenset(_grams(f"{item.prompt}{item.answer}")) for item in some] for name, some in items.items()}
    wanted = frozenset().union(*(each for some in grams.values() for each in some))
    seen: set[int] = set()
    for text in training:
        seen.update(wanted.intersection(_grams(text)))
    return {name: _count(some, seen) for name, some in grams.items()}


def texts(documents: Mapping[str, Documents], tokenizer: Tokenizer) -> Iterator[str]:
    """The training documents as text."""
    for each in documents.values():
        for ids in np.split(each.ids, each.offsets[1:-1]):
            yield tokenizer.decode(ids.tolist())


def _count(grams: Sequence[frozenset[int]], seen: set[int]) -> Overlap:
    shared = [len(each & seen) for each in grams]
    touched = frozenset(place for place, count in enumerate(shared) if count)
    mostly = sum(2 * count >= len(each) for count, each in zip(shared, grams, strict=True) if each)
    return Overlap(len(grams), sum(not each for each in grams), touched, mostly)


def _grams(text: str) -> Iterator[int]:
    """A hash of each run of 13 words; equal within one process."""
    words = _WORDS.findall(text.lower())
    return (hash(tuple(words[at : at + WORDS])) for at in range(len(words) - WORDS + 1))
