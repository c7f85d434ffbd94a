"""The worker's ear: what the server wants, looked at between two steps.

One stat (2 microseconds) when nothing changed. Never inside a step: a checkpoint must be whole.
"""

from __future__ import annotations

from cognate.rundir import AttemptDir, Control, read_control


class ControlFile:
    """The newest command of an attempt; `poll` answers only when it is new."""

    def __init__(self, attempt: AttemptDir) -> None:
        self._attempt = attempt
        self._seen: tuple[int, int] | None = None
        self._serial = 0

    def poll(self) -> Control | None:
        """A command not seen before, or None."""
        try:
            status = self._attempt.control.stat()
        except FileNotFoundError:
            return None
        version = (status.st_mtime_ns, status.st_ino)
        if version == self._seen:
            return None
        self._seen = version
        control = read_control(self._attempt)
        if control.serial == self._serial:
            return None
        self._serial = control.serial
        return control
