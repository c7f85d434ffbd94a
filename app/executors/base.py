"""What the supervisor asks of whatever runs attempts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cognate.jobdir import JobDir
from cognate.rundir import AttemptDir, ProcessDir


@dataclass(frozen=True)
class Exit:
    """How a worker process ended: an exit code, or the signal that killed it; neither is known when nobody saw it.

    oom_killed: the kernel sent the signal, for want of memory
    """

    code: int | None = None
    signal: int | None = None
    rebooted: bool = False
    oom_killed: bool = False


class LaunchError(RuntimeError):
    """The executor could not start a process for an attempt."""


class Executor(Protocol):
    def slots(self) -> list[str]:
        """Names of the devices, one for each run that may be in work at a time: "cuda:0", "cpu"."""

    def trouble(self) -> str | None:
        """Why there may be GPUs that are not among the slots: what their driver says. They are looked for again in tend()."""

    def describe(self, slot: str) -> dict[str, Any]:
        """What is known of a device now: name, memory_total_bytes, memory_used_bytes, utilisation_percent; absent: not known."""

    def launch(self, attempt: AttemptDir, device: str) -> None:
        """Start a worker for a prepared attempt; raises LaunchError."""

    def launch_job(self, job: JobDir, device: str, runs_dir: Path, *, online: bool = False) -> None:
        """Start a prepared job; raises LaunchError. runs_dir: where it finds runs; online: it may use the network"""

    def tend(self) -> None:
        """Called at every look, for whatever an executor keeps ready."""

    def close(self) -> None:
        """The server ends; what runs stays."""

    def ended(self, work: ProcessDir) -> Exit | None:
        """How an attempt or job ended once none of its processes is left and its device's memory is free, else None."""

    def kill(self, work: ProcessDir) -> None:
        """End every process of an attempt or job at once; no effect when there is none."""
