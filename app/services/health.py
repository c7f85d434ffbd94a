"""Whether a run is well: its plan, its rows and its GPU's load are judged. Pure: no clock, no file, no database.

A Monitor takes one reading at a time and answers with what changed: an ailment that began, or one that is over. What the
ailments are stands in ailments.py, and what finds them in detectors.py; alerts.py feeds the monitors and keeps what they
say. A row costs a few microseconds: windows are bounded, and the long ones are averaged as rows come.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.services.ailments import Ailment
from app.services.detectors import Detector, Evidence, Explosion, GpuIdle, Nonfinite, NotFalling, Plateau, Row, Slow
from cognate.config import RunConfig


@dataclass(frozen=True)
class Finding:
    """An ailment that began or, where `ails` is false, is over."""

    kind: Ailment
    ails: bool
    message: str
    evidence: Evidence
    step: int | None = None


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
