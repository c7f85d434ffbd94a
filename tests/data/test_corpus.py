"""corpus.py, rows.py and files.py: what is loaded, what is left out, and that it is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from data_folders import row, small_config, spell, write_folder, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate.config import SIX_DATASETS, DatasetName, resolve
from cognate.data import files
from cognate.data.corpus import VALIDATION_DOCUMENTS, Corpus, Documents, load_corpus
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.rows import Rows, plan
from cognate.data.sources import SOURCES
from cognate.data.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 14 datasets; not changed by any test."""
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(small_config(), folder, None)


def texts(documents: Documents, tokenizer: Tokenizer) -> list[str]:
    return [tokenizer.decode(part.tolist()) for part in np.split(documents.ids, documents.offsets[1:-1])]


# --- what is loaded ---------------------------------------------------------------------------------------


def test_all_fourteen_are_loaded_in_the_order_of_the_table(corpus: Corpus) -> None:
    assert list(corpus.training) == list(corpus.validation) == list(SOURCES)
    assert corpus.missing == ()
    assert set(corpus.digests) == {f"{source.folder}/{split}.parquet" for source in SOURCES.values() for split in source.splits}


def test_a_document_is_prompt_answer_and_end(corpus: Corpus) -> None:
    documents = corpus.training["boolq"]
    assert texts(documents, corpus.tokenizer)[3] == "Ann ran.\nQuestion: did boolq train three?\nAnswer: no"
    assert (documents.ids[documents.offsets[1:] - 1] == corpus.tokenizer.end_id).all()
    assert (documents.ids == corpus.tokenizer.end_id).sum() == len(documents)
    assert documents.prompts[3] == len(corpus.tokenizer.encode("Ann ran.\nQuestion: did boolq train three?\nAnswer:"))
    assert not corpus.training["wikitext"].prompts.any()


def test_the_plan_counts_what_is_trained_on(corpus: Corpus) -> None:
    for part in corpus.curriculum.parts:
        assert part.trained == len(corpus.training[part.dataset]) > 0
        assert part.samples == 30
        assert min(part.validation, VALIDATION_DOCUMENTS) == len(corpus.validation[part.dataset])
    assert json.loads(json.dumps(corpus.curriculum.describe()))["stages"][2]["samples"] == 14 * 30


def test_half_of_codexglue_is_held_out_when_there_is_more_than_the_limit(tmp_path: Path) -> None:
    write_split(tmp_path, "codexglue", "validation", [row("codexglue", number, "validation") for number in range(1005)])
    write_split(tmp_path, "codexglue", "test", [row("codexglue", number, "test") | {"code": ""} for number in range(3)])
    (part,) = plan(small_config({"datasets": ["codexglue"]}).data, tmp_path).read().parts
    assert (part.samples, part.validation) == (1000, 5)


def test_only_the_first_5000_lines_that_are_not_empty_are_used(tmp_path: Path) -> None:
    lines = [{"text": "" if number % 2 else f" line {spell(number)} \n"} for number in range(10_100)]
    for split, rows in (("train", lines), ("validation", lines[1:3]), ("test", lines[1:2])):
        write_split(tmp_path, "wikitext", split, rows)
    rows = plan(small_config({"datasets": ["wikitext"]}).data, tmp_path).read()
    assert rows.parts[0].samples == 5000
    assert [example.answer for example in rows.training["wikitext"]][-1] == f"line {spell(9998)}"


def test_named_datasets_only_are_loaded(folder: Path) -> None:
    corpus = load_corpus(small_config({"datasets": list(SIX_DATASETS)}), folder, None)
    assert set(corpus.training) == set(SIX_DATASETS)
    assert [corpus.curriculum.samples(stage) for stage in (1, 2, 3)] == [150, 180, 180]


def test_nothing_depends_on_the_seed_of_the_run(folder: Path, corpus: Corpus) -> None:
    """Three specialists with three seeds are compared on the same text, with the same tokens."""
    other = load_corpus(small_config().model_copy(update={"seed": 99}), folder, None)
    assert other.tokenizer.digest == corpus.tokenizer.digest
    assert np.array_equal(other.training["gsm8k"].ids, corpus.training["gsm8k"].ids)
    assert np.array_equal(other.validation["gsm8k"].ids, corpus.validation["gsm8k"].ids)


def test_a_checkpoints_tokenizer_is_used_as_it_is(folder: Path) -> None:
    own = Tokenizer.train(["something else entirely"], 290)
    corpus = load_corpus(small_config(), folder, None, own)
    assert corpus.tokenizer is own
    assert "boolq train three" in texts(corpus.training["boolq"], own)[3]


def test_the_tokenizer_learns_from_training_text_only(folder: Path, corpus: Corpus, tmp_path: Path) -> None:
    """Other evaluation rows, same tokenizer: nothing of them was looked at."""
    write_folder(tmp_path)
    write_split(tmp_path, "boolq", "validation", [{"passage": "Zyzzyx " * 50, "question": f"zyzzyx {n}", "answer": True} for n in range(9)])
    assert load_corpus(small_config(), tmp_path, None).tokenizer.digest == corpus.tokenizer.digest


# --- what is left out, and said ---------------------------------------------------------------------------


def test_merged_digits_are_another_tokenizer_of_the_same_text(folder: Path, tmp_path: Path) -> None:
    """Kept apart in the cache, or whoever asks second would get the other's."""
    single, merged = (load_corpus(small_config({"digits": digits}), folder, tmp_path) for digits in ("single", "merged"))
    assert single.tokenizer.digest != merged.tokenizer.digest
    assert texts(single.training["gsm8k"], single.tokenizer) == texts(merged.training["gsm8k"], merged.tokenizer)


def test_a_missing_dataset_is_left_out_and_named(tmp_path: Path) -> None:
    names: list[DatasetName] = [name for name in SOURCES if name not in ("drop", "hotpotqa")]
    corpus = load_corpus(small_config(), write_folder(tmp_path, names), None)
    assert list(corpus.training) == names
    assert corpus.missing == ("hotpotqa", "drop")
    assert corpus.warnings[:2] == (
        "hotpotqa is not in the data folder (hotpot_qa) and is left out",
        "drop is not in the data folder (drop) and is left out",
    )


def test_an_incomplete_dataset_is_left_out_and_its_file_named(tmp_path: Path) -> None:
    """Without its test rows nothing would keep them out of the training text."""
    write_folder(tmp_path, ["gsm8k", "boolq"])
    (tmp_path / "gsm8k" / "test.parquet").unlink()
    corpus = load_corpus(small_config({"datasets": ["gsm8k", "boolq"]}), tmp_path, None)
    assert corpus.missing == ("gsm8k",)
    assert "gsm8k is incomplete (gsm8k has no test.parquet) and is left out" in corpus.warnings


def test_warnings_never_hold_a_path_of_the_machine(tmp_path: Path) -> None:
    corpus = load_corpus(small_config(), write_folder(tmp_path, ["boolq"]), tmp_path / "cache")
    assert corpus.warnings
    assert not any(str(tmp_path) in warning for warning in corpus.warnings)


def test_an_empty_stage_is_said(tmp_path: Path) -> None:
    corpus = load_corpus(small_config(), write_folder(tmp_path, ["boolq", "drop"]), None)
    assert "no dataset of stage 1 is available; its epochs use those of stage 2" in corpus.warnings


def test_a_vocabulary_that_stays_partly_unused_is_said(folder: Path) -> None:
    corpus = load_corpus(resolve("quickstart", {"model": {"vocab_size": 5000}}), folder, None)
    unused = 5000 - corpus.tokenizer.vocab_size
    assert any(f"{unused:,} of the vocabulary stay unused" in warning for warning in corpus.warnings)


@pytest.mark.parametrize(
    ("data", "has_folder", "message"),
    [
        ({"datasets": ["drop"]}, True, "none of drop is in the data folder"),
        ({}, True, "none of gsm8k, svamp"),
        ({"source": "real"}, False, "set COGNATE_DATA_DIR"),
        ({"datasets": ["drop"]}, False, "set COGNATE_DATA_DIR"),
    ],
)
def test_nothing_to_train_on_is_refused_with_the_way_out(tmp_path: Path, data: dict[str, Any], has_folder: bool, message: str) -> None:
    """Datasets that were asked for by name are never replaced by generated problems."""
    with pytest.raises(DataMissing, match=message):
        load_corpus(small_config(data), tmp_path if has_folder else None, None)


def test_a_data_folder_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match="does not exist"):
        load_corpus(small_config(), tmp_path / "nowhere", None)


def test_a_dataset_that_is_nothing_but_duplicates_is_refused(tmp_path: Path) -> None:
    for split in ("train", "validation"):
        write_split(tmp_path, "boolq", split, [row("boolq", number) for number in range(3)])
    with pytest.raises(DataMissing, match="nothing is left to train on"):
        load_corpus(small_config({"datasets": ["boolq"]}), tmp_path, None)


def _truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-20])


def _rename_column(file: Path) -> None:
    write_split(file.parent.parent, "boolq", file.stem, [{"query": "x", "passage": "y", "answer": True}])


def _null_value(file: Path) -> None:
    write_split(file.parent.parent, "boolq", file.stem, [row("boolq", 1), {"question": "x", "passage": None, "answer": True}])


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "boolq/{split}.parquet cannot be read"),
        (_rename_column, "row 0 of boolq/{split}.parquet does not look like google/boolq: KeyError 'question'"),
        (_null_value, "row 1 of boolq/{split}.parquet does not look like google/boolq: ValueError passage is null"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str, split: str) -> None:
    write_folder(tmp_path, ["boolq"])
    damage(tmp_path / "boolq" / f"{split}.parquet")
    with pytest.raises(DataUnreadable, match=message.format(split=split)):
        load_corpus(small_config(), tmp_path, None)


# --- generated problems -----------------------------------------------------------------------------------


def test_without_a_folder_generated_problems_are_used_and_the_curriculum_names_them() -> None:
    corpus = load_corpus(small_config(), None, None)
    assert set(corpus.training) == {"arithmetic", "functions"}
    assert [part["dataset"] for part in corpus.curriculum.describe()["datasets"]] == ["arithmetic", "functions"]
    assert corpus.curriculum.samples(1) == 200


def test_asked_for_generated_problems_need_no_word(folder: Path) -> None:
    corpus = load_corpus(small_config({"source": "synthetic"}), folder, None)
    assert set(corpus.training) == {"arithmetic", "functions"}
    assert not any("folder" in warning for warning in corpus.warnings)


def test_datasets_that_generated_problems_replace_are_named() -> None:
    corpus = load_corpus(small_config({"source": "synthetic", "datasets": ["drop"]}), None, None)
    assert "data.source is 'synthetic', so drop are not used" in corpus.warnings


# --- no evaluation item is trained on ---------------------------------------------------------------------

# Few words, so that train, test and other datasets often hold the same text, laid out differently.
_TEXTS = st.lists(st.lists(st.sampled_from(["a", "B", "b!", " c"]), min_size=1, max_size=2).map(" ".join), min_size=1, max_size=8)
_COLUMNS: dict[str, Callable[[str], dict[str, Any]]] = {
    "gsm8k": lambda text: {"question": text, "answer": "1\n#### 1"},
    "svamp": lambda text: {"question_concat": text, "Equation": "( 1.0 + 0.0 )", "Answer": "1"},
    "asdiv": lambda text: {"body": text, "question": "", "answer": "1 (fig)", "formula": "1=1"},
    "wikitext": lambda text: {"text": f" {text} \n"},
}


def evaluation_keys(data_dir: Path, rows: Rows) -> set[str]:
    """The keys of every evaluation file, read again, and of everything the plan itself holds out."""
    keys = {example.key for examples in rows.validation.values() for example in examples}
    for source in SOURCES.values():
        keys.update(example.key for example in files.read_every(data_dir, source, source.evaluation))
    return keys


@settings(max_examples=30, deadline=None)
@given(st.fixed_dictionaries({(name, split): _TEXTS for name in ("gsm8k", "svamp", "asdiv", "wikitext") for split in SOURCES[name].splits}))
def test_no_evaluation_item_of_any_dataset_is_trained_on(texts: dict[tuple[DatasetName, str], list[str]]) -> None:
    with TemporaryDirectory() as name:
        for (dataset, split), lines in texts.items():
            write_split(Path(name), dataset, split, [_COLUMNS[dataset](line) for line in lines])
        rows = plan(small_config().data, Path(name)).read()
        keys = evaluation_keys(Path(name), rows)
    for part in rows.parts:
        trained = rows.training[part.dataset]
        assert not {example.key for example in trained} & keys
        assert part.trained == len(trained)


def test_a_row_that_another_dataset_holds_out_is_not_trained_on(tmp_path: Path) -> None:
    """ASDiv and SVAMP share problems; what is held out in the one must not be learned in the other, chosen or not."""
    write_folder(tmp_path, ["svamp"], n_train=60)
    every = plan(small_config({"datasets": ["svamp"]}).data, tmp_path).read()
    held_out = every.validation["svamp"][0].identity
    write_split(tmp_path, "gsm8k", "test", [row("gsm8k", 1, "test")])
    write_split(tmp_path, "gsm8k", "train", [row("gsm8k", 1), {"question": held_out.upper(), "answer": "#### 1"}])
    # The text's own hash keeps it out of gsm8k too, so ask it of a dataset with a validation split.
    write_split(tmp_path, "boolq", "train", [row("boolq", 1), {"question": held_out, "passage": "", "answer": True}])
    write_split(tmp_path, "boolq", "validation", [row("boolq", 1, "validation")])
    rows = plan(small_config({"datasets": ["boolq"]}).data, tmp_path).read()
    assert (rows.parts[0].samples, rows.parts[0].duplicates) == (2, 1)


def test_evaluation_rows_of_an_incomplete_dataset_still_count(tmp_path: Path) -> None:
    write_folder(tmp_path, ["arc_easy"])
    write_split(tmp_path, "arc_challenge", "test", [row("arc_easy", 2)])
    corpus = load_corpus(small_config(), tmp_path, None)
    assert corpus.curriculum.parts[0].duplicates == 1
