"""Sees that each run has its Weights & Biases mirror (cognate/mirror.py), as a process of its own.

Online a mirror follows its run; offline it is one pass whenever the run comes to rest, so that it costs training nothing.
A mirror changes nothing of a run: one that fails is an event, and is tried again later, each time later still. Mirrors do not
outlive the server, and none is missed: what has been mirrored is noted in the run's folder, and the rest is in its journals.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.executors.local import PASSED_ON
from app.services.lifecycle import AT_REST, LIVE
from app.services.troubles import Troubles
from app.settings import Settings
from app.store import runs
from app.store.engine import Store
from app.store.tables import Run
from cognate.rundir import RunDir, read_json
from cognate.wandb_mode import API_KEY, Mode, has_key, mode_of

log = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
RETRY_AFTER_S = 30.0  # and four times as long each further time in a row
RETRY_AFTER_MOST_S = 3600.0
SHUTDOWN_GRACE_S = 5.0
MIRROR = (sys.executable, "-m", "cognate.mirror")
_TO_REACH_IT = ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class Mirrors:
    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self._seen = 0  # the newest change of a state that was looked at
        self._watched: set[str] = set()
        self._at_work: dict[str, subprocess.Popen[bytes]] = {}
        self._failures: dict[str, tuple[int, float]] = {}  # in a row, and when the next try is due
        self._said: dict[str, str] = {}
        self._troubles = Troubles()
        self._looking = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="mirrors", daemon=True)

    def start(self) -> None:
        if self._settings.wandb != "off":
            self._thread.start()

    def stop(self) -> None:
        """Let mirrors at work send what they have, and end those that need longer: the next start goes on with them."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        for process in self._at_work.values():
            _close(process)
        deadline = time.monotonic() + SHUTDOWN_GRACE_S
        for process in self._at_work.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            _kill(process)

    @contextlib.contextmanager
    def without(self, run_id: str) -> Iterator[None]:
        """End the run's mirror, and start none inside: its folder is about to go."""
        with self._looking:
            if process := self._at_work.pop(run_id, None):
                _kill(process)
            yield

    def look(self) -> None:
        """One pass over everything; safe to repeat at any time."""
        with self._looking:
            with self._store.read() as session:
                for seq, run_id in runs.changes_at_rest(session, self._seen):
                    self._seen = seq
                    self._watched.add(run_id)
                watched = {run.id: run for run in runs.some(session, self._watched | self._at_work.keys())}
            for run_id in list(self._at_work):
                self._reap(run_id, watched.get(run_id))
            self._watched &= watched.keys()
            for run in watched.values():
                try:
                    self._tend(run)
                except OSError as error:  # a full disk, a folder that was taken away by hand
                    self._failed(run, str(error))

    def _work(self) -> None:
        while not self._stop.wait(LOOK_EVERY_S):
            try:
                self.look()
            except Exception as error:  # the loop must outlive any one look; what failed is tried again at the next
                self._troubles.tell("mirrors: a look failed", error)

    # --- one run --------------------------------------------------------------------------------------------

    def _tend(self, run: Run) -> None:
        """Start or end the run's mirror, if it is time; a run that needs none before its state changes is watched no more."""
        process = self._at_work.get(run.id)
        mode = mode_of(self._settings.wandb, _wanted(run), has_key(), self._begun(run.id))
        if run.state in LIVE:
            if mode != "online":
                self._watched.discard(run.id)
            elif process is None and self._is_due(run.id):
                self._launch(run, mode, follow=True)
        elif process is not None:
            _close(process)
        elif mode == "off" or run.state not in AT_REST or not run.attempt or RunDir(self._settings.runs / run.id).is_mirrored():
            self._watched.discard(run.id)
        elif self._is_due(run.id) and all(_is_following(other) for other in self._at_work.values()):  # one after another
            self._launch(run, mode, follow=False)

    def _launch(self, run: Run, mode: Mode, *, follow: bool) -> None:
        folder = RunDir(self._settings.runs / run.id)
        folder.mirror.parent.mkdir(exist_ok=True)
        tags = [f"--tag={tag}" for tag in run.tags]
        about = [f"--name={run.name}", *tags, *([f"--group={run.group_id}"] if run.group_id else [])]
        online = ["--online"] if mode == "online" else []
        with self._log_of(run.id).open("wb") as output:
            self._at_work[run.id] = subprocess.Popen(
                [*MIRROR, *online, *about, str(folder.path)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=environment(mode),
                start_new_session=True,
            )
        if not follow:
            _close(self._at_work[run.id])
        if _wanted(run) == "online" and self._settings.wandb == "auto" and not has_key():
            self._say(run, f"the run asks for W&B online, but the service has no {API_KEY}; it is written offline")

    def _reap(self, run_id: str, run: Run | None) -> None:
        process = self._at_work[run_id]
        if (code := process.poll()) is None:
            return
        _close(process)
        del self._at_work[run_id]
        if run is None:
            return
        self._watched.add(run_id)
        if code:
            lines = self._log_of(run_id).read_text(errors="replace").strip().splitlines()
            self._failed(run, lines[-1] if lines else f"it ended with code {code}")
            return
        self._failures.pop(run_id, None)
        if remark := read_json(RunDir(self._settings.runs / run_id).mirror)["remark"]:
            self._say(run, remark)

    def _failed(self, run: Run, reason: str) -> None:
        failures, _ = self._failures.get(run.id, (0, 0.0))
        self._failures[run.id] = failures + 1, time.monotonic() + retry_after(failures)
        self._say(run, reason)

    def _begun(self, run_id: str) -> Mode | None:
        try:
            mode: Mode = read_json(RunDir(self._settings.runs / run_id).mirror)["mode"]
        except FileNotFoundError:
            return None
        return mode

    def _is_due(self, run_id: str) -> bool:
        return time.monotonic() >= self._failures.get(run_id, (0, 0.0))[1]

    def _say(self, run: Run, message: str) -> None:
        """An event of the run, unless it is the one before again."""
        if self._said.get(run.id) == message:
            return
        self._said[run.id] = message
        log.warning("run %s: mirror: %s", run.id, message)
        with self._store.write() as write:
            runs.add_event(write, run.id, run.attempt, "mirror_failed", time.time(), None, {"message": message[:500]})

    def _log_of(self, run_id: str) -> Path:
        return RunDir(self._settings.runs / run_id).mirror.with_name("mirror.log")


def retry_after(failures: int) -> float:
    """Seconds to the next try, after one more than `failures` in a row. However many: a server may be away for months."""
    return min(RETRY_AFTER_S * 4.0 ** min(failures, 9), RETRY_AFTER_MOST_S)


def environment(mode: Mode) -> dict[str, str]:
    """All that a mirror sees of the outside; the key is for one that goes online, and for nobody else."""
    names = (*PASSED_ON, *((API_KEY, *_TO_REACH_IT) if mode == "online" else ()))
    return {name: os.environ[name] for name in names if name in os.environ} | {"PYTHONUNBUFFERED": "1"}


def _wanted(run: Run) -> str:
    tracking: dict[str, Any] = run.config.get("tracking", {"wandb": "off"})  # a run from before there were mirrors
    return str(tracking["wandb"])


def _is_following(process: subprocess.Popen[bytes]) -> bool:
    return process.stdin is not None and not process.stdin.closed


def _close(process: subprocess.Popen[bytes]) -> None:
    """Tell a mirror that nothing more is coming."""
    if process.stdin is not None:
        process.stdin.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    _close(process)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
