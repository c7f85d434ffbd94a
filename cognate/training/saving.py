"""The checkpoints of an attempt as training goes on: when they are begun, and when they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cognate.events import Kind
from cognate.rundir import RunDir
from cognate.training import checkpoint
from cognate.training.reporter import Reporter


class Saving:
    """The checkpoints of an attempt: begun one at a time, written beside training, told when complete."""

    def __init__(self, run: RunDir, reporter: Reporter, keep: int, saved_step: int | None) -> None:
        self._run, self._reporter = run, reporter
        self._writer = checkpoint.Writer(run, keep)
        self._serial: int | None = None
        self.begun_step = self.saved_step = saved_step

    def begin(self, taken: checkpoint.Snapshot, serial: int | None = None) -> None:
        """serial: of the command that asked for it"""
        self.tell(wait=True)
        self._reporter.sync()  # the rows that lead up to it first
        self._writer.start(taken)
        self._serial, self.begun_step = serial, taken.position.step

    def tell(self, *, wait: bool) -> None:
        """Report what has been written since; raises what went wrong with it."""
        if written := self._writer.collect(wait=wait):
            tell_checkpoint(self._reporter, self._run, *written, self._serial)
            self.saved_step = self.begun_step


def tell_checkpoint(reporter: Reporter, run: RunDir, path: Path, files: dict[str, Any], serial: int | None = None) -> None:
    kept = [step for step, _ in run.complete_checkpoints()]
    step = next(step for step, found in run.complete_checkpoints() if found == path)
    reporter.say(Kind.CHECKPOINT, step=step, name=path.name, files=files, kept_steps=kept, serial=serial)
