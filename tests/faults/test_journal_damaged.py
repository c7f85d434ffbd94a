"""What does not belong in a journal costs nothing but a warning: the rows before and after it are there, each once.

Histories are shown to the reader byte by byte as a worker would write them, across power cuts and restarts of the reader.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from app.services import journal
from app.store import metrics, runs
from app.store.engine import Store, migrate
from app.store.tables import Attempt, Run
from cognate.events import Event, Kind, encode
from cognate.rundir import AttemptDir
from tests.faults.processes import count, times

pytestmark = pytest.mark.timeout(3600)
ROWS = 12


class PowerCutError(BaseException):
    pass


def row(step: int) -> bytes:
    return encode(Event(step, 0.0, Kind.METRICS, {"step": step, "epoch": 0.0, "values": {"loss": 1.0 / step}, "progress": {}}))


def garbage(draw: random.Random) -> bytes:
    return draw.randbytes(draw.randint(1, 500)).replace(b"\n", b"") + b"\n"


def half_a_line(draw: random.Random) -> bytes:
    line = row(ROWS)
    return line[: draw.randint(1, len(line) - 2)] + b"\n"


def empty_line(draw: random.Random) -> bytes:
    return b"\n"


def another_version(draw: random.Random) -> bytes:
    """A kind that is not known yet, a fact without what it needs, a metric that is not known yet, a line without a number."""
    lines = [
        {"seq": 1, "at": 0.0, "kind": "quantised", "step": 1},
        {"seq": 1, "at": 0.0, "kind": "plan_v2", "v": 2},
        {"seq": 1, "at": 0.0, "kind": "metrics", "step": 1, "rows": [[1, 2]]},
        {"seq": 1, "at": 0.0, "kind": "metrics", "step": 99, "epoch": 0.0, "values": {"no_such_metric": 1.0}, "progress": {}},
        {"v": 2, "facts": []},
        [1, 2],
    ]
    return json.dumps(draw.choice(lines)).encode() + b"\n"


def a_row_twice(draw: random.Random) -> bytes:
    return row(1)


DAMAGES = [garbage, half_a_line, empty_line, another_version, a_row_twice]


def history(draw: random.Random) -> tuple[bytes, int]:
    """A journal of ROWS rows with damages between them and a torn end; how many lines of it are to be warned of."""
    lines = [row(step) for step in range(1, ROWS + 1)]
    damages = draw.randint(1, 5)
    for _ in range(damages):
        lines.insert(draw.randint(1, len(lines)), draw.choice(DAMAGES)(draw))
    torn = row(ROWS + 1)
    return b"".join(lines) + torn[: draw.randint(0, len(torn) - 1)], damages


def take(store: Store, attempt: AttemptDir, cut: bool) -> bool:
    run_id = attempt.run.path.name
    with store.write(durable=False) as write:
        found = journal.ingest(write, runs.get(write.session, run_id), runs.attempt(write.session, run_id, 1), attempt)
        if cut:
            raise PowerCutError
    return found


def test_rows_around_what_does_not_belong_are_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "BLOCK_BYTES", 300)
    draw = random.Random(9)
    migrate(tmp_path / "cognate.db")
    store = Store(tmp_path / "cognate.db")
    warned = 0
    for number in range(times(500)):
        run_id = f"run_{number}"
        attempt = AttemptDir(tmp_path / "runs" / run_id / "attempts" / "0001")
        attempt.path.mkdir(parents=True)
        times_of_run = {"created_at": 0, "updated_at": 0}
        with store.write(durable=False) as write:
            write.session.add(Run(id=run_id, name="n", preset="p", config={}, tags=[], state="running", attempt=1, **times_of_run))
            write.session.flush()
            write.session.add(Attempt(run_id=run_id, number=1, device="cpu", launched_at=0))
        lines, damages = history(draw)
        shown = 0
        while shown < len(lines):
            shown = min(len(lines), shown + draw.randint(1, 600))
            attempt.journal.write_bytes(lines[:shown])
            if draw.random() < 0.3:
                with pytest.raises(PowerCutError):
                    take(store, attempt, cut=True)
            elif draw.random() < 0.1:
                store.close()
                store = Store(tmp_path / "cognate.db")
            else:
                take(store, attempt, cut=False)
        while take(store, attempt, cut=False):
            pass
        with store.read() as session:
            assert metrics.columns(session, run_id, ["loss"], effective=False)["step"] == list(range(1, ROWS + 1)), number
            kinds = [event.kind for event in runs.events(session, run_id, 0, 100)]
            assert kinds == ["warning"] * damages, number
        warned += damages
    store.close()
    count("5 damaged journals", f"{times(500)} histories, {warned} lines passed over with a warning, every row once")
