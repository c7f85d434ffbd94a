"""A run's log in pieces, by the byte at which the next one begins; those of a run that goes on are waited for."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from app.client.api import Api, Json
from app.client.stream import is_over

POLL_S = 0.5
_SPAN = 65536  # bytes; as much as the service gives at once


def blocks(
    api: Api, run_id: str, attempt: int | None, tail: int | None, follow: bool, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Json]:
    """The log of `attempt`, or of the newest and, when following, of those after it."""
    number, offset = attempt or 0, 0
    while True:
        run = api.get(f"/v1/runs/{run_id}")  # looked at before the log: what was printed before the end is still read
        number = number or run["attempt"]
        if number and tail is not None:
            block = _tail(api, run_id, number, tail)
            tail = None
        elif number:
            block = api.get(f"/v1/runs/{run_id}/logs", attempt=number, after=offset)
        else:
            block = {"text": "", "next_offset": 0, "size": 0}
        if block["text"]:
            yield block
        offset = block["next_offset"]
        if offset < block["size"]:
            continue
        is_newest = run["attempt"] <= number
        if not follow or (is_newest and is_over(run)) or (attempt and not is_newest):
            return
        if is_newest:
            sleep(POLL_S)
        else:
            number, offset = number + 1, 0


def _tail(api: Api, run_id: str, attempt: int, lines: int) -> Json:
    """The last lines of a log as one block."""
    path, span = f"/v1/runs/{run_id}/logs", _SPAN
    size = api.get(path, attempt=attempt, tail=1)["size"]
    while True:
        text, offset = "", max(0, size - span)
        while offset < size:
            block = api.get(path, attempt=attempt, after=offset)
            text, offset = text + block["text"], block["next_offset"]
        found = text.splitlines(keepends=True)
        if len(found) > lines or span >= size:  # the first may be a part of a line
            return {
                "attempt": attempt,
                "text": "".join(found[max(0, len(found) - lines) :]),
                "next_offset": offset,
                "size": max(offset, size),
            }
        span *= 4
