"""health.py: silent on healthy runs, and each ailment found on a run that has it, once, and over when it is over."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.services.ailments import ABOUT, Ailment
from app.services.detectors import GPU_LOOKS, Row
from app.services.health import Finding, Monitor
from cognate.config import RunConfig, resolve

RECORDED = Path(__file__).with_name("recorded")
STAGES = [
    {"datasets": ["gsm8k"], "last_epoch": 3},
    {"datasets": ["gsm8k", "mbpp"], "last_epoch": 6},
    {"datasets": ["gsm8k", "mbpp"], "last_epoch": None},
]
PLAN = {"total_steps": 4000, "steps_per_epoch": [400] * 10, "total_params": 26_974_561, "fill_ratio": 0.9, "curriculum": {"stages": STAGES}}


def monitor(config: RunConfig | None = None, **plan: Any) -> Monitor:
    made = Monitor(config or resolve("reasoning"))
    assert made.plan({**PLAN, "curriculum": {"stages": []}, **plan}) == []
    assert made.row(UNTRAINED) == []
    return made


def row(step: int, ce: float, *, step_s: float = 0.1, skipped: int = 0, epoch: float | None = None, **values: float) -> Row:
    values = {"loss": ce + 0.3, "loss_ce": ce, "grad_norm": 1.0, **values}
    return Row(step, step / 400 if epoch is None else epoch, step * step_s, values, {"step_time_s": step_s, "skipped_steps": skipped})


UNTRAINED = row(1, 10.4)


def judged(watched: Monitor, rows: Iterable[Row]) -> list[Finding]:
    return [finding for one in rows for finding in watched.row(one)]


def curve(loss: Callable[[int], float], steps: range, noise: float, seed: int) -> Iterator[Row]:
    draw = random.Random(seed)
    for step in steps:
        yield row(step, loss(step) * (1 + noise * draw.gauss(0, 1)))


def falling(step: int) -> float:
    """From 10.4, the untrained loss of 32,768 tokens; by 4 % in a thousand steps where it is slowest."""
    return 1.0 + 9.4 / (1 + step / 60) + 2.5 * math.exp(-step / 3000)


# --- healthy runs -------------------------------------------------------------------------------------------


def recorded_quickstart() -> list[Row]:
    """The rows of a quickstart on two CPU cores that others used too."""
    with (RECORDED / "quickstart.csv").open(newline="") as file:
        found = []
        for line in csv.DictReader(file):
            numbers = {name: float(value) for name, value in line.items() if value}
            progress = {name: numbers.pop(name) for name in ("step_time_s", "skipped_steps") if name in numbers}
            found.append(Row(int(numbers.pop("step")), numbers.pop("epoch"), numbers.pop("at"), numbers, progress))
    return found


def test_nothing_ails_a_recorded_quickstart() -> None:
    rows, watched = recorded_quickstart(), Monitor(resolve("quickstart"))
    assert len(rows) == 201
    assert watched.plan(json.loads((RECORDED / "quickstart_plan.json").read_text())) == []
    assert judged(watched, rows) == []


@settings(deadline=None)
@given(seed=st.integers(0, 2**32), noise=st.floats(0, 0.06), log_every=st.sampled_from([1, 5, 50]))
def test_noise_around_a_falling_curve_is_no_ailment(seed: int, noise: float, log_every: int) -> None:
    assert judged(monitor(), curve(falling, range(1, 2500, log_every), noise, seed)) == []


# --- each ailment -------------------------------------------------------------------------------------------


def test_a_loss_that_stays_where_it_was_is_told_once_and_over_when_it_falls() -> None:
    watched = monitor()
    (found,) = judged(watched, curve(lambda step: 10.4, range(1, 1500), 0.02, 1))
    assert (found.kind, found.ails, found.step) == (Ailment.NOT_FALLING, True, 200)
    assert found.evidence["first_loss"] == pytest.approx(10.4, rel=0.1)
    over = judged(watched, curve(lambda step: 6.0, range(1500, 1520), 0.02, 1))
    assert [(finding.kind, finding.ails) for finding in over] == [(Ailment.NOT_FALLING, False)]


def test_the_halting_loss_does_not_hide_that_nothing_is_learnt() -> None:
    rows = [row(step, 10.4, loss=10.4 + 2 / step) for step in range(1, 300)]
    assert [finding.kind for finding in judged(monitor(), rows)] == [Ailment.NOT_FALLING]


@pytest.mark.parametrize("log_every", [1, 50])
def test_a_plateau_is_found_and_over_when_the_loss_falls_again(log_every: int) -> None:
    watched = monitor()
    rows = curve(lambda step: max(3.0, falling(step)), range(1, 4000, log_every), 0.01, 2)
    (found,) = judged(watched, rows)
    assert (found.kind, found.ails) == (Ailment.PLATEAU, True)
    assert found.evidence["fall"] < 0.02
    over = judged(watched, curve(lambda step: 3.0 * 0.9997 ** (step - 4000), range(4000, 6500, log_every), 0.01, 3))
    assert [(finding.kind, finding.ails) for finding in over] == [(Ailment.PLATEAU, False)]


def test_noise_that_hides_the_trend_decides_nothing() -> None:
    """Twenty rows that scatter by a third could hide any fall; only the noise tells that they prove none."""
    assert [judged(monitor(), curve(lambda step: 3.0, range(50, 1200, 50), 0.3, seed)) for seed in range(8)] == [[]] * 8


def test_a_new_stage_is_neither_a_plateau_nor_an_explosion() -> None:
    """Harder data raise the loss; what came before them is no measure for it."""
    rising = [row(step, 2.0 if step <= 1200 else 4.0) for step in range(1001, 1900)]
    assert {finding.kind for finding in judged(monitor(), rising)} >= {Ailment.EXPLOSION}
    assert judged(monitor(curriculum={"stages": STAGES}), rising) == []


def test_a_stage_with_the_same_data_changes_nothing() -> None:
    flat = [row(step, 2.0) for step in range(1900, 3000)]  # epoch 6 ends at 2,400
    assert [finding.kind for finding in judged(monitor(curriculum={"stages": STAGES}), flat)] == [Ailment.PLATEAU]


@pytest.mark.parametrize(("spike", "explodes"), [(1.4, False), (1.6, True), (1e30, True)])
def test_a_spike_is_an_explosion_from_the_ratio_on(spike: float, explodes: bool) -> None:
    rows = [row(step, 3.0 + 0.05 * math.sin(step), epoch=0.5) for step in range(300, 400)]
    rows[60] = row(360, 3.0, loss=3.3 * spike)
    found = judged(monitor(), rows)
    told = [(finding.kind, finding.ails) for finding in found]
    assert told == ([(Ailment.EXPLOSION, True), (Ailment.EXPLOSION, False)] if explodes else [])
    if explodes:
        assert found[0].evidence == {
            "step": 360,
            "loss": 3.3 * spike,
            "median": pytest.approx(3.3, abs=0.1),
            "deviation": pytest.approx(0.05, abs=0.03),
        }
        assert found[1].step == 370


def test_noise_as_wide_as_the_spike_is_not_called_one() -> None:
    draw = random.Random(4)
    rows = [row(step, draw.choice([1.0, 2.0, 3.0]), epoch=0.5) for step in range(1, 90)]
    assert judged(monitor(), rows) == []


@pytest.mark.parametrize(("first", "last"), [(300, 4000), (700, 4000), (700, 1199)])
def test_a_jump_is_found_at_once_where_rows_are_sparse(first: int, last: int) -> None:
    """A specialist tells a row every 50 steps: it must not train for a thousand steps before it is judged."""
    steps = [1, *range(50, 4000, 50)]
    rows = [row(step, 9.5 if first <= step <= last else 1.5 + 8.9 / (1 + step / 20), epoch=0.5) for step in steps]
    began, *later = judged(monitor(), rows)
    assert (began.kind, began.ails, began.step) == (Ailment.EXPLOSION, True, first)
    assert [finding.step for finding in later if finding.kind is Ailment.EXPLOSION] == ([] if last == 4000 else [1650])


def test_a_loss_that_climbs_for_some_rows_is_found() -> None:
    """Its first rows are no spike yet and join the others; they must not count as noise."""
    losses = [*[3.0 + 0.01 * (number % 2) for number in range(14)], 4.0, 6.0, 9.0]
    found = judged(monitor(), [row(50 * number, loss, epoch=0.5) for number, loss in enumerate(losses, 2)])
    assert [(finding.kind, finding.step) for finding in found] == [(Ailment.EXPLOSION, 850)]


def test_a_new_stage_is_judged_by_its_own_first_rows() -> None:
    """Six of them suffice; harder data are no explosion, and one soon after the border is."""
    losses = {step: 2.0 if step <= 1200 else 9.0 if step == 1550 else 4.0 for step in range(800, 2000, 50)}
    found = judged(monitor(curriculum={"stages": STAGES}), [row(step, loss) for step, loss in losses.items()])
    assert [(finding.kind, finding.ails, finding.step) for finding in found][:1] == [(Ailment.EXPLOSION, True, 1550)]


def test_few_rows_ask_for_a_wider_margin() -> None:
    """Six rows that happen to lie close together say little of the noise."""
    quiet = [3.0, 3.1] * 3
    spike = row(60, 3.0, loss=4.8, epoch=0.5)  # eight deviations of 0.07 are 0.57; 20/6 times as many are 1.9
    few = [row(step, 3.0, loss=loss, epoch=0.5) for step, loss in enumerate(quiet, 2)]
    many = [row(step, 3.0, loss=loss, epoch=0.5) for step, loss in enumerate(quiet * 4, 2)]
    assert judged(Monitor(resolve("reasoning")), [*few, spike]) == []
    assert [finding.kind for finding in judged(Monitor(resolve("reasoning")), [*many, spike])] == [Ailment.EXPLOSION]


def test_what_exploded_for_good_never_becomes_usual() -> None:
    rows = [row(step, 3.0 if step < 350 else 9.0, epoch=0.5) for step in range(300, 600)]
    assert [(finding.kind, finding.ails) for finding in judged(monitor(), rows)] == [(Ailment.EXPLOSION, True)]


@pytest.mark.parametrize("odd", [{"loss": math.nan}, {"grad_norm": math.inf}, {"skipped": 1}])
def test_what_is_not_finite_is_told_with_its_step(odd: dict[str, Any]) -> None:
    skipped = odd.get("skipped", 0)
    rows = [row(1, 3.0), row(2, 3.0, **odd), *(row(step, 3.0, skipped=skipped) for step in range(3, 20))]
    began, over = judged(monitor(), rows)
    assert (began.kind, began.ails, began.step, began.evidence["step"]) == (Ailment.NONFINITE, True, 2, 2)
    assert (over.kind, over.ails, over.step) == (Ailment.NONFINITE, False, 12)


def test_steps_that_take_twice_as_long_are_slow_and_faster_ones_end_it() -> None:
    def paced(times: list[float]) -> Iterator[Row]:
        at = 0.0
        for step, seconds in enumerate(times, 1):
            at += seconds
            yield Row(step, 0.5, at, {}, {"step_time_s": seconds})

    usual = [0.3] * 700 + [5.0] * 3 + [0.3] * 300  # a moment's trouble is none
    assert judged(monitor(), paced(usual)) == []
    began, over = judged(monitor(), paced(usual + [0.7] * 200 + [0.3] * 300))
    assert (began.kind, began.ails, over.ails) == (Ailment.SLOW, True, False)
    assert (began.evidence["step_s"], began.evidence["earlier_step_s"]) == (0.7, 0.3)


def test_a_slow_epoch_is_compared_by_its_steps() -> None:
    """The second epoch is twice as long because it has twice the steps; the third takes three times as long a step."""
    watched = monitor(steps_per_epoch=[100, 200, 100], total_steps=400)
    ends = [
        Row(step, epoch, 0.0, {"epoch_time_minutes": minutes}, {}) for step, epoch, minutes in ((100, 1, 5), (300, 2, 10), (400, 3, 15))
    ]
    (found,) = judged(watched, ends)
    assert (found.kind, found.step, found.evidence["of"]) == (Ailment.SLOW, 400, "epoch")
    assert found.evidence["step_s"] == pytest.approx(9.0)


def test_the_evidence_is_that_of_what_is_slow() -> None:
    """A row that ends a slow epoch and a usual minute tells of the epoch."""
    watched = monitor(steps_per_epoch=[100, 99], total_steps=199)
    rows = [Row(step, step / 100, 10.0 * step, {}, {"step_time_s": 0.3}) for step in range(1, 199)]
    rows[99] = Row(100, 1.0, 1000.0, {"epoch_time_minutes": 5}, {"step_time_s": 0.3})
    assert judged(watched, rows) == []
    (found,) = watched.row(Row(199, 2.0, 1990.0, {"epoch_time_minutes": 14.85}, {"step_time_s": 0.3}))  # the 33rd minute, too
    assert found.evidence == {"of": "epoch", "step": 199, "step_s": pytest.approx(9.0), "earlier_step_s": 3.0}
    assert "takes 9 s" in found.message


def test_a_clock_that_is_set_back_does_not_end_the_comparison() -> None:
    """By a day: until the clock was there again, no minute would end."""
    usual = [Row(step, 0.5, 86_400 + step, {}, {"step_time_s": 0.3}) for step in range(1, 200)]
    slow = [Row(step, 0.5, step, {}, {"step_time_s": 0.9}) for step in range(200, 400)]
    assert [(finding.kind, finding.ails) for finding in judged(monitor(), [*usual, *slow])] == [(Ailment.SLOW, True)]


def test_a_gpu_that_idles_for_two_minutes_is_told_once() -> None:
    watched = monitor()
    assert [watched.gpu(0.9, 1) for _ in range(GPU_LOOKS)] == [[]] * GPU_LOOKS
    idle = [finding for _ in range(GPU_LOOKS) for finding in watched.gpu(0.1, 2)]
    assert [(finding.kind, finding.ails) for finding in idle] == [(Ailment.GPU_IDLE, True)]
    assert [finding.ails for _ in range(GPU_LOOKS) for finding in watched.gpu(0.9, 3)] == [False]


@pytest.mark.parametrize(
    ("plan", "few"),
    [
        ({}, False),
        ({"steps_per_epoch": [10] * 10, "total_steps": 100}, True),  # of 27 million parameters
        ({"steps_per_epoch": [10] * 10, "total_steps": 100, "total_params": 100_000}, False),
        ({"steps_per_epoch": [400] * 40, "total_steps": 400 * 16}, False),
        ({"steps_per_epoch": [400] * 40, "total_steps": 400 * 17}, True),
        ({"steps_per_epoch": []}, False),
    ],
)
def test_too_little_data_by_tokens_a_parameter_or_by_passes(plan: dict[str, Any], few: bool) -> None:
    found = Monitor(resolve("reasoning")).plan({**PLAN, **plan})
    assert [finding.kind for finding in found] == [Ailment.TOO_LITTLE_DATA] * few


def test_thresholds_are_the_runs_own() -> None:
    config = resolve("reasoning", {"health": {"explosion_ratio": 1.2, "max_passes": 5.0}})
    assert [finding.kind for finding in Monitor(config).plan(PLAN)] == [Ailment.TOO_LITTLE_DATA]
    rows = [row(step, 3.0, epoch=0.5) for step in range(300, 360)] + [row(360, 3.8, epoch=0.5)]
    assert [finding.kind for finding in judged(monitor(resolve("reasoning", {"health": {"explosion_ratio": 1.2}})), rows)] == [
        Ailment.EXPLOSION
    ]


def test_a_monitor_made_anew_goes_on_where_the_other_was() -> None:
    """After a restart: what was known is not told again, and what begins then is told against what came before."""
    flat = [row(step, 10.4) for step in range(1, 400)]
    assert [finding.kind for finding in judged(monitor(), flat)] == [Ailment.NOT_FALLING]
    again = Monitor(resolve("reasoning"), ["loss_not_falling"])
    again.plan(PLAN)
    again.replay(flat[0], flat[300:])
    assert judged(again, [row(step, 10.4) for step in range(400, 500)]) == []
    assert [finding.kind for finding in judged(again, [row(500, 50.0)])] == [Ailment.EXPLOSION]


# --- the table --------------------------------------------------------------------------------------------


def test_every_ailment_is_described() -> None:
    assert set(ABOUT) == set(Ailment)
