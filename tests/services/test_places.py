"""Where a queued run is put, what it is told where there is no place for it, and that it is never put on the CPU instead of a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.executors import local
from app.executors.devices import DriverError
from app.services.places import asked_for, fitting, is_news, missing
from tests.service import HOLD, launch, serving, until, wait_for

MISMATCH = "RM has detected an NVML/RM version mismatch"
GPU = ["cuda:0", "cpu"]


@pytest.mark.parametrize(
    ("device", "slots", "trouble", "last", "wanted"),
    [
        ("auto", ["cpu"], None, None, "cpu"),
        ("auto", ["cpu"], None, "cpu", "cpu"),
        ("auto", GPU, None, None, "cuda"),
        ("auto", GPU, None, "cpu", "cuda"),
        ("auto", ["cpu"], MISMATCH, None, "cuda"),
        ("auto", ["cpu"], None, "cuda:1", "cuda"),
        ("cpu", GPU, MISMATCH, "cuda:0", "cpu"),
        ("cuda:1", ["cpu"], MISMATCH, None, "cuda:1"),
    ],
)
def test_auto_is_a_gpu_wherever_there_may_be_one(device: str, slots: list[str], trouble: str | None, last: str | None, wanted: str) -> None:
    assert asked_for(device, slots, trouble, last) == wanted


@pytest.mark.parametrize(("wanted", "slot"), [("cpu", "cpu"), ("cuda", "cuda:0"), ("cuda:0", "cuda:0"), ("cuda:1", None)])
def test_a_slot_fits_by_its_name_or_its_kind(wanted: str, slot: str | None) -> None:
    assert fitting(wanted, GPU) == slot


@pytest.mark.parametrize(
    ("device", "wanted", "slots", "trouble", "words"),
    [
        ("auto", "cuda", GPU, None, None),
        ("cpu", "cpu", ["cpu"], MISMATCH, None),
        ("auto", "cuda", ["cpu"], MISMATCH, f"waits for a GPU: the driver says {MISMATCH}"),
        ("cuda:1", "cuda:1", ["cpu"], MISMATCH, f"waits for cuda:1: the driver says {MISMATCH}"),
        ("cuda:1", "cuda:1", GPU, None, "waits for cuda:1, which is not here"),
        ("cuda", "cuda", ["cpu"], None, "waits for a GPU, which is not here"),
    ],
)
def test_a_run_without_a_place_is_told_why(device: str, wanted: str, slots: list[str], trouble: str | None, words: str | None) -> None:
    assert missing(device, wanted, slots, trouble) == words


@pytest.mark.parametrize(
    ("why", "told", "is_one"),
    [
        (None, None, False),
        (None, "attempt 1 of 3", False),
        (None, "waits for a GPU: ...", True),
        ("waits for a GPU: ...", None, True),
        ("waits for a GPU: ...", "waits for a GPU: ...", False),
    ],
)
def test_it_is_told_when_there_is_news(why: str | None, told: str | None, is_one: bool) -> None:
    assert is_news(why, told) is is_one


# --- in the service ---------------------------------------------------------------------------------------------


def test_a_driver_that_does_not_tell_of_its_gpus_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With device auto such runs went on silently on the CPU, at a hundredth of the speed."""
    found: list[str] = []

    def look_for_gpus() -> list[str]:
        if not found:
            raise DriverError(MISMATCH)
        return found

    monkeypatch.setattr(local, "usable_gpus", look_for_gpus)
    monkeypatch.setattr(local, "holds_memory", lambda *_: False)
    monkeypatch.setattr(local, "GPUS_LOOKED_FOR_EVERY_S", 0.0)
    with serving(tmp_path) as client:
        run_ids = [launch(client, steps=3)]
        run_ids.append(launch(client, config={"training": {"max_steps": 3, "device": "cuda"}}))
        for run_id in run_ids:
            run = until(lambda run_id=run_id: (run := client.get(f"/v1/runs/{run_id}").json())["state_detail"] and run)  # type: ignore[misc]
            assert (run["state"], run["state_detail"]) == ("queued", f"waits for a GPU: the driver says {MISMATCH}")
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json()["checks"]["devices"]["ok"]) == (503, False)
        assert MISMATCH in answer.json()["checks"]["devices"]["detail"]
        look = client.app.state.parts.supervisor.look  # type: ignore[attr-defined]
        for _ in range(3):
            look()
        for run_id in run_ids:
            assert len(client.get(f"/v1/runs/{run_id}/events").json()["data"]) == 2  # told once
        wait_for(client, launch(client, config={"training": {"max_steps": 3, "device": "cpu"}}), "completed")
        found.append("GPU-a")
        for run_id in run_ids:
            wait_for(client, run_id, "completed")
            assert [attempt["device"] for attempt in client.get(f"/v1/runs/{run_id}/attempts").json()["data"]] == ["cuda:0"]
        assert client.get("/readyz").json()["checks"]["devices"] == {"ok": True, "detail": "cuda:0, cpu"}


def test_a_run_that_was_on_a_gpu_does_not_go_on_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "holds_memory", lambda *_: False)
    monkeypatch.setattr(local, "usable_gpus", lambda: ["GPU-a"])
    with serving(tmp_path, *HOLD) as client:
        run_id = launch(client, steps=60)
        wait_for(client, run_id, "running")
    monkeypatch.setattr(local, "usable_gpus", list)
    with serving(tmp_path) as client:
        run = until(lambda: (run := client.get(f"/v1/runs/{run_id}").json())["state_detail"] and run)
        assert (run["state"], run["attempt"]) == ("queued", 1)
        assert run["state_detail"].startswith("waits for a GPU: its last attempt was on one, and there is none now")
        assert client.post(f"/v1/runs/{run_id}/pause").json()["state_detail"] is None
