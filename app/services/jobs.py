"""Jobs: work that is no training run but needs torch or the network, done in processes beside the service: one at a time, and
beside it one of those that are soon done, so that a count of rows does not wait for an hour's evaluation.

A job takes a GPU that no run holds; where there is none free it works on the CPU, so it never waits for a run, nor takes
memory from one. Only a job whose specification has `needs_gpu` waits for one to be free, and lets others pass. Asking twice
for the same before it is done is asking once. What a job says and leaves are files (cognate/jobdir.py); like the supervisor,
whose loop calls look(), nothing is remembered outside them and the database.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sqlmodel import Session
from uuid_utils import uuid7

from app.executors.base import Executor, Exit, LaunchError
from app.services.troubles import Troubles
from app.settings import Settings
from app.store import jobs
from app.store.engine import Store, Write
from app.store.runs import Once, done_before, note_done
from app.store.tables import Job
from cognate.jobdir import JobDir

log = logging.getLogger(__name__)

LIGHT = frozenset({"data_status", "fetch", "training_report"})  # the kinds that are soon done, or mostly wait
ONLINE = frozenset({"fetch"})  # the kinds that may use the network
ENDED_WITHIN_S = 10.0
FOLDERS_KEPT = 20  # of ended jobs: their results are in the database, their files only here
STALLED = "job_stalled"
LASTING = frozenset({"handoff"})  # the kinds whose files a person asked for: kept until the next one about the same
Completed = Callable[[Write, Job], None]
Completion = Callable[[Session, Job], dict[str, Any]]


class JobService:
    def __init__(
        self,
        store: Store,
        executor: Executor,
        settings: Settings,
        on_completed: Mapping[str, Completed],
        at_launch: Mapping[str, Completion],
    ) -> None:
        """on_completed: by kind, what a result changes elsewhere, in the transaction that notes it

        at_launch: by kind, what the process is told beside the job's specification: what is known when it begins
        """
        self._store = store
        self._executor = executor
        self._settings = settings
        self._on_completed = on_completed
        self._at_launch = at_launch
        self._troubles = Troubles()
        self._heard: dict[str, tuple[tuple[int, ...], float]] = {}  # by job: its last signs of life, and when they were new

    def start(self, kind: str, subject: str, spec: dict[str, Any], once: Once | None = None) -> tuple[Job, bool]:
        """Queue a job, or join the unfinished one that does the same; the job, and whether it is new. Raises KeyReused."""
        with self._store.write() as write:
            return self.start_within(write, kind, subject, spec, once)

    def start_within(self, write: Write, kind: str, subject: str, spec: dict[str, Any], once: Once | None = None) -> tuple[Job, bool]:
        """start() as part of a transaction."""
        if before := done_before(write, once):
            return jobs.get(write.session, before), False
        job = jobs.unfinished(write.session, kind, subject, spec)
        is_new = job is None
        if job is None:
            job = Job(id=f"job_{uuid7()}", kind=kind, subject=subject, spec=spec, state="queued", created_at=time.time())
            write.session.add(job)
            write.session.flush()
        note_done(write, once, job.id)
        return job, is_new

    def cancel(self, job_id: str) -> tuple[Job, bool]:
        """Give a job up; the job, and whether this changed anything. Raises NoSuchJob."""
        with self._store.write() as write:
            job = jobs.get(write.session, job_id)
            if job.state not in jobs.UNFINISHED or job.cancel_requested:
                return job, False
            job.cancel_requested = True
            if job.state == "queued":
                _end(write, job, "cancelled")
            return job, True

    def gpus(self) -> dict[str, str]:
        """The jobs at work on GPUs, by slot; on the CPU they take none, they give way."""
        with self._store.read() as session:
            running = jobs.in_states(session, ["running"])
        return {job.device: job.id for job in running if job.device is not None and job.device.startswith("cuda")}

    def folder(self, job_id: str) -> Path:
        return self._settings.home / "jobs" / job_id

    def look(self, free: Sequence[str], slots: Sequence[str]) -> None:
        """One pass: see to what runs, start what waits. free: those of the slots that no run holds"""
        with self._store.read() as session:
            found = jobs.in_states(session, jobs.UNFINISHED)
        running = [job for job in found if job.state == "running"]
        for job in running:
            try:
                self._tend(job)
            except Exception as error:  # one job's trouble must not keep the runs from being looked after
                self._troubles.tell(f"{job.id}: could not be looked after; trying again", error)
        gpu = next((slot for slot in free if slot.startswith("cuda")), None)
        may_come = self._executor.trouble() is not None or any(slot.startswith("cuda") for slot in slots)
        must_wait = gpu is None and may_come
        waiting = [job for job in found if job.state == "queued" and not (must_wait and job.spec.get("needs_gpu"))]
        for is_light in (True, False):
            alike = [job for job in waiting if (job.kind in LIGHT) is is_light]
            if alike and not any((job.kind in LIGHT) is is_light for job in running):
                self._launch(alike[0].id, "cpu" if is_light else gpu or "cpu")

    def stop(self) -> None:
        """The service ends: what runs is ended, and begun anew at the next start."""
        with self._store.read() as session:
            directories = [JobDir(self.folder(job.id)) for job in jobs.in_states(session, ["running"])]
        deadline = time.monotonic() + ENDED_WITHIN_S
        while any(self._executor.ended(directory) is None for directory in directories) and time.monotonic() < deadline:
            for directory in directories:
                self._executor.kill(directory)
            time.sleep(0.05)
        with self._store.write() as write:
            for job in jobs.in_states(write.session, ["running"]):
                job.state, job.device, job.reason, job.detail = "queued", None, None, None

    def _launch(self, job_id: str, device: str) -> None:
        with self._store.write() as write:
            job = jobs.get(write.session, job_id)
            if job.state != "queued":
                return
            job.state, job.device, job.started_at = "running", device, time.time()
        directory = JobDir(self.folder(job_id))
        try:
            shutil.rmtree(directory.path, ignore_errors=True)  # of a life that the service's end cut short
            directory.create(job.kind, {**job.spec, **self._known_now(job)})
            self._executor.launch_job(directory, device, self._settings.runs, online=job.kind in ONLINE)
        except (LaunchError, OSError, LookupError) as error:
            log.error("job %s: %s", job_id, error)
            with self._store.write() as write:
                _end(write, jobs.get(write.session, job_id), "failed", reason="launch_failed", detail=str(error))

    def _known_now(self, job: Job) -> dict[str, Any]:
        completion = self._at_launch.get(job.kind)
        if completion is None:
            return {}
        with self._store.read() as session:
            return completion(session, job)

    def _tend(self, job: Job) -> None:
        directory = JobDir(self.folder(job.id))
        ended = self._executor.ended(directory)  # before the files are read: what is there then is all there will be
        if ended is None:
            self._notice_silence(job, directory)
            if job.cancel_requested or job.reason == STALLED:
                self._executor.kill(directory)
            if (said := directory.progress()) != job.progress:
                with self._store.write(durable=False) as write:
                    jobs.get(write.session, job.id).progress = said
            return
        with self._store.write() as write:
            self._conclude(write, jobs.get(write.session, job.id), directory, ended)
        self._heard.pop(job.id, None)
        self._tidy()

    def _notice_silence(self, job: Job, directory: JobDir) -> None:
        """A job that has neither said nor printed anything for long is ended: its GPU is wanted."""
        signs, now = directory.signs_of_life(), time.monotonic()
        heard, since = self._heard.get(job.id, (None, now))
        if signs != heard:
            self._heard[job.id] = signs, now
        elif now - since >= self._settings.job_stall_after_s and job.reason is None:
            detail = f"no word for {now - since:.0f} s"
            log.warning("%s: %s; it is ended", job.id, detail)
            with self._store.write() as write:
                said = jobs.get(write.session, job.id)
                said.reason, said.detail = STALLED, detail

    def _conclude(self, write: Write, job: Job, directory: JobDir, ended: Exit) -> None:
        if (result := directory.result()) is not None:
            job.result = result
            _end(write, job, "completed")
            if hook := self._on_completed.get(job.kind):
                hook(write, job)
        elif job.cancel_requested:
            _end(write, job, "cancelled")
        elif (error := directory.error()) is not None:
            _end(write, job, "failed", **error)
        elif job.reason == STALLED:
            _end(write, job, "failed", reason=STALLED, detail=job.detail)
        else:
            _end(write, job, "failed", reason="job_lost", detail=_how(ended))

    def _tidy(self) -> None:
        """Remove the folders of all but the newest ended jobs, and of those that last."""
        root = self._settings.home / "jobs"
        with self._store.read() as session:
            kept = {job.id for job in jobs.page(session, FOLDERS_KEPT)} | {job.id for job in jobs.in_states(session, jobs.UNFINISHED)}
            kept |= {job_id for kind in LASTING for job_id in jobs.newest_by_subject(session, kind)}
        for path in root.iterdir():
            if path.name not in kept:
                shutil.rmtree(path, ignore_errors=True)


def _end(write: Write, job: Job, state: str, *, reason: str | None = None, detail: str | None = None) -> None:
    job.state, job.reason, job.detail, job.ended_at = state, reason, detail, time.time()
    write.log_lines.append(f"{job.id} ({job.kind} of {job.subject}): {state}{f', {reason}' if reason else ''}")


def _how(ended: Exit) -> str:
    if ended.oom_killed:
        return "the machine's memory did not suffice, and the kernel killed its process"
    if ended.signal is not None:
        return f"its process was killed by signal {ended.signal}"
    return f"its process left with code {ended.code} and no result" if ended.code is not None else "its process is gone without a trace"
