"""The journal's vocabulary: what a worker says, one JSON line a fact.

encode() and decode() are each other's inverse. A number that is not finite travels as the string "NaN",
"Infinity" or "-Infinity": bare NaN is not JSON, and null would mean "not measured".
rundir.py appends and reads the lines; the server turns them into rows and states.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """What a line of the journal tells. The last four end an attempt."""

    STARTED = "started"  # the process is up: device, precision, what it resumes from
    PLAN = "plan"  # what will be trained: curriculum, steps, parameters
    PHASE = "phase"  # loading_data, compiling, training, evaluating, checkpointing, finalizing
    PROGRESS = "progress"  # where it is now, at most once a second; replaces the one before
    METRICS = "metrics"  # one row: step, epoch, values by metric key
    SAMPLE = "sample"  # what the model wrote after a held-out prompt
    CHECKPOINT = "checkpoint"  # a complete checkpoint with its digests
    WARNING = "warning"  # something was done other than asked
    PAUSED = "paused"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"


class Failure(StrEnum):
    """Why a worker gave up; the `reason` of a `failed` event."""

    NONFINITE_LOSS = "nonfinite_loss"
    OOM_CUDA = "oom_cuda"
    OOM_HOST = "oom_host"
    GPU_ERROR = "gpu_error"
    DISK_FULL = "disk_full"
    DATA_MISSING = "data_missing"
    ERROR = "worker_error"


EXIT_DISK_FULL = 73  # a worker's exit code when the disk took no last word from it
ENDINGS = frozenset({Kind.PAUSED, Kind.STOPPED, Kind.FINISHED, Kind.FAILED})

_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True)
class Event:
    """One fact. `seq` rises by one within an attempt; `at` is seconds since the epoch, UTC."""

    seq: int
    at: float
    kind: Kind
    data: dict[str, Any]


YEAR_10000 = 253402300800.0  # seconds since 1970


class MalformedLine(ValueError):
    """A whole line of a journal that is not an event."""


def encode(event: Event) -> bytes:
    """The line of `event`, newline included."""
    record = {"seq": event.seq, "at": event.at, "kind": event.kind.value, **spelled(event.data)}
    return json.dumps(record, allow_nan=False, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def decode(line: bytes) -> Event:
    """The event of one line; raises MalformedLine."""
    try:
        record = json.loads(line)
        event = Event(int(record.pop("seq")), float(record.pop("at")), Kind(record.pop("kind")), record)
        if not 0 <= event.at < YEAR_10000:  # what has a date
            raise ValueError(f"at {event.at}")
        if event.kind is Kind.METRICS:
            event.data["values"] = {key: number(value) for key, value in event.data["values"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise MalformedLine(f"not an event ({error}): {line[:80]!r}") from error
    return event


def spell(value: float) -> float | str:
    """A number as it travels: itself, or its name when it is not finite."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def number(value: float | str) -> float:
    """The number that spell() wrote."""
    return _NAMES[value] if isinstance(value, str) else value


def spelled(value: Any) -> Any:
    """Plain JSON with every number in it as spell() has it."""
    if isinstance(value, float):
        return spell(value)
    if isinstance(value, dict):
        return {key: spelled(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(inner) for inner in value]
    return value
