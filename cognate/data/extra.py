"""The user's own data: files in the folder `extra` of a data folder, named in a configuration's data.extra.

    <data folder>/extra/NAME.jsonl      one object a line, with texts for "prompt" and "answer"
    <data folder>/extra/NAME.parquet    the same as two columns

The prompt may be empty: then the answer is a text to continue, as wikitext's lines are. A row that is not like that is
left out and counted. A configuration names files and never paths (cognate/config.py has the pattern).
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from cognate.config import EXTRA_NAME
from cognate.data.curriculum import HELD_OUT_SHARE
from cognate.data.files import DataUnreadable
from cognate.data.formats import Example, words
from cognate.data.sources import Stage
from cognate.rundir import file_digest

FOLDER: Final = "extra"
_SUFFIXES: Final = (".jsonl", ".parquet")
_HALF: Final = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can name one, no text has one


@dataclass(frozen=True)
class Extra:
    """One file that is there."""

    name: str  # of its part in the curriculum
    stage: Stage
    file: Path
    digest: str

    @property
    def path(self) -> str:
        """Inside the data folder."""
        return f"{FOLDER}/{self.file.name}"


def parse(entry: str) -> tuple[str, Stage]:
    """ "notes" is of stage 1, "notes:3" of stage 3."""
    name, _, stage = entry.partition(":")
    stages: dict[str, Stage] = {"": 1, "1": 1, "2": 2, "3": 3}
    return name, stages[stage]


def part_name(entry: str) -> str:
    """What the entry is called in the curriculum."""
    return f"{FOLDER}/{parse(entry)[0]}"


def find(entry: str, folders: Iterable[Path]) -> Extra | None:
    """The entry's file in the first data folder that has it."""
    name, stage = parse(entry)
    candidates = (folder / FOLDER / f"{name}{suffix}" for folder in folders for suffix in _SUFFIXES)
    file = next((file for file in candidates if file.is_file()), None)
    return None if file is None else Extra(part_name(entry), stage, file, file_digest(file))


def list_all(folders: Iterable[Path]) -> list[Extra]:
    """Every file that a configuration could name."""
    candidates = list(folders)
    names = {file.stem for folder in candidates for file in (folder / FOLDER).glob("*") if file.suffix in _SUFFIXES}
    found = [find(name, candidates) for name in sorted(names) if re.fullmatch(EXTRA_NAME, name)]
    return [each for each in found if each is not None]


def read(extra: Extra) -> tuple[list[Example], int]:
    """The samples, and how many rows are none. Raises DataUnreadable."""
    rows = _lines(extra.file) if extra.file.suffix == ".jsonl" else _table(extra)
    examples = [_example(row) for row in rows]
    samples = [example for example in examples if example is not None]
    return _told_apart(samples), len(examples) - len(samples)


def equals_one(example: Example, items: Collection[str]) -> bool:
    """Whether the row is an evaluation item as a whole, with its answer or without. items: their keys, and by texts_of()"""
    texts = (words(example.prompt), words(example.prompt + example.answer))
    return any(text in items for text in texts if text)


def texts_of(examples: Iterable[Example]) -> Iterator[str]:
    """How evaluation items may stand in somebody's own file, besides as the bare question, which is their key."""
    for example in examples:
        whole = words(example.prompt + example.answer)
        prompt = words(example.prompt) if example.key != whole else ""  # else a prompt that other rows have as well
        yield from filter(None, (prompt, whole))


def _told_apart(samples: list[Example]) -> list[Example]:
    """With the answer in the key where more rows share a prompt than may be held out: it is a frame, such as "User:", and no problem.

    Fewer rows stay one problem with several answers, of which none may be trained on while another is held out.
    """
    shared = Counter(example.key for example in samples)
    most = HELD_OUT_SHARE * len(samples)
    return [
        replace(example, identity=example.prompt + example.answer) if 1 < shared[example.key] > most else example for example in samples
    ]


def _lines(file: Path) -> Iterator[Any]:
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")  # not splitlines, which knows ends of lines that JSON does not
    except (OSError, UnicodeDecodeError) as error:
        raise DataUnreadable(f"{FOLDER}/{file.name} cannot be read: {error}") from error
    for line in lines:
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError:
                yield None


def _table(extra: Extra) -> Sequence[Any]:
    try:
        rows: Sequence[Any] = pq.read_table(extra.file).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataUnreadable(f"{extra.path} cannot be read: {error}") from error
    return rows


def _example(row: Any) -> Example | None:
    prompt, answer = (row.get("prompt"), row.get("answer")) if isinstance(row, dict) else (None, None)
    if not isinstance(prompt, str) or not isinstance(answer, str) or not answer.strip() or _HALF.search(prompt + answer):
        return None
    if prompt and not prompt[-1].isspace() and not answer[0].isspace():
        answer = f" {answer}"  # as all answers begin (formats.py)
    return Example(prompt, answer, prompt if words(prompt) else answer)
