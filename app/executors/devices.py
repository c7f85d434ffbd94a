"""The GPUs this service may use, as NVML sees them: those CUDA_VISIBLE_DEVICES leaves it, else all."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pynvml

BUS = Path("/sys/bus/pci/devices")
WSL = Path("/dev/dxg")  # there GPUs are on no bus
NVIDIA, DISPLAY = "0x10de", "0x03"  # of the PCI IDs: the vendor, and the beginning of the class


class DriverError(RuntimeError):
    """There is a driver, and it does not tell of its GPUs."""


def usable_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say for each, in order. Without a driver, or a card, there are none, which is no error.

    Raises DriverError.
    """
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    named = None if granted is None else [name.strip() for name in granted.split(",") if name.strip()]
    if named == []:
        return []
    try:
        pynvml.nvmlInit()
        present = [str(index) for index in range(int(pynvml.nvmlDeviceGetCount()))]
    except pynvml.NVMLError_LibraryNotFound:
        return []
    except pynvml.NVMLError as error:
        if not _may_have_gpus():  # only the driver's files are here
            return []
        raise DriverError(f"{error} (where no GPU is to be used: start the service with CUDA_VISIBLE_DEVICES empty)") from error
    return present if named is None else named


def describe(gpu: str) -> dict[str, Any]:
    """Name, memory and load of a GPU that usable_gpus() named; each where the driver says it: a MIG instance has no load."""
    try:
        handle = _handle(gpu)
    except pynvml.NVMLError:
        return {}
    found: dict[str, Any] = {}
    with contextlib.suppress(pynvml.NVMLError):
        found["name"] = pynvml.nvmlDeviceGetName(handle)
    with contextlib.suppress(pynvml.NVMLError):
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        found |= {"memory_total_bytes": int(memory.total), "memory_used_bytes": int(memory.used)}
    with contextlib.suppress(pynvml.NVMLError):
        found["utilisation_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
    return found


def holds_memory(gpu: str, pid: int) -> bool:
    """Whether the driver still counts memory of the GPU to a process. In a container it may name none: then no."""
    try:
        return any(process.pid == pid for process in pynvml.nvmlDeviceGetComputeRunningProcesses(_handle(gpu)))
    except pynvml.NVMLError:
        return False


def _may_have_gpus() -> bool:
    def says(device: Path, name: str) -> str:
        try:
            return (device / name).read_text()
        except OSError:
            return ""

    cards = (device for device in BUS.glob("*") if says(device, "vendor").startswith(NVIDIA))
    return WSL.exists() or any(says(card, "class").startswith(DISPLAY) for card in cards)


def _handle(gpu: str) -> Any:
    return pynvml.nvmlDeviceGetHandleByIndex(int(gpu)) if gpu.isdigit() else pynvml.nvmlDeviceGetHandleByUUID(gpu)
