"""Following a run by websocket: every row and event once and in order, across lost connections.

follow() keeps the cursor and comes back with it; until_over() keeps the run as the frames tell it, and knows its end.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.http11 import Response
from websockets.sync import client as websocket

from app.client.api import Api, ClientError, Json, NotFound, Unreachable, problem

Connect = Callable[[str], AbstractContextManager[Iterable[str | bytes]]]

PATIENCE_S = 120.0  # for a service that is being restarted
_FIRST_DELAY_S, _LONGEST_DELAY_S = 0.25, 5.0
_FRAME_BYTES = 1 << 24
_ENDED = ("completed", "stopped", "failed", "interrupted")
_AXES = ("seq", "attempt", "step", "epoch", "at")


def connecting(api: Api, run_id: str, keys: Sequence[str] = ()) -> Connect:
    """Websockets to one run's stream; with `keys`, its rows hold these metrics only."""
    address = f"ws{api.url.removeprefix('http')}/v1/runs/{run_id}/stream"
    chosen = f"&keys={','.join(keys)}" if keys else ""

    def connect(cursor: str) -> AbstractContextManager[Iterable[str | bytes]]:
        return websocket.connect(
            f"{address}?after={cursor}{chosen}",
            additional_headers=api.headers,
            compression=None,
            max_size=_FRAME_BYTES,
            close_timeout=1,
        )

    return connect


def follow(
    connect: Connect, after: str, *, sleep: Callable[[float], None] = time.sleep, clock: Callable[[], float] = time.monotonic
) -> Iterator[tuple[str, Json]]:
    """Frames, each with the cursor behind it. `after`: a cursor, "start" or "now".

    A lost connection is a frame {"type": "lost", "detail"} and is made again; raises Unreachable after PATIENCE_S without one.
    """
    cursor, delay, has_spoken = after, _FIRST_DELAY_S, False
    lost_at: float | None = None
    while True:
        detail = "the service closed it"
        try:
            with connect(cursor) as socket:
                for text in socket:
                    frame: Json = json.loads(text)
                    if frame["type"] == "error" and frame["problem"] == "not_found":
                        raise NotFound(frame["detail"])
                    delay, has_spoken, lost_at = _FIRST_DELAY_S, True, None
                    cursor = _behind(frame, cursor)
                    yield cursor, frame
        except InvalidStatus as error:
            if refusal := _refusal(error.response):
                raise refusal from error
            detail = str(error)
        except (OSError, WebSocketException) as error:
            detail = str(error) or type(error).__name__
        lost_at = clock() if lost_at is None else lost_at
        if not has_spoken or clock() - lost_at > PATIENCE_S:
            raise Unreachable(f"no connection ({detail}); the run goes on without it")
        yield cursor, {"type": "lost", "detail": detail}
        sleep(delay)
        delay = min(2 * delay, _LONGEST_DELAY_S)


def until_over(frames: Iterable[tuple[str, Json]], is_last: Callable[[str], bool]) -> Iterator[tuple[Json, Json]]:
    """The run as of each frame, and the frame, until the run is over.

    is_last: whether no change of state lies behind a cursor, or will; what was an end once may have been resumed since.
    """
    run: Json = {}
    for cursor, frame in frames:
        run = absorb(run, frame)
        yield run, frame
        tells_state = frame["type"] == "snapshot" or (frame["type"] == "event" and frame["kind"] == "state")
        if tells_state and run["state"] in _ENDED and is_last(cursor):
            return


def is_last_state(api: Api, run_id: str) -> Callable[[str], bool]:
    def is_last(cursor: str) -> bool:
        seq = cursor.rpartition(".")[2]
        later = api.get(f"/v1/runs/{run_id}/events", kind="state", limit=1, after=seq if seq.isdecimal() else 0)
        return not later["data"] and is_over(api.get(f"/v1/runs/{run_id}"))

    return is_last


def is_over(run: Json) -> bool:
    """Whether nothing follows; a lost worker is replaced, so is one that a shutdown ended, and a pause is waited through."""
    goes_on = run["state_reason"] in ("shutdown", "user_pause") or run.get("auto_resumes", 0) < run.get("auto_resume", 0)
    return run["state"] in _ENDED and not (run["state"] == "interrupted" and goes_on)


def absorb(run: Json, frame: Json) -> Json:
    """The run after what `frame` tells of it."""
    match frame["type"]:
        case "snapshot":
            return dict(frame["runs"][0])
        case "progress":
            return run | {"progress": (run["progress"] or {}) | frame["progress"]}
        case "batch":
            told = list(rows(frame))
            measured = {key: value for row in told for key, value in row["values"].items()}
            progress = (run["progress"] or {}) | {"step": told[-1]["step"], "epoch": told[-1]["epoch"]}
            return run | {"progress": progress, "metrics": run["metrics"] | measured}
        case "event":
            return run | _changes(frame["kind"], frame["data"], run["progress"] or {})
    return run


def rows(batch: Json) -> Iterator[Json]:
    """The rows of a batch, each with its cursor and what was measured."""
    epoch = batch["cursor"].rpartition(".")[0]
    columns: dict[str, list[Any]] = batch["columns"]
    keys = [key for key in columns if key not in _AXES]
    for place, seq in enumerate(columns["seq"]):
        axes = {axis: columns[axis][place] for axis in _AXES if axis != "seq"}
        values = {key: columns[key][place] for key in keys if columns[key][place] is not None}
        yield {"cursor": f"{epoch}.{seq}", "run_id": batch["run_id"], **axes, "values": values}


def _refusal(answer: Response) -> ClientError | None:
    """What the service says of a handshake that it refuses; None where it may want the next one."""
    try:
        body = json.loads(answer.body or b"")
    except ValueError:  # something between us and the service
        return None
    return problem(answer.status_code, body) if answer.status_code < 500 and "detail" in body else None


def _changes(kind: str, data: Json, progress: Json) -> Json:
    match kind:
        case "state":
            return {"state": data["state"], "state_reason": data["reason"], "state_detail": data["detail"]}
        case "phase":
            return {"phase": data["phase"]}
        case "plan":
            return {"progress": {"step": 0} | progress | {"total_steps": data["total_steps"]}}
    return {}


def _behind(frame: Json, cursor: str) -> str:
    """The cursor after `frame`. hello tells the head of the log, and the past up to there is still to come."""
    match frame["type"]:
        case "event" | "batch" | "heartbeat":
            return str(frame["cursor"])
        case "hello" if cursor == "now":
            return str(frame["cursor"])
        case "gap":
            return str(frame["to"])
    return cursor
