"""How long something of a run has been so, by a clock that nobody sets."""

from __future__ import annotations

import time


class Timers:
    """Nothing survives a restart: then they begin anew."""

    def __init__(self) -> None:
        self._since: dict[tuple[str, str], float] = {}

    def passed(self, run_id: str, what: str) -> float:
        """Seconds since this was first asked."""
        now = time.monotonic()
        return now - self._since.setdefault((run_id, what), now)

    def do(self, run_id: str, what: str) -> None:
        self._since[run_id, what] = time.monotonic()

    def is_done(self, run_id: str, what: str) -> bool:
        return (run_id, what) in self._since

    def forget(self, run_id: str, *kinds: str) -> None:
        """What is known of a run, or of these alone (silence: and of the stall that it became)."""
        gone = {*kinds, "stall"} if kinds else None
        for key in [key for key in self._since if key[0] == run_id and (gone is None or key[1] in gone)]:
            del self._since[key]
