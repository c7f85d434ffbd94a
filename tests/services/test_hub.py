"""hub.py: a subscriber that does not read costs a bounded queue, and is told so."""

import pytest

from app.services import hub
from app.services.hub import QUEUE_BYTES, QUEUE_EVENTS, Closing, Hub, Overflow, Subscription
from app.store.engine import Message


def messages(count: int, kind: str = "event") -> list[Message]:
    return [Message(seq, "run_1", kind, {}) for seq in range(1, count + 1)]


def everything() -> Subscription:
    return Subscription(lambda _: True)


def offer(subscription: Subscription, offered: list[Message], size: int = 1) -> None:
    subscription.offer(offered, [size] * len(offered))


async def test_events_past_the_bound_are_not_kept_and_not_passed_over_in_silence() -> None:
    subscription = everything()
    for message in messages(QUEUE_EVENTS + 1):
        offer(subscription, [message])
    with pytest.raises(Overflow):
        await subscription.take()


async def test_events_up_to_the_bound_are_never_dropped() -> None:
    subscription = everything()
    for message in messages(QUEUE_EVENTS):
        offer(subscription, [message])
    assert await subscription.take() == messages(QUEUE_EVENTS)


async def test_rows_are_bounded_by_what_they_weigh() -> None:
    """They travel together, so their number says little."""
    subscription = everything()
    for row in messages(4 * QUEUE_EVENTS, "metrics"):
        offer(subscription, [row], QUEUE_BYTES // (4 * QUEUE_EVENTS))
    assert len(await subscription.take()) == 4 * QUEUE_EVENTS
    for row in messages(3, "metrics"):
        offer(subscription, [row], QUEUE_BYTES // 2)
    with pytest.raises(Overflow):
        await subscription.take()


async def test_after_an_overflow_nothing_is_missing_from_then_on() -> None:
    """The client reads the log up to its head; from the take that told it so, everything is kept again."""
    subscription = everything()
    for message in messages(QUEUE_EVENTS + 5):
        offer(subscription, [message])
    with pytest.raises(Overflow):
        await subscription.take()
    late = Message(1000, "run_1", "event", {})
    offer(subscription, [late])
    assert await subscription.take() == [late]


async def test_one_large_commit_does_not_cut_off_a_subscriber_that_keeps_up() -> None:
    """A long journal taken in after a restart arrives at once; that is no reader's fault."""
    subscription = everything()
    offer(subscription, messages(5 * QUEUE_EVENTS))
    assert len(await subscription.take()) == 5 * QUEUE_EVENTS


async def test_of_progress_the_newest_is_kept_for_each_run_and_takes_no_room() -> None:
    subscription = everything()
    event = Message(7, "a", "event", {})
    offer(subscription, [event])
    for step in range(5 * QUEUE_EVENTS):
        offer(subscription, [Message(0, run, "progress", {"step": step}) for run in ("a", "b")], QUEUE_BYTES)
    first, *newest = await subscription.take()
    assert first is event
    assert [(message.run_id, message.body["step"]) for message in newest] == [("a", 5 * QUEUE_EVENTS - 1), ("b", 5 * QUEUE_EVENTS - 1)]


async def test_progress_outlives_an_overflow() -> None:
    """It stands in no log."""
    subscription = everything()
    newest = Message(0, "a", "progress", {"step": 3})
    for message in [*messages(QUEUE_EVENTS + 1), newest]:
        offer(subscription, [message])
    with pytest.raises(Overflow):
        await subscription.take()
    assert await subscription.take() == [newest]


async def test_a_deletion_outlives_an_overflow_as_well() -> None:
    """Nor does it stand in the log; a list that is not told keeps the run."""
    subscription = everything()
    deleted = [Message(0, run, "deleted", {"run_id": run}) for run in ("a", "b")]
    for message in [*deleted, *messages(QUEUE_EVENTS + 1)]:
        offer(subscription, [message])
    with pytest.raises(Overflow):
        await subscription.take()
    assert await subscription.take() == deleted


async def test_only_what_is_wanted_is_kept() -> None:
    subscription = Subscription(lambda message: message.seq == 2)
    offer(subscription, messages(3))
    assert [message.seq for message in await subscription.take()] == [2]


@pytest.mark.parametrize(("kind", "size"), [("event", 1), ("metrics", QUEUE_BYTES)])
async def test_a_rest_ends_with_an_event_or_before_the_queue_is_full(kind: str, size: int) -> None:
    subscription = everything()
    offer(subscription, messages(1, kind), size)
    await subscription.rest(3600)


async def test_who_follows_is_told_that_the_service_ends_and_so_is_who_comes_late() -> None:
    ending = Hub()
    early = ending.subscribe(lambda _: True)
    ending.close()
    for subscription in (early, ending.subscribe(lambda _: True)):
        with pytest.raises(Closing):
            await subscription.take()


def test_a_text_is_made_once_for_all_and_not_kept_for_ever() -> None:
    shared, made = Hub(), []

    def make(key: int) -> str:
        made.append(key)
        return str(key)

    for key in (1, 1, 2, 1, *range(3, 3 + hub.SHARED_TEXTS), 1):
        assert shared.shared(key, lambda key=key: make(key)) == str(key)
    assert made.count(2) == 1
    assert made.count(1) == 2
    assert len(shared._shared) == hub.SHARED_TEXTS
