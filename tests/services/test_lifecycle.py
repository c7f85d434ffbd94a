"""lifecycle.py: the table, and what holds of it whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.services.lifecycle import LIVE, TRANSITIONS, Command, Fact, InvalidTransition, Reason, State, advance, allowed_commands, in_effect
from cognate.events import Failure

CAUSES = [*Command, *Fact]
ENDED = {State.PAUSED, State.STOPPED, State.INTERRUPTED, State.FAILED, State.COMPLETED}


@pytest.mark.parametrize(
    ("state", "cause", "after"),
    [
        (State.QUEUED, Command.PAUSE, State.PAUSED),
        (State.QUEUED, Command.STOP, State.STOPPED),
        (State.QUEUED, Fact.LAUNCHED, State.STARTING),
        (State.STARTING, Fact.STARTED, State.RUNNING),
        (State.RUNNING, Command.PAUSE, State.PAUSING),
        (State.PAUSING, Fact.PAUSED, State.PAUSED),
        (State.PAUSING, Fact.FINISHED, State.COMPLETED),
        (State.PAUSED, Command.RESUME, State.QUEUED),
        (State.RUNNING, Fact.VANISHED, State.INTERRUPTED),
        (State.STOPPING, Fact.VANISHED, State.STOPPED),
        (State.STOPPING, Fact.PAUSED, State.STOPPED),
        (State.STOPPING, Command.KILL, State.STOPPING),
        (State.FAILED, Command.RESUME, State.QUEUED),
        (State.INTERRUPTED, Command.RESUME, State.QUEUED),
    ],
)
def test_the_table_of_the_design(state: State, cause: Command | Fact, after: State) -> None:
    assert advance(state, cause) is after


def test_what_the_table_does_not_list_is_refused_in_words() -> None:
    with pytest.raises(InvalidTransition, match="a run that is completed cannot pause; allowed commands: none"):
        advance(State.COMPLETED, Command.PAUSE)


@given(st.lists(st.sampled_from(CAUSES), max_size=40))
def test_no_history_leads_out_of_a_final_state_or_past_a_live_process(history: list[Command | Fact]) -> None:
    """A run whose process may live is only left through a fact: no command declares a process gone."""
    state = State.QUEUED
    for cause in history:
        try:
            after = advance(state, cause)
        except InvalidTransition:
            continue
        assert state not in (State.COMPLETED, State.STOPPED)
        if state in LIVE and after in ENDED:
            assert isinstance(cause, Fact)
        state = after


@pytest.mark.parametrize("state", sorted(LIVE))
def test_a_live_run_can_always_be_killed_and_always_survives_the_loss_of_its_worker(state: State) -> None:
    """Stuck in stopping, not to be killed, was a peer's hour-long complaint."""
    assert Command.KILL in TRANSITIONS[state]
    assert advance(state, Fact.VANISHED) in (State.INTERRUPTED, State.STOPPED)


def test_a_command_in_effect_is_never_also_a_transition_to_another_state() -> None:
    for state in State:
        for command in Command:
            if in_effect(state, command):
                assert TRANSITIONS[state].get(command, state) is state


def test_allowed_commands_are_those_of_the_table() -> None:
    assert allowed_commands(State.RUNNING) == ["pause", "checkpoint", "stop", "kill"]
    assert allowed_commands(State.COMPLETED) == []


def test_every_failure_of_a_worker_is_a_reason() -> None:
    assert {failure.value for failure in Failure} <= {reason.value for reason in Reason}
