"""The real worker under its shim and the real server is SIGKILLed again and again, and goes on by itself to the same bits."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest

from cognate.rundir import RunDir, read_json
from tests.faults.processes import count, times
from tests.faults.test_service_killed import assert_rows_are_those_of_the_journals
from tests.service import Server, until, wait_for
from tests.training.runs import TINY, digests, reproducible_rows

STEPS = 60
CONFIG: dict[str, Any] = {**TINY, "training": {**TINY["training"], "max_steps": STEPS, "checkpoint_every_steps": 5}}


@pytest.mark.faults
@pytest.mark.timeout(3600)
def test_a_worker_killed_under_the_service_goes_on_by_itself(tmp_path: Path) -> None:
    draw, kills = random.Random(17), 0
    server = Server(tmp_path / "home", COGNATE_DATA_DIR="", COGNATE_AUTO_RESUME="1000")
    server.start("--no-quickstart")
    client = server.client

    def launch() -> RunDir:
        return RunDir(server.home / "runs" / client.post("/v1/runs", json={"preset": "quickstart", "config": CONFIG}).json()["id"])

    try:
        whole = launch()
        wait_for(client, whole.path.name, "completed", timeout_s=100)
        while kills < times(10):
            run = launch()
            for number in (1, 2):
                attempt = run.attempt(number)
                until(lambda path=attempt.started: path.exists(), 60)  # type: ignore[misc]
                until(lambda path=attempt.journal: path.exists() and b'"metrics"' in path.read_bytes(), 60)  # type: ignore[misc]
                time.sleep(draw.uniform(0, 1.0))
                os.kill(read_json(attempt.started)["pid"], 9)
                kills += 1
            assert wait_for(client, run.path.name, "completed", timeout_s=100)["attempt"] == 3
            assert digests(run, STEPS) == digests(whole, STEPS)
            assert reproducible_rows(run) == reproducible_rows(whole)
            assert_rows_are_those_of_the_journals(server.home, run.path.name)
    finally:
        server.interrupt()
        client.close()
    count("1 SIGKILL of the worker under the service", f"{kills} kills, resumed by the service, all bit-identical")
