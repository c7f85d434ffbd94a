"""The Prometheus text: read back by the reference parser, and true to the runs."""

import math
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app.api.prometheus import _of_runs
from app.store.tables import Run
from tests.service import launch, serving, steps_of, until, wait_for


def samples(client: TestClient) -> dict[tuple[str, str], float]:
    """By name, and the run's name or the state."""
    answer = client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    families = text_string_to_metric_families(answer.text)
    return {(s.name, s.labels.get("name", s.labels.get("state", ""))): s.value for family in families for s in family.samples}


def test_what_runs_is_measured_and_what_does_not_is_only_counted(tmp_path: Path) -> None:
    with serving(tmp_path, "--step-seconds", "0.02") as client:
        assert samples(client)["cognate_slots_free", ""] == 1
        run_id = launch(client, steps=500, name="one")
        launch(client, steps=3, name="two")
        until(lambda: len(steps_of(client, run_id)) > 4)
        found = samples(client)
        assert (found["cognate_runs", "running"], found["cognate_runs", "queued"], found["cognate_runs", "failed"]) == (1, 1, 0)
        assert found["cognate_slots_free", ""] == 0
        assert found["cognate_run_step", "one"] >= 5
        assert found["cognate_run_steps_planned", "one"] == 500
        assert found["cognate_run_loss_nats", "one"] > 0
        assert ("cognate_run_validation_loss_nats", "one") not in found  # not measured
        assert ("cognate_run_step", "two") not in found
        assert found["cognate_committed_total", ""] > 5
        client.post(f"/v1/runs/{run_id}/kill")
        wait_for(client, run_id, "stopped")


def test_what_is_no_finite_number_is_none_here_either() -> None:
    run = Run(id="run_1", name="r", preset="p", state="running")
    values = [sample.value for sample in _of_runs("x", "meaning", [(run, "NaN"), (run, "-Infinity"), (run, 2.5), (run, None)]).samples]
    assert math.isnan(values[0])
    assert values[1:] == [-math.inf, 2.5]
