"""Streams, by websocket and as server-sent events alike: every row once and in order, from wherever a client comes back."""

import gc
import queue
import random
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import anyio.lowlevel
import orjson
import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.types import Message as AsgiMessage
from starlette.websockets import WebSocketDisconnect

from app.api import wires
from app.api.deps import Parts
from app.api.frames import Frame
from app.api.frames import frame as frame_of
from app.api.stream import Choice, Conversation
from app.services import hub
from app.services.hub import Subscription
from app.store import metrics, runs
from app.store.engine import Message
from cognate.metrics import KEYS
from tests.service import connect, launch, serving, steps_of, until, wait_for


class EventSource:
    """What a browser makes of server-sent events: data by event, and the last id seen. Reads only when told to, if `lazy`."""

    def __init__(self, client: TestClient, path: str, headers: dict[str, str], lazy: bool = False) -> None:
        assert client.portal is not None
        self.status, self.headers, self.last_id, self.retry_ms = 0, {}, "", 0
        self._client, self._portal, self._lazy = client, client.portal, lazy
        self._chunks: queue.Queue[bytes] = queue.Queue()
        self._events: Iterator[dict[str, Any]] = self._parse()
        parts = urlsplit(path)
        named = {"host": "127.0.0.1:8000", "accept": "text/event-stream", **headers}
        self._scope = {
            **{"type": "http", "method": "GET", "http_version": "1.1", "scheme": "http", "path": parts.path, "root_path": ""},
            **{"raw_path": parts.path.encode(), "query_string": parts.query.encode(), "client": ("127.0.0.1", 1), "state": {}},
            **{"server": ("127.0.0.1", 8000), "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()]},
        }
        self._gone = self._portal.call(anyio.Event)
        self.served = self._portal.start_task_soon(self._serve)

    def receive_json(self) -> dict[str, Any]:
        return next(self._events)

    def close(self) -> None:
        self._portal.call(self._gone.set)
        self.served.result(10)

    async def _serve(self) -> None:
        asked = False

        async def receive() -> AsgiMessage:
            nonlocal asked
            if not asked:
                asked = True
                return {"type": "http.request", "body": b"", "more_body": False}
            await self._gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: AsgiMessage) -> None:
            if message["type"] == "http.response.start":
                self.status = message["status"]
                self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            elif self._lazy:
                await anyio.sleep_forever()
            else:
                self._chunks.put(message["body"])

        await self._client.app(self._scope, receive, send)  # type: ignore[arg-type]
        self._chunks.put(b"")

    def _parse(self) -> Iterator[dict[str, Any]]:
        buffer = ""
        while chunk := self._chunks.get(timeout=30):
            *events, buffer = (buffer + chunk.decode()).split("\n\n")
            for event in events:
                fields = dict(line.split(": ", 1) for line in event.splitlines())
                self.last_id = fields.get("id", self.last_id)
                self.retry_ms = int(fields.get("retry", self.retry_ms))
                if "data" in fields:
                    yield orjson.loads(fields["data"])


@contextmanager
def event_source(client: TestClient, path: str, lazy: bool = False, **headers: str) -> Iterator[EventSource]:
    source = EventSource(client, path, {name.replace("_", "-"): value for name, value in headers.items()}, lazy)
    try:
        yield source
    finally:
        source.close()


Stream = WebSocketTestSession | EventSource
Follow = Callable[[TestClient, str], AbstractContextManager[Stream]]


@pytest.fixture(params=[connect, event_source], ids=["websocket", "sse"])
def follow(request: pytest.FixtureRequest) -> Follow:
    """A stream by either way; what is promised of one holds for the other."""
    chosen: Follow = request.param
    return chosen


def frames(socket: Stream) -> Iterator[dict[str, Any]]:
    while True:
        yield socket.receive_json()


def rows_until(socket: Stream, last_step: int) -> tuple[list[int], list[int]]:
    """(seqs, steps) of all rows up to the one of `last_step`."""
    seqs: list[int] = []
    steps: list[int] = []
    for frame in frames(socket):
        if frame["type"] == "batch":
            seqs += frame["columns"]["seq"]
            steps += frame["columns"]["step"]
            if steps[-1] >= last_step:
                return seqs, steps
    raise AssertionError


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serving(tmp_path, "--step-seconds", "0.01") as client:
        yield client


def test_a_late_client_gets_the_past_and_then_the_present(client: TestClient, follow: Follow) -> None:
    run_id = launch(client, steps=60)
    until(lambda: len(steps_of(client, run_id)) > 20)
    with follow(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        hello, snapshot = socket.receive_json(), socket.receive_json()
        assert (hello["type"], snapshot["type"]) == ("hello", "snapshot")
        assert snapshot["runs"][0]["id"] == run_id
        seqs, steps = rows_until(socket, 60)
    assert steps == list(range(1, 61))
    assert seqs == sorted(set(seqs))


def test_events_and_rows_share_one_order(client: TestClient, follow: Follow) -> None:
    run_id = launch(client, steps=10)
    wait_for(client, run_id, "completed")
    with follow(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        seen: list[tuple[int, str]] = []
        for frame in frames(socket):
            if frame["type"] == "event":
                seen.append((frame["seq"], frame["kind"]))
                if frame["kind"] == "state" and frame["data"]["state"] == "completed":
                    break
            elif frame["type"] == "batch":
                seen += [(seq, "row") for seq in frame["columns"]["seq"]]
    assert [seq for seq, _ in seen] == sorted({seq for seq, _ in seen})
    kinds = [kind for _, kind in seen]
    assert kinds.index("started") < kinds.index("row") < kinds.index("checkpoint")
    assert kinds.count("row") == 10


def test_a_client_cut_a_hundred_times_misses_and_doubles_nothing(tmp_path: Path, follow: Follow) -> None:
    """Cut after any frame, hello included, while rows are written; it comes back with the last cursor it was given."""
    draw = random.Random(1)
    with serving(tmp_path, "--step-seconds", "0.005") as client:
        run_id = launch(client, steps=300)
        steps: list[int] = []
        cursor, cuts = "start", 0
        while cuts < 100 or steps[-1:] != [300]:
            cuts += 1
            with follow(client, f"/v1/runs/{run_id}/stream?after={cursor}") as socket:
                for _ in range(draw.randint(1, 7)):
                    frame = socket.receive_json()
                    if frame["type"] == "batch":
                        steps += frame["columns"]["step"]
                    if frame["type"] in ("batch", "event"):
                        cursor = frame["cursor"]
                    if steps[-1:] == [300]:
                        break
        assert steps == list(range(1, 301))
        assert cuts >= 100


class Promptly:
    """An event loop that is about to do what it is told, and does it."""

    def call_soon_threadsafe(self, deliver: Callable[[list[Message]], None], messages: list[Message]) -> None:
        deliver(messages)


def test_what_is_committed_while_a_client_connects_reaches_it_once(
    client: TestClient, follow: Follow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Just before it is subscribed, and just after, before the head of the log is read: neither lost nor doubled."""
    run_id = launch(client, steps=3)
    wait_for(client, run_id, "completed")
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    subscribe = service.hub.subscribe

    def commit(step: int) -> None:
        with service.store.write() as write:
            metrics.add(write, run_id, 1, [metrics.Row(step, 0.0, 0.0, {"loss": 1.0})])

    def subscribe_meanwhile(wants: Callable[[Message], bool]) -> Subscription:
        with monkeypatch.context() as patch:
            patch.setattr(service.hub, "_loop", Promptly())  # told at once, as when the commit came a moment earlier
            commit(4)
            subscription = subscribe(wants)
            commit(5)
        return subscription

    monkeypatch.setattr(service.hub, "subscribe", subscribe_meanwhile)
    with follow(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        _, steps = rows_until(socket, 5)
        commit(6)
        _, more = rows_until(socket, 6)
    assert steps + more == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_streams_its_second_attempt_behind_its_first(client: TestClient, follow: Follow) -> None:
    run_id = launch(client, steps=600)
    with follow(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        _, before = rows_until(socket, 10)
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        client.post(f"/v1/runs/{run_id}/resume")
        _, after = rows_until(socket, 600)
    assert before + after == list(range(1, 601))


def test_the_stream_of_everything_tells_runs_apart_and_can_be_narrowed(client: TestClient) -> None:
    first, second = launch(client, steps=5), launch(client, steps=5)
    wait_for(client, second, "completed")
    with connect(client, "/v1/stream?after=start") as socket:
        assert rows_by_run(socket, 10) == {first: [1, 2, 3, 4, 5], second: [1, 2, 3, 4, 5]}
        socket.send_json({"type": "subscribe", "after": "start", "runs": [second], "keys": ["loss"]})
        while socket.receive_json()["type"] != "hello":
            pass
        columns = next(frame["columns"] for frame in frames(socket) if frame["type"] == "batch")
        assert set(columns) == {"seq", "attempt", "step", "epoch", "at", "loss"}


def rows_by_run(socket: WebSocketTestSession, rows: int) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for frame in frames(socket):
        if frame["type"] == "batch":
            found.setdefault(frame["run_id"], []).extend(frame["columns"]["step"])
        if sum(len(steps) for steps in found.values()) == rows:
            break
    return found


def test_after_now_brings_only_what_is_new(client: TestClient, follow: Follow) -> None:
    wait_for(client, launch(client, steps=5), "completed")
    with follow(client, "/v1/stream") as socket:
        assert socket.receive_json()["type"] == "hello"
        assert socket.receive_json()["type"] == "snapshot"
        run_id = launch(client, steps=5)
        assert socket.receive_json()["run_id"] == run_id


def test_a_cursor_of_another_database_is_answered_with_a_gap(client: TestClient, follow: Follow) -> None:
    """After the state folder was replaced, silence would look like "nothing happened"."""
    with follow(client, "/v1/stream?after=deadbeef.17") as socket:
        assert socket.receive_json()["type"] == "hello"
        gap = socket.receive_json()
        assert (gap["type"], gap["from"], gap["refetch"]) == ("gap", "deadbeef.17", True)


def test_a_message_that_is_not_understood_is_answered_and_the_stream_goes_on(client: TestClient) -> None:
    with connect(client, "/v1/stream") as socket:
        socket.receive_json()
        socket.receive_json()
        socket.send_text("dance")
        assert socket.receive_json()["type"] == "error"
        launch(client, steps=2)
        assert next(frame for frame in frames(socket) if frame["type"] == "batch")


def test_a_deleted_run_is_told_of_and_the_stream_goes_on(client: TestClient) -> None:
    first = launch(client, steps=2)
    wait_for(client, first, "completed")
    with connect(client, "/v1/stream?after=now") as stream:
        assert [stream.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        assert client.delete(f"/v1/runs/{first}").status_code == 204
        assert stream.receive_json() == {"type": "deleted", "run_id": first}
        second = launch(client, steps=2)
        assert stream.receive_json()["run_id"] == second


def test_who_follows_is_told_that_the_queue_is_held_and_let_go(client: TestClient) -> None:
    with connect(client, "/v1/stream?after=now") as stream:
        assert [stream.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        for is_held in (True, False):
            assert client.put("/v1/queue", json={"held": is_held}).status_code == 200
            assert stream.receive_json() == {"type": "queue", "held": is_held}


def test_who_follows_a_run_is_told_what_becomes_of_its_checkpoints(client: TestClient) -> None:
    """And nothing of the queue, which is no run's. What changes nothing is not told."""
    run_id = launch(client, steps=2)
    wait_for(client, run_id, "completed")
    (checkpoint,) = client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]
    path = f"/v1/checkpoints/{checkpoint['id']}"
    with connect(client, f"/v1/runs/{run_id}/stream?after=now") as stream:
        assert [stream.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        client.put("/v1/queue", json={"held": False})
        for is_pinned in (True, True, False):
            client.patch(path, json={"pinned": is_pinned})
        assert client.delete(path).status_code == 204
        told = [stream.receive_json() for _ in range(3)]
    assert [(frame["kind"], frame["step"], frame["data"]) for frame in told] == [
        ("checkpoint_edited", 2, {"checkpoint_id": checkpoint["id"], "pinned": True}),
        ("checkpoint_edited", 2, {"checkpoint_id": checkpoint["id"], "pinned": False}),
        ("checkpoint_deleted", 2, {"checkpoint_id": checkpoint["id"]}),
    ]


def test_the_stream_of_an_unknown_run_is_refused(client: TestClient) -> None:
    with connect(client, f"/v1/runs/run_{'0' * 36}/stream") as socket:
        assert socket.receive_json()["problem"] == "not_found"
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 4404


def test_nan_travels_by_name(tmp_path: Path) -> None:
    with serving(tmp_path, "--fault", "nan@3") as client:
        run_id = launch(client)
        wait_for(client, run_id, "failed")
        with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
            losses: list[Any] = []
            for frame in frames(socket):
                if frame["type"] == "batch":
                    losses += frame["columns"]["loss"]
                if len(losses) == 3:
                    break
    assert losses == [10.0, 5.0, "NaN"]


def test_a_browser_comes_back_by_the_last_id_and_misses_and_doubles_nothing(client: TestClient) -> None:
    """EventSource repeats the address it was opened with, `after=now` included; the header must win, from hello on."""
    run_id = launch(client, steps=60)
    path, seen = f"/v1/runs/{run_id}/stream?after=now", []
    with event_source(client, path) as source:
        first = source.receive_json()["cursor"]
        last_id = source.last_id
        assert (last_id, source.retry_ms) == (first, wires.RETRY_MS)
    while seen[-1:] != [60]:
        with event_source(client, path, last_event_id=last_id) as source:
            for _ in range(4):
                frame = source.receive_json()
                last_id = source.last_id
                seen += frame["columns"]["step"] if frame["type"] == "batch" else []
                if seen[-1:] == [60]:
                    break
    assert seen == list(range(seen[0], 61))
    with client.app.state.parts.store.read() as session:  # type: ignore[attr-defined]
        assert seen[0] == len(metrics.after(session, run_id, 0, 100, int(first.partition(".")[2]))) + 1


def test_server_sent_events_are_not_kept_by_anyone_on_the_way(client: TestClient) -> None:
    with event_source(client, "/v1/stream") as source:
        source.receive_json()
        assert source.status == 200
        assert source.headers["content-type"].startswith("text/event-stream")
        assert source.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", [f"/v1/runs/run_{'0' * 36}/stream", "/v1/stream?runs=run_1"])
def test_events_of_an_unknown_run_are_refused_before_the_stream(client: TestClient, path: str) -> None:
    """An EventSource takes a 404 for final, and does not come back every two seconds."""
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("headers", [{"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_a_foreign_page_gets_no_events(client: TestClient, headers: dict[str, str]) -> None:
    """It could not read them, but would hold a stream open."""
    assert client.get("/v1/stream", headers=headers).status_code == 403


@pytest.mark.parametrize("query", ["keys=los", "topics=dance", "max_hz=0", "max_hz=nan", "surprise=1", f"after={'1' * 41}"])
def test_a_choice_that_makes_no_sense_is_refused(client: TestClient, query: str) -> None:
    """Silently following nothing looks like a run that measures nothing."""
    assert client.get(f"/v1/stream?{query}").status_code == 422
    with pytest.raises(WebSocketDisconnect), connect(client, f"/v1/stream?{query}"):
        pass


def test_topics_and_keys_narrow_what_is_replayed_and_what_is_live(client: TestClient, follow: Follow) -> None:
    run_id = launch(client, steps=40)
    until(lambda: len(steps_of(client, run_id)) > 5)
    with follow(client, f"/v1/stream?after=start&topics=metrics&keys=loss_ce,loss&runs={run_id}") as socket:
        steps: list[int] = []
        kinds = set()
        while steps[-1:] != [40]:
            frame = socket.receive_json()
            kinds.add(frame["type"])
            if frame["type"] == "batch":
                assert set(frame["columns"]) == {*metrics.AXES, "loss", "loss_ce"}
                steps += frame["columns"]["step"]
    assert steps == list(range(1, 41))
    assert kinds == {"hello", "snapshot", "batch"}


def test_subscribe_changes_what_it_names_and_keeps_the_rest(client: TestClient) -> None:
    wait_for(client, launch(client, steps=5), "completed")
    with connect(client, "/v1/stream?after=start&keys=loss&topics=metrics") as socket:
        rows_until(socket, 5)
        socket.send_json({"type": "subscribe", "after": "start", "keys": None})
        assert set(next(frame["columns"] for frame in frames(socket) if frame["type"] == "batch")) > {"loss", "loss_ce"}
        socket.send_json({"type": "subscribe", "after": "start", "topics": ["event"]})
        assert [socket.receive_json()["type"] for _ in range(4)] == ["hello", "snapshot", "event", "event"]


def add_rows(client: TestClient, run_id: str, *steps: int) -> None:
    """One commit of rows, told at once."""
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    with service.store.write() as write:
        for step in steps:
            metrics.add(write, run_id, 1, [metrics.Row(step, 0.0, 0.0, {"loss": 1.0})])


def add_event(client: TestClient, run_id: str) -> None:
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    with service.store.write() as write:
        runs.add_event(write, run_id, 1, "warning", 0.0, None, {"message": "planted"})


@pytest.fixture
def done(client: TestClient) -> str:
    """A run to which nothing happens by itself any more; its rows end at step 3."""
    run_id = launch(client, steps=3)
    wait_for(client, run_id, "completed")
    return run_id


def test_max_hz_lets_rows_travel_together_and_events_hurry(client: TestClient, follow: Follow, done: str) -> None:
    """At one batch in ten seconds, four rows wait for each other until an event takes them along, ahead of itself."""
    with follow(client, f"/v1/runs/{done}/stream?max_hz=0.1") as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        add_rows(client, done, 4)
        assert socket.receive_json()["columns"]["step"] == [4]
        for step in range(5, 9):
            add_rows(client, done, step)
        add_event(client, done)
        assert socket.receive_json()["columns"]["step"] == [5, 6, 7, 8]
        assert socket.receive_json()["kind"] == "warning"


def test_a_client_behind_what_is_kept_for_it_is_read_to_from_the_log(
    client: TestClient, follow: Follow, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More than QUEUE_EVENTS wait, since it may have one batch in ten seconds: all of them come, once and in order."""
    monkeypatch.setattr(hub, "QUEUE_BYTES", 1)
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    with follow(client, f"/v1/runs/{done}/stream") as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]

        async def all_at_once() -> None:  # within one turn of the loop: nobody can take anything in between
            monkeypatch.setattr(service.hub, "_loop", Promptly())
            for step in range(4, 104):
                add_rows(client, done, step)

        assert client.portal is not None
        client.portal.call(all_at_once)
        _, steps = rows_until(socket, 103)
        add_rows(client, done, 104)
        _, more = rows_until(socket, 104)
    assert steps + more == list(range(4, 105))


def test_a_cursor_ahead_of_the_log_is_answered_with_a_gap(client: TestClient, follow: Follow) -> None:
    """A database put back from a backup has the same epoch, and less in it."""
    store = client.app.state.parts.store  # type: ignore[attr-defined]
    with follow(client, f"/v1/stream?after={store.epoch}.{store.head + 1}") as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["hello", "gap"]


def test_silence_is_told_from_death_by_heartbeats(client: TestClient, follow: Follow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wires, "HEARTBEAT_S", 0.04)
    with follow(client, "/v1/stream") as socket:
        cursor = socket.receive_json()["cursor"]
        beats = [frame for frame, _ in zip(frames(socket), range(4), strict=False) if frame["type"] == "heartbeat"]
    assert [beat["cursor"] for beat in beats] == [cursor] * len(beats)
    assert len(beats) >= 3


def test_a_client_that_does_not_read_is_let_go_and_changes_nothing_for_others(
    client: TestClient, done: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wires, "SEND_TIMEOUT_S", 0.2)
    monkeypatch.setattr(wires, "CLOSE_TIMEOUT_S", 0.05)
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    path = f"/v1/runs/{done}/stream"
    with event_source(client, f"{path}?after=start", lazy=True) as stuck, connect(client, path) as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        for step in range(4, 54):
            add_rows(client, done, step)
        assert rows_until(socket, 53)[1] == list(range(4, 54))
        stuck.served.result(20)  # by itself: nobody closed it
        until(lambda: len(service.hub._subscriptions) == 1)
        add_rows(client, done, 54)
        assert rows_until(socket, 54)[1] == [54]


class StuckWire(wires.Wire):
    """A client that reads hello, the snapshot and a page, and nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.frames: list[str] = []

    async def listen(self) -> str | None:
        await anyio.sleep_forever()
        raise AssertionError

    async def _put(self, frame: Frame) -> None:
        self.frames.append(frame.text[:20])
        if len(self.frames) > 3:
            await anyio.sleep_forever()

    async def _close(self, code: int) -> None: ...


def test_what_is_held_for_a_client_that_does_not_read_is_bounded(client: TestClient, done: str) -> None:
    """However long the past it asked for, and however much comes meanwhile; all would be 6 MB. A connection's buffers are not in it."""
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    values = {key: 1 / (3 + number) for number, key in enumerate(KEYS)}

    def write(*steps: int) -> None:
        with service.store.write(durable=False) as write:
            metrics.add(write, done, 1, [metrics.Row(step, 1 / 3, 1.8e9, values) for step in steps])

    def held() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    write(*range(4, 1004))
    assert client.portal is not None
    for step in range(1004, 1104):  # what the process itself keeps of any rows, such as texts shared by all clients
        write(step)
    wire = StuckWire()
    tracemalloc.start()
    try:
        before = held()
        task = client.portal.start_task_soon(Conversation(wire, service).hold, Choice(after="start"))
        until(lambda: len(wire.frames) > 3)
        for step in range(1104, 1504):
            write(step)
        client.portal.call(anyio.lowlevel.checkpoint)  # all of it was offered
        assert held() - before < 600_000
    finally:
        tracemalloc.stop()
        task.cancel()


def test_streams_say_goodbye_when_the_service_ends(client: TestClient, follow: Follow) -> None:
    with follow(client, "/v1/stream") as socket:
        assert [socket.receive_json()["type"] for _ in range(2)] == ["hello", "snapshot"]
        assert client.portal is not None
        client.portal.call(client.app.state.parts.hub.close)  # type: ignore[attr-defined]
        assert socket.receive_json()["type"] == "bye"


async def test_a_client_that_leaves_in_the_middle_of_the_past_is_noticed() -> None:
    """A server takes what is sent without a pause as long as its buffer has room; who is gone must be heard between two frames."""
    gone = anyio.Event()
    sent: list[AsgiMessage] = []

    async def receive() -> AsgiMessage:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: AsgiMessage) -> None:
        sent.append(message)
        if len(sent) == 5:
            gone.set()

    async def write() -> None:
        for _ in range(1000):
            await wire.send(frame_of(type="metrics"))

    wire = wires.EventSourceWire(receive, send)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(write)
        assert await wire.listen() is None
        tasks.cancel_scope.cancel()
    assert len(sent) < 20
