"""Whether a run is well: detectors over its plan, its rows and its GPU's load. Pure: no clock, no file, no database.

A Monitor takes one reading at a time and answers with what changed: an ailment that began, or one that is over. What the
ailments are stands in ailments.py; alerts.py feeds the monitors and keeps what they say. A row costs a few microseconds:
windows are bounded, and are kept sorted or averaged as rows come.
"""

from __future__ import annotations

import bisect
import itertools
import math
import statistics
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.services.ailments import Ailment
from cognate.config import HealthConfig, RunConfig

Evidence = dict[str, Any]

RECENT_ROWS = 10  # whose median is the loss now
SPIKE_ROWS, LEAST_SPIKE_ROWS = 50, 20
QUIET_ROWS = 10  # after which a spike, or a number that was not finite, is over
BUCKETS = 20  # of a plateau's window; half against half
SURE = 3.0  # standard errors
STRETCH_S, STRETCH_ROWS = 60.0, 5  # of steps that are compared with earlier ones
GPU_LOOK_EVERY_S, GPU_LOOKS = 5.0, 24  # two minutes
MAD_TO_DEVIATION = 1.4826  # of a normal distribution
MEASURED = ("loss", "loss_ce", "val_loss", "grad_norm")


@dataclass(frozen=True)
class Row:
    """One row of metrics: `values` by metric key, only what was measured; `at` is seconds since the epoch, UTC."""

    step: int
    epoch: float
    at: float
    values: Mapping[str, float]
    progress: Mapping[str, Any]


@dataclass(frozen=True)
class Finding:
    """An ailment that began or, where `ails` is false, is over."""

    kind: Ailment
    ails: bool
    message: str
    evidence: Evidence
    step: int | None = None


class Detector(Protocol):
    kind: Ailment

    def ails(self, row: Row) -> bool | None:
        """Whether the run does, as of this row; None: the row does not tell."""

    def why(self) -> tuple[str, Evidence]:
        """A sentence and the numbers behind the newest answer."""


class Monitor:
    """All detectors of one run."""

    def __init__(self, config: RunConfig, active: Collection[str] = ()) -> None:
        """active: ailments that are known, and are not told again"""
        self.active = set(active)
        self._config = config
        self._borders: list[int] = []
        self._stage = 0
        self._falling = NotFalling(config)
        self._plateau, self._explosion, self._slow = Plateau(config.health), Explosion(config.health), Slow(config.health)
        self._detectors: tuple[Detector, ...] = (self._falling, self._plateau, self._explosion, Nonfinite(), self._slow)
        self._gpu = GpuIdle(config.health)

    def plan(self, plan: Mapping[str, Any]) -> list[Finding]:
        self._borders = borders(plan)
        self._falling.judges_from = judges_from(self._config, plan)
        self._slow.steps_per_epoch = plan.get("steps_per_epoch") or []
        finding = too_little_data(plan, self._config)
        return self._news(finding) if finding else []

    def row(self, row: Row) -> list[Finding]:
        news = []
        stage = bisect.bisect_left(self._borders, math.ceil(row.epoch))
        if stage != self._stage:
            self._stage = stage
            for part in (self._plateau, self._explosion):
                part.begin_anew()
                news += self._news(Finding(part.kind, False, "the next stage of the curriculum began", {}, row.step))
        for detector in self._detectors:
            ails = detector.ails(row)
            if ails is None or ails == (detector.kind in self.active):
                continue
            if ails and detector is self._plateau and Ailment.NOT_FALLING in self.active:
                continue  # which says more
            news += self._news(Finding(detector.kind, ails, *detector.why(), row.step))
        return news

    def gpu(self, utilisation: float, step: int | None) -> list[Finding]:
        """utilisation: 0..1, looked at every GPU_LOOK_EVERY_S of training"""
        ails = self._gpu.ails(utilisation)
        return [] if ails is None else self._news(Finding(Ailment.GPU_IDLE, ails, *self._gpu.why(), step))

    def replay(self, first: Row | None, rows: Sequence[Row]) -> None:
        """Take rows that were judged before: the run's first, and its newest."""
        known, self.active = self.active, set()
        if first is not None:
            self._falling.begin(first)
        for row in rows:
            self.row(row)
        self.active = known

    def _news(self, finding: Finding) -> list[Finding]:
        if finding.ails == (finding.kind in self.active):
            return []
        self.active ^= {finding.kind}
        return [finding]


# --- the plan ---------------------------------------------------------------------------------------------


def borders(plan: Mapping[str, Any]) -> list[int]:
    """Last epochs of those stages of the curriculum that are followed by a stage with other data."""
    stages = (plan.get("curriculum") or {}).get("stages") or []
    return [stage["last_epoch"] for stage, following in itertools.pairwise(stages) if stage["datasets"] != following["datasets"]]


def judges_from(config: RunConfig, plan: Mapping[str, Any]) -> int:
    """The step from which on a loss must have fallen: warm-up is at most a twentieth of a run (training/schedule.py)."""
    warmup = min(config.training.warmup_steps, max(1, int(plan["total_steps"]) // 20))
    return warmup + config.health.not_falling_after_steps


def too_little_data(plan: Mapping[str, Any], config: RunConfig) -> Finding | None:
    """None where the plan does not say how much there is."""
    steps, parameters, fill = plan.get("steps_per_epoch"), plan.get("total_params"), plan.get("fill_ratio")
    if not steps or not parameters or not fill:
        return None
    training, health = config.training, config.health
    # Later stages have the data of the earlier ones too, so the largest epoch has everything there is.
    tokens = round(max(steps) * training.batch_size * training.gradient_accumulation * training.sequence_length * fill)
    per_parameter, passes = tokens / parameters, _passes(steps, plan["total_steps"])
    evidence = {"tokens_per_epoch": tokens, "parameters": parameters, "tokens_per_parameter": per_parameter, "passes": passes}
    few, often = per_parameter < health.min_tokens_per_parameter, passes > health.max_passes
    message = f"an epoch has {tokens:,} tokens for {parameters:,} parameters, and the run makes {passes:.3g} passes"
    return Finding(Ailment.TOO_LITTLE_DATA, few or often, message, evidence, 0)


def _passes(steps_per_epoch: Sequence[int], total_steps: int) -> float:
    """Epochs in `total_steps`, the last one in part."""
    passes, left = 0.0, total_steps
    for steps in steps_per_epoch:
        if left < steps:
            return passes + left / steps
        passes, left = passes + 1, left - steps
    return passes


# --- the loss ---------------------------------------------------------------------------------------------


def cross_entropy(row: Row) -> float | None:
    """What a model learns from: the loss without the halting head's share, which falls whatever else does. None if not finite."""
    value = row.values.get("loss_ce", row.values.get("loss"))
    return value if value is not None and math.isfinite(value) else None


class NotFalling:
    kind = Ailment.NOT_FALLING

    def __init__(self, config: RunConfig) -> None:
        self._min_fall = config.health.min_fall
        self._recent: deque[float] = deque(maxlen=RECENT_ROWS)
        self._step = 0
        self._loss = math.nan
        self.first: tuple[int, float] | None = None
        self.judges_from = config.training.warmup_steps + config.health.not_falling_after_steps

    def begin(self, row: Row) -> None:
        loss = cross_entropy(row)
        if loss is not None and self.first is None:
            self.first = (row.step, loss)

    def ails(self, row: Row) -> bool | None:
        loss = cross_entropy(row)
        if loss is None:
            return None
        self.begin(row)
        assert self.first is not None
        self._recent.append(loss)
        if row.step < self.judges_from or len(self._recent) < RECENT_ROWS // 2:
            return None
        self._step, self._loss = row.step, sorted(self._recent)[len(self._recent) // 2]
        return self._loss > (1 - self._min_fall) * self.first[1]

    def why(self) -> tuple[str, Evidence]:
        assert self.first is not None, "without a first row nothing was judged"
        step, first = self.first
        message = f"the cross-entropy was {first:.4g} at step {step:,} and is {self._loss:.4g} at step {self._step:,}"
        return message, {"first_step": step, "first_loss": first, "step": self._step, "loss": self._loss}


class Plateau:
    """Half a window's mean against the other's, each from buckets of steps; decided only when the noise allows it."""

    kind = Ailment.PLATEAU

    def __init__(self, health: HealthConfig) -> None:
        self._width = health.plateau_steps / BUCKETS
        self._min_fall = health.plateau_min_fall
        self.begin_anew()

    def begin_anew(self) -> None:
        self._buckets: deque[tuple[int, float]] = deque(maxlen=BUCKETS)  # (first step, mean)
        self._from, self._sum, self._rows = 0, 0.0, 0
        self._evidence: Evidence = {}

    def ails(self, row: Row) -> bool | None:
        loss = cross_entropy(row)
        if loss is None:
            return None
        is_full = self._rows > 0 and row.step >= self._from + self._width
        if is_full:
            self._buckets.append((self._from, self._sum / self._rows))
        if is_full or not self._rows:
            self._from, self._sum, self._rows = row.step, 0.0, 0
        self._sum, self._rows = self._sum + loss, self._rows + 1
        return self._judge(row.step) if is_full and len(self._buckets) == BUCKETS else None

    def _judge(self, step: int) -> bool | None:
        means = [mean for _, mean in self._buckets]
        earlier, later = means[: BUCKETS // 2], means[BUCKETS // 2 :]
        before, now = statistics.fmean(earlier), statistics.fmean(later)
        if before <= 0:
            return None
        fall = 1 - now / before
        error = math.sqrt((statistics.variance(earlier, before) + statistics.variance(later, now)) / (BUCKETS // 2)) / before
        self._evidence = {"from_step": self._buckets[0][0], "to_step": step, "earlier": before, "later": now, "fall": fall, "error": error}
        if fall + SURE * error < self._min_fall:
            return True
        return False if fall - error > self._min_fall else None

    def why(self) -> tuple[str, Evidence]:
        found = self._evidence
        message = (
            f"from step {found['from_step']:,} to {found['to_step']:,} the mean went from {found['earlier']:.4g} to {found['later']:.4g}"
        )
        return message, found


class Explosion:
    """A spike over the median of the rows before it. Rows of the spike do not join them: what exploded never becomes usual."""

    kind = Ailment.EXPLOSION

    def __init__(self, health: HealthConfig) -> None:
        self._deviations, self._ratio = health.explosion_deviations, health.explosion_ratio
        self.begin_anew()

    def begin_anew(self) -> None:
        self._window: deque[float] = deque()
        self._sorted: list[float] = []
        self._quiet = QUIET_ROWS
        self._evidence: Evidence = {}

    def ails(self, row: Row) -> bool | None:
        loss = row.values.get("loss")
        if loss is None or not math.isfinite(loss):
            return None
        is_judged = len(self._sorted) >= LEAST_SPIKE_ROWS
        if is_judged:
            median = self._sorted[len(self._sorted) // 2]
            self._evidence = {"step": row.step, "loss": loss, "median": median}
            if loss > self._ratio * median and self._is_far_above(loss, median):
                self._quiet = 0
                return True
        if len(self._window) == SPIKE_ROWS:
            self._sorted.pop(bisect.bisect_left(self._sorted, self._window.popleft()))
        self._window.append(loss)
        bisect.insort(self._sorted, loss)
        self._quiet += 1
        return False if is_judged and self._quiet >= QUIET_ROWS else None

    def _is_far_above(self, loss: float, median: float) -> bool:
        deviation = MAD_TO_DEVIATION * statistics.median(abs(value - median) for value in self._sorted)
        self._evidence["deviation"] = deviation
        return loss - median > self._deviations * deviation

    def why(self) -> tuple[str, Evidence]:
        found = self._evidence
        message = f"the loss is {found['loss']:.4g} at step {found['step']:,}; the median of the rows before is {found['median']:.4g}"
        return message, found


class Nonfinite:
    kind = Ailment.NONFINITE

    def __init__(self) -> None:
        self._skipped: int | None = None
        self._quiet = QUIET_ROWS
        self._evidence: Evidence = {}

    def ails(self, row: Row) -> bool | None:
        skipped = _number(row.progress.get("skipped_steps"))
        left_out = 0 if skipped is None or self._skipped is None else max(0, int(skipped) - self._skipped)
        self._skipped = self._skipped if skipped is None else int(skipped)
        wild = [key for key in MEASURED if not math.isfinite(row.values.get(key, 0.0))]
        if wild or left_out:
            self._quiet = 0
            self._evidence = {"step": row.step, "metrics": ", ".join(wild), "steps_left_out": left_out}
            return True
        self._quiet += 1
        return False if self._quiet >= QUIET_ROWS else None

    def why(self) -> tuple[str, Evidence]:
        if self._quiet:
            return "the rows since are finite", {}
        found = self._evidence
        what = f"{found['metrics']} not finite" if found["metrics"] else f"{found['steps_left_out']} steps left out by the optimizer"
        return f"{what} at step {found['step']:,}", found


# --- the machine ------------------------------------------------------------------------------------------


class Slow:
    """Seconds a step: medians of stretches of a minute, and means of epochs, each against the median of those before it."""

    kind = Ailment.SLOW

    def __init__(self, health: HealthConfig) -> None:
        self._ratio = health.slow_ratio
        self._began: float | None = None
        self._times: deque[float] = deque(maxlen=1000)
        self._earlier: dict[str, deque[float]] = {"stretch": deque(maxlen=60), "epoch": deque(maxlen=60)}
        self._slow: dict[str, Evidence] = {}
        self._evidence: Evidence = {}
        self.steps_per_epoch: Sequence[int] = ()

    def ails(self, row: Row) -> bool | None:
        verdicts = [verdict for verdict in (self._epoch(row), self._stretch(row)) if verdict is not None]
        return bool(self._slow) if verdicts else None

    def _epoch(self, row: Row) -> bool | None:
        minutes, number = row.values.get("epoch_time_minutes"), math.ceil(row.epoch)
        if minutes is None or not 0 < number <= len(self.steps_per_epoch):
            return None
        return self._compare("epoch", row.step, 60 * minutes / self.steps_per_epoch[number - 1])

    def _stretch(self, row: Row) -> bool | None:
        seconds = _number(row.progress.get("step_time_s"))
        if seconds is None:
            return None
        if self._began is None:
            self._began = row.at
        self._times.append(seconds)
        if row.at - self._began < STRETCH_S or len(self._times) < STRETCH_ROWS:
            return None
        pace = statistics.median(self._times)
        self._times.clear()
        self._began = row.at
        return self._compare("stretch", row.step, pace)

    def _compare(self, what: str, step: int, pace: float) -> bool | None:
        earlier = self._earlier[what]
        if not earlier:
            earlier.append(pace)
            return None
        usual = statistics.median(earlier)
        self._evidence = {"of": what, "step": step, "step_s": pace, "earlier_step_s": usual}
        if pace > self._ratio * usual:
            self._slow[what] = self._evidence
            return True
        self._slow.pop(what, None)
        earlier.append(pace)
        return False

    def why(self) -> tuple[str, Evidence]:
        found = self._evidence
        return f"a step takes {found['step_s']:.3g} s at step {found['step']:,}, and took {found['earlier_step_s']:.3g} s before", found


class GpuIdle:
    kind = Ailment.GPU_IDLE

    def __init__(self, health: HealthConfig) -> None:
        self._least = health.min_gpu_utilisation
        self._looks: deque[float] = deque(maxlen=GPU_LOOKS)

    def ails(self, utilisation: float) -> bool | None:
        self._looks.append(utilisation)
        return statistics.fmean(self._looks) < self._least if len(self._looks) == GPU_LOOKS else None

    def why(self) -> tuple[str, Evidence]:
        mean, seconds = statistics.fmean(self._looks), GPU_LOOKS * GPU_LOOK_EVERY_S
        return f"the GPU was busy {mean:.0%} of the last {seconds:.0f} s of training", {"utilisation": mean, "seconds": seconds}


# --- memory -----------------------------------------------------------------------------------------------


def fewer_rows(batch_size: int, rows: int) -> int | None:
    """At most half of `rows` that divide a batch; None when it is one already."""
    return max((fewer for fewer in range(1, rows // 2 + 1) if batch_size % fewer == 0), default=None)


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
