"""Two data folders, one's own and the fetched one: where each dataset is read from, and that a run that goes on is not disturbed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from data_folders import row, small_config, write_folder, write_split

from cognate.config import DatasetName
from cognate.data import files
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.files import DataMissing
from cognate.data.report import describe_sources
from cognate.data.sources import SOURCES

MARK = "other"  # in the text of every row of the fetched folder


@pytest.fixture
def own(tmp_path: Path) -> Path:
    return tmp_path / "own"


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def fetched(cache: Path, *names: DatasetName) -> None:
    """As if it had been fetched: other rows than write_folder() writes."""
    for name in names:
        for split in SOURCES[name].splits:
            write_split(cache / "datasets", name, split, [row(name, number, f"{split} {MARK}") for number in range(30)])


def origins(own: Path | None, cache: Path | None) -> dict[str, str]:
    return {each.name: each.origin for each in describe_sources(own, cache) if each.origin is not None}


def is_fetched(corpus: Corpus, name: str) -> bool:
    return MARK in corpus.tokenizer.decode(corpus.training[name].ids.tolist())


def test_each_dataset_is_read_from_the_first_folder_in_which_it_is_whole(own: Path, cache: Path) -> None:
    write_folder(own, ["boolq", "gsm8k", "piqa"])
    fetched(cache, "boolq", "gsm8k", "svamp")
    (own / "gsm8k" / "test.parquet").unlink()
    assert origins(own, cache) == {"boolq": "local", "gsm8k": "fetched", "piqa": "local", "svamp": "fetched"}
    corpus = load_corpus(small_config(), own, cache)
    assert {name: is_fetched(corpus, name) for name in corpus.training} == {"gsm8k": True, "svamp": True, "piqa": False, "boolq": False}


def test_one_dataset_is_never_put_together_from_both(own: Path, cache: Path) -> None:
    """Half of it from here and half from there could hold the same problem on both sides."""
    write_folder(own, ["gsm8k", "boolq"])
    fetched(cache, "gsm8k")
    (own / "gsm8k" / "test.parquet").unlink()
    (cache / "datasets" / "gsm8k" / "train.parquet").unlink()
    assert origins(own, cache) == {"boolq": "local"}
    assert load_corpus(small_config(), own, cache).missing[0] == "gsm8k"


def test_without_a_folder_of_ones_own_what_was_fetched_is_used(cache: Path) -> None:
    """Also by a preset that would make do with generated problems."""
    assert set(load_corpus(small_config(), None, cache).training) == {"arithmetic", "functions"}
    fetched(cache, "svamp")
    assert set(load_corpus(small_config(), None, cache).training) == {"svamp"}
    assert set(load_corpus(small_config({"source": "real"}), None, cache).training) == {"svamp"}
    assert set(load_corpus(small_config({"source": "synthetic"}), None, cache).training) == {"arithmetic", "functions"}
    with pytest.raises(DataMissing, match="cognate data fetch"):
        load_corpus(small_config({"datasets": ["drop"]}), None, cache)


def test_the_cache_keeps_the_two_apart(own: Path, cache: Path) -> None:
    """A token cache that took one folder's rows for the other's would train on what nobody named."""
    write_folder(own, ["svamp"])
    first = load_corpus(small_config(), own, cache)
    fetched(cache, "svamp")
    assert load_corpus(small_config(), own, cache).fingerprint == first.fingerprint
    second = load_corpus(small_config(), None, cache)
    assert second.fingerprint != first.fingerprint
    assert is_fetched(second, "svamp")


def test_the_same_files_are_the_same_data_wherever_they_lie(own: Path, cache: Path, tmp_path: Path) -> None:
    fetched(cache, "svamp", "boolq")
    here = load_corpus(small_config(), None, cache)
    shutil.copytree(cache / "datasets", own)
    there = load_corpus(small_config(), own, tmp_path / "empty")
    assert (there.fingerprint, there.digests) == (here.fingerprint, here.digests)


# --- a run that goes on -----------------------------------------------------------------------------------


def gone_on(began: Corpus, own: Path | None, cache: Path) -> Corpus:
    return load_corpus(small_config(), own, cache, began.tokenizer, began.digests)


def test_what_is_fetched_meanwhile_does_not_change_a_run(own: Path, cache: Path) -> None:
    """Neither as training text, nor by evaluation items that equal rows the run is trained on."""
    write_folder(own, ["svamp"])
    began = load_corpus(small_config(), own, cache)
    fetched(cache, "boolq", "svamp")
    write_split(cache / "datasets", "gsm8k", "test", [{"question": "Count svamp train three.", "answer": "1\n#### 1"}])
    assert load_corpus(small_config(), own, cache).fingerprint != began.fingerprint
    later = gone_on(began, own, cache)
    assert later.fingerprint == began.fingerprint
    assert "boolq came after this run began and is left out" in later.warnings


def test_a_run_on_fetched_data_stays_with_them_when_a_folder_comes(own: Path, cache: Path) -> None:
    fetched(cache, "svamp")
    began = load_corpus(small_config(), None, cache)
    write_folder(own, ["svamp", "boolq"])
    assert is_fetched(gone_on(began, own, cache), "svamp")
    assert gone_on(began, own, cache).fingerprint == began.fingerprint


def test_a_run_on_generated_problems_stays_with_them(cache: Path, own: Path) -> None:
    began = load_corpus(small_config(), None, cache)
    fetched(cache, "svamp")
    write_folder(own, ["boolq"])
    assert gone_on(began, own, cache).fingerprint == began.fingerprint


def test_data_that_changed_are_seen(own: Path, cache: Path) -> None:
    """Then the run is told the truth by the fingerprint, and does not go on (training/loop.py)."""
    write_folder(own, ["svamp", "boolq"])
    began = load_corpus(small_config(), own, cache)
    write_split(own, "svamp", "train", [row("svamp", number + 1) for number in range(30)])
    assert gone_on(began, own, cache).fingerprint != began.fingerprint
    shutil.rmtree(own / "svamp")
    assert gone_on(began, own, cache).fingerprint != began.fingerprint


def test_the_folder_that_is_fetched_into_is_inside_the_cache(cache: Path) -> None:
    fetched(cache, "svamp")
    assert files.home(None, cache, SOURCES["svamp"]) == cache / "datasets"
    assert files.home(None, None, SOURCES["svamp"]) is None
