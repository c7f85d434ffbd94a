"""Datasets: what is there, counted by a job when the files have changed; and fetching one from the hub, by another."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from app.services.jobs import JobService
from app.settings import Settings
from app.store import jobs
from app.store.engine import Store
from app.store.runs import Once
from app.store.tables import Job
from cognate.config import DatasetName
from cognate.rundir import Places

STATUS, FETCH = "data_status", "fetch"
COUNTED_AGAIN_AFTER_S: Final = 60.0  # when counting failed


class NoData(RuntimeError):
    """What is asked needs real datasets, and there are none."""


class Offline(RuntimeError):
    """The machine is kept from the network, and the Hugging Face cache is empty."""


@dataclass(frozen=True)
class Counted:
    """job: the newest that looks at the files as they are; known: the newest that is completed, of files as they once were"""

    state: Literal["ready", "counting", "failed"]
    job: Job
    known: Job | None


class DatasetService:
    def __init__(self, store: Store, jobs: JobService, settings: Settings) -> None:
        self._store = store
        self._jobs = jobs
        self._settings = settings

    def counted(self) -> Counted:
        """What is known of the datasets; begins to count them where nothing is, or the files have changed."""
        files = self._files()
        with self._store.read() as session:
            newest = jobs.latest(session, STATUS, files)
            known = next(iter(jobs.page(session, 1, kind=STATUS, state="completed")), None)
        if newest is None or (newest.state in ("failed", "cancelled") and _is_old(newest)):
            newest, _ = self._jobs.start(STATUS, files, {})
        if newest.state == "completed":
            return Counted("ready", newest, newest)
        return Counted("counting" if newest.state in jobs.UNFINISHED else "failed", newest, known)

    def fetch(self, name: DatasetName, once: Once | None = None) -> tuple[Job, bool]:
        """Download a dataset; the job, and whether it is new. Raises Offline, KeyReused."""
        if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):  # as the hub's own library reads it
            cache = _hugging_face_cache()
            if not any(cache.glob("*___*")):
                raise Offline(f"HF_HUB_OFFLINE is set where the service was started, and there is no dataset in {cache}")
        return self._jobs.start(FETCH, name, {"name": name}, once)

    def _files(self) -> str:
        """A name for the data files as they are, by their sizes and times."""
        digest = hashlib.sha256()
        for folder in (self._settings.data_dir, Places(None, self._settings.cache).fetched):
            for file in sorted(folder.glob("[!.]*/*")) if folder is not None else ():
                with contextlib.suppress(FileNotFoundError):  # gone since it was listed
                    found = file.stat()
                    digest.update(f"{file}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:32]


def _hugging_face_cache() -> Path:
    """Where the `datasets` library keeps what it has loaded, by its own rules; importing it would take seconds."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    home = Path(os.environ.get("HF_HOME") or cache / "huggingface")
    return Path(os.environ.get("HF_DATASETS_CACHE") or home / "datasets").expanduser()


def _is_old(job: Job) -> bool:
    return job.ended_at is not None and abs(time.time() - job.ended_at) > COUNTED_AGAIN_AFTER_S
