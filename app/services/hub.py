"""Fan-out: what was committed, to everyone who follows along. No subscriber can hold up another, or a commit.

publish() is called by whatever thread committed, in commit order. A subscription keeps what its client has not taken yet,
within bounds: rows wait to travel together, of what is not in the log the newest of each kind and run is kept. Past the bounds it
keeps no more than that and says so, and the client is read to from the log instead; so one that stands still costs QUEUE_BYTES and
misses nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any

from app.store.engine import Message

QUEUE_EVENTS = 256
QUEUE_BYTES = 1 << 18  # about 75 rows
SHARED_TEXTS = 64
SHARED_BYTES = 64 * 1024


class Overflow(RuntimeError):
    """More was committed than is kept for a subscriber; it is in the log."""


class Closing(RuntimeError):
    """The service is about to end."""


class Subscription:
    def __init__(self, wants: Callable[[Message], bool]) -> None:
        self._wants = wants
        self._queue: deque[Message] = deque()
        self._passing: dict[tuple[str, str], Message] = {}
        self._events = 0
        self._bytes = 0
        self._overflown = False
        self._closing = False
        self._ready = asyncio.Event()
        self._pressing = asyncio.Event()

    def offer(self, messages: list[Message], sizes: list[int]) -> None:
        """Keep those of `messages` that are wanted; `sizes`: bytes of each."""
        had_any = bool(self._queue)
        for message, size in zip(messages, sizes, strict=True):
            if self._wants(message):
                self._keep(message, size)
                self._ready.set()
        # A single commit may be large (a long journal taken in at start): only what is left unread counts against a reader.
        if had_any and (self._events > QUEUE_EVENTS or self._bytes > QUEUE_BYTES):
            self._empty()
            self._overflown = True
        if self._events or self._overflown or self._bytes > QUEUE_BYTES // 2:
            self._pressing.set()

    async def take(self) -> list[Message]:
        """All that waits, in order; nothing when woken for another reason. Raises Closing, or Overflow and keeps on from there."""
        await self._ready.wait()
        self._ready.clear()
        self._pressing.clear()
        if self._closing:
            raise Closing
        if self._overflown:
            self._overflown = False
            self._empty()
            if self._passing:
                self._ready.set()
            raise Overflow
        taken = [*self._queue, *self._passing.values()]
        self._empty()
        self._passing.clear()
        return taken

    async def rest(self, seconds: float) -> None:
        """Let rows gather for a while; no longer than until an event is among them, or half of what is kept for a client."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._pressing.wait()

    def wake(self) -> None:
        """Let take() return."""
        self._ready.set()

    def close(self) -> None:
        self._closing = True
        self._pressing.set()
        self._ready.set()

    def _keep(self, message: Message, size: int) -> None:
        if message.seq == 0:
            self._passing[message.type, message.run_id] = message
        elif not self._overflown:
            self._queue.append(message)
            self._bytes += size
            self._events += message.type == "event"

    def _empty(self) -> None:
        self._queue.clear()
        self._events = self._bytes = 0


class Hub:
    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: set[Subscription] = set()
        self._shared: dict[Hashable, str] = {}
        self._closing = False

    def attach(self, loop: asyncio.AbstractEventLoop | None) -> None:
        """The event loop on which subscriptions live; None once it closes."""
        self._loop = loop

    def publish(self, messages: list[Message]) -> None:
        """Called from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._deliver, messages)

    def subscribe(self, wants: Callable[[Message], bool]) -> Subscription:
        subscription = Subscription(wants)
        self._subscriptions.add(subscription)
        if self._closing:
            subscription.close()
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def close(self) -> None:
        """Tell everyone who follows, now or later, that the service is about to end."""
        self._closing = True
        for subscription in self._subscriptions:
            subscription.close()

    def shared(self, key: Hashable, make: Callable[[], str]) -> str:
        """What `make` gave for `key` a moment ago, or gives now: a text for a thousand clients is made once."""
        if (text := self._shared.get(key)) is None:
            text = make()
            if len(text) <= SHARED_BYTES:
                self._shared[key] = text
            if len(self._shared) > SHARED_TEXTS:
                del self._shared[next(iter(self._shared))]
        return text

    def _deliver(self, messages: list[Message]) -> None:
        if self._subscriptions:
            sizes = [_size(message.body) for message in messages]
            for subscription in self._subscriptions:
                subscription.offer(messages, sizes)


def _size(value: Any) -> int:
    """Bytes of memory, about; the names of fields are shared and not counted."""
    size = sys.getsizeof(value)
    if isinstance(value, dict):
        return size + sum(_size(inner) for inner in value.values())
    if isinstance(value, list):
        return size + sum(_size(inner) for inner in value)
    return size
