"""The states of a run, and the one table that says how they follow each other. Pure.

People give commands; journals and executors report facts. advance() is the only way from one state to another;
docs/run-lifecycle.md is printed from this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from cognate.events import Failure


class State(StrEnum):
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSING = "pausing"
    PAUSED = "paused"
    STOPPING = "stopping"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    COMPLETED = "completed"


class Command(StrEnum):
    """What a person may ask for."""

    PAUSE = "pause"
    RESUME = "resume"
    CHECKPOINT = "checkpoint"
    STOP = "stop"
    KILL = "kill"


class Fact(StrEnum):
    """What the supervisor saw. All but the first four end an attempt, or keep one from beginning: there is no process of it then."""

    WAITING = "waiting"  # there is another reason why it is not launched, or no longer any but its turn
    LAUNCHED = "launched"
    STARTED = "started"
    OVERDUE = "overdue"  # a pause was not there by its deadline, and was asked to be dropped then
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    OUT_OF_DISK = "out_of_disk"
    VANISHED = "vanished"


Cause = Command | Fact


class Reason(StrEnum):
    """Why a run is in its state; the worker's failures are part of the list."""

    USER_PAUSE = "user_pause"
    USER_STOP = "user_stop"
    USER_KILL = "user_kill"
    PAUSE_TIMEOUT = "pause_timeout"
    AUTO_RESUME = "auto_resume"
    STALLED = "stalled"
    SHUTDOWN = "shutdown"
    EXIT_NONZERO = "exit_nonzero"
    SIGNAL = "signal"
    WORKER_LOST = "worker_lost"
    HOST_RESTART = "host_restart"
    LAUNCH_FAILED = "launch_failed"
    NONFINITE_LOSS = Failure.NONFINITE_LOSS.value
    OOM_CUDA = Failure.OOM_CUDA.value
    OOM_HOST = Failure.OOM_HOST.value
    GPU_ERROR = Failure.GPU_ERROR.value
    DISK_FULL = Failure.DISK_FULL.value
    DATA_MISSING = Failure.DATA_MISSING.value
    WORKER_ERROR = Failure.ERROR.value


TRANSITIONS: Mapping[State, Mapping[Cause, State]] = {
    State.QUEUED: {
        Command.PAUSE: State.PAUSED,
        Command.STOP: State.STOPPED,
        Fact.WAITING: State.QUEUED,
        Fact.LAUNCHED: State.STARTING,
        Fact.OUT_OF_DISK: State.PAUSED,
    },
    State.STARTING: {
        Command.PAUSE: State.PAUSING,
        Command.STOP: State.STOPPING,
        Command.KILL: State.STOPPING,
        Fact.STARTED: State.RUNNING,
        Fact.FINISHED: State.COMPLETED,
        Fact.FAILED: State.FAILED,
        Fact.OUT_OF_DISK: State.PAUSED,
        Fact.VANISHED: State.INTERRUPTED,
    },
    State.RUNNING: {
        Command.PAUSE: State.PAUSING,
        Command.CHECKPOINT: State.RUNNING,
        Command.STOP: State.STOPPING,
        Command.KILL: State.STOPPING,
        Fact.PAUSED: State.PAUSED,  # the pause that was dropped as overdue came after all
        Fact.OUT_OF_DISK: State.PAUSED,
        Fact.FINISHED: State.COMPLETED,
        Fact.FAILED: State.FAILED,
        Fact.VANISHED: State.INTERRUPTED,
    },
    State.PAUSING: {
        Command.STOP: State.STOPPING,
        Command.KILL: State.STOPPING,
        Fact.OVERDUE: State.RUNNING,
        Fact.PAUSED: State.PAUSED,
        Fact.OUT_OF_DISK: State.PAUSED,
        Fact.FINISHED: State.COMPLETED,
        Fact.FAILED: State.FAILED,
        Fact.VANISHED: State.INTERRUPTED,
    },
    State.PAUSED: {
        Command.RESUME: State.QUEUED,
        Command.STOP: State.STOPPED,
    },
    State.STOPPING: {
        Command.KILL: State.STOPPING,
        Fact.STOPPED: State.STOPPED,
        Fact.PAUSED: State.STOPPED,
        Fact.OUT_OF_DISK: State.STOPPED,
        Fact.VANISHED: State.STOPPED,
        Fact.FINISHED: State.COMPLETED,
        Fact.FAILED: State.FAILED,
    },
    State.INTERRUPTED: {
        Command.RESUME: State.QUEUED,
        Command.STOP: State.STOPPED,
    },
    State.FAILED: {Command.RESUME: State.QUEUED},
    State.STOPPED: {},
    State.COMPLETED: {},
}

_ALLOWED = {state: [command.value for command in Command if command in causes] for state, causes in TRANSITIONS.items()}

# States in which a process of the run may be alive.
LIVE = frozenset({State.STARTING, State.RUNNING, State.PAUSING, State.STOPPING})

# States in which nothing of a run is at work or about to be.
AT_REST = frozenset({State.PAUSED, State.STOPPED, State.INTERRUPTED, State.FAILED, State.COMPLETED})

# A command is already in effect in these states: repeating it changes nothing and is no error.
_IN_EFFECT: Mapping[Command, frozenset[State]] = {
    Command.PAUSE: frozenset({State.PAUSING, State.PAUSED}),
    Command.RESUME: frozenset({State.QUEUED}),
    Command.CHECKPOINT: frozenset(),
    Command.STOP: frozenset({State.STOPPING, State.STOPPED}),
    Command.KILL: frozenset({State.STOPPED}),
}


class InvalidTransition(ValueError):
    """A cause that means nothing in this state."""

    def __init__(self, state: State, cause: Cause) -> None:
        self.state, self.cause = state, cause
        allowed = ", ".join(allowed_commands(state)) or "none"
        super().__init__(f"a run that is {state} cannot {cause}; allowed commands: {allowed}")


def advance(state: State, cause: Cause) -> State:
    """The state after `cause`; raises InvalidTransition."""
    try:
        return TRANSITIONS[state][cause]
    except KeyError:
        raise InvalidTransition(state, cause) from None


def in_effect(state: State, command: Command) -> bool:
    return state in _IN_EFFECT[command]


def allowed_commands(state: State) -> list[str]:
    """The commands that mean something in `state`, in the order a person would look for them."""
    return [*_ALLOWED[state]]
