"""A machine with one GPU, as NVML tells of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import pynvml
import pytest


@dataclass
class FakeGpu:
    """load: percent; None: NVML does not say. holders: pids of the processes that it counts memory to"""

    load: float | None
    holders: list[int] = field(default_factory=list)

    def rates(self, _: object) -> SimpleNamespace:
        if self.load is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=self.load)

    def processes(self, _: object) -> list[SimpleNamespace]:
        return [SimpleNamespace(pid=pid) for pid in self.holders]


def fake_gpu(monkeypatch: pytest.MonkeyPatch, load: float | None) -> FakeGpu:
    gpu = FakeGpu(load)
    answers = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetHandleByUUID": lambda name: name,
        "nvmlDeviceGetName": lambda _: "Fake",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=24 << 30, used=1 << 30),
        "nvmlDeviceGetUtilizationRates": gpu.rates,
        "nvmlDeviceGetComputeRunningProcesses": gpu.processes,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return gpu
