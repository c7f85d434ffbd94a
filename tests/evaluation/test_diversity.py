"""diversity.py: every figure is measured. Where the models are the same it is zero, and it follows what is changed in one of them."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch

from cognate.config import resolve
from cognate.data import synthetic
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.diversity import ROUNDS, TOKENS_A_TURN, Member, Text, diversity, read, required_order, spread, weight_distance
from cognate.model import Cognate

TINY = {"vocab_size": 300, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 48, "trm_d_ff": 48, "window": 16}
PROBLEMS = [synthetic.problem(5, index)[1] for index in range(4)]
TEXTS = [Text("arithmetic", problem.prompt, problem.answer) for problem in PROBLEMS]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([problem.prompt + problem.answer for problem in PROBLEMS], 290)


def model(seed: int = 0, **changes: Any) -> Cognate:
    """Random weights everywhere: the output projections of a new model are zero, which would hide most differences."""
    torch.manual_seed(seed)
    made = Cognate(resolve("reasoning", {"model": {**TINY, **changes}}).model)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made.eval()


def members(tokenizer: Tokenizer, *nets: Cognate, presets: tuple[str, ...] = ("reasoning", "memory", "speed")) -> list[Member]:
    return [Member(f"{preset}-{number}", preset, net, tokenizer) for number, (preset, net) in enumerate(zip(presets, nets, strict=False))]


def halts_at_once(net: Cognate) -> Cognate:
    changed = copy.deepcopy(net)
    assert changed.halting is not None
    with torch.no_grad():
        changed.halting.linear.bias.fill_(50)
    return changed


def never_halts(net: Cognate) -> Cognate:
    changed = copy.deepcopy(net)
    assert changed.halting is not None
    with torch.no_grad():
        changed.halting.linear.weight.zero_()
        changed.halting.linear.bias.fill_(-50)
    return changed


def test_copies_do_not_differ(tokenizer: Tokenizer) -> None:
    net = model()
    report = diversity(members(tokenizer, net, copy.deepcopy(net), copy.deepcopy(net)), TEXTS, clock=ticks())
    assert report["metrics"] == {
        "diversity_avg_halting_steps": 0,
        "diversity_ltm_usage": 0,
        "diversity_inference_time_ms": pytest.approx(0),
    }
    for pair in report["pairs"]:
        assert pair["agreement"] == 1
        assert (pair["weights"]["relative_l2"], pair["weights"]["cosine"]) == (0, pytest.approx(1))
    assert [pair["of"] for pair in report["pairs"]] == [
        ["reasoning-0", "memory-1"],
        ["reasoning-0", "speed-2"],
        ["memory-1", "speed-2"],
    ]


def test_the_spread_of_halting_follows_the_halting_heads(tokenizer: Tokenizer) -> None:
    """From one recursion a token to the cap: 3 - 1."""
    net = model()
    report = diversity(members(tokenizer, never_halts(net), halts_at_once(net)), TEXTS, clock=ticks())
    assert [member["halting_steps"] for member in report["members"]] == [3, 1]
    assert report["metrics"]["diversity_avg_halting_steps"] == 2


def test_a_cap_of_fewer_recursions_shows(tokenizer: Tokenizer) -> None:
    assert read(members(tokenizer, never_halts(model(recursions=2)))[0], TEXTS).halting_steps == 2


def test_memory_usage_and_surprise_follow_the_memory(tokenizer: Tokenizer) -> None:
    """A memory that is never written to holds nothing and foretells nothing."""
    net = model()
    deaf = copy.deepcopy(net)
    with torch.no_grad():
        for name, parameter in deaf.named_parameters():
            if "memory.key" in name:
                parameter.zero_()
    (hearing, silent) = (read(member, TEXTS) for member in members(tokenizer, net, deaf))
    assert silent.ltm_usage == 0
    assert silent.surprise_rate == 1
    assert hearing.ltm_usage is not None
    assert 0 < hearing.ltm_usage <= 1


def test_without_a_memory_its_figures_are_absent(tokenizer: Tokenizer) -> None:
    report = diversity(members(tokenizer, model(ltm=False), model()), TEXTS, clock=ticks())
    assert report["members"][0]["ltm_usage"] is None
    assert report["members"][0]["surprise_rate"] is None
    assert report["metrics"]["diversity_ltm_usage"] is None  # of one model there is no spread


def test_reading_is_that_of_the_full_forward_pass(tokenizer: Tokenizer) -> None:
    """A second way to the same figures: forward() instead of the cached pass."""
    net = never_halts(model())
    found = read(members(tokenizer, net)[0], TEXTS[:1])
    ids = [*tokenizer.encode(TEXTS[0].prompt), *tokenizer.encode(TEXTS[0].answer), tokenizer.end_id]
    logits = net(torch.tensor([ids[:-1]])).logits[0].detach()
    assert found.predictions.tolist() == logits[:, : tokenizer.vocab_size].argmax(-1).tolist()
    assert found.cross_entropy == pytest.approx(float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]))), rel=1e-5)
    assert found.positions == len(ids) - 1


def test_agreement_is_a_share_of_positions_and_weights_are_apart(tokenizer: Tokenizer) -> None:
    one, other = members(tokenizer, model(1), model(2))
    pair = diversity([one, other], TEXTS, clock=ticks())["pairs"][0]
    ours, theirs = read(one, TEXTS).predictions.tolist(), read(other, TEXTS).predictions.tolist()
    assert pair["agreement"] == sum(a == b for a, b in zip(ours, theirs, strict=True)) / len(ours) < 1
    assert 0.1 < pair["weights"]["relative_l2"] < 2


def test_predictions_of_other_tokens_are_not_compared(tokenizer: Tokenizer) -> None:
    other = Tokenizer.train(["something else"], 280)
    report = diversity([*members(tokenizer, model()), Member("stranger", "speed", model(), other)], TEXTS, clock=ticks())
    assert report["pairs"][0]["agreement"] is None
    assert "different tokenizers" in report["pairs"][0]["agreement_absent"]


def test_weight_distance_is_that_of_one_long_vector() -> None:
    net = model()
    doubled = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in doubled.parameters():
            parameter.mul_(2)
    found = weight_distance(net, doubled)
    assert found["relative_l2"] == pytest.approx((1 / 2.5) ** 0.5)  # |a| over the root of (|a|^2 + 4|a|^2) / 2
    assert found["cosine"] == pytest.approx(1)
    assert found["not_shared"] == []
    wider = weight_distance(net, model(d_ff=64))
    assert all("mlp" in name for name in wider["not_shared"])
    assert wider["tensors"] == found["tensors"] - len(wider["not_shared"])


def ticks(seconds: float = 0.001) -> Any:
    """A clock that goes on by as much at every look."""
    counter = itertools.count()
    return lambda: next(counter) * seconds


def test_the_pace_is_measured_in_turns(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A B A B, never A A B B: a machine that slows down on the way is no difference between models."""
    turns: list[str] = []
    now = 0.0

    def stream(net: Cognate, *arguments: Any, **options: Any) -> Any:
        nonlocal now
        name = "slow" if net is slow else "fast"
        turns.append(name)
        for token in range(TOKENS_A_TURN + 1):
            now += 5.0 if token == 0 else 0.004 if name == "slow" else 0.001  # the prompt is no part of the pace
            yield token

    slow, fast = model(), model()
    monkeypatch.setattr(Cognate, "stream", stream)
    report = diversity(members(tokenizer, slow, fast), TEXTS, clock=lambda: now)
    assert turns == ["slow", "fast"] * (ROUNDS + 1)
    assert [member["ms_per_token"]["median"] for member in report["members"]] == pytest.approx([4, 1])
    assert report["members"][0]["ms_per_token"]["tokens"] == ROUNDS * TOKENS_A_TURN
    assert report["metrics"]["diversity_inference_time_ms"] == pytest.approx(3)


def test_a_spread_needs_two_values() -> None:
    assert spread([1.0, None, 4.0, 2.0]) == 3.0
    assert spread([1.0, None]) is None


@pytest.mark.parametrize(
    ("steps", "holds"),
    [
        ([("reasoning", 2.0), ("memory", 2.0), ("speed", 1.9)], True),
        ([("speed", 1.0), ("memory", 2.0), ("reasoning", 2.5)], True),
        ([("reasoning", 2.0), ("memory", 2.1), ("speed", 1.0)], False),
        ([("reasoning", 2.0), ("memory", 1.5), ("speed", 1.5)], False),
        ([("reasoning", 2.0), ("memory", 1.5)], None),
        ([("reasoning", 2.0), ("memory", 1.5), ("speed", 1.0), ("speed", 1.1)], None),
    ],
)
def test_the_required_order(steps: list[tuple[str, float]], holds: bool | None) -> None:
    found = required_order(steps)
    assert found["holds"] is holds
    assert ("absent" in found) == (holds is None)
