"""Attempts as processes of this machine, each under its own shim (cognate/shim.py).

Everything needed to find a worker again is in its attempt directory, so nothing here is lost with the server:
a held lease means some process of the attempt lives, started.json says which, exit.json how it ended.
"""

from __future__ import annotations

import contextlib
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
from app.executors.devices import describe, holds_memory, usable_gpus
from cognate import rundir, shim
from cognate.rundir import AttemptDir

FREED_WITHIN_S = 30.0
SPARE_AFTER_S = 15.0  # since the last launch
WORKER = (sys.executable, "-m", "cognate.worker")
# A worker sees these of the server's environment and nothing else: no token, no keys.
PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_HOME", "OMP_NUM_THREADS", "NVIDIA_VISIBLE_DEVICES")


class LocalExecutor:
    def __init__(
        self, data_dir: Path | None, cache_dir: Path, cpu_slots: int, worker: Sequence[str] = WORKER, *, spare: bool = False
    ) -> None:
        """spare: keep one worker loaded that waits for its attempt; the worker's command takes --spare then."""
        self._data_dir = data_dir
        self._cache_dir = cache_dir
        self._worker = list(worker)
        self._gpus = {f"cuda:{number}": name for number, name in enumerate(usable_gpus())}
        self._slots = [*self._gpus, *["cpu"] * cpu_slots]
        self._keeps_spare = spare
        self._spare: tuple[subprocess.Popen[bytes], socket.socket] | None = None
        self._launched_at = time.monotonic()
        self._gone_since: dict[AttemptDir, float] = {}
        self._shims: dict[AttemptDir, subprocess.Popen[bytes]] = {}

    def slots(self) -> list[str]:
        return self._slots

    def describe(self, slot: str) -> dict[str, Any]:
        return describe(self._gpus[slot]) if slot in self._gpus else {}

    def launch(self, attempt: AttemptDir, device: str) -> None:
        lease = rundir.take_lease(attempt)
        if lease is None:
            raise LaunchError(f"attempt {attempt.number} of {attempt.run.path.name} is already running")
        self._launched_at = time.monotonic()
        try:
            with attempt.log.open("ab") as log:
                process = self._assign_spare(attempt, device, lease, log.fileno())
                if process is None:
                    arguments = [str(attempt.path), str(lease), device, "--", *self._worker, str(attempt.path)]
                    process = _start_shim(arguments, self.environment(device), log, lease)
        except OSError as error:
            raise LaunchError(f"cannot start a worker: {error}") from error
        finally:
            os.close(lease)  # the shim holds it now, or nobody
        self._shims[attempt] = process

    def tend(self) -> None:
        """Start a spare worker when there should be one, but not while a run that was just launched needs the machine to start."""
        if self._spare is not None and self._spare[0].poll() is not None:
            self._drop_spare()
        if not self._keeps_spare or self._spare is not None or time.monotonic() - self._launched_at < SPARE_AFTER_S:
            return
        ours, theirs = socket.socketpair()
        with theirs:
            arguments = ["--spare", str(theirs.fileno()), "--", *self._worker, "--spare"]
            self._spare = (_start_shim(arguments, self.environment("cpu"), subprocess.DEVNULL, theirs.fileno()), ours)

    def close(self) -> None:
        self._keeps_spare = False
        self._drop_spare()

    def _assign_spare(self, attempt: AttemptDir, device: str, lease: int, log: int) -> subprocess.Popen[bytes] | None:
        """The shim that took the attempt over, or None when there is no spare to take it."""
        if self._spare is None or self._spare[0].poll() is not None:
            return None
        (process, channel), self._spare = self._spare, None
        with channel:
            try:
                shim.assign(channel, str(attempt.path.absolute()), device, self.environment(device), lease, log)
            except OSError:
                return None
        return process

    def _drop_spare(self) -> None:
        if self._spare is not None:
            process, channel = self._spare
            channel.close()  # at which it ends
            process.wait()
            self._spare = None

    def ended(self, attempt: AttemptDir) -> Exit | None:
        if attempt.path.exists() and not rundir.lease_is_free(attempt):
            return None
        if self._holds_memory(attempt):
            return None
        if process := self._shims.pop(attempt, None):
            process.wait()  # it has let go of the lease, so it is leaving; unwaited it would stay as a zombie
        try:
            record = rundir.read_json(attempt.exit)
        except (FileNotFoundError, ValueError):
            return Exit(rebooted=_rebooted_since(attempt))
        return Exit(record["code"], record["signal"])

    def _holds_memory(self, attempt: AttemptDir) -> bool:
        """Whether the GPU still counts memory to the worker. A driver that never lets go is believed for FREED_WITHIN_S only."""
        try:
            started = rundir.read_json(attempt.started)
        except (FileNotFoundError, ValueError):
            return False
        gpu = self._gpus.get(started["device"])
        since = self._gone_since.setdefault(attempt, time.monotonic())
        if gpu is not None and time.monotonic() - since < FREED_WITHIN_S and holds_memory(gpu, started["pid"]):
            return True
        del self._gone_since[attempt]
        return False

    def kill(self, attempt: AttemptDir) -> None:
        try:
            started = rundir.read_json(attempt.started)
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


def _rebooted_since(attempt: AttemptDir) -> bool:
    try:
        started = rundir.read_json(attempt.started)
    except (FileNotFoundError, ValueError):
        return False
    return bool(started["boot_id"] != shim.boot_id())
