"""What a job says on its way: each new sentence, and the same one now and then, which shows that it is at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from cognate import job
from cognate.jobdir import JobDir


def test_the_same_words_are_said_again_but_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COGNATE_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("COGNATE_DEVICE", "cpu")
    now = [100.0]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    told: list[str] = []
    monkeypatch.setattr(JobDir, "say", lambda _, message, fraction: told.append(f"{now[0]:g} {message}"))
    say = job._context(JobDir(tmp_path)).say
    for seconds, message in ((0.0, "one"), (0.25, "two"), (0.25, "two"), (1.0, "two"), (29.0, "two"), (1.0, "two")):
        now[0] += seconds
        say(message, 0.5)
    assert told == ["100 one", "100.5 two", "130.5 two"]
