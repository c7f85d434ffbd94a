"""Evaluation items: held-out rows as problems to answer, in exactly the prompts of training (cognate/data/formats.py).

Two sets of every dataset, neither ever trained on:
    validation  what training looks at: the official validation rows, or the fixed 5 % (rows.py keeps the same ones aside)
    final       what is reported at the end: the official test rows where they have answers, else the validation rows
So the test rows of GSM8K, SVAMP, MBPP, ARC and WikiText play no part in choosing anything.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from cognate.config import DatasetName
from cognate.data import files
from cognate.data.curriculum import is_held_out
from cognate.data.files import DataUnreadable
from cognate.data.formats import FORMATS, Example, is_usable
from cognate.data.sources import SOURCES, Source

Which = Literal["validation", "final"]

# Those whose test rows have answers. DROP's "test" is the rest of its validation file: the first 1,000 rows speak for it.
_TESTED: Final = frozenset({"gsm8k", "svamp", "mbpp", "arc_easy", "arc_challenge", "wikitext"})


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


def find_items(data_dir: Path | None, cache_dir: Path | None, name: DatasetName, which: Which, limit: int | None = None) -> Items:
    """As load_items(), from the data folder that a run would read the dataset from."""
    folder = files.home(data_dir, cache_dir, SOURCES[name]) or data_dir
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
    items = list(_read(data_dir, source, source.train))
    if source.held_out == "rest":
        return items[source.limit :], "validation rows that are not trained on"
    return [item for item in items[: source.limit] if is_held_out(item.key)], "rows kept aside (5 % by hash)"


def _read(data_dir: Path, source: Source, splits: tuple[str, ...]) -> Iterator[Item]:
    for split in splits:
        try:
            table = pq.read_table(files.split_file(data_dir, source, split)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise DataUnreadable(f"{source.folder}/{split}.parquet cannot be read: {error}") from error
        for number, row in enumerate(table):
            try:
                if is_usable(source.name, row):
                    yield to_item(source.name, row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                where = f"row {number} of {source.folder}/{split}.parquet"
                raise DataUnreadable(f"{where} does not look like {source.hub}: {type(error).__name__} {error}") from error


# --- rows to items ----------------------------------------------------------------------------------------


def to_item(name: DatasetName, row: Mapping[str, Any]) -> Item:
    """The row as an item; its prompt and answer are those of its formatter."""
    example = FORMATS[name](row)
    item = Item(example.prompt, example.answer, example.key)
    if twins := _twins(name, row):
        others = [FORMATS[name](twin) for twin in twins]
        assert all(other.prompt == example.prompt for other in others), "what is right shows in the prompt"
        return _choice(example, others)
    if name == "mbpp":
        return Item(**vars(item) | {"tests": tuple(row["test_list"]), "setup": row.get("test_setup_code") or ""})
    if name == "drop":
        return Item(**vars(item) | {"accepted": accepted_answers(row["answers_spans"])})
    if name == "strategyqa":  # the facts before it are for the model to find
        return Item(**vars(item) | {"candidates": (" yes", " no"), "correct": 0 if row["answer"] else 1})
    return item


def _twins(name: DatasetName, row: Mapping[str, Any]) -> list[dict[str, Any]]:
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


def accepted_answers(spans: Mapping[str, Any]) -> tuple[tuple[str, ...], ...]:
    """What DROP accepts: each person's answer, and all the different spans as one list.

    The columns do not say which spans one person gave together, so a list in part by one and in part by another is accepted too.
    """
    texts = tuple(dict.fromkeys(str(text) for text in spans["spans"]))
    listed = tuple(dict.fromkeys(str(text) for text, kind in zip(spans["spans"], spans["types"], strict=True) if kind == "span"))
    return tuple((text,) for text in texts) + ((listed,) if len(listed) > 1 else ())
