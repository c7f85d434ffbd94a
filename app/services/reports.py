"""What is told of groups and runs: diversity, the hand-off to Phase 2, training reports. The work itself is a job; here is when it is
begun, whether what it made still holds, and what it changes.

A report that was made is kept in its job's folder; where that is tidied away, or the runs have gone on, it is made anew.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from sqlmodel import Session

from app.services.jobs import JobService
from app.services.lifecycle import State
from app.settings import Settings
from app.store import jobs, metrics, runs
from app.store.engine import Store, Write
from app.store.runs import Once
from app.store.tables import Job, Run
from cognate.rundir import RunDir, append_afterwards

DIVERSITY: Final = "diversity"
EVALUATION: Final = "evaluation"
HANDOFF: Final = "handoff"
REPORT: Final = "training_report"
IN_A_HANDOFF: Final = 3
FAILED_FOR_S: Final = 60.0  # before a report that could not be made is tried again
MOST_EVALUATIONS: Final = 100  # of a run, the newest

Standing = Literal["absent", "measuring", "measured", "failed"]


class NotReady(RuntimeError):
    """Something that is needed is not there yet; the sentence names it."""


@dataclass(frozen=True)
class Measured:
    """The diversity of a group: what is known, and the newest job about it, each None where there is none."""

    result: dict[str, Any] | None
    measured_at: float | None
    job: Job | None

    @property
    def state(self) -> Standing:
        if self.job is not None and self.job.state in jobs.UNFINISHED:
            return "measuring"
        return "measured" if self.result is not None else "failed" if self.job is not None else "absent"


class ReportService:
    def __init__(self, store: Store, job_service: JobService, settings: Settings) -> None:
        self._store = store
        self._jobs = job_service
        self._settings = settings

    # --- diversity ------------------------------------------------------------------------------------------

    def measure_diversity(self, group_id: str, once: Once | None = None) -> tuple[Job, bool]:
        """Measure the best checkpoints of a group; the job, and whether it is new. Raises NoSuchGroup, NotReady, KeyReused."""
        with self._store.write() as write:
            members = runs.of_group(write.session, group_id)
            if len(members) < 2:
                raise NotReady(f"a group of {len(members)} has nothing to compare")
            spec = {"run_ids": [run.id for run in members], "steps": self._best(members)}
            return self._jobs.start_within(write, DIVERSITY, group_id, spec, once)

    def diversity(self, group_id: str) -> Measured:
        """What is known of a group's diversity; raises NoSuchGroup."""
        with self._store.read() as session:
            runs.group(session, group_id)
            known = jobs.latest(session, DIVERSITY, group_id, "completed")
            newest = jobs.latest(session, DIVERSITY, group_id)
        return Measured(known.result if known else None, known.ended_at if known else None, newest)

    def group_completed(self, write: Write, run: Run, slots: Sequence[str]) -> None:
        """What follows when a run is completed: where it was the last one of its group, the group's diversity is measured."""
        if run.group_id is None:
            return
        members = runs.of_group(write.session, run.group_id)
        if len(members) < 2 or any(member.state != State.COMPLETED for member in members):
            return
        try:
            spec = {"run_ids": [member.id for member in members], "steps": self._best(members)}
        except NotReady:  # a checkpoint was deleted by hand; the report of the group says so when it is asked for
            return
        self._jobs.start_within(write, DIVERSITY, run.group_id, spec)

    # --- hand-off -------------------------------------------------------------------------------------------

    def build_handoff(self, group_id: str, allow_any_size: bool, once: Once | None = None) -> tuple[Job, bool]:
        """Make the archive of a group's three best models; the job, and whether it is new. Raises NoSuchGroup, NotReady, KeyReused.

        It encloses the results that are there when the job begins (results_for_handoff()).
        """
        with self._store.write() as write:
            members = self._three(runs.of_group(write.session, group_id))
            spec = {"run_ids": [run.id for run in members], "steps": self._best(members), "allow_any_size": allow_any_size}
            return self._jobs.start_within(write, HANDOFF, group_id, spec, once)

    def handoff(self, group_id: str) -> tuple[Job, Path]:
        """The archive of the group's models as they are now, and the job that made it. Raises NoSuchGroup, NotReady."""
        with self._store.read() as session:
            members = self._three(runs.of_group(session, group_id))
            steps = self._best(members)
            as_of = _enclosed(session, group_id, steps)
            newest = jobs.latest(session, HANDOFF, group_id)
            built = jobs.latest(session, HANDOFF, group_id, "completed")
        if built is not None and built.result is not None:
            archive = self._jobs.folder(built.id) / str(built.result["file"])
            held = {model["run"]: model["best"]["step"] for model in built.result["manifest"]["models"]}
            if held == steps and archive.is_file():
                if built.result.get("as_of") != as_of:
                    raise NotReady("evaluations or a diversity report were made since the archive was built; POST builds it with them")
                return built, archive
        if newest is not None and newest.state in jobs.UNFINISHED:
            raise NotReady(f"the archive is being built: {newest.id}")
        if newest is not None and newest.state == "failed":
            raise NotReady(f"the archive could not be built: {newest.detail}")
        raise NotReady("no archive has been built of the group's best checkpoints as they are now; POST builds it")

    # --- training reports -----------------------------------------------------------------------------------

    def report(self, subject: str) -> tuple[Job, Path | None]:
        """The folder with the training report of a run, or a group, as of its newest checkpoints; None while the job makes it.

        Raises NoSuchRun, NoSuchGroup, NotReady.
        """
        with self._store.write() as write:
            of_group = subject.startswith("group_")
            members = runs.of_group(write.session, subject) if of_group else [runs.get(write.session, subject)]
            newest = jobs.latest(write.session, REPORT, subject)
            if newest is not None and newest.state == "completed" and newest.result:
                folder = self._jobs.folder(newest.id)
                is_there = all((folder / name).is_file() for name in newest.result["files"])
                if is_there and newest.result.get("as_of") == _as_of(self._settings.runs, write.session, members):
                    return newest, folder
            if newest is not None and newest.state == "failed" and abs(time.time() - (newest.ended_at or 0)) < FAILED_FOR_S:
                raise NotReady(f"the report could not be made: {newest.detail}")
            job, _ = self._jobs.start_within(write, REPORT, subject, {"run_ids": [run.id for run in members]})
            return job, None

    # --- runs -----------------------------------------------------------------------------------------------

    def _three(self, members: Sequence[Run]) -> Sequence[Run]:
        if len(members) != IN_A_HANDOFF:
            raise NotReady(f"a hand-off has three models; the group has {len(members)}")
        return members

    def _best(self, members: Sequence[Run]) -> dict[str, int]:
        """The step of each run's best checkpoint; raises NotReady, naming the runs that have none."""
        steps = {run.id: self._directory(run).best_checkpoint() for run in members}
        if missing := [f"{run.name} ({run.id})" for run in members if steps[run.id] is None]:
            raise NotReady(f"no checkpoint yet: {', '.join(missing)}")
        return {run_id: step for run_id, step in steps.items() if step is not None}

    def _directory(self, run: Run) -> RunDir:
        return RunDir(self._settings.runs / run.id)


def results_for_handoff(session: Session, job: Job) -> dict[str, Any]:
    """What an archive encloses beside the models, as far as it is of their weights: evaluations, and the group's diversity.

    as_of: what these were, by which an archive that lacks later ones is known
    """
    diversity = jobs.latest(session, DIVERSITY, job.subject, "completed")
    return {
        "evaluations": _evaluations(session, job.spec["run_ids"]),
        "diversity": diversity.result if diversity else None,
        "as_of": _enclosed(session, job.subject, job.spec["steps"]),
    }


def _enclosed(session: Session, group_id: str, steps: Mapping[str, int]) -> dict[str, str]:
    """The newest results about these checkpoints, one a run: the jobs that made them, by the group's id or the run's."""
    wanted = [(DIVERSITY, group_id, "steps", steps), *((EVALUATION, run_id, "step", step) for run_id, step in steps.items())]
    newest = {}
    for kind, subject, key, value in wanted:
        found = jobs.page(session, MOST_EVALUATIONS, kind=kind, subject=subject, state="completed")
        if job := next((job for job in found if job.spec[key] == value), None):
            newest[subject] = job.id
    return newest


def facts_for_report(runs_dir: Path, session: Session, job: Job) -> dict[str, Any]:
    """What a training report tells that is not in the run directories, and what it stands on."""
    members, run_ids = runs.some(session, job.spec["run_ids"]), job.spec["run_ids"]
    names = {run.id: f"{run.name} ({run.id[-6:]})" for run in members}
    return {
        "names": {run_id: names.get(run_id, run_id) for run_id in run_ids},
        "as_of": _as_of(runs_dir, session, members),
        "evaluations": _evaluations(session, run_ids),
    }


def _as_of(runs_dir: Path, session: Session, members: Sequence[Run]) -> dict[str, Any]:
    """What makes a report of these runs one of yesterday when it changes; rows alone do not."""
    standing = {}
    for run in members:
        saved = [step for step, _ in RunDir(runs_dir / run.id).complete_checkpoints()]
        evaluation = jobs.latest(session, EVALUATION, run.id, "completed")
        standing[run.id] = [run.name, run.state, run.attempt, *saved[-1:], *([evaluation.id] if evaluation else [])]
    return standing


def _evaluations(session: Session, run_ids: Sequence[str]) -> list[dict[str, Any]]:
    """Results of the evaluations of the runs' checkpoints, of each run oldest first."""
    found = (jobs.page(session, MOST_EVALUATIONS, kind=EVALUATION, subject=run_id, state="completed") for run_id in run_ids)
    return [job.result for newest_first in found for job in reversed(newest_first) if job.result is not None]


def note_diversity(runs_dir: Path, write: Write, job: Job) -> None:
    """Once all runs of a group are completed: write its three metrics to the last row of the one that finished last, and say so there."""
    members = runs.some(write.session, job.spec["run_ids"])
    if job.result is None or not members or any(run.state != State.COMPLETED for run in members):
        return
    last = max(members, key=lambda run: run.ended_at or 0)
    measured = {key: value for key, value in job.result["metrics"].items() if isinstance(value, int | float)}
    metrics.amend(write, last.id, measured)
    last.latest = {**(last.latest or {}), **measured}
    _note_in_directory(RunDir(runs_dir / last.id), last, measured)
    data = {"group_id": job.subject, "job_id": job.id, "metrics": job.result["metrics"], "required_order": job.result["required_order"]}
    runs.add_event(write, last.id, last.attempt, DIVERSITY, time.time(), None, data)


def _note_in_directory(run: RunDir, row: Run, measured: Mapping[str, float]) -> None:
    """For those who know a run by its directory: the mirror at Weights & Biases."""
    reached = row.progress or {}
    if run.path.is_dir() and measured:
        append_afterwards(run, reached.get("step", 0), reached.get("epoch", 0.0), measured)
