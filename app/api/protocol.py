"""HTTP as uvicorn speaks it, but with bounds on what a client may send that comes to nothing, how long it may take, and how many there are.

All of it is before any token is asked for. Bodies are bounded in security.py.
"""

from __future__ import annotations

import asyncio
import resource
from typing import ClassVar

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from app.api.tally import Tally

HEAD_BYTES = 64 * 1024
REQUEST_S = 20.0  # for a whole request: its head, and a body that is at most 64 KiB
KEPT_DESCRIPTORS = 256  # for the database, run directories, workers, and connections that were just accepted
MOST_DESCRIPTORS = 65_536
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def raise_descriptor_limit() -> None:
    """As far as we may without asking anybody: a shell allows 1,024 by default, and each connection takes one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if 0 <= soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def most_connections() -> int:
    """Each may have a file open beside its socket."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(soft - KEPT_DESCRIPTORS, 2) // 2 if soft != resource.RLIM_INFINITY else MOST_DESCRIPTORS


class BoundedProtocol(HttpToolsProtocol):
    """The parser keeps headers and trailers however many come, and waits for them however long it takes."""

    _awaited: ClassVar[dict[BoundedProtocol, asyncio.TimerHandle]] = {}  # connections that owe us a request, the oldest first
    _dropped: ClassVar[Tally] = Tally("connections that asked for nothing were closed: %d, for there are as many as %s descriptors allow")
    _pending = 0  # bytes received since a head was complete, or a part of a body
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) > most_connections():
            self._dropped.count(str(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
            next(iter(self._awaited))._give_way()  # this one, where no other is idle

    def connection_lost(self, exc: Exception | None) -> None:
        self._await_nothing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._await_request()
        self._pending += len(data)
        super().data_received(data)
        if self._pending > HEAD_BYTES and not self.transport.is_closing():
            self.transport.write(_TOO_LARGE)
            self.transport.close()

    def on_message_begin(self) -> None:
        self._await_request()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._pending = 0
        self._in_body = True
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._pending = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._pending = 0
        self._in_body = False
        self._await_nothing()
        super().on_message_complete()

    def _await_request(self) -> None:
        if self not in self._awaited:
            self._awaited[self] = self.loop.call_later(REQUEST_S, self._be_late)

    def _await_nothing(self) -> None:
        if timer := self._awaited.pop(self, None):
            timer.cancel()

    def _be_late(self) -> None:
        self._await_nothing()
        is_answering = self.pipeline or (self.cycle and not self.cycle.response_complete and not self._in_body)
        if is_answering:  # an earlier request, which may take as long as it likes
            self._await_request()
        else:
            self.transport.close()

    def _give_way(self) -> None:
        self._await_nothing()
        self.transport.abort()


class RefusableWebsocket(WebSocketsSansIOProtocol):
    """uvicorn takes a handshake that was refused with an answer for one that was forgotten, and logs an error."""

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        self.handshake_complete = self.handshake_complete or self.close_sent
