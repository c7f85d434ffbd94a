"""Readiness to train a preset: what the service sees now, and the newest measurement of what it would take. A job measures."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from app.services.jobs import JobService
from app.services.supervisor import Supervisor
from app.settings import Settings
from app.store import jobs
from app.store.engine import Store
from app.store.runs import Once
from app.store.tables import Job
from cognate import __version__
from cognate.config import Recipe, RunConfig, resolve
from cognate.wandb_mode import seen_here

KIND: Final = "readiness"
SHAPE: Final = 2  # of a report; another where is_current() would not find in an older one what it reads
STALE_S: Final = 86_400.0


@dataclass(frozen=True)
class Readiness:
    """measured: the newest completed job, which need not be current; job: the one that measures, or failed to"""

    state: Literal["measured", "measuring", "failed", "absent"]
    measured: Job | None
    is_current: bool
    job: Job | None
    live: dict[str, Any]


class ReadinessService:
    def __init__(self, store: Store, jobs: JobService, supervisor: Supervisor, settings: Settings) -> None:
        self._store = store
        self._jobs = jobs
        self._supervisor = supervisor
        self._settings = settings

    def look(self, preset: str, recipe: Recipe = "report", *, may_measure: bool) -> Readiness:
        """What is known; a measurement is begun where there is no current one, if it may be. Raises UnknownPreset, ConfigError.

        One that failed is not begun again by itself: that is for measure().
        """
        config = resolve(preset, {"recipe": recipe})
        wanted, live = self._wanted(config), self._look_around(config)
        with self._store.read() as session:
            measured = jobs.latest(session, KIND, _subject(preset, recipe), "completed")
            newest = jobs.latest(session, KIND, _subject(preset, recipe))
        if measured is not None and is_current(measured, wanted, live["disk_free_bytes"], time.time()):
            return Readiness("measured", measured, True, None, live)
        if newest is not None and newest.state in ("failed", "cancelled") and is_same(newest.spec, wanted):
            return Readiness("failed", measured, False, newest, live)
        if newest is not None and newest.state in jobs.UNFINISHED:
            return Readiness("measuring", measured, False, newest, live)
        if not may_measure:
            return Readiness("absent", measured, False, None, live)
        job, _ = self.measure(preset, recipe)
        return Readiness("measuring", measured, False, job, live)

    def measure(self, preset: str, recipe: Recipe = "report", once: Once | None = None) -> tuple[Job, bool]:
        """Measure now; the job, and whether it is new. Raises UnknownPreset, ConfigError, KeyReused."""
        job, is_new = self._jobs.start(KIND, _subject(preset, recipe), self._wanted(resolve(preset, {"recipe": recipe})), once)
        if is_new:
            self._supervisor.wake()
        return job, is_new

    def _wanted(self, config: RunConfig) -> dict[str, Any]:
        """The job's specification; all of it but `not_now` decides what comes out."""
        wants_gpu = config.training.device != "cpu"
        holders = self._supervisor.holders()
        gpus = [holder for holder in holders if holder.slot.startswith("cuda")]
        usable = gpus if gpus and wants_gpu else [holder for holder in holders if holder.slot == "cpu"]
        is_busy = bool(usable) and all(holder.run_id is not None for holder in usable)  # a job on a GPU is over before the next begins
        return {
            "config": config.model_dump(mode="json"),
            "has_gpu": bool(gpus) and wants_gpu,
            "wandb": seen_here(self._settings.wandb, config.tracking.wandb),
            "basis": {
                "version": __version__,
                "shape": SHAPE,
                "data": fingerprint(self._settings.data_dir, self._settings.cache / "datasets"),
                "slots": self._supervisor.slots(),
            },
            "not_now": f"{usable[0].slot} is at work on run {usable[0].run_id}" if is_busy else None,
        }

    def _look_around(self, config: RunConfig) -> dict[str, Any]:
        return {
            "disk_free_bytes": shutil.disk_usage(self._settings.home).free,
            "devices": [{**holder._asdict(), **self._supervisor.describe(holder.slot)} for holder in self._supervisor.holders()],
            "wandb": seen_here(self._settings.wandb, config.tracking.wandb),
            "data_dir": self._settings.data_dir is not None,
        }


def _subject(preset: str, recipe: Recipe) -> str:
    return preset if recipe == "report" else f"{preset} {recipe}"


def is_current(measured: Job, wanted: Mapping[str, Any], disk_free_bytes: int, now: float) -> bool:
    """Whether a completed job still says what a new one would.

    It does not once it is a day old, the data folder, the configuration, the version or the devices are others, the disk has
    filled up or was cleared, or what could not be measured then can be now.
    """
    result = measured.result
    if result is None or measured.ended_at is None or now - measured.ended_at > STALE_S or not is_same(measured.spec, wanted):
        return False
    disk = result["projected"]["disk"]
    for needed in (disk["for_one_bytes"], disk["for_two_bytes"]):  # where the verdict on the disk changes
        if (disk_free_bytes >= needed) != (result["disk_free_bytes"] >= needed):
            return False
    return wanted["not_now"] is not None or not result["is_partial"]


def is_same(spec: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    return all(spec.get(key) == value for key, value in wanted.items() if key != "not_now")


def fingerprint(*folders: Path | None) -> str:
    """Changes when a file of a data folder does: by names, sizes and times, which are quick to look at."""
    seen = []
    for folder in folders:
        for file in sorted(folder.glob("*/*.*")) if folder is not None else ():
            with contextlib.suppress(FileNotFoundError):  # replaced at this moment; the next look sees the new one
                status = file.stat()
                seen.append(f"{file} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()
