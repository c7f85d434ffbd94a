"""Following a run over connections that are lost, from wherever it was left, to its end and no further."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from websockets.datastructures import Headers
from websockets.exceptions import InvalidStatus
from websockets.http11 import Response

from app.client.api import ClientError, Json, NotFound, Refused, Unauthorized, Unreachable
from app.client.stream import PATIENCE_S, absorb, follow, is_over, rows, until_over
from tests.client.conftest import a_run

HELLO: Json = {"type": "hello", "cursor": "e.9", "heartbeat_s": 15}
Script = list[Json | Exception]


def snapshot(**more: Any) -> Json:
    return {"type": "snapshot", "runs": [a_run(1, **more)]}


def batch(*seqs: int) -> Json:
    columns = {"seq": list(seqs), "attempt": [1] * len(seqs), "step": list(seqs), "epoch": [0.5] * len(seqs), "at": [0.0] * len(seqs)}
    return {"type": "batch", "cursor": f"e.{seqs[-1]}", "run_id": "run_1", "columns": columns | {"loss": [1.0 / seq for seq in seqs]}}


def state(seq: int, name: str) -> Json:
    data = {"state": name, "reason": None, "detail": None}
    return {"type": "event", "cursor": f"e.{seq}", "kind": "state", "step": None, "data": data}


class Wire:
    """Connections as a test wrote them; `cursors` is what each was asked for."""

    def __init__(self, *connections: Script) -> None:
        self._connections = list(connections)
        self.cursors: list[str] = []

    @contextmanager
    def __call__(self, cursor: str) -> Iterator[Iterator[str]]:
        self.cursors.append(cursor)
        script = self._connections.pop(0) if self._connections else [OSError("down")]
        if script and isinstance(script[0], Exception):
            raise script[0]
        yield self._texts(script)

    def _texts(self, script: Script) -> Iterator[str]:
        for frame in script:
            if isinstance(frame, Exception):
                raise frame
            yield json.dumps(frame)


class Clock:
    """Time passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


def following(wire: Wire, after: str, clock: Clock | None = None) -> Iterator[tuple[str, Json]]:
    clock = clock or Clock()
    return follow(wire, after, sleep=clock.sleep, clock=clock)


def steps(frames: Iterator[tuple[str, Json]]) -> Iterator[int]:
    for _, frame in frames:
        if frame["type"] == "batch":
            yield from frame["columns"]["step"]


def take(count: int, found: Iterator[Any]) -> list[Any]:
    return [next(found) for _ in range(count)]


def test_a_lost_connection_is_made_again_from_where_it_was_left() -> None:
    wire = Wire([HELLO, snapshot(), batch(1, 2), OSError("reset")], [OSError("refused")], [HELLO, snapshot(), batch(3)], [HELLO, batch(4)])
    assert take(4, steps(following(wire, "start"))) == [1, 2, 3, 4]
    assert wire.cursors == ["start", "e.2", "e.2", "e.3"]


def test_hello_is_no_place_to_come_back_to_while_the_past_is_still_to_come() -> None:
    """It names the head of the log; only who asked for "now" has everything up to there."""
    for after, back in (("start", "start"), ("e.4", "e.4"), ("now", "e.9")):
        wire = Wire([HELLO, OSError("reset")], [HELLO])
        take(3, following(wire, after))
        assert wire.cursors == [after, back]


@pytest.mark.parametrize(
    ("frame", "cursor"),
    [({"type": "heartbeat", "cursor": "e.12"}, "e.12"), ({"type": "gap", "to": "f.3"}, "f.3"), (state(11, "running"), "e.11")],
)
def test_whatever_moves_the_cursor_is_where_it_comes_back_to(frame: Json, cursor: str) -> None:
    wire = Wire([HELLO, frame, OSError("reset")], [HELLO])
    take(4, following(wire, "e.4"))
    assert wire.cursors == ["e.4", cursor]


def test_a_service_that_was_never_there_is_not_waited_for() -> None:
    with pytest.raises(Unreachable, match="refused"):
        next(following(Wire([OSError("refused")]), "now"))


def test_a_service_that_stays_away_is_given_up() -> None:
    clock = Clock()
    with pytest.raises(Unreachable, match="the run goes on"):
        list(following(Wire([HELLO]), "now", clock))
    assert PATIENCE_S < clock.now < PATIENCE_S + 10


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"detail": "a bearer token is required"}, Unauthorized),
        (403, {"detail": "this came by a proxy"}, Refused),
        (421, {"detail": "this Host is not served here"}, Refused),
    ],
)
def test_a_handshake_that_is_refused_says_why(status: int, body: Json, kind: type[ClientError]) -> None:
    """Also to one that comes back: nothing is gained by trying again."""
    wire = Wire([HELLO], [refusing(status, json.dumps(body).encode())])
    with pytest.raises(kind, match=body["detail"]):
        list(following(wire, "start"))


@pytest.mark.parametrize(("status", "body"), [(503, b'{"detail": "later"}'), (502, b"<html>"), (403, b"")])
def test_one_refused_by_what_stands_between_is_tried_again(status: int, body: bytes) -> None:
    wire = Wire([HELLO], [refusing(status, body)], [HELLO])
    with pytest.raises(Unreachable):
        list(following(wire, "start"))
    assert len(wire.cursors) > 3


def refusing(status: int, body: bytes) -> InvalidStatus:
    return InvalidStatus(Response(status, "", Headers(), body))


def test_a_run_that_was_deleted_is_not_found() -> None:
    with pytest.raises(NotFound, match="no run"):
        list(following(Wire([{"type": "error", "problem": "not_found", "detail": "no run run_1"}]), "now"))


def ends(*seqs: int) -> Callable[[str], bool]:
    """Whether a cursor is at or behind the last of the changes of state at `seqs`."""

    def is_last(cursor: str) -> bool:
        return cursor != "start" and int(cursor.partition(".")[2]) >= max(seqs)

    return is_last


def test_an_end_in_the_past_is_not_the_end() -> None:
    """The run failed, was resumed and completed; who follows from the start gets all of it."""
    past = [HELLO, snapshot(state="completed"), state(2, "failed"), state(3, "queued"), batch(4), state(5, "completed"), batch(6)]
    seen = list(until_over(following(Wire(past), "start"), ends(2, 3, 5)))
    assert [frame.get("cursor") for _, frame in seen[2:]] == ["e.2", "e.3", "e.4", "e.5"]
    assert seen[-1][0]["state"] == "completed"


def test_what_is_over_already_needs_no_waiting() -> None:
    wire = Wire([HELLO, snapshot(state="stopped"), batch(10)])
    assert [run.get("state") for run, _ in until_over(following(wire, "now"), ends(5))] == [None, "stopped"]


@pytest.mark.parametrize(
    ("run", "over"),
    [
        ({"state": "completed"}, True),
        ({"state": "failed"}, True),
        ({"state": "paused"}, False),
        ({"state": "interrupted"}, True),
        ({"state": "interrupted", "state_reason": "shutdown"}, False),
        ({"state": "interrupted", "state_reason": "user_pause"}, False),  # its worker was killed: a pause all the same
        ({"state": "interrupted", "auto_resume": 3, "auto_resumes": 2}, False),
        ({"state": "interrupted", "auto_resume": 3, "auto_resumes": 3}, True),
    ],
)
def test_a_run_is_over_when_nothing_follows_by_itself(run: Json, over: bool) -> None:
    assert is_over(a_run(1, **run)) == over


def test_rows_carry_their_own_cursor_and_what_was_measured() -> None:
    frame = batch(3, 4)
    frame["columns"]["val_loss"] = [None, "NaN"]
    assert [(row["cursor"], row["step"], row["values"]) for row in rows(frame)] == [
        ("e.3", 3, {"loss": 1 / 3}),
        ("e.4", 4, {"loss": 0.25, "val_loss": "NaN"}),
    ]


def test_the_run_is_what_the_frames_told_of_it() -> None:
    run = a_run(1, progress=None, metrics={})
    for frame in (
        {"type": "event", "cursor": "e.1", "kind": "plan", "step": None, "data": {"total_steps": 60}},
        {"type": "event", "cursor": "e.2", "kind": "phase", "step": None, "data": {"phase": "evaluating"}},
        batch(3, 4),
        {"type": "progress", "progress": {"step": 5, "eta_s": 9.0}},
        {"type": "heartbeat", "cursor": "e.4"},
        state(6, "pausing"),
    ):
        run = absorb(run, frame)
    assert run["progress"] == {"step": 5, "total_steps": 60, "epoch": 0.5, "eta_s": 9.0}
    assert (run["metrics"], run["phase"], run["state"]) == ({"loss": 0.25}, "evaluating", "pausing")
