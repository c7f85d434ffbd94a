"""A GPU on which attempts come to no step: rested, told of, passed over where there is another; its runs go on by themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.services import resumption
from app.services.lifecycle import Reason, State
from app.services.rests import Rests, tells_of_a_step
from app.services.resumption import pause_after
from cognate.events import Event, Kind
from tests.service import launch, serving, until, wait_for

ECC = "AcceleratorError: CUDA error: uncorrectable ECC error encountered"
BAD_GPU = ("--step-seconds", "0.01", "--fault", "bad_gpu@1")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def failed(rests: Rests, slot: str = "cuda:0", reason: Reason = Reason.GPU_ERROR, state: State = State.FAILED) -> float:
    """Seconds of rest after one more failure."""
    rests.ended(slot, state, reason, f"{ECC}\nCompile with")
    rest = rests.of(slot)
    return rest.left_s if rest else 0.0


def test_a_gpu_is_rested_longer_each_time_and_not_after_the_first() -> None:
    clock = Clock()
    rests = Rests(pause_after, clock)
    assert [failed(rests) for _ in range(4)] == [0.0, 2.0, 8.0, 32.0]
    rest = rests.of("cuda:0")
    assert rest is not None
    assert rest.why == f"4 attempts in a row ended there before their first step, the last with gpu_error: {ECC}"
    clock.now += 33
    assert rests.of("cuda:0") is None
    assert (rests.failures("cuda:0"), rests.failures("cuda:1")) == (4, 0)


def test_what_went_before_a_step_is_forgotten() -> None:
    rests = Rests(pause_after, Clock())
    failed(rests)
    failed(rests)
    rests.stepped("cuda:0")
    assert rests.of("cuda:0") is None
    assert [failed(rests) for _ in range(3)] == [0.0, 0.0, 2.0]  # the first is that of the attempt that made a step


@pytest.mark.parametrize(
    ("slot", "state", "reason"),
    [
        ("cpu", State.FAILED, Reason.WORKER_ERROR),
        ("cuda:0", State.STOPPED, Reason.USER_KILL),
        ("cuda:0", State.PAUSED, Reason.DISK_FULL),
        ("cuda:0", State.QUEUED, Reason.AUTO_RESUME),
        ("cuda:0", State.FAILED, Reason.DATA_MISSING),
        ("cuda:0", State.INTERRUPTED, Reason.SHUTDOWN),
    ],
)
def test_what_says_nothing_of_a_gpu_rests_none(slot: str, state: State, reason: Reason) -> None:
    rests = Rests(pause_after, Clock())
    assert [failed(rests, slot, reason, state) for _ in range(3)] == [0.0] * 3


@pytest.mark.parametrize(
    ("kind", "data", "is_step"),
    [
        (Kind.METRICS, {"step": 5, "progress": {}}, False),
        (Kind.METRICS, {"step": 6, "progress": {}}, True),
        (Kind.PROGRESS, {"progress": {"step": 6}}, True),
        (Kind.PROGRESS, {"progress": "odd"}, False),
        (Kind.CHECKPOINT, {"step": 6}, False),
    ],
)
def test_a_step_is_one_behind_where_the_attempt_began(kind: Kind, data: dict[str, Any], is_step: bool) -> None:
    assert tells_of_a_step([Event(0, 0.0, kind, data)], 5) is is_step


# --- in the service ---------------------------------------------------------------------------------------------


def gpus(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr("app.executors.local.usable_gpus", lambda: [*names])
    monkeypatch.setattr("app.executors.local.holds_memory", lambda *_: False)


def test_a_bad_gpu_does_not_fail_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its runs failed within a second of the one before."""
    gpus(monkeypatch, "GPU-bad")
    monkeypatch.setattr(resumption, "AFTER_S", 100.0)
    with serving(tmp_path, *BAD_GPU) as client:
        first, second, third, fourth = (launch(client, steps=5) for _ in range(4))
        for run_id in (first, second):
            run = wait_for(client, run_id, "interrupted")
            assert (run["state_reason"], run["state_detail"]) == ("gpu_error", f"{ECC}\nCompile")
        run = until(lambda: (run := client.get(f"/v1/runs/{third}").json())["state_detail"] and run)
        why = f"2 attempts in a row ended there before their first step, the last with gpu_error: {ECC}"
        assert (run["state"], run["state_detail"]) == ("queued", f"waits for cuda:0, which is rested: {why}")
        device, cpu = client.get("/v1/devices").json()["data"]
        assert (device["run_id"], device["rest"]["why"], cpu["rest"]) == (None, why, None)
        assert 90 < device["rest"]["left_s"] <= 100
        look = client.app.state.parts.supervisor.look  # type: ignore[attr-defined]
        for _ in range(3):
            look()
        told = client.get(f"/v1/runs/{third}/events", params={"kind": "state"}).json()["data"]
        assert [(event["data"]["state"], event["data"]["detail"]) for event in told] == [("queued", None), ("queued", run["state_detail"])]
        assert client.get(f"/v1/runs/{fourth}").json()["state_detail"] is None  # it waits for its turn
        assert "cognate_slots_free 1.0" in client.get("/metrics").text  # the CPU's


def test_a_run_whose_gpu_failed_goes_on_by_itself_on_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "GPU-bad", "GPU-good")
    monkeypatch.setattr(resumption, "AFTER_S", 0.01)
    with serving(tmp_path, *BAD_GPU, auto_resume=1) as client:
        run_id = launch(client, steps=5)
        wait_for(client, run_id, "completed")
        attempts = client.get(f"/v1/runs/{run_id}/attempts").json()["data"]
        assert [(attempt["device"], attempt["ending"]) for attempt in attempts] == [("cuda:0", "failed"), ("cuda:1", "finished")]
        told = [event["data"] for event in client.get(f"/v1/runs/{run_id}/events", params={"kind": "state"}).json()["data"]]
        assert ("interrupted", "gpu_error") in [(event["state"], event["reason"]) for event in told]


def test_a_rested_gpu_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "GPU-bad")
    monkeypatch.setattr(resumption, "AFTER_S", 0.2)
    with serving(tmp_path, *BAD_GPU) as client:
        for run_id in [launch(client, steps=5) for _ in range(4)]:
            wait_for(client, run_id, "interrupted")
