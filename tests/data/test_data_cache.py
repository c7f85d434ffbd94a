"""cache.py: an entry is whole, verified, and never trusted when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_folders import row, small_config, write_folder, write_split

from cognate.data.cache import Cache, key_of
from cognate.data.corpus import Corpus, load_corpus


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "data", ["svamp", "boolq"])


def same(left: Corpus, right: Corpus) -> bool:
    return (
        left.tokenizer.digest == right.tokenizer.digest
        and left.curriculum == right.curriculum
        and all(np.array_equal(left.training[name].ids, right.training[name].ids) for name in left.training)
        and all(np.array_equal(left.validation[name].offsets, right.validation[name].offsets) for name in left.validation)
        and all(np.array_equal(left.validation[name].prompts, right.validation[name].prompts) for name in left.validation)
    )


def entries(cache: Path) -> dict[str, Path]:
    return {path.name.split("-")[0]: path for path in cache.iterdir()}


def test_a_warm_load_equals_a_cold_one(data: Path, tmp_path: Path) -> None:
    cold = load_corpus(small_config(), data, tmp_path / "cache")
    warm = load_corpus(small_config(), data, tmp_path / "cache")
    assert same(cold, warm)
    assert cold.warnings == warm.warnings
    assert sorted(entries(tmp_path / "cache")) == ["documents", "tokenizer"]


def test_a_checkpoints_tokenizer_finds_the_same_tokens(data: Path, tmp_path: Path) -> None:
    """A resumed run must not tokenise everything again."""
    cold = load_corpus(small_config(), data, tmp_path / "cache")
    load_corpus(small_config(), data, tmp_path / "cache", cold.tokenizer)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_other_data_other_selection_other_vocabulary_make_other_entries(data: Path, tmp_path: Path) -> None:
    load_corpus(small_config(), data, tmp_path / "cache")
    load_corpus(small_config({"datasets": ["svamp"]}), data, tmp_path / "cache")
    load_corpus(
        small_config().model_copy(update={"model": small_config().model.model_copy(update={"vocab_size": 280})}), data, tmp_path / "cache"
    )
    write_split(data, "svamp", "test", [row("svamp", 77, "test")])
    load_corpus(small_config(), data, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 8


@pytest.mark.parametrize(
    ("entry", "file"),
    [("documents", "tokens.safetensors"), ("documents", "parts.json"), ("tokenizer", "tokenizer.json"), ("documents", "manifest.json")],
)
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_entry_is_noticed_and_built_anew(data: Path, tmp_path: Path, entry: str, file: str, harm: str) -> None:
    """A flipped bit in a token file would train on other text, in silence."""
    cold = load_corpus(small_config(), data, tmp_path / "cache")
    victim = entries(tmp_path / "cache")[entry] / file
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 4
    if harm == "flip":
        victim.write_bytes(content)
    elif harm == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    else:
        victim.unlink()
    rebuilt = load_corpus(small_config(), data, tmp_path / "cache")
    assert same(cold, rebuilt)
    assert any(f"the cached {entry} is damaged and is built anew" in warning for warning in rebuilt.warnings)
    assert load_corpus(small_config(), data, tmp_path / "cache").warnings == cold.warnings


def test_a_cache_that_cannot_be_written_is_said_and_survived(data: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    corpus = load_corpus(small_config(), data, tmp_path / "cache")
    assert any("the documents cannot be cached" in warning for warning in corpus.warnings)


def test_nothing_half_done_is_left_when_writing_fails(tmp_path: Path) -> None:
    def write(value: str, entry: Path) -> None:
        (entry / "half").write_text(value)
        raise OSError(28, "No space left on device")

    said: list[str] = []
    assert Cache(tmp_path, said.append).get("thing", key_of(1), lambda: "value", write, lambda entry: "read") == "value"
    assert list(tmp_path.iterdir()) == []
    assert said == ["the thing cannot be cached (No space left on device); the next run builds it again"]


def test_the_first_of_two_writers_wins(tmp_path: Path) -> None:
    """Two runs start at once: both build the same, neither fails, and one entry is left."""
    said: list[str] = []
    cache = Cache(tmp_path, said.append)

    def write(value: str, entry: Path) -> None:
        (entry / "value").write_text(value)

    def get(build: str) -> str:
        return cache.get("thing", key_of(1), lambda: build, write, lambda entry: (entry / "value").read_text())

    def slow() -> str:
        assert get("fast") == "fast"  # the other run gets in between
        return "slow"

    assert cache.get("thing", key_of(1), slow, write, lambda entry: (entry / "value").read_text()) == "slow"
    assert get("never built") == "fast"
    assert said == []
    assert len(list(tmp_path.iterdir())) == 1


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    assert Cache(None, print).get("thing", key_of(1), lambda: 1, lambda value, entry: None, lambda entry: 2) == 1
