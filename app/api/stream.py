"""Websockets: the past from a cursor, then the present, each row once and in order.

    client  subscribe {after, runs, keys}
    server  hello, snapshot, event, batch, progress, gap, heartbeat, error, bye

A cursor is "<epoch>.<seq>": epoch names the database, seq counts events and metric rows together. The subscription is
registered before the head of the log is read, the log is read up to that head, and what was queued meanwhile is sent
from there on; nothing falls between the two. Progress is passing and has no number.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
import orjson
from fastapi import APIRouter, Query, WebSocket
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.websockets import WebSocketDisconnect

from app.api.deps import Parts, Service, parts
from app.api.runs import RunId
from app.api.schemas import instant, run_out
from app.api.security import SUBPROTOCOL
from app.services.hub import Overflow
from app.store import metrics, runs
from app.store.engine import Message
from cognate import __version__
from cognate.metrics import KEYS

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["stream"])

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 10.0
PAGE_ROWS = 500
SNAPSHOT_RUNS = 50


class SubscribeIn(BaseModel):
    """What a client may say, at any time; following starts anew with it."""

    model_config = ConfigDict(extra="forbid")

    type: Literal["subscribe"]
    after: str = "now"
    runs: list[str] | None = Field(None, max_length=200)
    keys: list[str] | None = Field(None, max_length=len(KEYS))


@dataclass(frozen=True)
class Wanted:
    """What one client follows. `after`: a cursor, "start" or "now"."""

    after: str
    runs: frozenset[str] | None = None
    keys: frozenset[str] | None = None

    def takes(self, message: Message) -> bool:
        return self.runs is None or message.run_id in self.runs


@router.post("/stream/ticket", summary="A single-use ticket for one websocket, for clients that cannot send headers")
async def issue_ticket(service: Service) -> dict[str, Any]:
    return {"ticket": service.gate.issue_ticket(), "subprotocol": SUBPROTOCOL}


@router.websocket("/stream")
async def stream(websocket: WebSocket, after: Annotated[str, Query(max_length=40)] = "now") -> None:
    await _serve(websocket, Wanted(after))


@router.websocket("/runs/{run_id}/stream")
async def stream_run(
    websocket: WebSocket, run_id: RunId, after: Annotated[str, Query(max_length=40)] = "now", keys: str | None = None
) -> None:
    await _serve(websocket, Wanted(after, frozenset({run_id}), frozenset(keys.split(",")) if keys else None))


async def _serve(websocket: WebSocket, wanted: Wanted) -> None:
    service = parts(websocket)
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", []) else None)
    if wanted.runs is not None and (missing := await anyio.to_thread.run_sync(_missing, service, wanted.runs)):
        await _leave(websocket, {"type": "error", "problem": "not_found", "detail": f"no run {', '.join(missing)}"}, 4404)
        return
    request: Wanted | None = wanted
    while request is not None:
        wanted, request = request, None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_follow_or_leave, websocket, service, wanted, tasks.cancel_scope)
            request = await _next_request(websocket, wanted)
            tasks.cancel_scope.cancel()


async def _follow_or_leave(websocket: WebSocket, service: Parts, wanted: Wanted, conversation: anyio.CancelScope) -> None:
    try:
        await _follow(websocket, service, wanted)
    except Overflow as error:
        await _leave(websocket, {"type": "bye", "reason": "slow_consumer", "detail": f"{error}; come back with your cursor"}, 1013)
    except TimeoutError:  # a reader that has stopped reading: a polite word would wait for it as well
        await _leave(websocket, None, 1013)
    except (WebSocketDisconnect, RuntimeError) as error:  # gone while we were sending
        log.debug("a stream ended: %s", error)
    conversation.cancel()


async def _next_request(websocket: WebSocket, wanted: Wanted) -> Wanted | None:
    """What the client asks for next; None once it is gone. A message that cannot be understood is answered, not fatal."""
    while True:
        try:
            request = SubscribeIn.model_validate_json(await websocket.receive_text())
        except WebSocketDisconnect:
            return None
        except (ValidationError, KeyError):
            try:
                await _send(websocket, {"type": "error", "problem": "invalid_request", "detail": "not a subscribe message"})
            except (WebSocketDisconnect, RuntimeError, TimeoutError):
                return None
            continue
        chosen = frozenset(request.runs) if request.runs is not None else wanted.runs
        return replace(wanted, after=request.after, runs=chosen, keys=frozenset(request.keys) if request.keys else wanted.keys)


async def _follow(websocket: WebSocket, service: Parts, wanted: Wanted) -> None:
    store, hub = service.store, service.hub
    subscription = hub.subscribe(wanted.takes)
    try:
        head = store.head
        start, gap = _start_of(wanted.after, store.epoch, head)
        await _send(websocket, {"type": "hello", "version": __version__, "cursor": f"{store.epoch}.{head}", "heartbeat_s": HEARTBEAT_S})
        if gap:
            await _send(websocket, {"type": "gap", "from": wanted.after, "to": f"{store.epoch}.{start}", "refetch": True})
        await _send(websocket, await anyio.to_thread.run_sync(_snapshot, service, wanted))
        async for page in _replay(service, wanted, start, head):
            await _send_frames(websocket, page, store.epoch, wanted)
        sent = head
        while True:
            try:
                with anyio.fail_after(HEARTBEAT_S):
                    messages = await subscription.take()
            except TimeoutError:
                await _send(websocket, {"type": "heartbeat", "cursor": f"{store.epoch}.{sent}"})
                continue
            fresh = [message for message in messages if message.seq == 0 or message.seq > head]
            await _send_frames(websocket, fresh, store.epoch, wanted)
            sent = max([sent, *(message.seq for message in fresh)])
    finally:
        hub.unsubscribe(subscription)


def _start_of(after: str, epoch: str, head: int) -> tuple[int, bool]:
    """The seq to start behind, and whether the client's cursor could not be honoured."""
    if after == "start":
        return 0, False
    if after == "now":
        return head, False
    theirs, _, seq = after.partition(".")
    if theirs == epoch and seq.isdecimal() and int(seq) <= head:
        return int(seq), False
    return head, True  # a cursor of another database: what it pointed at is not here


async def _replay(service: Parts, wanted: Wanted, start: int, head: int) -> AsyncIterator[list[Message]]:
    """Everything wanted in (start, head], in pages."""
    while start < head:
        page, start = await anyio.to_thread.run_sync(_read_page, service, wanted, start, head)
        yield page


def _read_page(service: Parts, wanted: Wanted, start: int, head: int) -> tuple[list[Message], int]:
    """Messages behind `start`, and how far they are complete."""
    only = next(iter(wanted.runs)) if wanted.runs is not None and len(wanted.runs) == 1 else None
    with service.store.read() as session:
        rows = metrics.after(session, only, start, PAGE_ROWS, head)
        events = [_event_message(event) for event in runs.events(session, only, start, PAGE_ROWS, upto=head)]
    # A full page says nothing about what lies behind its last entry.
    complete = min([found[-1].seq for found in (rows, events) if len(found) == PAGE_ROWS], default=head)
    merged = sorted((message for message in (*rows, *events) if message.seq <= complete), key=lambda message: message.seq)
    return [message for message in merged if wanted.takes(message)], complete


def _event_message(event: Any) -> Message:
    body = {name: getattr(event, name) for name in ("seq", "run_id", "attempt", "kind", "at", "step", "data")}
    return Message(event.seq, event.run_id, "event", body)


def _snapshot(service: Parts, wanted: Wanted) -> dict[str, Any]:
    with service.store.read() as session:
        found = runs.page(session, SNAPSHOT_RUNS) if wanted.runs is None else runs.some(session, wanted.runs)
        queue = runs.queue(session)
        return {"type": "snapshot", "runs": [run_out(run, queue).model_dump(mode="json") for run in found]}


def _missing(service: Parts, run_ids: frozenset[str]) -> set[str]:
    with service.store.read() as session:
        return set(run_ids - {run.id for run in runs.some(session, run_ids)})


async def _send_frames(websocket: WebSocket, messages: Iterable[Message], epoch: str, wanted: Wanted) -> None:
    """Messages in order; neighbouring rows of a run travel together as columns."""
    for (kind, run_id), group in groupby(messages, key=lambda message: (message.type, message.run_id)):
        together = list(group)
        if kind == "metrics":
            await _send(websocket, _batch(run_id, together, epoch, wanted.keys))
        elif kind == "progress":
            await _send(websocket, {"type": "progress", "run_id": run_id, "progress": together[-1].body})
        else:
            for message in together:
                await _send(
                    websocket, {"type": "event", "cursor": f"{epoch}.{message.seq}", **message.body, "at": instant(message.body["at"])}
                )


def _batch(run_id: str, rows: list[Message], epoch: str, keys: frozenset[str] | None) -> dict[str, Any]:
    columns: dict[str, list[Any]] = {axis: [row.body[axis] for row in rows] for axis in metrics.AXES}
    measured = {key for row in rows for key in row.body["values"]}
    for key in KEYS:
        if key in measured and (keys is None or key in keys):
            columns[key] = [row.body["values"].get(key) for row in rows]
    return {"type": "batch", "cursor": f"{epoch}.{rows[-1].seq}", "run_id": run_id, "columns": columns}


async def _send(websocket: WebSocket, frame: dict[str, Any]) -> None:
    """Raises TimeoutError when the client does not read."""
    with anyio.fail_after(SEND_TIMEOUT_S):
        await websocket.send_text(orjson.dumps(frame).decode())


async def _leave(websocket: WebSocket, last: dict[str, Any] | None, code: int) -> None:
    with contextlib.suppress(TimeoutError, RuntimeError, WebSocketDisconnect):
        if last is not None:
            await _send(websocket, last)
        with anyio.fail_after(SEND_TIMEOUT_S):
            await websocket.close(code)
