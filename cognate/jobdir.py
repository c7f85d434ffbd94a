"""A job is a directory too: work of the service that is no training run but needs torch or the network.

    spec.json       the kind of work and what it is about; never changes
    progress.json   a sentence and, where it is known, the share that is done; replaced whole
    result.json     what came of it, or
    error.json      why nothing did: a reason (one word) and a sentence
    started.json, exit.json, lease, worker.log      as of an attempt (rundir.py)

Whatever else a job makes lies beside them. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cognate.events import spelled
from cognate.rundir import Places, ProcessDir, RunDir, read_json, write_json


class JobFailed(RuntimeError):
    """A job that came to nothing for a reason that a person can act on. `reason` is one word of snake_case."""

    def __init__(self, reason: str, sentence: str) -> None:
        self.reason = reason
        super().__init__(sentence)


@dataclass(frozen=True)
class JobContext:
    """Where a job works. say(): a sentence, and the share of the work that is done, 0..1, where it is known"""

    folder: Path
    runs_dir: Path
    places: Places
    device: str
    say: Callable[[str, float | None], None]

    def run(self, run_id: str) -> RunDir:
        """The directory of a run; raises JobFailed."""
        run = RunDir(self.runs_dir / run_id)
        if Path(run_id).name != run_id or not run.config_file.is_file():
            raise JobFailed("run_missing", f"there is no run {run_id!r}")
        return run


Perform = Callable[[dict[str, Any], JobContext], dict[str, Any]]


class JobDir(ProcessDir):
    def create(self, kind: str, spec: dict[str, Any]) -> None:
        self.path.mkdir(parents=True)
        write_json(self.path / "spec.json", {"kind": kind, "spec": spec})

    def asked(self) -> tuple[str, dict[str, Any]]:
        """Kind and specification."""
        asked = read_json(self.path / "spec.json")
        return str(asked["kind"]), dict(asked["spec"])

    def say(self, message: str, fraction: float | None = None) -> None:
        write_json(self.path / "progress.json", {"message": message, "fraction": fraction})

    def succeed(self, result: dict[str, Any]) -> None:
        write_json(self.path / "result.json", spelled(result))

    def fail(self, reason: str, detail: str) -> None:
        write_json(self.path / "error.json", {"reason": reason, "detail": detail})

    def progress(self) -> dict[str, Any] | None:
        return _read(self.path / "progress.json")

    def signs_of_life(self) -> tuple[int, ...]:
        """Other ones whenever the job has said or printed something."""
        return tuple(file.stat().st_mtime_ns for file in (self.path / "progress.json", self.log) if file.exists())

    def result(self) -> dict[str, Any] | None:
        return _read(self.path / "result.json")

    def error(self) -> dict[str, Any] | None:
        return _read(self.path / "error.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return dict(read_json(path))
    except FileNotFoundError:
        return None
