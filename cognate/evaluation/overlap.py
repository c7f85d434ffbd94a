"""How much of the evaluation items stands in the training text: shared runs of 13 words, or of all an item's words where it has fewer.

It needs no model, so every final item is looked for, also where a sample of them is scored. The training text is that of the
packed tokens themselves, decoded, so a mistake in choosing rows would show. Words are in lower case, without punctuation. An item
counts with its prompt and its right answer.

Source: Brown et al., arXiv:2005.14165, appendix C (13-grams). Where we differ: no item is removed; they are counted, and the score
without them is given beside the other.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean
from typing import Any, Final

import numpy as np

from cognate.config import DatasetName, RunConfig
from cognate.data.corpus import Documents, load_corpus
from cognate.data.files import DataMissing
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.items import Item, find_items
from cognate.evaluation.suite import Report, Result

WORDS: Final = 13
_WORDS = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """touched: items that share a run; mostly: half of theirs; short: items of fewer than 13 words, which are a run as a whole"""

    items: int
    touched: frozenset[int]  # places in the items
    mostly: int
    short: int
    short_touched: int

    @property
    def share(self) -> float:
        return len(self.touched) / self.items


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
    score_without: the headline figure of the scored items that share nothing
    """
    corpus = load_corpus(config, data_dir, cache_dir, tokenizer, digests)
    if corpus.fingerprint != fingerprint:
        raise DataMissing("the data have changed since")
    final = {result.dataset: find_items(data_dir, cache_dir, result.dataset, "final", known=digests).items for result in report.results}
    each = overlaps(texts(corpus.training, tokenizer), final)
    found: dict[str, Any] = {}
    for result in report.results:
        overlap, items = each[result.dataset], final[result.dataset]
        found[result.dataset] = {
            "items": overlap.items,
            "touched": len(overlap.touched),
            "share": overlap.share,
            "mostly": overlap.mostly,
            "short": overlap.short,
            "short_touched": overlap.short_touched,
            "score_without": _score_without(result, {items[place] for place in overlap.touched}),
        }
    return found


def overlaps(training: Iterable[str], items: Mapping[DatasetName, Sequence[Item]]) -> dict[DatasetName, Overlap]:
    """Of each dataset's items with all the training documents."""
    words = {name: [_words(f"{item.prompt}{item.answer}") for item in some] for name, some in items.items()}
    lengths: defaultdict[str, set[int]] = defaultdict(set)  # of the runs, by their first word
    for each in chain.from_iterable(words.values()):
        for first in each[: max(1, len(each) - WORDS + 1)]:
            lengths[first].add(min(WORDS, len(each)))
    runs = {name: [frozenset(_runs(each)) for each in some] for name, some in words.items()}
    wanted = frozenset().union(*chain.from_iterable(runs.values()))
    seen: set[int] = set()
    for text in training:
        seen.update(wanted.intersection(_runs_within(_words(text), lengths)))
    return {name: _count(words[name], runs[name], seen) for name in items}


def texts(documents: Mapping[str, Documents], tokenizer: Tokenizer) -> Iterator[str]:
    """The training documents as text."""
    for each in documents.values():
        for ids in np.split(each.ids, each.offsets[1:-1]):
            yield tokenizer.decode(ids.tolist())


def _score_without(result: Result, touched: Collection[Item]) -> float | None:
    if result.dataset == "wikitext":  # whose score is not a mean over items
        return None
    clean = [right for item, right in zip(result.items, result.right, strict=True) if item not in touched]
    return fmean(clean) if clean else None


def _count(words: Sequence[Sequence[str]], runs: Sequence[frozenset[int]], seen: set[int]) -> Overlap:
    shared = [len(each & seen) for each in runs]
    touched = frozenset(place for place, count in enumerate(shared) if count)
    mostly = sum(2 * count >= len(each) for count, each in zip(shared, runs, strict=True))
    short = {place for place, each in enumerate(words) if len(each) < WORDS}
    return Overlap(len(words), touched, mostly, len(short), len(short & touched))


def _words(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def _runs(words: Sequence[str]) -> Iterator[int]:
    """A hash of each run of 13 words, or of all where they are fewer; equal within one process."""
    return (hash(tuple(words[at : at + WORDS])) for at in range(max(1, len(words) - WORDS + 1)))


def _runs_within(words: Sequence[str], lengths: Mapping[str, Collection[int]]) -> Iterator[int]:
    """The hashes of those runs that begin, and are as long, as one that is looked for. lengths: by first word"""
    for at, first in enumerate(words):
        for length in lengths.get(first, ()):
            yield hash(tuple(words[at : at + length]))
