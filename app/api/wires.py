"""The two ways to a client, a websocket and server-sent events, as one: frames go out, requests may come in.

Nobody can be asked to read. A wire notices when a frame has not gone out for SEND_TIMEOUT_S, and the client is let go:
what waits for a reader, close included, waits for ever.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from time import monotonic

import anyio
from anyio.lowlevel import checkpoint
from starlette.types import Receive, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.api.frames import Frame

HEARTBEAT_S = 15.0
SEND_TIMEOUT_S = 10.0
CLOSE_TIMEOUT_S = 1.0
RETRY_MS = 2000


class Gone(RuntimeError):
    """The client is not there any more."""


class Wire(ABC):
    """A client's connection."""

    def __init__(self) -> None:
        self._sent_at = monotonic()
        self._sending_since: float | None = None

    async def send(self, frame: Frame) -> None:
        """Raises Gone; waits for as long as the client does not read."""
        self._sending_since = monotonic()
        try:
            await self._put(frame)
        except (OSError, RuntimeError, WebSocketDisconnect) as error:
            raise Gone from error
        finally:
            self._sending_since = None
        self._sent_at = monotonic()

    @property
    def is_silent(self) -> bool:
        """Whether it is time for a heartbeat."""
        return monotonic() - self._sent_at > HEARTBEAT_S * 3 / 4

    @property
    def is_stalled(self) -> bool:
        """Whether a frame has been on its way for longer than a reader would need."""
        return self._sending_since is not None and monotonic() - self._sending_since > SEND_TIMEOUT_S

    async def leave(self, code: int, last: Frame | None = None) -> None:
        """End the conversation, whether the client hears of it or not; `code` is a websocket's."""
        with anyio.move_on_after(CLOSE_TIMEOUT_S), contextlib.suppress(OSError, RuntimeError, WebSocketDisconnect):
            if last is not None:
                await self._put(last)
            await self._close(code)

    @abstractmethod
    async def listen(self) -> str | None:
        """The client's next message; None once it is gone."""

    @abstractmethod
    async def _put(self, frame: Frame) -> None: ...

    @abstractmethod
    async def _close(self, code: int) -> None: ...


class SocketWire(Wire):
    def __init__(self, socket: WebSocket) -> None:
        super().__init__()
        self._socket = socket

    async def listen(self) -> str | None:
        message = await self._socket.receive()
        return None if message["type"] == "websocket.disconnect" else message.get("text") or ""

    async def _put(self, frame: Frame) -> None:
        await self._socket.send({"type": "websocket.send", "text": frame.text})

    async def _close(self, code: int) -> None:
        await self._socket.close(code)


class EventSourceWire(Wire):
    """Server-sent events: a frame is the data of an event, its cursor the id that a browser comes back with."""

    HEADERS = ((b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no"))

    def __init__(self, receive: Receive, send: Send) -> None:
        super().__init__()
        self._receive = receive
        self._send = send
        self._has_begun = False

    async def listen(self) -> str | None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        return None

    async def _put(self, frame: Frame) -> None:
        named = "" if frame.cursor is None else f"id: {frame.cursor}\n"
        if not self._has_begun:
            self._has_begun = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(self.HEADERS)})
            named = f"retry: {RETRY_MS}\n{named}"
        await self._write(f"{named}data: {frame.text}\n\n")

    async def _close(self, code: int) -> None:
        await self._write("", more=False)

    async def _write(self, text: str, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": text.encode(), "more_body": more})
        await checkpoint()  # the server takes it without a pause while its buffer has room, and nobody would hear that the client is gone
