"""Evaluations of checkpoints: on demand, and of the best one when a run is completed. The work itself is a job."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, get_args

from app.services.datasets import NoData
from app.services.jobs import JobService
from app.settings import Settings
from app.store import runs
from app.store.engine import Store, Write
from app.store.runs import Once
from app.store.tables import Checkpoint, Job, Run
from cognate.config import DatasetName
from cognate.rundir import RunDir

KIND: Final = "evaluation"
SAMPLE: Final = 100  # items a dataset; on two cores some minutes


@dataclass(frozen=True)
class Wanted:
    """datasets: names, None for all that are there; limit: a fixed sample of so many items of each; overlap: with the training text

    calculator, vote: figures of answers that are numbers, beside the usual ones: with a calculator, of the majority of so many
    """

    datasets: Sequence[str] | None = None
    limit: int | None = None
    overlap: bool = True
    calculator: bool = False
    vote: int | None = None


class EvaluationService:
    def __init__(self, store: Store, jobs: JobService, settings: Settings) -> None:
        self._store = store
        self._jobs = jobs
        self._settings = settings

    def start(self, run_id: str, checkpoint_id: str | None, wanted: Wanted, once: Once | None = None) -> tuple[Job, bool]:
        """Evaluate a checkpoint (the newest if none is named); the job, and whether it is new.

        Raises NoSuchRun, NoCheckpoint, NoData, KeyReused.
        """
        if not self._settings.has_data:
            raise NoData("evaluation items come from real datasets only: start the service with COGNATE_DATA_DIR, or fetch a dataset")
        with self._store.write() as write:
            runs.get(write.session, run_id)
            checkpoint = runs.usable_checkpoint(write.session, run_id, checkpoint_id)
            return self._jobs.start_within(write, KIND, run_id, _spec(checkpoint, wanted), once)

    def evaluate_completed(self, write: Write, run: Run, slots: Sequence[str]) -> None:
        """What follows when a run is completed, as its configuration has it: an evaluation of its best checkpoint."""
        at_end, source = run.config["evaluation"]["at_end"], run.config["data"]["source"]
        if at_end == "off" or not self._settings.has_data or source == "synthetic":
            return
        left = {row.step: row for row in runs.checkpoints(write.session, run.id) if row.removed_at is None}
        best = RunDir(self._settings.runs / run.id).best()
        checkpoint = left.get(best[0]) if best else None
        if checkpoint is None:
            return
        has_gpu = any(slot.startswith("cuda") for slot in slots)
        full = at_end == "full" or (at_end == "auto" and has_gpu)
        wanted = Wanted(run.config["data"]["datasets"], None if full else SAMPLE)
        # Every item, which nobody is waiting for: a minute or two of a GPU, and hours of the CPU beside the next run.
        self._jobs.start_within(write, KIND, run.id, {**_spec(checkpoint, wanted), "needs_gpu": full and has_gpu})


def note_evaluation(write: Write, job: Job) -> None:
    """Say on the run's stream that an evaluation is there, with the figure that speaks for each dataset."""
    run, made = write.session.get(Run, job.subject), job.result
    if run is None or made is None:  # the run was deleted meanwhile
        return
    figures = {name: each["figures"][each["figure"]] for name, each in made["datasets"].items() if each["figure"] in each["figures"]}
    data = {"job_id": job.id, "checkpoint": made["checkpoint"], "limit": made["limit"], "figures": figures}
    runs.add_event(write, run.id, run.attempt, KIND, time.time(), job.spec["step"], data)


def _spec(checkpoint: Checkpoint, wanted: Wanted) -> dict[str, Any]:
    names = None if wanted.datasets is None else [name for name in get_args(DatasetName) if name in wanted.datasets]
    of = {"run_id": checkpoint.run_id, "checkpoint_id": checkpoint.id, "step": checkpoint.step}
    return {**of, **asdict(wanted), "datasets": names}
