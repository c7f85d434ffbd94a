"""extra.py: the user's own data in the curriculum, and what is left out of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data_folders import row, small_config, write_folder, write_split

from cognate.config import ConfigError
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.curriculum import is_held_out
from cognate.data.extra import Extra, find, parse, read
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.formats import FORMATS, words
from cognate.data.report import own_samples_of, status

GOOD = [{"prompt": f"Say {n}.", "answer": f"{n}!"} for n in range(100)]


def write_lines(data_dir: Path, name: str, rows: list[Any]) -> None:
    (data_dir / "extra").mkdir(parents=True, exist_ok=True)
    lines = [each if isinstance(each, str) else json.dumps(each) for each in rows]
    (data_dir / "extra" / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_table(data_dir: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (data_dir / "extra").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), data_dir / "extra" / f"{name}.parquet")


def trained(corpus: Corpus, name: str) -> list[str]:
    documents = corpus.training[name]
    return [corpus.tokenizer.decode(ids.tolist()) for ids in np.split(documents.ids, documents.offsets[1:-1])]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", ["gsm8k", "boolq", "drop"])


@pytest.mark.parametrize("write", [write_lines, write_table])
def test_it_joins_the_curriculum_from_its_stage(folder: Path, write: Any) -> None:
    write(folder, "mine", GOOD)
    corpus = load_corpus(small_config({"extra": ["mine:2"]}), folder, None)
    described = corpus.curriculum.describe()
    assert [stage["datasets"] for stage in described["stages"]] == [
        ["gsm8k"],
        ["gsm8k", "boolq", "extra/mine"],
        ["gsm8k", "drop", "boolq", "extra/mine"],
    ]
    (part,) = [each for each in described["datasets"] if each["dataset"] == "extra/mine"]
    held_out = sum(is_held_out(words(each["prompt"])) for each in GOOD)
    assert held_out > 0
    assert part == {
        "dataset": "extra/mine", "category": "extra", "stage": 2, "samples": 100, "held_out": held_out, "duplicates": 0,
        "validation": held_out, "malformed": 0, "augmented": 0, "trained": 100 - held_out,
    }  # fmt: skip
    assert len(corpus.validation["extra/mine"]) == held_out
    assert "Say 1. 1!" in trained(corpus, "extra/mine")


def test_it_can_be_all_there_is(tmp_path: Path) -> None:
    write_lines(tmp_path / "datasets", "mine", GOOD)
    corpus = load_corpus(small_config({"extra": ["mine"]}), None, tmp_path)
    assert list(corpus.training) == ["extra/mine"]
    with pytest.raises(DataMissing, match=r"none of .*extra/other is in the data folder"):
        load_corpus(small_config({"extra": ["other"]}), None, tmp_path)


def test_rows_that_are_no_samples_are_left_out_and_counted(folder: Path) -> None:
    bad = ["{", "[]", {"prompt": "x"}, {"answer": "x"}, {"prompt": 1, "answer": "x"}, {"prompt": "x", "answer": None}]
    bad += [{"prompt": "x", "answer": "  "}, '{"prompt": "x", "answer": "\\ud800"}', '"text"']
    write_lines(folder, "mine", [*GOOD, "", *bad, {"prompt": "", "answer": "Only text."}])
    for cache in (None, folder / "cache", folder / "cache"):  # the third time from the cache
        corpus = load_corpus(small_config({"extra": ["mine"]}), folder, cache)
        assert "extra/mine: 9 of 110 rows are left out, for prompt or answer is no text" in corpus.warnings
    assert "Only text." in trained(corpus, "extra/mine")


def test_lines_are_those_of_json(tmp_path: Path) -> None:
    """Not those of str.splitlines(), which ends a line within a text at U+2028."""
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra" / "mine.jsonl").write_bytes(
        b"\xef\xbb\xbf" + '{"prompt": "a\u2028b", "answer": " c"}\r\n{"prompt": "d\\n", "answer": "e"}'.encode()
    )
    extra = find("mine", [tmp_path])
    assert extra is not None
    samples, malformed = read(extra)
    assert ([sample.prompt + sample.answer for sample in samples], malformed) == (["a\u2028b c", "d\ne"], 0)


def test_a_file_that_is_missing_is_said(folder: Path) -> None:
    corpus = load_corpus(small_config({"extra": ["mine"]}), folder, None)
    assert "extra/mine" in corpus.missing
    assert "extra/mine has no .jsonl or .parquet file in the data folder and is left out" in corpus.warnings


@pytest.mark.parametrize(("name", "content"), [("mine.jsonl", b"\xff\xfe"), ("mine.parquet", b"PAR1")])
def test_a_file_that_cannot_be_read_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / "extra").mkdir()
    (folder / "extra" / name).write_bytes(content)
    with pytest.raises(DataUnreadable, match=f"extra/{name} cannot be read"):
        load_corpus(small_config({"extra": ["mine"]}), folder, None)
    assert status(folder, None)["extra"][0]["damage"].startswith(f"extra/{name} cannot be read")


def test_generated_problems_do_not_replace_it(folder: Path) -> None:
    assert (
        "data.source is 'synthetic', so extra/mine are not used"
        in load_corpus(small_config({"source": "synthetic", "extra": ["mine:2"]}), folder, None).warnings
    )


def test_evaluation_items_in_it_are_not_trained_on(folder: Path) -> None:
    """As the bare question, in the prompt of training, as one text with the answer, or in other letters."""
    (item,) = [FORMATS["gsm8k"](row("gsm8k", 2, "test"))]
    write_lines(
        folder,
        "mine",
        [
            {"prompt": item.identity, "answer": "3"},
            {"prompt": item.prompt, "answer": "whatever"},
            {"prompt": "", "answer": item.prompt + item.answer},
            {"prompt": item.identity.upper() + "?!", "answer": "x"},
            {"prompt": "Innocent.", "answer": "x"},
        ],
    )
    corpus = load_corpus(small_config({"extra": ["mine"]}), folder, None)
    assert trained(corpus, "extra/mine") == ["Innocent. x"]
    assert corpus.curriculum.parts[-1].duplicates == 4


@pytest.mark.parametrize("prompt", ["User:", "Text:", ""])
def test_rows_of_one_prompt_are_told_apart_by_their_answers(folder: Path, prompt: str) -> None:
    """By the prompt alone all of them were held out, or none."""
    write_lines(folder, "mine", [{"prompt": prompt, "answer": f"Line {n}."} for n in range(200)])
    part = load_corpus(small_config({"extra": ["mine"]}), folder, None).curriculum.parts[-1]
    assert (part.samples, part.duplicates) == (200, 0)
    assert 0 < part.held_out < 25


def test_several_answers_of_one_problem_are_held_out_together(folder: Path) -> None:
    """Else the problem would be trained on with one of them, and validated with another."""
    write_lines(folder, "mine", [{"prompt": f"Say {n}.", "answer": f"{n}{end}"} for n in range(100) for end in "!?"])
    extra = find("mine", [folder])
    assert extra is not None
    assert {sample.key for sample in read(extra)[0]} == {f"say {n}" for n in range(100)}


def test_an_evaluation_item_that_fills_a_file_is_not_trained_on(folder: Path) -> None:
    """As the bare question, once with each of many answers; nothing is left then, and that is said."""
    (item,) = [FORMATS["gsm8k"](row("gsm8k", 2, "test"))]
    write_lines(folder, "mine", [{"prompt": item.identity, "answer": f"{n}"} for n in range(40)])
    corpus = load_corpus(small_config({"extra": ["mine"]}), folder, None)
    part = corpus.curriculum.parts[-1]
    assert part.trained == 0
    assert (
        f"extra/mine: nothing of it is trained on; of its 40 rows {part.held_out} are held out, and {part.duplicates} equal an "
        in " ".join(corpus.warnings)
    )


def test_what_it_holds_out_is_trained_on_nowhere(folder: Path) -> None:
    held_out = next(f"is it {n}" for n in range(100) if is_held_out(words(f"is it {n}")))
    write_lines(folder, "mine", [*GOOD, {"prompt": held_out, "answer": "yes"}])
    # boolq's key is its question; it has a validation split, so the hash alone keeps nothing out of it
    write_split(folder, "boolq", "train", [row("boolq", 1), {"question": held_out, "passage": "p", "answer": True}])
    assert load_corpus(small_config(), folder, None).curriculum.parts[-1].duplicates == 0
    parts = {part.dataset: part for part in load_corpus(small_config({"extra": ["mine"]}), folder, None).curriculum.parts}
    assert parts["boolq"].duplicates == 1


def test_a_run_is_bound_to_it_by_the_fingerprint(folder: Path) -> None:
    write_lines(folder, "mine", GOOD)
    config = small_config({"extra": ["mine"]})
    first = load_corpus(config, folder, folder / "cache")
    assert first.fingerprint != load_corpus(small_config(), folder, folder / "cache").fingerprint
    assert "extra/mine.jsonl" in first.digests
    write_lines(folder, "mine", GOOD[50:])
    assert load_corpus(config, folder, folder / "cache").fingerprint != first.fingerprint


@pytest.mark.parametrize("entry", ["../x", "a/b", "", ".x", "X", "1", "a.jsonl", "a:4", "a:", "a" * 49, "a\n", "extra/mine"])
def test_a_name_is_never_a_path(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.extra"):
        small_config({"extra": [entry]})


def test_a_file_is_named_once() -> None:
    with pytest.raises(ConfigError, match="names a file twice"):
        small_config({"extra": ["mine", "mine:2"]})
    assert [parse(entry) for entry in ("a", "a:1", "b-2:3")] == [("a", 1), ("a", 1), ("b-2", 3)]


def test_it_is_listed_and_can_be_looked_at(folder: Path) -> None:
    write_lines(folder, "mine", [*GOOD, "{"])
    write_lines(folder, "No.name", GOOD)
    (found,) = status(folder, None)["extra"]
    assert (found["name"], found["samples"], found["malformed"], found["damage"]) == ("extra/mine", 100, 1, None)
    uses = [use for use, _ in own_samples_of(folder, None, "extra/mine", 2)]
    assert uses == ["training"] * 2 + ["held out"] * 2
    assert isinstance(find("mine", [folder]), Extra)
