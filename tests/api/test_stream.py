"""Websockets: every row once and in order, from wherever a client comes back."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from app.api.deps import Parts
from app.services.hub import Subscription
from app.store import metrics
from app.store.engine import Message
from tests.service import connect, launch, serving, steps_of, until, wait_for


def frames(socket: WebSocketTestSession) -> Iterator[dict[str, Any]]:
    while True:
        yield socket.receive_json()


def rows_until(socket: WebSocketTestSession, last_step: int) -> tuple[list[int], list[int]]:
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


def test_a_late_client_gets_the_past_and_then_the_present(client: TestClient) -> None:
    run_id = launch(client, steps=60)
    until(lambda: len(steps_of(client, run_id)) > 20)
    with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        hello, snapshot = socket.receive_json(), socket.receive_json()
        assert (hello["type"], snapshot["type"]) == ("hello", "snapshot")
        assert snapshot["runs"][0]["id"] == run_id
        seqs, steps = rows_until(socket, 60)
    assert steps == list(range(1, 61))
    assert seqs == sorted(set(seqs))


def test_events_and_rows_share_one_order(client: TestClient) -> None:
    run_id = launch(client, steps=10)
    wait_for(client, run_id, "completed")
    with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
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


def test_a_client_cut_at_random_and_back_with_its_cursor_misses_and_doubles_nothing(client: TestClient) -> None:
    draw = random.Random(1)
    run_id = launch(client, steps=120)
    steps: list[int] = []
    cursor = "start"
    while not steps or steps[-1] < 120:
        with connect(client, f"/v1/runs/{run_id}/stream?after={cursor}") as socket:
            patience = draw.randint(1, 12)
            for frame in frames(socket):
                if frame["type"] == "batch":
                    steps += frame["columns"]["step"]
                if frame["type"] in ("batch", "event"):
                    cursor = frame["cursor"]
                    patience -= 1
                if patience == 0 or (steps and steps[-1] == 120):
                    break
    assert steps == list(range(1, 121))


class Promptly:
    """An event loop that is about to do what it is told, and does it."""

    def call_soon_threadsafe(self, deliver: Callable[[list[Message]], None], messages: list[Message]) -> None:
        deliver(messages)


def test_what_is_committed_while_a_client_connects_reaches_it_once(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Just before it is subscribed, and just after, before the head of the log is read: neither lost nor doubled."""
    run_id = launch(client, steps=3)
    wait_for(client, run_id, "completed")
    service: Parts = client.app.state.parts  # type: ignore[attr-defined]
    subscribe = service.hub.subscribe

    def commit(step: int) -> None:
        with service.store.write() as write:
            metrics.add(write, run_id, 1, step, 0.0, 0.0, {"loss": 1.0})

    def subscribe_meanwhile(wants: Callable[[Message], bool]) -> Subscription:
        with monkeypatch.context() as patch:
            patch.setattr(service.hub, "_loop", Promptly())  # told at once, as when the commit came a moment earlier
            commit(4)
            subscription = subscribe(wants)
            commit(5)
        return subscription

    monkeypatch.setattr(service.hub, "subscribe", subscribe_meanwhile)
    with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        _, steps = rows_until(socket, 5)
        commit(6)
        _, more = rows_until(socket, 6)
    assert steps + more == [1, 2, 3, 4, 5, 6]


def test_a_resumed_run_streams_its_second_attempt_behind_its_first(client: TestClient) -> None:
    run_id = launch(client, steps=40)
    with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
        _, before = rows_until(socket, 10)
        client.post(f"/v1/runs/{run_id}/pause")
        wait_for(client, run_id, "paused")
        client.post(f"/v1/runs/{run_id}/resume")
        _, after = rows_until(socket, 40)
    assert before + after == list(range(1, 41))


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


def test_after_now_brings_only_what_is_new(client: TestClient) -> None:
    wait_for(client, launch(client, steps=5), "completed")
    with connect(client, "/v1/stream") as socket:
        assert socket.receive_json()["type"] == "hello"
        assert socket.receive_json()["type"] == "snapshot"
        run_id = launch(client, steps=5)
        assert socket.receive_json()["run_id"] == run_id


def test_a_cursor_of_another_database_is_answered_with_a_gap(client: TestClient) -> None:
    """After the state folder was replaced, silence would look like "nothing happened"."""
    with connect(client, "/v1/stream?after=deadbeef.17") as socket:
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
