"""The detectors of a Monitor (health.py): each follows one thing from row to row, in bounded memory, and says whether it ails. Pure."""

from __future__ import annotations

import itertools
import math
import statistics
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from app.services.ailments import Ailment
from cognate.config import HealthConfig, RunConfig

Evidence = dict[str, Any]

RECENT_ROWS = 10  # whose median is the loss now
SPIKE_ROWS, NEWEST_ROWS = 50, 5  # the lower of whose medians a spike is compared with
LEAST_SPIKE_ROWS, SURE_SPIKE_ROWS = 6, 20  # with fewer, their deviation is uncertain, and none is judged or by a wider margin
QUIET_ROWS = 10  # after which a spike, or a number that was not finite, is over
BUCKETS = 20  # of a plateau's window; half against half
SURE = 3.0  # standard errors
STRETCH_S, STRETCH_ROWS = 60.0, 5  # of steps that are compared with earlier ones
GPU_LOOK_EVERY_S, GPU_LOOKS = 5.0, 24  # two minutes
MEASURED = ("loss", "loss_ce", "val_loss", "grad_norm")


@dataclass(frozen=True)
class Row:
    """One row of metrics: `values` by metric key, only what was measured; `at` is seconds since the epoch, UTC."""

    step: int
    epoch: float
    at: float
    values: Mapping[str, float]
    progress: Mapping[str, Any]


class Detector(Protocol):
    kind: Ailment

    def ails(self, row: Row) -> bool | None:
        """Whether the run does, as of this row; None: the row does not tell."""

    def why(self) -> tuple[str, Evidence]:
        """A sentence and the numbers behind the newest answer."""


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
    """A spike over the rows before it. Rows of the spike do not join them: what exploded never becomes usual.

    Where rows are sparse the loss falls far between two of them. So the median is that of the newest rows where it is the lower one,
    and the deviation is told by what rose from row to row: five in six changes of noise without a trend are below sqrt(2) of its
    deviations, and neither falls nor a few rows of a loss that begins to climb count.
    """

    kind = Ailment.EXPLOSION

    def __init__(self, health: HealthConfig) -> None:
        self._deviations, self._ratio = health.explosion_deviations, health.explosion_ratio
        self.begin_anew()

    def begin_anew(self) -> None:
        self._window: deque[float] = deque(maxlen=SPIKE_ROWS)
        self._quiet = QUIET_ROWS
        self._evidence: Evidence = {}

    def ails(self, row: Row) -> bool | None:
        loss = row.values.get("loss")
        if loss is None or not math.isfinite(loss):
            return None
        is_judged = len(self._window) >= LEAST_SPIKE_ROWS
        if is_judged:
            median = self._median()
            self._evidence = {"step": row.step, "loss": loss, "median": median}
            if loss > self._ratio * median and self._is_far_above(loss, median):
                self._quiet = 0
                return True
        self._window.append(loss)
        self._quiet += 1
        return False if is_judged and self._quiet >= QUIET_ROWS else None

    def _median(self) -> float:
        rows = list(self._window)
        return min(sorted(some)[len(some) // 2] for some in (rows, rows[-NEWEST_ROWS:]))

    def _is_far_above(self, loss: float, median: float) -> bool:
        changes = sorted(later - earlier for earlier, later in itertools.pairwise(self._window))
        deviation = max(0.0, changes[len(changes) * 5 // 6]) / math.sqrt(2)
        self._evidence["deviation"] = deviation
        return loss - median > self._deviations * max(1.0, SURE_SPIKE_ROWS / len(self._window)) * deviation

    def why(self) -> tuple[str, Evidence]:
        found = self._evidence
        message = f"the loss is {found['loss']:.4g} at step {found['step']:,}; the usual before was {found['median']:.4g}"
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
        if 0 <= row.at - self._began < STRETCH_S or len(self._times) < STRETCH_ROWS:
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
        found = next(iter(self._slow.values()), self._evidence)
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


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None
