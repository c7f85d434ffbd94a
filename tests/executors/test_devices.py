"""devices.py on made-up answers of NVML: what a driver leaves out does not hide the rest."""

from __future__ import annotations

from types import SimpleNamespace

import pynvml
import pytest

from app.executors.devices import describe, holds_memory, usable_gpus
from tests.fake_nvml import FakeGpu, fake_gpu

WHOLE = {"name": "Fake", "memory_total_bytes": 24 << 30, "memory_used_bytes": 1 << 30, "utilisation_percent": 87.0}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    return fake_gpu(monkeypatch, load=87)


def refuse(_: object) -> SimpleNamespace:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)


def test_a_gpu_is_described(gpu: FakeGpu) -> None:
    assert usable_gpus() == ["0"]
    assert describe("0") == describe("GPU-abc") == WHOLE


@pytest.mark.parametrize(
    ("function", "left_out"),
    [
        ("nvmlDeviceGetUtilizationRates", ["utilisation_percent"]),  # a MIG instance
        ("nvmlDeviceGetMemoryInfo", ["memory_total_bytes", "memory_used_bytes"]),  # memory that is shared with the host
        ("nvmlDeviceGetName", ["name"]),
        ("nvmlDeviceGetHandleByIndex", list(WHOLE)),  # it has fallen off the bus
    ],
)
def test_what_the_driver_does_not_say_is_left_out_alone(
    gpu: FakeGpu, function: str, left_out: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pynvml, function, refuse)
    assert describe("0") == {key: value for key, value in WHOLE.items() if key not in left_out}


@pytest.mark.parametrize(("holders", "holds"), [([7, 4242], True), ([7], False), ([], False)])
def test_memory_is_held_by_whom_the_driver_names(gpu: FakeGpu, holders: list[int], holds: bool) -> None:
    """Where it names none, as in some containers, a process that is gone holds none."""
    gpu.holders = holders
    assert holds_memory("0", 4242) is holds_memory("GPU-abc", 4242) is holds


@pytest.mark.parametrize("function", ["nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_that_does_not_say_who_holds_memory_names_nobody(gpu: FakeGpu, function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu.holders = [4242]
    monkeypatch.setattr(pynvml, function, refuse)
    assert not holds_memory("0", 4242)
