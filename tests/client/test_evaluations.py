"""`cognate runs evaluate` and `evaluations`: what is asked for, what is shown, and the code they leave with."""

import json
from typing import Any

import pytest

from app.client import evaluations
from app.client.api import ExitCode
from tests.client.conftest import FakeService, a_run, cognate, run_id
from tests.fake_job import EVALUATION

RUN = f"/v1/runs/{run_id(1)}/evaluations"
JOB = "/v1/jobs/job_1"


def a_job(state: str, **more: Any) -> dict[str, Any]:
    ended = "2026-01-02T03:04:05+00:00" if state in ("completed", "failed", "cancelled") else None
    result = EVALUATION if state == "completed" else None
    spec = {"step": 60, "limit": 100}
    return {"id": "job_1", "state": state, "spec": spec, "progress": None, "result": result, "detail": None, "ended_at": ended, **more}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch, service: FakeService) -> None:
    monkeypatch.setattr(evaluations, "EVERY_S", 0.0)
    service.have(a_run(1))
    service.answers["POST", RUN] = (202, a_job("queued"))


def test_an_evaluation_is_asked_for_as_the_options_say(service: FakeService) -> None:
    options = ("--checkpoint=ckpt_1", "--datasets=gsm8k,svamp", "--limit=100", "--calculator", "--vote=5", "--no-overlap")
    told = cognate("evaluate", "tiny-1", *options)
    assert told.stdout == "job_1  step 60  queued\n"
    asked = {"checkpoint_id": "ckpt_1", "datasets": ["gsm8k", "svamp"], "limit": 100, "calculator": True, "vote": 5, "overlap": False}
    assert service.asked[-1] == ("POST", RUN, asked)
    cognate("evaluate", "tiny-1")
    assert service.asked[-1] == ("POST", RUN, {"calculator": False, "overlap": True})
    assert cognate("evaluate", "tiny-1", "--vote=1").exit_code == ExitCode.USAGE


def test_wait_comes_back_with_the_figures(service: FakeService) -> None:
    states = iter(
        [
            a_job("running", progress={"message": "svamp: 300 test rows", "fraction": 0.0}),
            a_job("running", progress={"message": "svamp: 300 test rows", "fraction": 0.0}),
            a_job("completed"),
        ]
    )
    service.answers["GET", JOB] = lambda _: (200, next(states))
    told = cognate("evaluate", "tiny-1", "--wait")
    assert told.exit_code == ExitCode.OK
    assert told.stderr == "svamp: 300 test rows\n"
    (line,) = [line for line in told.stdout.splitlines() if line.startswith("svamp ")]
    assert line.split() == ["svamp", "exact_match", "4", "0.25", "0.046-0.699", "0", "0", "0.3-0.4", "0.01-0.03", "not", "met"]
    assert "svamp: 4 of the 300 test rows" in told.stdout
    assert "gsm8k was not measured: it is not in the data folder" in told.stdout


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_without_figures_the_code_is_1_and_the_reason_is_said(service: FakeService, state: str) -> None:
    service.answers["GET", JOB] = (200, a_job(state, detail="it was not to be"))
    told = cognate("evaluate", "tiny-1", "--wait")
    assert told.exit_code == ExitCode.ENDED_OTHERWISE
    assert told.stdout == f"job_1  step 60  {state}: it was not to be\n"


def test_ctrl_c_leaves_the_evaluation_to_the_service(service: FakeService) -> None:
    def interrupted(_: Any) -> Any:
        raise KeyboardInterrupt

    service.answers["GET", JOB] = interrupted
    told = cognate("evaluate", "tiny-1", "--wait")
    assert told.exit_code == ExitCode.CTRL_C
    assert "cognate runs evaluations 00000001" in told.stderr


def test_the_newest_figures_are_shown_and_a_line_of_the_others(service: FakeService) -> None:
    jobs = [a_job("running", id="job_3"), a_job("completed", id="job_2"), a_job("completed", id="job_1")]
    service.answers["GET", RUN] = (200, {"data": jobs, "has_more": False, "next_cursor": None})
    told = cognate("evaluations", "tiny-1").stdout
    assert told.startswith("job_3  step 60  running\ncheckpoint of step 60, at most 100 items a dataset, ")
    assert told.endswith("job_1  step 60  completed\n")
    assert json.loads(cognate("evaluations", "tiny-1", "--json").stdout)["data"] == jobs
    service.answers["GET", RUN] = (200, {"data": [], "has_more": False, "next_cursor": None})
    assert cognate("evaluations", "tiny-1").stdout == "no evaluations\n"
