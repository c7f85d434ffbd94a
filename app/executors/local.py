"""Attempts as processes of this machine, each under its own shim (cognate/shim.py).

Everything needed to find a worker again is in its attempt directory, so nothing here is lost with the server:
a held lease means some process of the attempt lives, started.json says which, exit.json how it ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from app.executors.base import Exit, LaunchError
from app.executors.devices import DriverError, describe, holds_memory, usable_gpus
from cognate import rundir, shim
from cognate.jobdir import JobDir
from cognate.rundir import AttemptDir, ProcessDir

log = logging.getLogger(__name__)

FREED_WITHIN_S = 30.0
GPUS_LOOKED_FOR_EVERY_S = 30.0
SPARE_AFTER_S = 15.0  # since the last launch
WORKER = (sys.executable, "-m", "cognate.worker")
JOB = (sys.executable, "-m", "cognate.job")
# What a job that may use the network sees besides.
ONLINE = (
    "HF_TOKEN", "HF_HOME", "HF_DATASETS_CACHE", "HF_HUB_CACHE", "XDG_CACHE_HOME", "HF_ENDPOINT", "HF_HUB_OFFLINE",
    "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR",
)  # fmt: skip
# A worker sees these of the server's environment and nothing else: no token, no keys.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES")


class LocalExecutor:
    def __init__(
        self,
        data_dir: Path | None,
        cache_dir: Path,
        cpu_slots: int,
        worker: Sequence[str] = WORKER,
        *,
        job: Sequence[str] = JOB,
        spare: bool = False,
    ) -> None:
        """spare: keep one worker loaded that waits for its attempt; the worker's command takes --spare then."""
        self._job = list(job)
        self._data_dir = data_dir
        self._cache_dir = cache_dir
        self._worker = list(worker)
        self._cpu_slots = cpu_slots
        self._gpus: dict[str, str] = {}
        self._trouble: str | None = None
        self._look_for_gpus()
        self._keeps_spare = spare
        self._spare: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._spare_due = time.monotonic() + SPARE_AFTER_S
        self._spares_lost = 0  # in a row
        self._gone_since: dict[ProcessDir, float] = {}
        self._shims: dict[ProcessDir, subprocess.Popen[bytes]] = {}

    def slots(self) -> list[str]:
        return [*self._gpus, *["cpu"] * self._cpu_slots]

    def trouble(self) -> str | None:
        return self._trouble

    def describe(self, slot: str) -> dict[str, Any]:
        return describe(self._gpus[slot]) if slot in self._gpus else {}

    def launch(self, attempt: AttemptDir, device: str) -> None:
        self._spare_due = time.monotonic() + SPARE_AFTER_S
        self._launch(attempt, device, self._worker, self.environment(device), may_take_spare=True)

    def launch_job(self, job: JobDir, device: str, runs_dir: Path, *, online: bool = False) -> None:
        environment = {**self.environment(device), "COGNATE_RUNS_DIR": str(runs_dir.resolve())}
        if online:
            del environment["HF_HUB_OFFLINE"]
            environment |= {name: os.environ[name] for name in ONLINE if name in os.environ}
        self._launch(job, device, self._job, environment, may_take_spare=False)

    def _launch(self, work: ProcessDir, device: str, command: list[str], environment: dict[str, str], *, may_take_spare: bool) -> None:
        lease = rundir.take_lease(work)
        if lease is None:
            raise LaunchError(f"{work.path} is already being worked on")
        try:
            with work.log.open("ab") as log:
                process = self._assign_spare(work, device, environment, lease, log.fileno()) if may_take_spare else None
                if process is None:
                    arguments = [str(work.path), str(lease), device, "--", *command, str(work.path)]
                    process = _start_shim(arguments, environment, log, lease)
        except OSError as error:
            raise LaunchError(f"cannot start a process: {error}") from error
        finally:
            os.close(lease)  # the shim holds it now, or nobody
        self._shims[work] = process

    def tend(self) -> None:
        if self._trouble is not None and time.monotonic() >= self._gpus_due:
            self._look_for_gpus()
        self._tend_spare()

    def _look_for_gpus(self) -> None:
        self._gpus_due = time.monotonic() + GPUS_LOOKED_FOR_EVERY_S
        before = self._trouble
        try:
            self._gpus = {f"cuda:{number}": name for number, name in enumerate(usable_gpus())}
        except DriverError as error:
            self._trouble = str(error)
            if self._trouble != before:
                log.error("the driver does not tell of its GPUs: %s; looking again every %g s", error, GPUS_LOOKED_FOR_EVERY_S)
            return
        self._trouble = None
        if before is not None:
            log.info("the driver tells of its GPUs again: %s", ", ".join(self._gpus) or "there are none")

    def _tend_spare(self) -> None:
        """Start a spare worker when there should be one, but not while a run that was just launched needs the machine to start."""
        if self._spare is not None and self._spare[0].poll() is not None:
            self._drop_spare()
            self._spares_lost += 1
            self._spare_due = time.monotonic() + SPARE_AFTER_S * 2.0 ** min(self._spares_lost, 8)  # what ended it may end the next
        if not self._keeps_spare or self._spare is not None or time.monotonic() < self._spare_due:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--spare", str(theirs.fileno()), "--", *self._worker, "--spare"]
            self._spare = (_start_shim(arguments, self.environment("cpu"), subprocess.DEVNULL, theirs.fileno()), ours)

    def close(self) -> None:
        self._keeps_spare = False
        self._drop_spare()

    def _assign_spare(
        self, work: ProcessDir, device: str, environment: dict[str, str], lease: int, log: int
    ) -> subprocess.Popen[bytes] | None:
        """The shim that took the attempt over, or None when there is no spare to take it."""
        if self._spare is None or self._spare[0].poll() is not None:
            return None
        (process, channel), self._spare = self._spare, None
        with channel:
            try:
                shim.assign(channel, str(work.path.absolute()), device, environment, lease, log)
            except OSError:  # it is just leaving
                process.wait()
                return None
        self._spares_lost = 0
        return process

    def _drop_spare(self) -> None:
        if self._spare is not None:
            process, channel = self._spare
            channel.close()  # at which it ends
            process.wait()
            self._spare = None

    def ended(self, work: ProcessDir) -> Exit | None:
        if work.path.exists() and not rundir.lease_is_free(work):
            return None
        if self._holds_memory(work):
            return None
        if process := self._shims.pop(work, None):
            process.wait()  # it has let go of the lease, so it is leaving; unwaited it would stay as a zombie
        try:
            record = rundir.read_json(work.exit)
        except (FileNotFoundError, ValueError):
            return Exit(rebooted=_rebooted_since(work))
        # Who sent a SIGKILL nobody tells; that the kernel killed for memory meanwhile, it counts.
        oom_killed = record["signal"] == signal.SIGKILL and record.get("oom_kills", 0) > 0
        return Exit(record["code"], record["signal"], oom_killed=oom_killed)

    def _holds_memory(self, work: ProcessDir) -> bool:
        """Whether the GPU still counts memory to the worker. A driver that never lets go is believed for FREED_WITHIN_S only."""
        try:
            started = rundir.read_json(work.started)
        except (FileNotFoundError, ValueError):
            return False
        gpu = self._gpus.get(started["device"])
        if gpu is None:
            return False
        since = self._gone_since.setdefault(work, time.monotonic())  # kept: a caller that could not conclude asks again
        return time.monotonic() - since < FREED_WITHIN_S and holds_memory(gpu, started["pid"])

    def kill(self, work: ProcessDir) -> None:
        try:
            started = rundir.read_json(work.started)
        except (FileNotFoundError, ValueError):
            return  # not that far yet; the supervisor asks again until the lease is free
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            known = {key: started[key] for key in ("pid", "create_time", "boot_id")}
            if shim.identity(started["pid"]) == known:  # the pid has not been given to somebody else
                os.killpg(started["pid"], signal.SIGKILL)

    def environment(self, device: str) -> dict[str, str]:
        """All that a worker on `device` sees of the outside."""
        environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        environment |= {"COGNATE_CACHE_DIR": str(self._cache_dir.resolve()), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        if self._data_dir is not None:
            environment["COGNATE_DATA_DIR"] = str(self._data_dir.resolve())
        # One worker sees one GPU, which is its cuda:0, or none. NVML counts in the order of the bus.
        environment["CUDA_DEVICE_ORDER"] = os.environ.get("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        environment["CUDA_VISIBLE_DEVICES"] = self._gpus.get(device, "")
        environment["COGNATE_DEVICE"] = "cuda:0" if device in self._gpus else "cpu"
        return environment


def _start_shim(arguments: list[str], environment: dict[str, str], log: IO[bytes] | int, kept: int) -> subprocess.Popen[bytes]:
    """kept: a file descriptor that stays open in the shim."""
    # No PDEATHSIG and a session of its own: the shim outlives this server.
    return subprocess.Popen(
        [sys.executable, "-I", "-S", shim.__file__, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
        pass_fds=(kept,),
    )


def _rebooted_since(work: ProcessDir) -> bool:
    try:
        started = rundir.read_json(work.started)
    except (FileNotFoundError, ValueError):
        return False
    return bool(started["boot_id"] != shim.boot_id())
