"""What anyone can cause as often as they like is told to the log at once, then once a minute at most, with how often it was."""

from __future__ import annotations

import asyncio
import logging

QUIET_S = 60.0

log = logging.getLogger(__name__)


class Tally:
    """`words` take the number and what the last one was, in this order."""

    def __init__(self, words: str) -> None:
        self._words = words
        self._untold = 0
        self._is_quiet = False
        self._last = ""

    def count(self, last: str) -> None:
        self._untold += 1
        self._last = last
        if not self._is_quiet:
            self._tell()

    def _tell(self) -> None:
        self._is_quiet = self._untold > 0
        if self._untold:
            log.warning(self._words, self._untold, self._last)
            self._untold = 0
            asyncio.get_running_loop().call_later(QUIET_S, self._tell)
