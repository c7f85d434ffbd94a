"""GPUs are rested where attempts end before their first step, longer each time: one bad GPU must not fail a whole queue within seconds.

Nothing survives a restart of the service: then each is tried at once.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from app.services.lifecycle import Reason, State
from cognate.events import Event, Kind

MOST_WORDS = 200  # characters of the last failure that are told
# They say nothing of the GPU that an attempt was on.
_NOT_THE_GPUS = (Reason.DATA_MISSING, Reason.OOM_HOST, Reason.SHUTDOWN, Reason.USER_PAUSE)


class Rest(NamedTuple):
    """why: the same words for as long as nothing new has happened there"""

    left_s: float
    why: str


class Rests:
    def __init__(self, after: Callable[[int], float], clock: Callable[[], float] = time.monotonic) -> None:
        """after: seconds of rest after the second failure in a row (0), the third (1), and so on; after the first there is none"""
        self._after = after
        self._clock = clock
        self._failures: Counter[str] = Counter()  # in a row, without a step
        self._until: dict[str, float] = {}
        self._why: dict[str, str] = {}
        self._has_stepped: set[str] = set()

    def stepped(self, slot: str) -> None:
        """The attempt there has made a step: what went before is forgotten."""
        self._has_stepped.add(slot)
        self._failures.pop(slot, None)
        self._until.pop(slot, None)

    def ended(self, slot: str, state: str, reason: str | None, detail: str | None) -> None:
        """The attempt there is over, and left its run in `state`."""
        has_stepped = slot in self._has_stepped
        self._has_stepped.discard(slot)
        if has_stepped or not slot.startswith("cuda") or state not in (State.FAILED, State.INTERRUPTED) or reason in _NOT_THE_GPUS:
            return
        self._failures[slot] += 1
        if (times := self._failures[slot]) > 1:
            said = (detail or "").partition("\n")[0][:MOST_WORDS]
            last = f"{reason}: {said}" if said else f"{reason}"
            self._why[slot] = f"{times} attempts in a row ended there before their first step, the last with {last}"
            self._until[slot] = self._clock() + self._after(times - 2)  # last: others look on

    def failures(self, slot: str) -> int:
        """How many attempts in a row ended there before their first step."""
        return self._failures[slot]

    def of(self, slot: str) -> Rest | None:
        left_s = self._until.get(slot, 0.0) - self._clock()
        return Rest(left_s, self._why[slot]) if left_s > 0 else None


def tells_of_a_step(events: Sequence[Event], after: int) -> bool:
    """Whether a journal's events tell of a step behind `after`."""
    return any(_step(event) > after for event in events if event.kind in (Kind.METRICS, Kind.PROGRESS))


def _step(event: Event) -> int:
    progress = event.data["progress"]
    step = event.data["step"] if event.kind is Kind.METRICS else progress.get("step") if isinstance(progress, dict) else None
    return step if isinstance(step, int) else 0
