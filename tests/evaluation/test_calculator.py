"""calculator.py and votes: help at decoding, reported beside the headline and never in it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from decimal import Decimal

import pytest
import torch

from cognate.config import ModelConfig
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.answers import majority
from cognate.evaluation.calculator import Calculator, worked_out
from cognate.evaluation.items import Item, Items
from cognate.evaluation.scoring import Batching, continue_texts
from cognate.evaluation.tasks import Model, measure
from cognate.model import Cognate

TEXT = "Question: 48 clips? Answer: 48/2 = <<48/2=24>>24 and 1.5*3 = <<1.5*3=4.5>>4.5\n#### 24"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT] * 5, 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Model:
    """Weights large enough for answers that differ; a window wide enough to read a prompt."""
    torch.manual_seed(1)
    config = ModelConfig(vocab_size=300, d_model=32, n_layers=1, n_heads=2, d_ff=64, trm_d_ff=64, window=32)
    net = Cognate(config).eval()
    for parameter in net.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return Model(net, tokenizer)


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("so <<48/2=", "24"),
        ("<<1=1>>1 <<0.1+0.2=", "0.3"),
        ("<<(20-5)*3=", "45"),
        ("<<20%*50=", "10"),
        ("<<5-8=", "-3"),
        ("<<10/3=", None),
        ("<<1/0=", None),
        ("<<48/2", None),
        ("48/2=", None),
        ("<<__import__('os')=", None),
        ("<<x=", None),
        ("<<2=2=", None),
        ("<<2\n+2=", None),
        ("<<" + "9*" * 300 + "9=", None),
    ],
)
def test_only_arithmetic_behind_the_mark_is_worked_out(text: str, result: str | None) -> None:
    assert worked_out(text) == result


def fed(calculator: Calculator, tokenizer: Tokenizer, wanted: str, row: int = 0) -> str:
    return tokenizer.decode([calculator(row, token) for token in tokenizer.encode(wanted)])


def test_a_wrong_result_is_replaced_and_the_rest_is_not(tokenizer: Tokenizer) -> None:
    calculator = Calculator(tokenizer, 2)
    assert fed(calculator, tokenizer, "48/2 = <<48/2=99>>24 and <<1.5*3=777>>") == "48/2 = <<48/2=24>>24 and <<1.5*3=4.5>>"
    assert fed(calculator, tokenizer, "<<2+2=5>>5\n#### 5", row=1) == "<<2+2=4>>5\n#### 5", "rows do not share what is due"


def test_the_model_goes_on_from_what_the_calculator_wrote(model: Model) -> None:
    """Not only the text: the next tokens depend on it."""
    prompt = model.tokenizer.encode("48/2 = <<48/2")
    equals, *_ = model.tokenizer.encode("=")

    class FirstEquals(Calculator):
        def __call__(self, row: int, token: int) -> int:
            return super().__call__(row, equals if not self._written[row] else token)

    calculator = FirstEquals(model.tokenizer, 1)
    calculator._tokenizer = Prefixed(model.tokenizer, "48/2 = <<48/2")  # type: ignore[assignment]
    made = model.net.generate([prompt], 8, vocab_size=model.tokenizer.vocab_size, revise=calculator).tokens[0]
    assert model.tokenizer.decode(made).startswith("=24>>")
    forced = len(model.tokenizer.encode("24>>"))
    onward = model.net.generate([prompt + made[: 1 + forced]], 8 - 1 - forced, vocab_size=model.tokenizer.vocab_size).tokens[0]
    assert made[1 + forced :] == onward


class Prefixed:
    """Decodes with the prompt before: what the model wrote begins in the middle of an annotation."""

    def __init__(self, inner: Tokenizer, prefix: str) -> None:
        self._inner, self._prefix = inner, prefix

    def decode(self, ids: Collection[int]) -> str:
        return self._prefix + self._inner.decode(list(ids))

    def encode(self, text: str) -> list[int]:
        return self._inner.encode(text)


def numbers(count: int = 3) -> Items:
    return Items("gsm8k", tuple(Item(f"Question: {n} and 2? Answer:", f" {n}\n#### {n}", str(n)) for n in range(count)), "made up")


def test_help_is_a_figure_of_its_own(model: Model) -> None:
    plain = measure(model, numbers())
    helped = measure(replace(model, calculator=True, votes=3), numbers())
    assert set(helped.figures) - set(plain.figures) == {"exact_match_calculator", "maj@3"}
    assert {name: helped.figures[name] for name in plain.figures} == plain.figures
    assert helped.right == plain.right


def test_the_figure_is_that_of_the_helped_answers(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(
        _: object, __: object, prompts: list[str], *___: object, calculator: bool = False, seeds: object = None, **____: object
    ) -> list[str]:
        if calculator:
            return ["#### 0", "#### 1", "#### 7"]
        return ["#### 0" if seeds else "#### 9"] * len(prompts)

    monkeypatch.setattr("cognate.evaluation.tasks.continue_texts", write)
    figures = measure(replace(model, calculator=True, votes=2), numbers()).figures
    values = [figures[name].value for name in ("exact_match", "exact_match_calculator", "maj@2")]
    assert values == [0, pytest.approx(2 / 3), pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("answers", "elected"),
    [(["3", "4", "4"], "4"), (["3", "4"], "3"), ([None, None, "4"], "4"), ([None, None], None), (["4.0", "3", "4"], "4")],
)
def test_majority(answers: list[str | None], elected: str | None) -> None:
    numbers = [Decimal(answer) if answer is not None else None for answer in answers]
    assert majority(numbers) == (Decimal(elected) if elected is not None else None)


def test_drawn_answers_depend_on_prompt_and_number_alone(model: Model) -> None:
    """Not on the batch, nor on the order: else maj@k would change with the GPU's memory."""
    prompts = [f"Question: {n} and 2? Answer:" for n in range(4)]
    drawn = model.draw(prompts, 10, 0)
    assert len(set(drawn)) > 1
    assert model.draw(prompts, 10, 1) != drawn
    assert model.draw(prompts[::-1], 10, 0) == drawn[::-1]
    assert replace(model, batching=Batching(rows=1)).draw(prompts, 10, 0) == drawn


def test_temperature_and_seeds_are_off_unless_asked_for(model: Model) -> None:
    prompts = ["Question: 1? Answer:", "48"]
    assert continue_texts(model.net, model.tokenizer, prompts, 10) == model.write(prompts, 10)
    assert continue_texts(model.net, model.tokenizer, prompts, 10, temperature=0.7, seeds=[1, 2]) != model.write(prompts, 10)
