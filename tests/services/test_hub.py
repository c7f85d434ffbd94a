"""hub.py: a subscriber that does not read costs a bounded queue, and is told so."""

import pytest

from app.services.hub import QUEUE_MESSAGES, Overflow, Subscription
from app.store.engine import Message


def messages(count: int) -> list[Message]:
    return [Message(seq, "run_1", "event", {}) for seq in range(1, count + 1)]


async def test_a_subscriber_that_does_not_read_is_cut_off_rather_than_kept_for() -> None:
    subscription = Subscription(lambda _: True)
    for message in messages(QUEUE_MESSAGES + 1):
        subscription.offer([message])
    with pytest.raises(Overflow):
        await subscription.take()


async def test_one_large_commit_does_not_cut_off_a_subscriber_that_keeps_up() -> None:
    """A long journal taken in after a restart arrives at once; that is no reader's fault."""
    subscription = Subscription(lambda _: True)
    subscription.offer(messages(5 * QUEUE_MESSAGES))
    assert len(await subscription.take()) == 5 * QUEUE_MESSAGES


async def test_only_what_is_wanted_is_kept() -> None:
    subscription = Subscription(lambda message: message.seq == 2)
    subscription.offer(messages(3))
    assert [message.seq for message in await subscription.take()] == [2]
