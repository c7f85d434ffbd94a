"""Edits, groups and the queue: what each command asks of the service, shows of the answer, and leaves with."""

import json
from typing import Any

import pytest

from app.client.api import ExitCode
from app.client.together import groups, queue
from tests.client.conftest import FakeService, a_run, cognate, run_id
from tests.client.test_commands import REFUSAL, RUN, commanded

GROUP_ID = "group_01a204c6-4287-72a3-ab33-0000000000aa"
GROUP = {
    "id": GROUP_ID,
    "name": "night",
    "created_at": "2026-01-02T03:04:05+00:00",
    "states": {"running": 1, "queued": 1},
    "runs": [a_run(1), a_run(2, state="queued", queue_position=1, progress=None)],
}


@pytest.fixture
def night(service: FakeService) -> FakeService:
    """A service with one group."""
    service.answers["GET", "/v1/groups"] = (200, {"data": [GROUP], "has_more": False, "next_cursor": None})
    return service


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["--name=b"], {"name": "b"}),
        (["--notes=as before", "--priority=-3"], {"notes": "as before", "priority": -3}),
        (["--notes="], {"notes": None}),
        (["--tag=x", "--tag=y"], {"tags": ["x", "y"]}),
        (["--no-tags"], {"tags": []}),
    ],
)
def test_an_edit_changes_what_was_said_and_nothing_else(service: FakeService, arguments: list[str], body: dict[str, Any]) -> None:
    service.have(a_run(1))
    service.answers["PATCH", RUN] = (200, a_run(1))
    told = cognate("edit", "tiny-1", *arguments)
    assert told.exit_code == ExitCode.OK, told.stderr
    assert commanded(service) == [("PATCH", RUN, body)]
    assert told.stdout == f"tiny-1  running: training  changed {', '.join(body)}\n"


def test_an_edit_of_nothing_is_wrong_usage(service: FakeService) -> None:
    service.have(a_run(1))
    assert cognate("edit", "tiny-1").exit_code == ExitCode.USAGE
    assert not commanded(service)


@pytest.mark.parametrize(("command", "path"), [(["launch", "quickstart"], "/v1/runs"), (["fork", "tiny-1"], f"{RUN}/fork")])
def test_a_key_and_a_priority_go_with_a_new_run(service: FakeService, command: list[str], path: str) -> None:
    service.have(a_run(1))
    service.answers["POST", path] = (201, a_run(2))
    assert cognate(*command, "--idempotency-key=k1", "--priority=5").exit_code == ExitCode.OK
    ((_, _, body),) = commanded(service)
    assert (body["priority"], service.keys[-1]) == (5, "k1")


def test_a_group_is_launched_with_what_was_said(service: FakeService) -> None:
    service.answers["POST", "/v1/groups"] = (201, GROUP)
    told = cognate("launch", "--name=night", "--set=training.max_steps=60", "--priority=2", "--idempotency-key=g", app=groups)
    assert commanded(service) == [("POST", "/v1/groups", {"name": "night", "config": {"training": {"max_steps": 60}}, "priority": 2})]
    assert service.keys == ["g"]
    head, _, *members = told.stdout.splitlines()
    assert head == f"night  {GROUP_ID}"
    assert [line.split()[1:4] for line in members] == [["tiny-1", "quickstart", "running:"], ["tiny-2", "quickstart", "queued:"]]
    cognate("launch", "speed", "memory", app=groups)
    assert commanded(service)[-1][2] == {"presets": ["speed", "memory"]}


@pytest.mark.parametrize("reference", ["night", GROUP_ID, "0000aa", "01a204c6"])
@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (
            ["pause", "--checkpoint=latest", "--deadline=5", "--on-timeout=stop"],
            {"checkpoint": "latest", "deadline_s": 5, "on_timeout": "stop"},
        ),
        (["resume"], {}),
        (["stop", "--grace=0"], {"grace_s": 0}),
        (["kill"], {}),
    ],
)
def test_a_group_is_commanded_as_one(night: FakeService, reference: str, arguments: list[str], body: dict[str, Any]) -> None:
    path = f"/v1/groups/{GROUP_ID}/{arguments[0]}"
    night.answers["POST", path] = (202, GROUP)
    assert json.loads(cognate(*arguments, reference, "--json", app=groups).stdout) == GROUP
    assert commanded(night) == [("POST", path, body)]


def test_groups_are_listed_and_shown(night: FakeService) -> None:
    assert cognate("list", app=groups).stdout.splitlines()[1].split() == ["000000aa", "night", "1", "running,", "1", "queued"]
    assert "15/60" in cognate("show", "night", app=groups).stdout
    unknown = cognate("show", "day", app=groups)
    assert (unknown.exit_code, "`cognate groups list`" in unknown.stderr) == (ExitCode.NOT_FOUND, True)


def test_a_group_that_refuses_says_why(night: FakeService) -> None:
    night.answers["POST", f"/v1/groups/{GROUP_ID}/pause"] = (409, REFUSAL)
    told = cognate("pause", "night", app=groups)
    assert (told.exit_code, told.stderr) == (ExitCode.REFUSED, f"cognate: Conflict: {REFUSAL['detail']}\n")


def test_the_queue_is_shown_held_and_let_go(service: FakeService) -> None:
    waiting = [a_run(2, state="queued", queue_position=1, priority=5), a_run(1, state="queued", queue_position=2, priority=0)]
    service.answers["GET", "/v1/queue"] = (200, {"held": True, "data": waiting})
    head, _, *lines = cognate("show", app=queue).stdout.splitlines()
    assert head == "the queue is held, 2 waiting"
    assert [line.split() for line in lines] == [
        ["1", "00000002", "tiny-2", "quickstart", "5"],
        ["2", "00000001", "tiny-1", "quickstart", "0"],
    ]
    service.answers["PUT", "/v1/queue"] = (200, {"held": False, "data": []})
    assert cognate("release", app=queue).stdout == "the queue is open, 0 waiting\n"
    assert json.loads(cognate("hold", "--json", app=queue).stdout)["data"] == []
    assert commanded(service) == [("PUT", "/v1/queue", {"held": False}), ("PUT", "/v1/queue", {"held": True})]


def test_runs_that_share_an_end_with_a_name_are_found_by_the_name_first(service: FakeService) -> None:
    """By one request to the service, not by reading every run there is."""
    service.have(a_run(1), a_run(2, name="chosen"))
    cognate("show", "chosen")
    assert service.asked[:2] == [("GET", "/v1/runs", {"limit": "500", "name": "chosen"}), ("GET", f"/v1/runs/{run_id(2)}", {})]
