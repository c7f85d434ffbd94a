"""Bad input: each a clear problem with the right status, and nothing half-made left behind."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.api import system
from app.api.errors import PROBLEMS
from app.api.runs import LOG_BLOCK, _readable
from cognate.config import RECIPES, SPECIALISTS
from cognate.rundir import RunDir
from tests.service import launch, serving, until, wait_for


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def client(home: Path) -> Iterator[TestClient]:
    with serving(home, data_dir=home) as client:  # a specialist is refused where there are no data at all
        yield client


@pytest.mark.parametrize(
    ("body", "problem", "words"),
    [
        ('{"preset": "resoning"}', "invalid_config", "did you mean 'reasoning'"),
        ('{"preset": "reasoning", "config": {"training": {"batchsize": 4}}}', "invalid_config", "did you mean 'batch_size'"),
        ('{"preset": "reasoning", "config": {"training": {"batch_size": 0}}}', "invalid_config", "greater than or equal to 1"),
        ('{"preset": "reasoning", "config": {"training": {"batch_size": "4"}}}', "invalid_config", "valid integer"),
        ('{"preset": "reasoning", "config": {"optimizer": {"muon_lr": NaN}}}', "invalid_config", "finite"),
        ('{"preset": "reasoning", "config": {"optimizer": {"muon_lr": 1e400}}}', "invalid_config", "finite"),
        ('{"preset": "reasoning", "seed": NaN}', "invalid_request", "valid integer"),
        ('{"preset": "reasoning", "sead": 1}', "invalid_request", "sead"),
        ('{"preset": 7}', "invalid_request", "valid string"),
        ('{"preset": "quickstart", "name": "<img src=x>"}', "invalid_request", "name"),
        ('{"preset": "quickstart", "name": "a\\nb"}', "invalid_request", "name"),
        ("{}", "invalid_request", "preset"),
        ("[]", "invalid_request", ""),
        ('{"preset":', "invalid_request", "JSON"),
        ("[" * 60000, "invalid_request", ""),
        ('{"preset": "quickstart", "config": {"\\ud800": 1}}', "invalid_config", ""),
        ('{"preset": "quickstart", "config": {"\\ud800": NaN}}', "invalid_config", ""),
        ('{"preset": "quickstart", "config": ' + '{"a":' * 900 + "1" + "}" * 900 + "}", "invalid_config", ""),
        ('{"preset": "quickstart", "config": ' + '{"a":' * 5000 + "1" + "}" * 5000 + "}", "invalid_request", ""),
    ],
)
def test_what_cannot_be_launched_is_refused_in_words(client: TestClient, home: Path, body: str, problem: str, words: str) -> None:
    answer = client.post("/v1/runs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == PROBLEMS[problem][0] == answer.json()["status"]
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["type"] == f"/v1/problems/{problem}"
    assert words in answer.json()["detail"]
    assert client.get("/v1/runs").json()["data"] == []
    assert not (home / "runs").exists() or list((home / "runs").iterdir()) == []


def test_the_answer_does_not_echo_what_was_sent(client: TestClient) -> None:
    answer = client.post(
        "/v1/runs", json={"preset": "quickstart", "seed": "my-secret", "config": {"training": {"batch_size": "my-secret"}}}
    )
    assert answer.status_code == 422
    assert "my-secret" not in answer.text


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/runs", 405),
        ("GET", f"/v1/runs/run_{'0' * 36}", 404),
        ("POST", f"/v1/runs/run_{'0' * 36}/pause", 404),
        ("GET", "/v1/runs/..%2f..%2fetc", 404),
        ("GET", "/v1/runs/run_x", 422),
        ("GET", "/v1/runs?limit=0", 422),
        ("GET", "/v1/problems/none", 404),
        ("GET", f"/v1/runs/run_{'0' * 36}/events?after={2**63}", 422),
    ],
)
def test_every_refusal_is_a_problem(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert set(answer.json()) >= {"type", "title", "status", "detail"}


def test_a_refused_method_is_told_all_that_are_allowed(client: TestClient) -> None:
    """The framework names those of the first route alone."""
    assert client.put("/v1/runs").headers["Allow"] == "GET, POST"
    assert client.post(f"/v1/runs/run_{'0' * 36}").headers["Allow"] == "DELETE, GET, PATCH"


def test_a_whole_number_may_be_written_with_a_point(client: TestClient) -> None:
    """JSON has one kind of number; to JSON Schema 7.0 is an integer."""
    answer = client.post("/v1/runs?dry_run=true", json={"preset": "quickstart", "seed": 7.0, "priority": 2.0})
    assert (answer.status_code, answer.json()["config"]["seed"]) == (200, 7)
    assert client.post("/v1/runs?dry_run=true", json={"preset": "quickstart", "seed": 7.5}).status_code == 422


def test_every_problem_explains_itself_at_its_address(client: TestClient) -> None:
    for name, (status, meaning) in PROBLEMS.items():
        assert client.get(f"/v1/problems/{name}").json() == {"type": f"/v1/problems/{name}", "status": status, "meaning": meaning}


def test_a_dry_run_resolves_and_leaves_nothing(client: TestClient) -> None:
    answer = client.post("/v1/runs?dry_run=true", json={"preset": "speed", "config": {"training": {"batch_size": 2}}, "seed": 5})
    assert answer.status_code == 200
    config: dict[str, Any] = answer.json()["config"]
    assert (config["training"]["batch_size"], config["seed"], config["model"]["recursions"]) == (2, 5, 2)
    assert client.get("/v1/runs").json()["data"] == []


def test_a_dry_run_refuses_what_a_launch_would(client: TestClient) -> None:
    body: dict[str, Any] = {"preset": "quickstart", "external_id": "mine", "config": {"training": {"device": "cuda"}}}
    answers = [client.post(path, json=body) for path in ("/v1/runs", "/v1/runs?dry_run=true")]
    assert [answer.status_code for answer in answers] == [422, 422]
    assert answers[0].json() == answers[1].json()
    assert answers[1].json()["errors"][0]["field"] == "training.device"
    del body["config"]
    assert client.post("/v1/runs?dry_run=true", json=body).status_code == 200
    assert client.post("/v1/runs", json=body).status_code == 201
    assert client.post("/v1/runs?dry_run=true", json=body).json()["type"] == "/v1/problems/duplicate_external_id"


def test_the_catalogue_is_complete(client: TestClient) -> None:
    assert len(client.get("/v1/metrics").json()["data"]) == 37
    presets = client.get("/v1/presets").json()["data"]
    by_name = {preset["name"]: tuple(preset["recipes"]) for preset in presets}
    assert by_name == dict.fromkeys(SPECIALISTS, RECIPES) | {"quickstart": ("report",)}
    for preset in presets:
        for recipe, config in preset["recipes"].items():
            asked = {"preset": preset["name"], "config": {"recipe": recipe}}
            assert client.post("/v1/runs?dry_run=true", json=asked).json()["config"] == config
    assert "TrainingConfig" in client.get("/v1/config/schema").json()["$defs"]


def test_runs_are_listed_newest_first_in_pages_and_filtered(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        ids = [launch(client, steps=2, name=f"run {number}", tags=["a"]) for number in range(5)]
        wait_for(client, ids[-1], "completed")
        seen, after = [], None
        while True:
            page = client.get("/v1/runs", params={"limit": 2, **({"after": after} if after else {})}).json()
            seen += [run["id"] for run in page["data"]]
            after = page["next_cursor"]
            if not page["has_more"]:
                break
        assert seen == ids[::-1]
        assert client.get("/v1/runs?state=queued").json()["data"] == []
        assert len(client.get("/v1/runs?state=completed&preset=quickstart").json()["data"]) == 5


def test_an_external_id_names_one_run(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        first = launch(client, external_id="night-7")
        again = client.post("/v1/runs", json={"preset": "quickstart", "external_id": "night-7"})
        assert (again.status_code, again.json()["run_id"]) == (409, first)
        assert len(list((tmp_path / "runs").iterdir())) == 1


def test_logs_are_read_by_byte_offset(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        client.put("/v1/queue", json={"held": True})
        run_id = launch(client, steps=2)
        refused = client.get(f"/v1/runs/{run_id}/logs")
        assert (refused.status_code, "it is queued and has not started" in refused.json()["detail"]) == (404, True)
        client.put("/v1/queue", json={"held": False})
        wait_for(client, run_id, "completed")
        whole = client.get(f"/v1/runs/{run_id}/logs").json()
        assert whole["text"] == "fake worker of attempt 1\n"
        rest = client.get(f"/v1/runs/{run_id}/logs", params={"after": 5}).json()
        assert rest["text"] == "worker of attempt 1\n"
        assert client.get(f"/v1/runs/{run_id}/logs", params={"tail": 2}).json()["text"] == "1\n"
        assert client.get(f"/v1/runs/{run_id}/logs", params={"after": whole["next_offset"]}).json()["text"] == ""
        assert client.get(f"/v1/runs/{run_id}/logs", params={"attempt": 2}).status_code == 404


def test_logs_are_read_in_whole_characters_and_as_a_terminal_shows_them(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=2)
        wait_for(client, run_id, "completed")
        log = RunDir(tmp_path / "runs" / run_id).attempt(1).log
        log.write_bytes(b"10 %\r20 %\r30 %\nend\r\n" + b"a" * (65536 - 21) + "é".encode() + b"\xff!")
        first = client.get(f"/v1/runs/{run_id}/logs").json()
        assert first["text"].startswith("30 %\nend\r\na")
        assert (first["text"][-1], first["next_offset"]) == ("a", 65535)
        rest = client.get(f"/v1/runs/{run_id}/logs", params={"after": first["next_offset"]}).json()
        assert (rest["text"], rest["next_offset"]) == ("é\ufffd!", rest["size"])


def test_a_log_without_an_end_of_line_is_read_at_once() -> None:
    """A regular expression took 3.5 seconds for it, and nothing else of the server went on meanwhile."""
    began = time.process_time()
    assert _readable(b"a" * LOG_BLOCK) == ("a" * LOG_BLOCK, LOG_BLOCK)
    assert time.process_time() - began < 0.5


@pytest.mark.parametrize(
    ("printed", "shown"), [("a\rb", "b"), ("a\r\rb", "b"), ("a\r\n", "a\r\n"), ("a\r", "a\r"), ("a\nb\rc\nd\r", "a\nc\nd\r"), ("", "")]
)
def test_what_a_carriage_return_writes_over_is_left_out(printed: str, shown: str) -> None:
    assert _readable(printed.encode())[0] == shown


def test_a_log_that_is_gone_is_empty(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=2)
        wait_for(client, run_id, "completed")
        RunDir(tmp_path / "runs" / run_id).attempt(1).log.unlink()
        assert client.get(f"/v1/runs/{run_id}/logs").json() == {"attempt": 1, "text": "", "next_offset": 0, "size": 0}


def test_metrics_can_be_chosen_by_key_and_step(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        run_id = launch(client, steps=10)
        wait_for(client, run_id, "completed")
        columns = client.get(f"/v1/runs/{run_id}/metrics", params={"keys": "loss", "from": 3, "to": 5}).json()["columns"]
        assert columns["step"] == [3, 4, 5]
        assert set(columns) == {"seq", "attempt", "step", "epoch", "at", "loss"}
        assert client.get(f"/v1/runs/{run_id}/metrics", params={"keys": "los"}).status_code == 422


def test_readiness_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as client:
        until(lambda: client.get("/readyz").status_code == 200)
        monkeypatch.setattr(system, "DISK_FLOOR_BYTES", 1 << 60)
        answer = client.get("/readyz")
        assert answer.status_code == 503
        assert [name for name, check in answer.json()["checks"].items() if not check["ok"]] == ["disk"]
