"""What a step is measured by: each number against what it is said to be (docs/metrics.md)."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cognate.events import Kind
from cognate.metrics import METRICS, Cadence
from cognate.model import Loss
from cognate.model.loss import Measurements
from cognate.optimizer import MuGrokfast
from cognate.training.measure import exp, step_values
from tests.training.runs import attempt_at, new_run, rows, tiny

CPU = torch.device("cpu")
MEASURED = Measurements(*(torch.tensor(float(number)) for number in range(1, 8)))


def a_loss(value: float, ce_last: float, measurements: Measurements | None = None) -> Loss:
    """Its parts are value, 10 value, 100 value and -value; what is last belongs to no other."""
    parts = (torch.tensor(value * factor) for factor in (1.0, 10.0, 100.0, -1.0))
    return Loss(*parts, torch.tensor(ce_last), measurements)


def test_a_steps_values_are_means_of_its_batches_and_perplexity_is_of_the_last_recursion() -> None:
    values = step_values([a_loss(1.0, math.log(8)), a_loss(3.0, math.log(2), MEASURED)], 0.25, torch.tensor(1.5), CPU)
    assert values == pytest.approx(
        {
            "loss": 2.0, "loss_ce": 20.0, "loss_act": 200.0, "loss_gate": -2.0, "perplexity": 4.0, "learning_rate": 0.25, "grad_norm": 1.5,
            "act_avg_halting_steps": 1.0, "act_halt_prob_mean": 2.0, "act_halt_prob_std": 3.0, "ltm_memory_usage": 4.0,
            "ltm_surprise_rate": 5.0,
        }
    )  # fmt: skip
    step_keys = {metric.key for metric in METRICS if metric.cadence is Cadence.STEP} - {"gpu_memory_allocated", "gpu_memory_reserved"}
    assert set(values) == step_keys


def test_what_was_not_measured_is_left_out() -> None:
    """A switched-off part, a step without a gradient norm: absent, not 0."""
    nothing = Measurements(*[None] * 7)
    for measurements in (None, nothing):
        values = step_values([a_loss(1.0, 2.0, measurements)], 0.1, None, CPU)
        assert set(values) == {"loss", "loss_ce", "loss_act", "loss_gate", "perplexity", "learning_rate"}


@pytest.mark.parametrize(("nats", "expected"), [(0.0, 1.0), (1000.0, math.inf), (math.nan, math.nan)])
def test_perplexity_is_never_an_error(nats: float, expected: float) -> None:
    assert exp(nats) == pytest.approx(expected, nan_ok=True)


def test_the_learning_rate_and_norm_of_a_row_are_those_the_step_was_made_with(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its peak for three steps and then falling: what the optimizer had in its first group, and saw as its gradient, each time."""
    used: list[tuple[float, float]] = []
    make_step = MuGrokfast.step

    def note(optimizer: MuGrokfast) -> None:
        gradients: list[Tensor] = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        used.append((optimizer.param_groups[0]["lr"], norm))
        make_step(optimizer)

    monkeypatch.setattr(MuGrokfast, "step", note)
    run = new_run(tmp_path / "run", tiny(training={"max_steps": 6}))
    assert attempt_at(run, cache=cache) is Kind.FINISHED
    told = [event.data["values"] for event in rows(run)[1:]]
    assert [(row["learning_rate"], row["grad_norm"]) for row in told] == [pytest.approx(each, rel=1e-4) for each in used]
    assert len({rate for rate, _ in used}) > 3
