"""A loss that is no number: the real model in a real worker, seen from everywhere a person looks."""

import sqlite3
import sys
from pathlib import Path

from starlette.testclient import TestClient

from app.executors.local import LocalExecutor
from app.main import create_app
from app.settings import Settings
from cognate.rundir import RunDir
from tests.service import URL, connect, wait_for
from tests.training.runs import TINY

WORKER = [sys.executable, str(Path(__file__).with_name("poisoned_worker.py"))]


def test_it_is_nan_everywhere_stops_the_run_and_reaches_no_checkpoint(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path), LocalExecutor(None, tmp_path / "cache", 1, WORKER))
    with TestClient(app, base_url=URL) as client:
        run_id = client.post("/v1/runs", json={"preset": "quickstart", "config": TINY}).json()["id"]
        run = wait_for(client, run_id, "failed", "completed", timeout_s=60)
        assert (run["state"], run["state_reason"]) == ("failed", "nonfinite_loss")
        assert "step 6" in run["state_detail"]
        assert run["metrics"]["loss"] == "NaN"
        losses = client.get(f"/v1/runs/{run_id}/metrics?keys=loss").json()["columns"]["loss"]
        assert losses[0] is None  # the untrained model has a validation loss only
        assert losses[6] == "NaN"
        with connect(client, f"/v1/runs/{run_id}/stream?after=start") as socket:
            streamed: list[object] = []
            while len(streamed) < 7:
                frame = socket.receive_json()
                if frame["type"] == "batch":
                    streamed += frame["columns"].get("loss", [None] * len(frame["columns"]["seq"]))
        assert streamed == losses
        newest = [checkpoint["step"] for checkpoint in client.get(f"/v1/runs/{run_id}/checkpoints").json()["data"]]
        assert newest == [step for step, _ in RunDir(tmp_path / "runs" / run_id).complete_checkpoints()] == [4]
    connection = sqlite3.connect(tmp_path / "cognate.db")
    stored = connection.execute("SELECT loss, nonfinite FROM metric_row WHERE step = 6").fetchone()
    connection.close()
    assert stored == (None, '{"loss": "NaN"}')
