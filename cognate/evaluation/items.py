"""Evaluation items: held-out rows as problems to answer, in exactly the prompts of training (cognate/data/formats.py).

Two sets of every dataset, neither ever trained on:
    validation  what training looks at: the official validation rows, or the fixed 5 % (rows.py keeps the same ones aside)
    final       what is reported at the end: the official test rows where they have answers, else the validation rows
So the test rows of GSM8K, SVAMP, MBPP, ARC and WikiText play no part in choosing anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from cognate import sandbox
from cognate.config import DatasetName
from cognate.data import files
from cognate.data.curriculum import is_held_out
from cognate.data.formats import FORMATS, Example, Row, is_usable
from cognate.data.sources import SOURCES, Source
from cognate.evaluation.answers import final_number

Which = Literal["validation", "final"]

# Those whose test rows have answers. DROP's "test" is the rest of its validation file: the first 1,000 rows speak for it.
_TESTED: Final = frozenset({"gsm8k", "svamp", "mbpp", "arc_easy", "arc_challenge", "wikitext"})
_NUMBERS: Final = frozenset({"gsm8k", "svamp", "asdiv"})


@dataclass(frozen=True)
class Item:
    """One problem. `answer` is the training format's; the rest is what its dataset is judged by.

    candidates: answers to choose from, candidates[correct] the right one
    accepted:   DROP: the answers of several people, each a list of spans
    """

    prompt: str
    answer: str
    key: str
    candidates: tuple[str, ...] = ()
    correct: int = -1
    accepted: tuple[tuple[str, ...], ...] = ()
    tests: tuple[str, ...] = ()
    setup: str = ""


@dataclass(frozen=True)
class Items:
    """Held-out items of one dataset, and in words which rows they are."""

    name: DatasetName
    items: tuple[Item, ...]
    rows: str


def find_items(
    data_dir: Path | None,
    cache_dir: Path | None,
    name: DatasetName,
    which: Which,
    limit: int | None = None,
    known: Mapping[str, str] | None = None,
) -> Items:
    """As load_items(), from the data folder that a run would read the dataset from.

    known: the digests of the run whose model is asked: another copy may divide the rows otherwise, and its items be trained on
    """
    folder = files.home(data_dir, cache_dir, SOURCES[name], known)
    if folder is None and files.home(data_dir, cache_dir, SOURCES[name]) is not None:
        raise files.DataMissing(f"{name} is here in another copy than training had, and what that holds out may be trained on")
    folder = folder or data_dir
    if folder is None:
        raise files.DataMissing(f"{name} is in no data folder")
    return load_items(folder, name, which, limit)


def load_items(data_dir: Path, name: DatasetName, which: Which, limit: int | None = None) -> Items:
    """All items, or a fixed sample of `limit`. Raises DataMissing where a file is absent, and DataUnreadable."""
    source = SOURCES[name]
    if absent := files.missing_splits(data_dir, source):
        raise files.DataMissing(f"{source.folder} has no {', '.join(f'{split}.parquet' for split in absent)}")
    items, rows = _choose(data_dir, source, which)
    if limit is not None and limit < len(items):
        return Items(name, sample(items, name, limit), f"{limit} of the {len(items):,} {rows}")
    return Items(name, tuple(items), rows)


def sample(items: Sequence[Item], name: DatasetName, count: int) -> tuple[Item, ...]:
    """A fixed sample: by a hash of the dataset's name and the problem, so the same on every machine and in every run."""

    def rank(item: Item) -> bytes:
        return hashlib.sha256(f"{name}\0{item.key}\0{item.prompt}".encode()).digest()

    return tuple(sorted(items, key=rank)[:count])


def _choose(data_dir: Path, source: Source, which: Which) -> tuple[list[Item], str]:
    if which == "final" and source.name in _TESTED:
        return list(_read(data_dir, source, source.test)), "test rows"
    if source.held_out == "split":
        return list(_read(data_dir, source, source.validation)), "validation rows"
    if source.held_out == "rest":
        return list(_read(data_dir, source, source.train))[source.limit :], "validation rows that are not trained on"
    return list(_read(data_dir, source, source.train, is_held_out)), "rows kept aside (5 % by hash)"


def _read(data_dir: Path, source: Source, splits: tuple[str, ...], wants: Callable[[str], bool] = lambda _: True) -> Iterator[Item]:
    """The rows whose key is wanted; the others need not be fit for evaluation."""

    def make(row: Row) -> Item | None:
        return to_item(source.name, row) if is_usable(source.name, row) and wants(FORMATS[source.name](row).key) else None

    return files.read_rows(data_dir, source, splits, make)


# --- rows to items ----------------------------------------------------------------------------------------


def to_item(name: DatasetName, row: Row) -> Item:
    """The row as an item; its prompt and answer are those of its formatter. Raises ValueError where nothing could be measured by it."""
    example = FORMATS[name](row)
    item = Item(example.prompt, example.answer, example.key)
    if twins := _twins(name, row):
        others = [FORMATS[name](twin) for twin in twins]
        assert all(other.prompt == example.prompt for other in others), "what is right shows in the prompt"
        return _choice(example, others)
    if name in _NUMBERS and final_number(example.answer) is None:
        raise ValueError("no number stands behind ####")
    if name == "mbpp":
        return replace(item, tests=_tests(row["test_list"]), setup=row.get("test_setup_code") or "")
    if name == "drop":
        return replace(item, accepted=accepted_answers(row["answers_spans"]))
    if name == "strategyqa":  # the facts before it are for the model to find
        return replace(item, candidates=(" yes", " no"), correct=0 if row["answer"] else 1)
    return item


def _twins(name: DatasetName, row: Row) -> list[dict[str, Any]]:
    """The row once with each answer as the right one: formatted, they are the candidates."""
    if name in ("arc_easy", "arc_challenge"):
        return [{**row, "answerKey": label} for label in row["choices"]["label"]]
    if name == "hellaswag":
        return [{**row, "label": str(number)} for number in range(len(row["endings"]))]
    if name == "piqa":
        return [{**row, "label": number} for number in (0, 1)]
    if name == "boolq":
        return [{**row, "answer": answer} for answer in (True, False)]
    return []


def _choice(example: Example, others: Sequence[Example]) -> Item:
    candidates = tuple(other.answer for other in others)
    return Item(example.prompt, example.answer, example.key, candidates, candidates.index(example.answer))


def _tests(lines: Sequence[str]) -> tuple[str, ...]:
    """Without one, every program would pass."""
    if not lines:
        raise ValueError("there are no tests")
    for line in lines:
        sandbox.parse_test(line)
    return tuple(lines)


def accepted_answers(spans: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """What DROP accepts: each person's answer, and all the different spans as one list.

    The columns do not say which spans one person gave together, so a list in part by one and in part by another is accepted too.
    """
    texts = tuple(dict.fromkeys(str(text) for text in spans["spans"]))
    listed = tuple(dict.fromkeys(str(text) for text, kind in zip(spans["spans"], spans["types"], strict=True) if kind == "span"))
    return tuple((text,) for text in texts) + ((listed,) if len(listed) > 1 else ())
