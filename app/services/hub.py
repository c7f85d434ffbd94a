"""Fan-out: what was committed, to everyone who follows along. No subscriber can hold up another, or a commit.

publish() is called by whatever thread committed, in commit order. Each subscription has a bounded queue on the event
loop; one that is full is closed, and its client comes back with its cursor and misses nothing.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from app.store.engine import Message

QUEUE_MESSAGES = 1024


class Overflow(RuntimeError):
    """The subscriber reads slower than things happen."""


class Subscription:
    def __init__(self, wants: Callable[[Message], bool]) -> None:
        self._wants = wants
        self._queue: deque[Message] = deque()
        self._overflown = False
        self._ready = asyncio.Event()

    def offer(self, messages: list[Message]) -> None:
        wanted = [message for message in messages if self._wants(message)]
        if not wanted or self._overflown:
            return
        # A single commit may be large (a long journal taken in at start): only what is left unread counts against a reader.
        if self._queue and len(self._queue) + len(wanted) > QUEUE_MESSAGES:
            self._overflown = True
            self._queue.clear()
        else:
            self._queue.extend(wanted)
        self._ready.set()

    async def take(self) -> list[Message]:
        """All that is waiting, at least one message; raises Overflow."""
        await self._ready.wait()
        self._ready.clear()
        if self._overflown:
            raise Overflow(f"more than {QUEUE_MESSAGES} messages behind")
        taken = list(self._queue)
        self._queue.clear()
        return taken


class Hub:
    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._subscriptions: set[Subscription] = set()

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
        return subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        self._subscriptions.discard(subscription)

    def _deliver(self, messages: list[Message]) -> None:
        for subscription in self._subscriptions:
            subscription.offer(messages)
