"""Alerts on runs: feeds the monitors of health.py with what journals say, and keeps what they find on the run, each once.

A monitor lives in memory with its windows; after a restart of the server, or when an attempt begins behind what was trained
before, it is made anew from the rows in the database. Every change of a run's alerts is an event, `alert` or `alert_cleared`,
in the transaction of the rows it comes from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import Any

from sqlmodel import Session

from app.services.ailments import ABOUT, OF_A_WORKER, Ailment
from app.services.detectors import MEASURED, SPIKE_ROWS, Row
from app.services.health import Finding, Monitor
from app.store import metrics, runs
from app.store.engine import Write
from app.store.tables import Attempt, Run
from cognate.config import RunConfig, parse
from cognate.events import Event, Kind, number

_KEYS = (*MEASURED, "epoch_time_minutes")


class Alerts:
    """The monitors of the runs that are looked after. One thread feeds them: the supervisor's."""

    def __init__(self) -> None:
        self._monitors: dict[str, Monitor] = {}
        self._blind: set[str] = set()  # runs whose journals say what no monitor understands

    def prepare(self, session: Session, run: Run, attempt: Attempt) -> None:
        """Have a monitor that knows what is stored; before new rows are."""
        if run.id not in self._monitors and run.id not in self._blind:
            upto = run.progress.get("step") if run.progress else attempt.resumed_from_step
            self._monitors[run.id] = _monitor(session, run, upto or 0)

    def take(self, write: Write, run: Run, attempt: Attempt, events: Sequence[Event]) -> None:
        """Judge what a journal told, in its order."""
        if run.id in self._blind:
            return
        try:
            for event in events:
                if findings := self._judge(write.session, run, attempt, event):
                    self._note(write, run, findings, event.at)
        except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
            # The rows were kept; what they mean for health is not known.
            self.forget(run.id)
            self._blind.add(run.id)
            message = f"this attempt is not watched over any more, for its journal is odd: {type(error).__name__}: {error}"[:500]
            runs.add_event(write, run.id, attempt.number, "warning", time.time(), None, {"message": message})

    def _judge(self, session: Session, run: Run, attempt: Attempt, event: Event) -> Sequence[Finding]:
        data = event.data
        if event.kind is Kind.METRICS:
            row = Row(data["step"], data["epoch"], event.at, data["values"], data["progress"])
            found = self._monitors[run.id].row(row)
            return [*found, *_fits_again(run.alerts, row.step)] if run.alerts else found
        if event.kind is Kind.STARTED:
            self._monitors[run.id] = _monitor(session, run, attempt.resumed_from_step or 0)
        if event.kind is Kind.PLAN:
            return self._monitors[run.id].plan(data)
        return ()

    def look_at_gpu(self, write: Write, run: Run, utilisation: float) -> None:
        """utilisation: 0..1, looked at every GPU_LOOK_EVERY_S of training"""
        if monitor := self._monitors.get(run.id):
            self._note(write, run, monitor.gpu(utilisation, (run.progress or {}).get("step")), time.time())

    def forget(self, run_id: str) -> None:
        """Its attempt is over, or what its monitor saw may not have been kept."""
        self._monitors.pop(run_id, None)
        self._blind.discard(run_id)

    def set(self, write: Write, run: Run, finding: Finding) -> None:
        """Keep what the supervisor found by itself."""
        self._note(write, run, [finding], time.time())
        if monitor := self._monitors.get(run.id):
            monitor.active.add(finding.kind)

    def clear(self, write: Write, run: Run, kinds: Collection[Ailment], why: str) -> None:
        over = [Finding(Ailment(alert["kind"]), False, why, {}) for alert in run.alerts if alert["kind"] in kinds]
        self._note(write, run, over, time.time())
        if monitor := self._monitors.get(run.id):
            monitor.active -= {finding.kind for finding in over}

    def worker_ended(self, write: Write, run: Run) -> None:
        self.clear(write, run, OF_A_WORKER, "the worker ended")
        self.forget(run.id)

    def _note(self, write: Write, run: Run, findings: Sequence[Finding], at: float) -> None:
        for finding in findings:
            others = [alert for alert in run.alerts if alert["kind"] != finding.kind]
            alert = _alert(finding, at)
            run.alerts = [*others, alert] if finding.ails else others
            data = alert if finding.ails else {name: alert[name] for name in ("kind", "message", "evidence")}
            runs.add_event(write, run.id, run.attempt, "alert" if finding.ails else "alert_cleared", at, finding.step, data)


def _alert(finding: Finding, at: float) -> dict[str, Any]:
    about = ABOUT[finding.kind]
    return {
        "kind": finding.kind.value,
        "severity": about.severity,
        "message": f"{about.what[0].upper()}{about.what[1:]}: {finding.message}" if finding.ails else finding.message,
        "evidence": finding.evidence,
        "remedy": about.remedy,
        "since_step": finding.step,
        "at": at,
    }


def _fits_again(alerts: Sequence[dict[str, Any]], step: int) -> list[Finding]:
    past = [alert for alert in alerts if alert["kind"] == Ailment.OUT_OF_MEMORY and step > alert["evidence"]["over_after_step"]]
    return [Finding(Ailment.OUT_OF_MEMORY, False, f"step {step:,} fitted into memory", {}, step) for _ in past]


def _monitor(session: Session, run: Run, upto: int) -> Monitor:
    """A monitor that has seen the rows up to that step."""
    config = parse(run.config)
    monitor = Monitor(config, [alert["kind"] for alert in run.alerts])
    if run.plan:
        monitor.plan(run.plan)
    first, rows = _rows(session, run.id, config, upto) if upto else (None, [])
    if run.forked_from:  # its own first row is that of a trained model
        first = Row(0, 0.0, run.created_at, {"loss_ce": math.log(config.model.vocab_size)}, {})
    monitor.replay(first, rows)
    return monitor


def _rows(session: Session, run_id: str, config: RunConfig, upto: int) -> tuple[Row | None, list[Row]]:
    """The first row with a loss, and those that a window may reach back to."""
    back = max(2 * config.health.plateau_steps, SPIKE_ROWS * config.training.log_every_steps)
    first = metrics.page(session, run_id, _KEYS, 1, steps=(1, upto))
    columns = metrics.columns(session, run_id, _KEYS, steps=(max(1, upto - back), upto))
    return (_row(first[0]) if first else None), [_row(row) for row in zip(*columns.values(), strict=True)]


def _row(stored: Sequence[Any]) -> Row:
    """A row of AXES, then _KEYS. What a worker said of its progress is not stored."""
    axes = dict(zip(metrics.AXES, stored, strict=False))
    values = zip(_KEYS, stored[len(metrics.AXES) :], strict=True)
    measured = {key: number(value) for key, value in values if value is not None}
    return Row(axes["step"], axes["epoch"], axes["at"], measured, {})
