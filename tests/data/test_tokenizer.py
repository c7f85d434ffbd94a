"""tokenizer.py: exact, deterministic, and known by its digest."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate.data import synthetic
from cognate.data.tokenizer import END, Tokenizer, TokenizerUnreadable

TEXTS = [example.prompt + example.answer for _, example in (synthetic.problem(1, index) for index in range(300))]
VOCAB_SIZE = 400


@cache
def trained() -> Tokenizer:
    return Tokenizer.train(TEXTS, VOCAB_SIZE)


@settings(deadline=None)
@given(st.text())
def test_any_text_comes_back_exactly(text: str) -> None:
    assert trained().decode(trained().encode(text)) == text


@settings(deadline=None)
@given(st.lists(st.text(), max_size=5))
def test_a_batch_has_the_tokens_of_its_texts(texts: list[str]) -> None:
    assert trained().encode_batch(texts) == [trained().encode(text) for text in texts]


@settings(deadline=None)
@given(st.integers(min_value=0))
def test_every_digit_is_a_token_of_its_own(number: int) -> None:
    """Numbers that share tokens with other numbers cannot be learned to be added."""
    assert [trained().decode([token]) for token in trained().encode(str(number))] == list(str(number))


def test_digits_are_merged_where_that_is_asked_for() -> None:
    """The other side of the comparison that docs/levers.md reports."""
    merged = Tokenizer.train(TEXTS, VOCAB_SIZE, merge_digits=True)
    assert any(len(text) > 1 and text.strip().isdigit() for text in (merged.decode([token]) for token in range(merged.vocab_size)))
    assert merged.decode(merged.encode("12 and 1200")) == "12 and 1200"


def test_no_token_holds_a_digit_and_anything_else() -> None:
    texts = [trained().decode([token]) for token in range(trained().vocab_size)]
    assert all(len(text) == 1 for text in texts if any(character.isdigit() for character in text))


def test_the_end_token_in_a_text_is_text() -> None:
    """A row of data must not be able to end a document."""
    ids = trained().encode(f"before {END} after")
    assert trained().end_id not in ids
    assert trained().decode(ids) == f"before {END} after"


def test_the_end_token_has_no_text() -> None:
    assert trained().decode([*trained().encode("done"), trained().end_id]) == "done"


def test_the_same_text_gives_the_same_digest() -> None:
    assert Tokenizer.train(TEXTS, VOCAB_SIZE).digest == trained().digest


def test_the_order_of_the_texts_does_not_matter() -> None:
    assert Tokenizer.train(TEXTS[::-1], VOCAB_SIZE).digest == trained().digest


def test_another_process_gives_the_same_digest() -> None:
    """A resumed run on another machine must speak the same language: no hash seed and no thread may enter."""
    code = (
        "from cognate.data import synthetic; from cognate.data.tokenizer import Tokenizer;"
        "problems = (synthetic.problem(1, index)[1] for index in range(300));"
        f"print(Tokenizer.train([p.prompt + p.answer for p in problems], {VOCAB_SIZE}).digest)"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == trained().digest


def test_other_text_gives_another_digest() -> None:
    assert Tokenizer.train(TEXTS[:100], VOCAB_SIZE).digest != trained().digest


def test_a_vocabulary_is_no_larger_than_asked_for_and_may_be_smaller() -> None:
    assert trained().vocab_size == VOCAB_SIZE
    few = Tokenizer.train(["abc"], VOCAB_SIZE)
    assert few.vocab_size == 257  # every byte, and the end
    assert few.decode(few.encode("never seen: ÿ 😀")) == "never seen: ÿ 😀"


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    trained().save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.digest, loaded.end_id, loaded.vocab_size) == (trained().digest, trained().end_id, trained().vocab_size)
    assert loaded.encode(f"12 figs {END}") == trained().encode(f"12 figs {END}")


@pytest.mark.parametrize("content", ["", "{}", '{"model": 3}', "not json"])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(TokenizerUnreadable, match=r"tokenizer\.json"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    trained().save(tmp_path / "tokenizer.json")
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text.replace(END, "<|stop|>"))
    with pytest.raises(TokenizerUnreadable, match="not made by Cognate"):
        Tokenizer.load(tmp_path / "tokenizer.json")
