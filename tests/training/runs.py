"""Tiny runs for the tests of the loop: the real model and optimizer, generated problems, a few seconds at most."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from cognate.config import RunConfig, resolve
from cognate.events import Event, Kind
from cognate.metrics import WALL_CLOCK_KEYS
from cognate.rundir import Control, Journal, Places, RunDir, read_journal, verify_checkpoint
from cognate.training.loop import train
from cognate.training.reporter import Reporter

TINY: dict[str, Any] = {
    "model": {"vocab_size": 400, "d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "trm_d_ff": 64, "window": 16},
    "data": {"source": "synthetic", "synthetic_problems": 200, "validation_batches": 1},
    "training": {"batch_size": 4, "sequence_length": 64, "max_steps": 12, "log_every_steps": 1, "checkpoint_every_steps": 4},
    "evaluation": {"samples": 0},
}

CPU = torch.device("cpu")
Poll = Callable[[], Control | None]


def tiny(**sections: dict[str, Any]) -> RunConfig:
    return resolve("quickstart", {name: {**TINY.get(name, {}), **sections.get(name, {})} for name in {*TINY, *sections}})


def new_run(folder: Path, config: RunConfig) -> RunDir:
    run = RunDir(folder)
    run.create(config)
    return run


def attempt_at(
    run: RunDir, poll: Poll = lambda: None, cache: Path | None = None, data_dir: Path | None = None, device: torch.device = CPU
) -> Kind:
    """Train one more attempt of `run` in this process; how it ended."""
    attempt = run.attempt(len(list((run.path / "attempts").glob("*"))) + 1)
    attempt.create()
    torch.set_deterministic_debug_mode("warn" if device.type == "cuda" else "error")  # as the worker has it
    try:
        return train(run, Reporter(Journal(attempt)), poll, Places(data_dir, cache), device)
    finally:  # a process that dies takes what it is writing with it; this one goes on
        for thread in threading.enumerate():
            if thread.name == "checkpoint":
                thread.join()


class CommandAt:
    """Asks for a command once the journal of the newest attempt tells of step `step`."""

    def __init__(self, run: RunDir, command: Any, step: int) -> None:
        self._run, self._command, self._step = run, command, step
        self._asked = False

    def __call__(self) -> Control | None:
        if self._asked or self._step not in [event.data["step"] for event in rows(self._run)]:
            return None
        self._asked = True
        return Control(self._command, 7)


def events(run: RunDir) -> list[Event]:
    """All events of all attempts, in order."""
    journals = sorted((run.path / "attempts").glob("*/events.jsonl"))
    return [entry for path in journals for entry, _ in read_journal(path, 0, 1 << 26) if isinstance(entry, Event)]


def rows(run: RunDir) -> list[Event]:
    return [event for event in events(run) if event.kind is Kind.METRICS]


def reproducible_rows(run: RunDir) -> dict[int, dict[str, str]]:
    """By step, from the latest attempt, every value that does not measure the clock, to the last bit."""
    return {
        event.data["step"]: {key: repr(value) for key, value in event.data["values"].items() if key not in WALL_CLOCK_KEYS}
        for event in rows(run)
    }


def digests(run: RunDir, step: int) -> dict[str, str]:
    """sha-256 of the tensors in a checkpoint."""
    files = verify_checkpoint(run.checkpoint(step))["files"]
    return {name: files[name]["sha256"] for name in ("model.safetensors", "optimizer.safetensors", "tokenizer.json")}
