"""writing.py: which prompts an epoch's end continues, and that writing on leaves no trace in the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cognate.config import RunConfig
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.rows import plan
from cognate.evaluation import writing
from cognate.evaluation.baseline import fresh
from cognate.evaluation.writing import FIRST_TOKENS, LONGEST_PROMPT, NEW_TOKENS, Prompt, choose_prompts, write_on

sys.path.append(str(Path(__file__).parents[1] / "data"))
from data_folders import small_config, write_folder


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return load_corpus(small_config({"source": "synthetic"}), None, None)


def own(folder: Path, *rows: dict[str, str]) -> RunConfig:
    """A configuration for these rows alone, each so often with another word that some of it are held out."""
    (folder / "extra").mkdir()
    lines = [{name: text.replace("NUMBER", str(number)) for name, text in each.items()} for number in range(200) for each in rows]
    (folder / "extra" / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return small_config({"extra": ["own"]})


def test_prompts_are_those_of_the_format_one_of_each_dataset_in_turn(tmp_path: Path) -> None:
    """As the evaluation asks, to the letter: the documents' division is kept, not guessed, also by the cache."""
    write_folder(tmp_path, ("svamp", "mbpp", "boolq"))
    for corpus in [load_corpus(small_config({"source": "real"}), tmp_path, tmp_path / "cache") for _ in ("made", "kept")]:
        assert len(corpus.validation["svamp"]) == 3
        chosen = choose_prompts(corpus, 20)
        assert [each.dataset for each in chosen] == ["svamp", "mbpp", "boolq"] * 3 + ["mbpp", "boolq"]
        rows = plan(small_config({"source": "real"}).data, tmp_path).read()
        for each in chosen:
            held_out = {example.prompt: example.answer for example in rows.validation[each.dataset]}
            assert held_out[each.prompt] == each.expected
        assert chosen[:3] == choose_prompts(corpus, 3)
    assert choose_prompts(corpus, 0) == []


def test_generated_problems_have_prompts_too(corpus: Corpus) -> None:
    chosen = choose_prompts(corpus, 3)
    assert [each.dataset for each in chosen] == ["arithmetic", "functions", "arithmetic"]
    assert [each.prompt.rpartition("\n")[2] for each in chosen] == ["Answer:", "Code:", "Answer:"]


def test_a_prompt_of_somebodys_own_ends_where_they_say(tmp_path: Path) -> None:
    corpus = load_corpus(own(tmp_path, {"prompt": "User: NUMBER? Answer: no\nBot:", "answer": "Code: NUMBER!"}), tmp_path, None)
    (chosen,) = choose_prompts(corpus, 1)
    number = chosen.prompt.split()[1].strip("?")
    assert chosen == Prompt("extra/own", f"User: {number}? Answer: no\nBot:", f" Code: {number}!")


def test_a_text_begins_with_its_first_tokens_and_goes_on(tmp_path: Path) -> None:
    text = " ".join(["NUMBER", *(f"w{each}" for each in range(400))])
    corpus = load_corpus(own(tmp_path, {"prompt": "", "answer": "Too short: NUMBER"}, {"prompt": "", "answer": text}), tmp_path, None)
    encode = corpus.tokenizer.encode
    for chosen in choose_prompts(corpus, 3):
        number = chosen.prompt.split()[0]
        whole = encode(text.replace("NUMBER", number))
        assert encode(chosen.prompt + chosen.expected) == whole[: FIRST_TOKENS + NEW_TOKENS]
        assert len(encode(chosen.prompt)) == FIRST_TOKENS


def test_a_prompt_too_long_to_read_is_not_chosen(tmp_path: Path) -> None:
    long = f"{' x1 y2' * LONGEST_PROMPT} NUMBER:"
    corpus = load_corpus(own(tmp_path, {"prompt": long, "answer": "a"}, {"prompt": "NUMBER:", "answer": "b"}), tmp_path, None)
    chosen = choose_prompts(corpus, 20)
    assert {each.expected for each in chosen} == {" b"}


def test_writing_draws_no_random_number_and_leaves_the_mode(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    net = fresh(small_config()).train()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes: list[bool] = []

    def continue_texts(model: Any, *arguments: Any) -> list[str]:
        modes.append(model.training)
        return written(model, *arguments)

    written = writing.continue_texts
    monkeypatch.setattr(writing, "continue_texts", continue_texts)
    before = torch.get_rng_state()
    first, again = (write_on(net, corpus.tokenizer, choose_prompts(corpus, 3)) for _ in range(2))
    assert first == again
    assert torch.equal(torch.get_rng_state(), before)
    assert (modes, net.training) == ([False, False], True)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert write_on(net, corpus.tokenizer, []) == []


def test_what_is_written_ends_with_the_end_token_or_is_cut_off(corpus: Corpus) -> None:
    """A model that knows nothing but the end writes nothing; one that knows it not writes as many tokens as it may."""
    net, tokenizer = fresh(small_config()), corpus.tokenizer
    prompts = choose_prompts(corpus, 2)
    calls: list[int] = []
    generate = net.generate

    def ending(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments[1])
        made = generate(*arguments, **{**options, "stop": ()})
        assert {len(tokens) for tokens in made.tokens} == {NEW_TOKENS}
        return type(made)([[tokenizer.end_id], [*tokenizer.encode(" 4"), tokenizer.end_id]], made.depths, made.state)

    net.generate = ending  # type: ignore[method-assign, assignment]
    assert sorted(write_on(net, tokenizer, prompts)) == ["", " 4"]
    assert calls == [NEW_TOKENS]
