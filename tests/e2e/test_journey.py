"""One run from the form to the chart, through the real server, the real worker and everything between.

docs/architecture.md calls this one parameter's journey. The model is tiny; nothing else is.
"""

import os
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import expect

from cognate.rundir import RunDir, read_json
from tests.pages.conftest import chromium, page_of
from tests.service import Server, until, wait_for
from tests.training.runs import TINY, digests, reproducible_rows

STEPS = 50
CONFIG: dict[str, Any] = {**TINY, "training": {**TINY["training"], "max_steps": STEPS, "checkpoint_every_steps": 10}}

LINE_IS_DRAWN = """() => {
  const canvas = document.querySelector(".headline canvas");
  const line = getComputedStyle(document.querySelector(".headline .swatch")).backgroundColor.match(/\\d+/g).map(Number);
  const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
  let count = 0;
  for (let at = 0; at < data.length; at += 4) count += data[at + 3] === 255 && line.every((part, place) => data[at + place] === part);
  return count > canvas.width / 4;
}"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("journey") / "home", COGNATE_DATA_DIR="")
    server.start("--no-quickstart")
    yield server
    server.interrupt()
    server.client.close()


@pytest.fixture(scope="module")
def whole(server: Server) -> RunDir:
    """A run that nothing interrupts."""
    run_id = launch(server)
    wait_for(server.client, run_id, "completed", timeout_s=100)
    return directory(server, run_id)


def launch(server: Server) -> str:
    answer = server.client.post("/v1/runs", json={"preset": "quickstart", "config": CONFIG})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def directory(server: Server, run_id: str) -> RunDir:
    return RunDir(server.home / "runs" / run_id)


def reach(server: Server, run_id: str, step: int) -> None:
    def there() -> bool:
        run = server.client.get(f"/v1/runs/{run_id}").json()
        return bool(run["progress"] and run["progress"]["step"] >= step)

    until(there, timeout_s=100)


def assert_same_as(whole: RunDir, run: RunDir) -> None:
    assert digests(run, STEPS) == digests(whole, STEPS)
    assert reproducible_rows(run) == reproducible_rows(whole)


def test_the_server_never_loads_torch(server: Server) -> None:
    """Checked on the process that serves, after it has served."""
    assert server.process is not None
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "libtorch" not in maps


def test_what_was_asked_for_is_what_was_trained(server: Server, whole: RunDir) -> None:
    run = server.client.get(f"/v1/runs/{whole.path.name}").json()
    assert run["config"] == whole.config().model_dump(mode="json")
    assert run["config"]["training"]["max_steps"] == run["progress"]["step"] == STEPS
    untrained = server.client.get(f"/v1/runs/{run['id']}/metrics?keys=val_loss&to=0").json()["columns"]["val_loss"][0]
    assert run["metrics"]["val_loss"] < untrained


@pytest.mark.page
def test_what_a_person_asks_for_in_the_form_is_drawn_in_the_chart(server: Server) -> None:
    with chromium() as browser, page_of(browser, str(server.client.base_url)) as page:
        page.goto("/#/launch")
        page.get_by_label("preset").select_option("quickstart")
        for section, changes in TINY.items():
            page.locator(f"[data-section={section}] > summary").click()
            for name, value in changes.items():
                field = page.locator(f"[data-field='{section}.{name}']")
                if isinstance(value, str):
                    field.locator("select").select_option(value)
                else:
                    field.locator("input").fill(str(value))
        page.get_by_role("button", name="Launch").click()
        expect(page.locator(".run .state")).to_have_text("completed", timeout=60_000)
        run = server.client.get(f"/v1/runs/{page.url.rpartition('/')[2]}").json()
        assert {section: {name: run["config"][section][name] for name in changes} for section, changes in TINY.items()} == TINY
        said = re.compile(rf"Loss {run['metrics']['loss']:.4g} at step {TINY['training']['max_steps']};")
        expect(page.locator(".headline .canvas")).to_have_attribute("aria-label", said)
        page.wait_for_function(LINE_IS_DRAWN)


def test_the_database_reads_as_one_would_hope(server: Server, whole: RunDir) -> None:
    columns = "step, loss, loss_ce, act_avg_halting_steps, ltm_memory_usage"
    query = f"SELECT {columns} FROM metric_row JOIN series ON number = series WHERE run_id = ? ORDER BY step"
    with sqlite3.connect(server.home / "cognate.db") as connection:
        found = connection.execute(query, (whole.path.name,)).fetchall()
    connection.close()
    assert [row[0] for row in found] == list(range(STEPS + 1))
    for _, loss, loss_ce, halting_steps, usage in found[1:]:
        assert 0 < loss_ce < loss
        assert 1 <= halting_steps <= 3
        assert 0 < usage <= 1


def test_a_pause_frees_everything_and_a_resume_is_bit_exact(server: Server, whole: RunDir) -> None:
    run_id = launch(server)
    reach(server, run_id, 5)
    pid = read_json(directory(server, run_id).attempt(1).started)["pid"]
    server.client.post(f"/v1/runs/{run_id}/pause")
    run = wait_for(server.client, run_id, "paused", "completed", timeout_s=60)
    assert run["state"] == "paused", "the run was over before it could be paused"
    assert not psutil.pid_exists(pid)
    server.client.post(f"/v1/runs/{run_id}/resume")
    wait_for(server.client, run_id, "completed", timeout_s=100)
    assert_same_as(whole, directory(server, run_id))


def test_a_killed_worker_resumes_bit_exactly(server: Server, whole: RunDir) -> None:
    run_id = launch(server)
    reach(server, run_id, 12)
    os.kill(read_json(directory(server, run_id).attempt(1).started)["pid"], 9)
    wait_for(server.client, run_id, "interrupted")
    server.client.post(f"/v1/runs/{run_id}/resume")
    wait_for(server.client, run_id, "completed", timeout_s=100)
    assert_same_as(whole, directory(server, run_id))


def test_a_killed_server_disturbs_nothing_and_forgets_nothing(server: Server, whole: RunDir) -> None:
    run_id = launch(server)
    reach(server, run_id, 5)
    worker = read_json(directory(server, run_id).attempt(1).started)["pid"]
    server.kill()
    assert psutil.pid_exists(worker)
    server.start("--no-quickstart")
    run = wait_for(server.client, run_id, "completed", timeout_s=100)
    assert run["attempt"] == 1
    columns = server.client.get(f"/v1/runs/{run_id}/metrics?keys=loss&attempts=all").json()["columns"]
    assert columns["step"] == list(range(STEPS + 1))
    assert_same_as(whole, directory(server, run_id))


def test_ctrl_c_leaves_no_process_and_the_next_start_goes_on(server: Server, whole: RunDir) -> None:
    run_id = launch(server)
    reach(server, run_id, 5)
    assert server.process is not None
    family = psutil.Process(server.process.pid).children(recursive=True)
    assert len(family) >= 2  # the shim and the worker
    server.interrupt()
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive
    server.start("--no-quickstart")
    wait_for(server.client, run_id, "completed", timeout_s=100)
    assert_same_as(whole, directory(server, run_id))
