"""devices.py on made-up answers of NVML: what a driver leaves out does not hide the rest, nor is its silence taken for no GPUs."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from app.executors import devices, local
from app.executors.devices import DriverError, describe, holds_memory, usable_gpus
from app.executors.local import LocalExecutor
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


def refuse_to_begin(monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(error)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)


@pytest.fixture
def bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PCI bus with a network card of NVIDIA's, a display of another maker's, and a GPU."""
    monkeypatch.setattr(devices, "BUS", tmp_path / "bus")
    monkeypatch.setattr(devices, "WSL", tmp_path / "dxg")
    for name, vendor, kind in (("net", "0x10de", "0x020000"), ("vga", "0x1af4", "0x030000"), ("gpu", "0x10de", "0x030200")):
        (device := tmp_path / "bus" / name).mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        (device / "class").write_text(f"{kind}\n")
    return tmp_path / "bus"


def test_without_a_driver_there_are_no_gpus(gpu: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_begin(monkeypatch, pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    assert usable_gpus() == []


def test_a_driver_whose_card_is_not_there_is_as_none(gpu: FakeGpu, bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image made for GPUs, on a machine without."""
    refuse_to_begin(monkeypatch, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    with pytest.raises(DriverError, match="Driver Not Loaded"):
        usable_gpus()
    shutil.rmtree(bus / "gpu")
    assert usable_gpus() == []
    (bus.parent / "dxg").touch()
    with pytest.raises(DriverError, match="CUDA_VISIBLE_DEVICES empty"):
        usable_gpus()


def test_a_driver_that_does_not_tell_is_no_missing_driver(gpu: FakeGpu, bus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an upgrade of the driver runs went on on the CPU, and nothing said so."""
    refuse_to_begin(monkeypatch, pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    with pytest.raises(DriverError, match="RM has detected an NVML/RM version mismatch"):
        usable_gpus()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert usable_gpus() == []  # none was granted, so none is asked for


def test_gpus_are_looked_for_again_and_their_absence_is_told_once(
    gpu: FakeGpu, bus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begin = pynvml.nvmlInit
    refuse_to_begin(monkeypatch, pynvml.NVML_ERROR_DRIVER_NOT_LOADED)
    executor = LocalExecutor(None, tmp_path, 1)
    assert executor.slots() == ["cpu"]
    assert (trouble := executor.trouble()) is not None
    assert trouble.startswith("Driver Not Loaded")
    executor.tend()
    monkeypatch.setattr(local, "GPUS_LOOKED_FOR_EVERY_S", 0.0)
    executor._look_for_gpus()
    executor.tend()
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR] == [
        f"the driver does not tell of its GPUs: {trouble}; looking again every 30 s"
    ]
    monkeypatch.setattr(pynvml, "nvmlInit", begin)
    executor.tend()
    assert (executor.slots(), executor.trouble()) == (["cuda:0", "cpu"], None)
