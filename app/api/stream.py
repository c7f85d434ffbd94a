"""Streams: the past from a cursor, then the present, each row once and in order. By websocket, or as server-sent events.

frames.py says what is sent, wires.py how it gets there. A client chooses in the address and, on a websocket, at any time by
subscribe {after, runs, topics, keys, max_hz}.

The subscription is registered before the head of the log is read, the log is read up to that head, and what was queued
meanwhile is sent from there on; nothing falls between the two. A client that falls behind what is kept for it is read to
from the log again; one that does not read at all is let go, and comes back with its cursor.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request, WebSocket
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from starlette.types import Receive, Scope, Send

from app.api import wires
from app.api.common import RunId
from app.api.deps import Parts, Service, parts
from app.api.errors import problem
from app.api.frames import Frame, Framing, frame
from app.api.schemas.runs import run_out
from app.api.security import SUBPROTOCOL, refuse_foreign
from app.api.wires import EventSourceWire, Gone, SocketWire, Wire
from app.services.hub import Closing, Overflow, Subscription
from app.store import metrics, runs
from app.store.engine import Message, Store
from cognate import __version__
from cognate.metrics import KEYS

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1", tags=["stream"])

PAGE_ROWS = 100  # a page of all metrics is 70 KB
SNAPSHOT_RUNS = 50
NOT_FOUND, TRY_AGAIN, RESTARTING = 4404, 1013, 1012  # websocket close codes

Topic = Literal["event", "metrics", "progress"]


class Choice(BaseModel):
    """What a client follows; what it does not name is not narrowed. In an address, lists are separated by commas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    after: str = Field("now", max_length=40, description='Where to begin: a cursor, "start" or "now".')
    runs: frozenset[str] | None = Field(None, max_length=200, description="Only these runs.")
    topics: frozenset[Topic] | None = Field(None, description="Only these kinds of message.")
    keys: frozenset[str] | None = Field(None, max_length=len(KEYS), description="Only these metrics.")
    max_hz: float | None = Field(None, ge=0.1, le=100, description="Metrics at most so often a second; rows wait for each other.")

    @field_validator("runs", "topics", "keys", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return [part for given in value for part in str(given).split(",")] if isinstance(value, list) else value

    @field_validator("keys")
    @classmethod
    def _are_metrics(cls, keys: frozenset[str] | None) -> frozenset[str] | None:
        if unknown := (keys or frozenset()) - set(KEYS):
            raise ValueError(f"no metric {', '.join(sorted(unknown))}; see GET /v1/metrics")
        return keys

    def takes(self, message: Message) -> bool:
        return (self.runs is None or message.run_id in self.runs) and (self.topics is None or message.type in self.topics)


class SubscribeIn(Choice):
    """What a client may say, at any time; following starts anew with it. What it does not name, but `after`, stays as it was."""

    type: Literal["subscribe"]


Chosen = Annotated[Choice, Query()]
LastEventId = Annotated[str | None, Header(max_length=40, description="A browser coming back; it stands above `after`.")]
_SSE: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}, "description": "Frames, as on the websocket."}}


@router.post("/stream/ticket", summary="A single-use ticket for one stream, for clients that cannot send headers")
async def issue_ticket(service: Service) -> dict[str, Any]:
    """Within 30 seconds: as subprotocol `ticket.<ticket>` of a websocket, or as `?ticket=` of server-sent events."""
    return {"ticket": service.gate.issue_ticket(), "subprotocol": SUBPROTOCOL}


@router.websocket("/stream")
async def stream(websocket: WebSocket, choice: Chosen) -> None:
    await _serve_socket(websocket, choice)


@router.websocket("/runs/{run_id}/stream")
async def stream_run(websocket: WebSocket, run_id: RunId, choice: Chosen) -> None:
    await _serve_socket(websocket, _only(choice, run_id))


@router.get("/stream", summary="Everything that happens, as server-sent events", response_class=Response, responses=_SSE)
async def events(request: Request, choice: Chosen, last_event_id: LastEventId = None) -> Response:
    return await _serve_events(request, choice, last_event_id)


@router.get("/runs/{run_id}/stream", summary="One run, as server-sent events", response_class=Response, responses=_SSE)
async def run_events(request: Request, run_id: RunId, choice: Chosen, last_event_id: LastEventId = None) -> Response:
    return await _serve_events(request, _only(choice, run_id), last_event_id)


async def _serve_socket(websocket: WebSocket, choice: Choice) -> None:
    service = parts(websocket)
    await websocket.accept(SUBPROTOCOL if SUBPROTOCOL in websocket.scope.get("subprotocols", []) else None)
    wire = SocketWire(websocket)
    if missing := await anyio.to_thread.run_sync(_missing, service, choice):
        await wire.leave(NOT_FOUND, frame(type="error", problem="not_found", detail=missing))
    else:
        await Conversation(wire, service).hold(choice)


async def _serve_events(request: Request, choice: Choice, last_event_id: str | None) -> Response:
    refuse_foreign(request)  # as for a websocket: what is asked for is held open
    service = parts(request)
    if missing := await anyio.to_thread.run_sync(_missing, service, choice):
        return problem("not_found", missing)
    return EventStream(service, choice if last_event_id is None else choice.model_copy(update={"after": last_event_id}))


class EventStream(Response):
    """A response that lasts as long as its client."""

    def __init__(self, service: Parts, choice: Choice) -> None:
        super().__init__()
        self._service = service
        self._choice = choice

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Conversation(EventSourceWire(receive, send), self._service).hold(self._choice)


class Conversation:
    """One client, from the first frame to the last."""

    def __init__(self, wire: Wire, service: Parts) -> None:
        self._wire = wire
        self._store = service.store
        self._hub = service.hub
        self._service = service
        self._subscription: Subscription | None = None
        self._ending: tuple[int, Frame | None] | None = None  # None while the client is there, or when it went by itself

    async def hold(self, choice: Choice) -> None:
        """Send what is chosen until the client is gone or has to go; what it asks for meanwhile replaces its choice."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, tasks.cancel_scope)
            request: Choice | None = choice
            while request is not None:
                choice = request
                async with anyio.create_task_group() as following:
                    following.start_soon(self._follow_or_end, choice, tasks.cancel_scope)
                    request = await self._next_request(choice)
                    following.cancel_scope.cancel()
            tasks.cancel_scope.cancel()
        if self._ending is not None:
            await self._wire.leave(*self._ending)

    async def _watch(self, conversation: anyio.CancelScope) -> None:
        """One timer for all a client may be waiting for: it goes when it has stopped reading, and hears of it when nothing happens."""
        while not self._wire.is_stalled:
            await anyio.sleep(min(wires.SEND_TIMEOUT_S, wires.HEARTBEAT_S) / 4)
            if self._subscription is not None and self._wire.is_silent:
                self._subscription.wake()
        log.info("a client of a stream does not read; it may come back with its cursor")
        self._ending = TRY_AGAIN, None  # no last word: it would wait for a reader as well
        conversation.cancel()

    async def _next_request(self, choice: Choice) -> Choice | None:
        """What the client asks for next; None once it is gone. A message that cannot be understood is answered, not fatal."""
        while (text := await self._wire.listen()) is not None:
            try:
                request = SubscribeIn.model_validate_json(text)
            except ValidationError as error:
                faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
                with contextlib.suppress(Gone):
                    await self._wire.send(frame(type="error", problem="invalid_request", detail=f"not a subscribe message: {faults}"))
            else:
                named = {name: getattr(request, name) for name in request.model_fields_set & Choice.model_fields.keys()}
                return choice.model_copy(update={"after": "now"} | named)
        return None

    async def _follow_or_end(self, choice: Choice, conversation: anyio.CancelScope) -> None:
        try:
            await self._follow(choice)
        except Closing:
            self._ending = RESTARTING, frame(type="bye", reason="shutdown", detail="come back with your cursor")
        except Gone as error:
            log.debug("a stream ended: %r", error.__cause__)
        conversation.cancel()

    async def _follow(self, choice: Choice) -> None:
        framing = Framing(self._hub, self._store.epoch, choice.keys)
        self._subscription = subscription = self._hub.subscribe(choice.takes)
        try:
            sent = await self._begin(choice, framing)
            while True:
                try:
                    messages = await subscription.take()
                except Overflow:
                    sent = await self._catch_up(choice, sent)
                    continue
                fresh = [message for message in messages if message.seq == 0 or message.seq > sent]
                for each in framing.of(fresh):
                    await self._wire.send(each)
                sent = max([sent, *(message.seq for message in fresh)])
                if self._wire.is_silent:
                    await self._wire.send(frame(framing.cursor(sent), type="heartbeat", cursor=framing.cursor(sent)))
                if choice.max_hz is not None:
                    await subscription.rest(1 / choice.max_hz)
        finally:
            self._hub.unsubscribe(subscription)

    async def _begin(self, choice: Choice, framing: Framing) -> int:
        """Greet, and send the past; how far that went."""
        head = self._store.head
        snapshot = await anyio.to_thread.run_sync(_look, self._service, choice)
        start, gap = _start_of(choice.after, framing.epoch, head)
        now = framing.cursor(head)
        hello = frame(framing.cursor(start), type="hello", version=__version__, cursor=now, heartbeat_s=wires.HEARTBEAT_S)
        await self._wire.send(hello)
        if gap:
            await self._wire.send(frame(now, **{"type": "gap", "from": choice.after, "to": now, "refetch": True}))
        await self._wire.send(frame(type="snapshot", runs=snapshot))
        return await self._catch_up(choice, start)

    async def _catch_up(self, choice: Choice, sent: int) -> int:
        """Send what the log has behind `sent`; how far that went."""
        head = self._store.head
        while sent < head:
            page, sent = await anyio.to_thread.run_sync(_read_page, self._store, choice, sent, head)
            for each in page:
                await self._wire.send(each)
        return head


def _start_of(after: str, epoch: str, head: int) -> tuple[int, bool]:
    """The seq to start behind, and whether the client's cursor could not be honoured."""
    if after == "start":
        return 0, False
    if after == "now":
        return head, False
    theirs, _, seq = after.partition(".")
    if theirs == epoch and seq.isdecimal() and int(seq) <= head:
        return int(seq), False
    return head, True  # what it pointed at is not here: another database, or one that has not come so far


def _read_page(store: Store, choice: Choice, start: int, head: int) -> tuple[list[Frame], int]:
    """What is chosen behind `start`, and how far it is complete. As frames, a tenth of its rows: a client may take long to read them."""
    only = next(iter(choice.runs)) if choice.runs is not None and len(choice.runs) == 1 else None
    rows: list[Message] = []
    told: list[Message] = []
    with store.read() as session:
        if choice.topics is None or "metrics" in choice.topics:
            rows = metrics.after(session, only, start, PAGE_ROWS, head)
        if choice.topics is None or "event" in choice.topics:
            told = [_event_message(event) for event in runs.events(session, only, start, PAGE_ROWS, upto=head)]
    # A full page says nothing about what lies behind its last entry.
    complete = min([found[-1].seq for found in (rows, told) if len(found) == PAGE_ROWS], default=head)
    merged = sorted((message for message in (*rows, *told) if message.seq <= complete), key=lambda message: message.seq)
    return list(Framing(None, store.epoch, choice.keys).of(filter(choice.takes, merged))), complete


def _event_message(event: Any) -> Message:
    body = {name: getattr(event, name) for name in ("seq", "run_id", "attempt", "kind", "at", "step", "data")}
    return Message(event.seq, event.run_id, "event", body)


def _look(service: Parts, choice: Choice) -> list[dict[str, Any]]:
    """The chosen runs as they are."""
    with service.store.read() as session:
        found: Sequence[Any] = runs.page(session, SNAPSHOT_RUNS) if choice.runs is None else runs.some(session, choice.runs)
        queue = runs.queue(session)
        return [run_out(run, queue).model_dump(mode="json") for run in found]


def _missing(service: Parts, choice: Choice) -> str | None:
    """A sentence on the chosen runs that are not there, if any."""
    if choice.runs is None:
        return None
    with service.store.read() as session:
        missing = choice.runs - {run.id for run in runs.some(session, choice.runs)}
    return f"no run {', '.join(sorted(missing))}" if missing else None


def _only(choice: Choice, run_id: str) -> Choice:
    return choice.model_copy(update={"runs": frozenset({run_id})})
