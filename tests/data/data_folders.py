"""Data folders for tests: a few rows of every dataset, in the hub's column layout."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cognate.config import DatasetName, RunConfig, resolve
from cognate.data.sources import SOURCES

Rows = list[dict[str, Any]]
SPOKEN = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def spell(number: int) -> str:
    """A number as words, so that rows differ by more than digits."""
    return " ".join(SPOKEN[int(digit)] for digit in str(number))


def row(name: DatasetName, number: int, split: str = "train") -> dict[str, Any]:
    """Row `number` of a split: its text is like that of no other row, split or dataset."""
    what = f"{name} {split} {spell(number)}"
    choices = {"text": [f"{what} yes", f"{what} no"], "label": ["A", "B"]}
    rows: dict[DatasetName, dict[str, Any]] = {
        "gsm8k": {"question": f"How many are {what}?", "answer": f"There are <<{number}+1={number + 1}>>{number + 1}.\n#### {number + 1}"},
        "svamp": {"question_concat": f"Count {what}.", "Equation": f"( {number}.0 + 1.0 )", "Answer": str(number + 1)},
        "asdiv": {"body": f"Here is {what}.", "question": "How many?", "answer": f"{number} (figs)", "formula": f"{number}+0={number}"},
        "mbpp": {
            "text": f"Write {what}.",
            "code": f"def f():\r\n    return {number}",
            "test_list": [f"assert f() == {number}"],
            "test_setup_code": "",
        },
        "codexglue": {
            "nl": f"{what} concode_field_sep int n concode_field_sep void f",
            "code": f"int function ( ) {{ return {number} ; }}",
        },
        "arc_easy": {"question": f"Which {what}?", "choices": choices, "answerKey": "B"},
        "arc_challenge": {"question": f"Why {what}?", "choices": choices, "answerKey": "A"},
        "hotpotqa": {
            "question": f"Who {what}?",
            "answer": "Ann",
            "supporting_facts": {"title": ["T"], "sent_id": [0]},
            "context": {"title": ["T", "U"], "sentences": [["Ann is here.", " She is."], ["No one."]]},
        },
        "drop": {"passage": "Ann ran.", "question": f"Who ran {what}?", "answers_spans": {"spans": ["Ann"], "types": ["span"]}},
        "strategyqa": {"question": f"Is {what}?", "answer": True, "facts": ["It is.", "Indeed."]},
        "piqa": {"goal": f"do {what}", "sol1": "heat it", "sol2": "freeze it", "label": 1},
        "hellaswag": {"activity_label": "Cooking", "ctx": f"A cook in {what}. he", "endings": ["eats.", "flies."], "label": "0"},
        "boolq": {"passage": "Ann ran.", "question": f"did {what}", "answer": False},
        "wikitext": {"text": f" A line on {what} . \n"},
    }
    return rows[name]


def write_split(data_dir: Path, name: DatasetName, split: str, rows: Rows) -> None:
    folder = data_dir / SOURCES[name].folder
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")


def write_folder(data_dir: Path, names: Collection[DatasetName] = tuple(SOURCES), n_train: int = 30, n_other: int = 4) -> Path:
    """A data folder with `n_train` rows to train on and `n_other` rows in every other split of the named datasets."""
    for name in names:
        for split in SOURCES[name].splits:
            count = n_train if split in SOURCES[name].train else n_other
            write_split(data_dir, name, split, [row(name, number, split) for number in range(count)])
    return data_dir


def small_config(overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """A run with a vocabulary that small texts can fill."""
    data = {"synthetic_problems": 200}
    return resolve("quickstart", {"model": {"vocab_size": 300}, "data": data | dict(overrides or {})})
