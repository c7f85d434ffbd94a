"""What goes wrong at every look is logged with its traceback once, and after that in a line a minute: a log must not fill the disk too."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

REPEATED_EVERY_S = 60.0
FORGOTTEN_AFTER_S = 3600.0  # of peace: then it is news again


class Troubles:
    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[tuple[str, str], float] = {}  # when last, by what could not be done and why

    def tell(self, what: str, error: Exception) -> None:
        """what: whom it befell, and what follows; called where `error` is caught"""
        now = self._clock()
        self._told = {key: at for key, at in self._told.items() if now - at < FORGOTTEN_AFTER_S}
        key = what, f"{type(error).__name__} {error.args[:1]}"  # the first argument: SQL comes with other values each time
        if key in self._told and now - self._told[key] < REPEATED_EVERY_S:
            return
        if key in self._told:
            log.error("%s, again: %s: %s", what, type(error).__name__, str(error).partition("\n")[0])
        else:
            log.error("%s", what, exc_info=error)
        self._told[key] = now
