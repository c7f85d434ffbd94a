"""What each command asks of the service, what it shows of the answer, and the code it leaves with."""

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.client import evaluations, stream, terminal
from app.client.api import Api, ExitCode
from tests.client.conftest import FakeService, a_run, cognate, run_id
from tests.terminals import HOSTILE, Terminal, is_harmless

RUN = f"/v1/runs/{run_id(1)}"
REFUSAL = {"title": "Conflict", "status": 409, "detail": "a run that is completed cannot pause; allowed commands: none"}
NOTHING: dict[str, Any] = {"data": [], "has_more": False, "next_cursor": None}


def commanded(service: FakeService) -> list[tuple[str, str, Any]]:
    """What was asked for beyond looking."""
    return [asked for asked in service.asked if asked[0] != "GET"]


def test_list_shows_a_line_a_run_newest_first(service: FakeService) -> None:
    service.have(
        a_run(1), a_run(2, state="failed", state_reason="nonfinite_loss", metrics={"loss": "NaN"}), a_run(3, progress=None, metrics={})
    )
    head, *lines = cognate("list").stdout.splitlines()
    assert head.split() == ["ID", "NAME", "PRESET", "STATE", "STEP", "DONE", "LOSS", "ALERTS", "CREATED"]
    assert [line.split()[1] for line in lines] == ["tiny-3", "tiny-2", "tiny-1"]
    assert lines[0].split()[3:7] == ["running:", "training", "-", "-"]
    assert "failed: nonfinite_loss" in lines[1]
    assert "NaN" in lines[1]
    assert lines[2].split()[:9] == ["00000001", "tiny-1", "quickstart", "running:", "training", "15/60", "25", "%", "2.5"]


def test_what_ails_a_run_is_counted_in_the_list_and_shown_with_evidence_and_remedy(service: FakeService) -> None:
    evidence = {"step": 50, "loss": 9.0, "median": 3.0, "phase": None}
    alert = {
        "kind": "explosion",
        "severity": "critical",
        "message": "It jumped",
        "evidence": evidence,
        "remedy": "Lower it.",
        "since_step": 50,
    }
    service.have(a_run(1), a_run(2, alert_count=1, alerts=[alert]))
    lines = cognate("list").stdout.splitlines()
    assert [line.split()[9] for line in lines[1:]] == ["1", "-"]
    for part in ("presets", f"runs/{run_id(2)}/checkpoints", f"runs/{run_id(2)}/attempts", f"runs/{run_id(2)}/events"):
        service.answers["GET", f"/v1/{part}"] = (200, {"data": [], "has_more": False, "next_cursor": None})
    shown = cognate("show", "tiny-2").stdout
    assert "critical: explosion, since step 50\nIt jumped\nstep 50, loss 9, median 3, phase none\nLower it.\n" in shown


def test_list_takes_as_many_pages_as_the_limit_needs(service: FakeService) -> None:
    service.have(*(a_run(number) for number in range(1, 8)))
    service.page = 2
    told = json.loads(cognate("list", "--limit=5", "--json").stdout)
    assert [run["name"] for run in told["data"]] == ["tiny-7", "tiny-6", "tiny-5", "tiny-4", "tiny-3"]
    assert (told["has_more"], told["next_cursor"]) == (True, run_id(3))
    rest = json.loads(cognate("list", f"--after={run_id(3)}", "--json").stdout)
    assert [run["name"] for run in rest["data"]] == ["tiny-2", "tiny-1"]
    assert not rest["has_more"]


def test_the_filters_are_the_services(service: FakeService) -> None:
    cognate("list", "--state=paused", "--preset=speed", "--limit=3")
    assert service.asked == [("GET", "/v1/runs", {"limit": "4", "state": "paused", "preset": "speed"})]
    assert cognate("list", "--state=asleep").exit_code == ExitCode.USAGE


@pytest.mark.parametrize("reference", [run_id(0xABCDEF), run_id(0xABCDEF)[:-1], "abcdef", "01a204c6-4287-72a3-ab33-000000abcdef", "chosen"])
def test_a_run_is_named_by_id_by_its_ends_or_by_name(service: FakeService, reference: str) -> None:
    service.have(a_run(1), a_run(0xABCDEF, name="chosen"))
    service.answers["POST", f"/v1/runs/{run_id(0xABCDEF)}/pause"] = (202, a_run(0xABCDEF, name="chosen", state="pausing"))
    assert cognate("pause", reference).stdout == "chosen  pausing\n"


def test_a_name_goes_before_the_end_of_an_id(service: FakeService) -> None:
    service.have(a_run(1), a_run(2, name=run_id(1)[-4:]))
    service.answers["POST", f"/v1/runs/{run_id(2)}/kill"] = (202, a_run(2, state="stopping"))
    assert cognate("kill", run_id(1)[-4:]).exit_code == ExitCode.OK


def test_an_empty_name_means_no_run(service: FakeService) -> None:
    """As an unset variable of a shell gives it: every id ends with it, and the only run would be deleted."""
    service.have(a_run(1))
    told = cognate("delete", "", "--yes")
    assert told.exit_code == ExitCode.NOT_FOUND
    assert not commanded(service)


def test_a_name_that_several_have_commands_none(service: FakeService) -> None:
    service.have(a_run(1, name="twin"), a_run(2, name="twin"), a_run(3))
    told = cognate("stop", "tiny-3", "twin")
    assert told.exit_code == ExitCode.NOT_FOUND
    assert "may be any of 2 runs" in told.stderr
    assert run_id(1) in told.stderr
    assert run_id(2) in told.stderr
    assert not commanded(service)
    assert cognate("show", "nobody").exit_code == ExitCode.NOT_FOUND


def test_launch_asks_for_what_was_said_and_no_more(service: FakeService) -> None:
    service.answers["POST", "/v1/runs"] = (201, a_run(1, state="queued", queue_position=2))
    told = cognate(
        "launch", "quickstart", "--set=training.max_steps=60", "--set=data.source=synthetic", "--set=data.datasets=null",
        "--name=tiny-1", "--tag=a", "--tag=b", "--seed=3",
    )  # fmt: skip
    config = {"training": {"max_steps": 60}, "data": {"source": "synthetic", "datasets": None}}
    body = {"preset": "quickstart", "config": config, "name": "tiny-1", "tags": ["a", "b"], "seed": 3}
    assert commanded(service) == [("POST", "/v1/runs", body)]
    assert told.stdout == f"tiny-1  {run_id(1)}  queued: no. 2\n"


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["pause"], "pause", {}),
        (
            ["pause", "--checkpoint=latest", "--deadline=5", "--on-timeout=stop"],
            "pause",
            {"checkpoint": "latest", "deadline_s": 5, "on_timeout": "stop"},
        ),
        (["resume"], "resume", {}),
        (["stop", "--checkpoint=save", "--grace=0"], "stop", {"checkpoint": "save", "grace_s": 0}),
        (["kill"], "kill", {}),
        (["checkpoint"], "checkpoint", {}),
        (["fork"], "fork", {}),
        (
            ["fork", "--checkpoint=ckpt_1", "--set=seed=1", "--name=b"],
            "fork",
            {"checkpoint_id": "ckpt_1", "config": {"seed": 1}, "name": "b"},
        ),
    ],
)
def test_options_are_passed_on_and_what_was_not_said_is_left_out(
    service: FakeService, arguments: list[str], path: str, body: dict[str, Any]
) -> None:
    service.have(a_run(1))
    service.answers["POST", f"{RUN}/{path}"] = (202, a_run(1))
    told = cognate(*arguments, "tiny-1")
    assert told.exit_code == ExitCode.OK, told.stderr
    assert commanded(service) == [("POST", f"{RUN}/{path}", body)]


def test_a_run_that_refuses_does_not_keep_the_others_from_their_turn(service: FakeService) -> None:
    service.have(a_run(1), a_run(2))
    service.answers["POST", f"{RUN}/pause"] = (409, REFUSAL)
    service.answers["POST", f"/v1/runs/{run_id(2)}/pause"] = (202, a_run(2, state="pausing"))
    told = cognate("pause", "tiny-1", "tiny-2", "--json")
    assert told.exit_code == ExitCode.REFUSED
    assert [run["id"] for run in json.loads(told.stdout)["data"]] == [run_id(2)]
    assert told.stderr == f"cognate: tiny-1: Conflict: {REFUSAL['detail']}\n"


def test_deleting_needs_an_answer_or_a_yes(service: FakeService) -> None:
    service.have(a_run(1))
    service.answers["DELETE", RUN] = (200, {})
    assert cognate("delete", "tiny-1").exit_code == ExitCode.USAGE
    assert not commanded(service)
    assert cognate("delete", "tiny-1", "--yes").stdout == "tiny-1  deleted\n"
    assert commanded(service) == [("DELETE", RUN, {})]


FAULTS = [{"field": "training.batchsize", "message": "unknown"}, {"field": "seed", "message": "too small"}]


@pytest.mark.parametrize(
    ("status", "body", "code", "words"),
    [
        (
            422,
            {"title": "Unprocessable", "detail": "two", "errors": FAULTS},
            4,
            "Unprocessable: two\n  training.batchsize: unknown\n  seed: too small\n",
        ),
        (422, {"title": "Unprocessable", "detail": "seed: too small", "errors": FAULTS[1:]}, 4, "Unprocessable: seed: too small\n"),
        (409, REFUSAL, 4, "Conflict: a run that is completed cannot pause; allowed commands: none\n"),
        (404, {"title": "Not Found", "detail": "no run"}, 3, "Not Found: no run\n"),
        (401, {"title": "Unauthorized", "detail": "no token"}, 6, "Unauthorized: no token; give it as COGNATE_TOKEN or --token\n"),
        (503, {"title": "Service Unavailable", "detail": "the database is locked"}, 5, "Service Unavailable: the database is locked\n"),
        (502, {"message": "bad gateway"}, 5, "http://127.0.0.1:8000 answers (502), but not as this service does; is the address right?\n"),
    ],
)
def test_a_problem_is_told_in_its_own_words(service: FakeService, status: int, body: dict[str, Any], code: int, words: str) -> None:
    service.answers["GET", "/v1/runs"] = (status, body)
    told = cognate("list", "--json")
    assert (told.exit_code, told.stdout, told.stderr) == (code, "", f"cognate: {words}")


def test_a_service_that_is_not_there_is_a_sentence(service: FakeService) -> None:
    def refuse(request: httpx.Request) -> Any:
        raise httpx.ConnectError("Connection refused", request=request)

    service.answers["GET", "/v1/runs"] = refuse
    told = cognate("list", COGNATE_URL="http://there:1")
    assert told.exit_code == ExitCode.UNREACHABLE
    assert told.stderr.startswith("cognate: no answer from http://there:1 (Connection refused)")


@pytest.mark.parametrize(
    "arguments",
    [
        ["list", "--url=127.0.0.1:8000"],
        ["list", "--url=http://a:b"],
        ["launch", "quickstart", "--set=seed"],
        ["launch", "quickstart", "--set=seed=1", "--set=seed.of=2"],
        ["compare", "tiny-1"],
    ],
)
def test_what_cannot_be_meant_is_wrong_usage(arguments: list[str]) -> None:
    assert cognate(*arguments).exit_code == ExitCode.USAGE


def test_the_token_is_sent_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(401, json={"title": "Unauthorized", "detail": "a bearer token is required"})

    monkeypatch.setattr(terminal, "Api", lambda url, token: Api(url, token, httpx.MockTransport(answer)))
    told = [cognate("list", COGNATE_TOKEN="hidden"), cognate("list", "--token=hidden"), cognate("list", "--help", COGNATE_TOKEN="hidden")]
    assert seen == ["Bearer hidden"] * 2
    assert not any("hidden" in shown.output for shown in told)


def test_the_token_comes_from_the_services_file_too(service: FakeService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the container, where a Docker secret has it, the client needs no more than the service does."""
    given: list[str | None] = []
    monkeypatch.setattr(terminal, "Api", lambda url, token: given.append(token) or Api(url, token, httpx.MockTransport(service)))
    (tmp_path / "token").write_text("of the file\n")
    for arguments in (["list"], ["list", "--token=another"]):
        assert cognate(*arguments, COGNATE_TOKEN_FILE=str(tmp_path / "token")).exit_code == 0
    assert given == ["of the file", "another"]
    refused = cognate("list", COGNATE_TOKEN_FILE=str(tmp_path / "missing"))
    assert refused.exit_code == ExitCode.USAGE
    assert "missing: No such file or directory" in " ".join(refused.output.split())


def test_show_tells_what_differs_from_the_preset(service: FakeService) -> None:
    origin = {"run_id": "run_0", "checkpoint_id": "ckpt_0", "step": 10}
    run = a_run(1, state="failed", state_reason="oom_cuda", state_detail="asked for 3 [GiB]", forked_from=origin, notes="with [care]")
    service.have(run)
    preset = {"preset": "quickstart", "seed": 7, "training": {"max_steps": 200, "batch_size": 8}}
    service.answers["GET", "/v1/presets"] = (200, {"data": [{"name": "quickstart", "config": preset}]})
    point = {"step": 15, "id": "ckpt_1", "bytes": 3 << 20, "created_at": "2026-01-02T03:04:06+00:00", "removed_at": None}
    service.answers["GET", f"{RUN}/checkpoints"] = (200, NOTHING | {"data": [point]})
    service.answers["GET", f"{RUN}/attempts"] = (200, NOTHING)
    happened = [
        {"seq": seq, "at": "2026-01-02T03:04:06+00:00", "kind": "phase", "step": None, "data": {"phase": f"no. {seq}"}}
        for seq in range(1, 12)
    ]
    happened.append({**happened[0], "seq": 12, "kind": "sample", "step": 15, "data": {"dataset": "gsm8k", "text": "never\nin a line"}})
    service.answers["GET", f"{RUN}/events"] = (200, NOTHING | {"data": happened})
    page = cognate("show", "tiny-1").stdout
    assert "failed: oom_cuda: asked for 3 [GiB]" in page
    assert "run_0 at step 10" in page
    assert "with [care]" in page
    assert [line.split() for line in page.splitlines() if "max_steps" in line or "batch_size" in line] == [
        ["training.max_steps", "60", "200"]
    ]
    assert "3 MiB" in page
    assert "no. 11" in page
    assert page.splitlines()[-1].split()[2:] == ["sample", "gsm8k"]
    assert "no. 2\n" not in page
    told = json.loads(cognate("show", "tiny-1", "--json").stdout)
    assert told["changed"] == {"training.max_steps": 60}
    assert [event["seq"] for event in told["events"]] == list(range(3, 13))


def test_compare_shows_what_differs_and_the_metrics_side_by_side(service: FakeService) -> None:
    other = {"preset": "quickstart", "seed": 8, "training": {"max_steps": 60, "batch_size": 8}}
    service.have(a_run(1), a_run(2, config=other, metrics={"loss": "NaN", "val_loss": 3.0}))
    table = [line.split() for line in cognate("compare", "tiny-1", "tiny-2").stdout.splitlines()]
    assert ["seed", "7", "8"] in table
    assert ["loss", "2.5", "NaN"] in table
    assert ["val_loss", "-", "3"] in table
    assert not any(row[:1] == ["training.max_steps"] for row in table)
    told = json.loads(cognate("compare", "tiny-1", "tiny-2", "--json").stdout)
    assert told["config"] == {"seed": [7, 8]}
    assert told["metrics"] == {"loss": [2.5, "NaN"], "val_loss": [None, 3.0]}


def log_of(service: FakeService, *attempts: bytes) -> None:
    def answer(request: httpx.Request) -> tuple[int, dict[str, Any]]:
        query = request.url.params
        log = attempts[int(query["attempt"]) - 1]
        start = max(0, len(log) - int(query["tail"])) if "tail" in query else int(query.get("after", 0))
        block = log[start : start + 65536]
        return 200, {"attempt": int(query["attempt"]), "text": block.decode(), "next_offset": start + len(block), "size": len(log)}

    service.answers["GET", f"{RUN}/logs"] = answer


LONG = b"".join(b"line %06d\n" % number for number in range(20_000))


def a_sample(step: int, text: str) -> dict[str, Any]:
    return {"seq": step, "step": step, "epoch": step / 40, "dataset": "gsm8k", "prompt": "Q: 2+3?\nA:", "text": text, "expected": " 5"}


def test_samples_are_those_of_the_newest_step_or_all(service: FakeService) -> None:
    service.have(a_run(1))
    written = [a_sample(40, " 4"), a_sample(50, " \n5 \x1b[2J\ttab"), a_sample(50, "")]
    service.answers["GET", f"{RUN}/samples"] = (200, {**NOTHING, "data": written})
    told = cognate("samples", "tiny-1").stdout
    assert told.startswith("step 50, epoch 1.25, gsm8k\nprompt:\n  Q: 2+3?\n  A:\nwrote:\n  5 \x1b[2J  tab\nexpected:\n  5\n\nstep 50, ")
    assert told.count("step 50") == 2
    assert told.endswith("wrote:\n  (nothing)\nexpected:\n  5\n\n")
    assert cognate("samples", "tiny-1", "--all").stdout.startswith("step 40, epoch 1.00, gsm8k\n")
    assert json.loads(cognate("samples", "tiny-1", "--json").stdout) == {"data": written[1:]}
    assert json.loads(cognate("samples", "tiny-1", "--all", "--json").stdout) == {"data": written}


def test_without_samples_that_is_said(service: FakeService) -> None:
    service.have(a_run(1))
    service.answers["GET", f"{RUN}/samples"] = (200, NOTHING)
    assert cognate("samples", "tiny-1").stdout == "no samples\n"
    assert json.loads(cognate("samples", "tiny-1", "--json").stdout) == {"data": []}


@pytest.mark.parametrize("command", ["list", "show", "logs", "samples", "pause", "launch", "nothing"])
def test_what_a_service_says_commands_no_terminal(service: FakeService, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Its log has what the worker and its libraries printed, and a service elsewhere may be anybody's."""
    service.have(a_run(1, name=HOSTILE, state_reason=HOSTILE, tags=[HOSTILE]))
    path = f"/v1/runs/{run_id(1)}"
    service.answers |= {
        ("GET", f"{path}/logs"): (200, {"attempt": 1, "text": HOSTILE, "next_offset": 9, "size": 9}),
        ("GET", "/v1/presets"): (200, {"data": []}),
        ("GET", f"{path}/samples"): (200, {**NOTHING, "data": [a_sample(1, HOSTILE)]}),
        ("GET", f"{path}/checkpoints"): (200, NOTHING),
        ("GET", f"{path}/attempts"): (200, NOTHING),
        ("GET", f"{path}/events"): (200, {**NOTHING, "data": [WARNING | {"data": {"message": HOSTILE}}]}),
        ("POST", f"{path}/pause"): (409, {"title": "Conflict", "detail": HOSTILE}),
        ("POST", "/v1/runs"): (422, {"title": HOSTILE, "detail": "no", "errors": [{"field": HOSTILE, "message": HOSTILE}]}),
    }
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(sys, "stdout", shown := Terminal())
    monkeypatch.setattr(sys, "stderr", shown)
    named = {"list": [], "launch": ["quickstart"], "nothing": [HOSTILE]}.get(command, [run_id(1)])
    with pytest.raises(SystemExit):
        evaluations.runs(["show" if command == "nothing" else command, *named], prog_name="cognate")
    assert "owned" in shown.getvalue()
    assert is_harmless(shown.getvalue())


WARNING = {"kind": "warning", "at": "2026-01-02T03:04:05+00:00", "step": 3, "seq": 1}


def test_logs_are_whole_however_long(service: FakeService) -> None:
    service.have(a_run(1))
    log_of(service, LONG)
    assert cognate("logs", "tiny-1").stdout == LONG.decode()


@pytest.mark.parametrize("lines", [0, 1, 3, 19_000, 30_000])
def test_the_tail_is_of_whole_lines(service: FakeService, lines: int) -> None:
    service.have(a_run(1))
    log_of(service, LONG)
    assert cognate("logs", "tiny-1", f"--tail={lines}").stdout.splitlines() == LONG.decode().splitlines()[max(0, 20_000 - lines) :]


def test_following_a_log_goes_on_with_the_next_attempt_and_ends_with_the_run(service: FakeService) -> None:
    service.have(a_run(1, attempt=2, state="completed"))
    log_of(service, b"first\n", b"second\n")
    assert cognate("logs", "tiny-1", "-f").stdout == "second\n"
    assert cognate("logs", "tiny-1", "--attempt=1", "-f").stdout == "first\n"
    blocks = [json.loads(line) for line in cognate("logs", "tiny-1", "--json").stdout.splitlines()]
    assert [(block["attempt"], block["text"], block["next_offset"]) for block in blocks] == [(2, "second\n", 7)]


def test_a_run_that_has_not_started_has_no_log(service: FakeService) -> None:
    service.have(a_run(1, attempt=0, state="queued"))
    told = cognate("logs", "tiny-1")
    assert told.exit_code == ExitCode.NOT_FOUND
    assert "has not started" in told.stderr


@pytest.mark.parametrize(
    ("command", "then", "code"),
    [
        ("pause", "paused", ExitCode.OK),
        ("pause", "completed", ExitCode.ENDED_OTHERWISE),
        ("pause", "running", ExitCode.ENDED_OTHERWISE),  # a pause that was dropped at its deadline
        ("resume", "running", ExitCode.OK),
        ("resume", "failed", ExitCode.ENDED_OTHERWISE),
        ("stop", "stopped", ExitCode.OK),
        ("kill", "completed", ExitCode.ENDED_OTHERWISE),
    ],
)
def test_wait_comes_back_once_the_run_has_settled(
    service: FakeService, monkeypatch: pytest.MonkeyPatch, command: str, then: str, code: ExitCode
) -> None:
    service.have(a_run(1))
    between = {"pause": "pausing", "resume": "queued", "stop": "stopping", "kill": "stopping"}[command]
    service.answers["POST", f"{RUN}/{command}"] = (202, a_run(1, state=between))

    def frames() -> Iterator[str]:
        yield json.dumps({"type": "hello", "cursor": "e.7", "heartbeat_s": 15})
        yield json.dumps({"type": "snapshot", "runs": [a_run(1, state=between)]})
        service.have(a_run(1, state=then))
        changed = {"state": then, "reason": None, "detail": None}
        yield json.dumps({"type": "event", "cursor": "e.8", "kind": "state", "step": None, "data": changed})
        raise AssertionError("waits on")

    def connecting(*_: object) -> stream.Connect:
        def connect(cursor: str) -> AbstractContextManager[Iterator[str]]:
            return nullcontext(frames())

        return connect

    monkeypatch.setattr(stream, "connecting", connecting)
    told = cognate(command, "tiny-1", "--wait")
    assert (told.exit_code, told.stdout.split()[1].rstrip(":")) == (code, then)
