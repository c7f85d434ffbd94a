"""A machine with one GPU, as NVML tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pynvml
import pytest


@dataclass
class FakeGpu:
    """load: percent; None: NVML does not say"""

    load: float | None

    def rates(self, _: object) -> SimpleNamespace:
        if self.load is None:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return SimpleNamespace(gpu=self.load)


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
        "nvmlDeviceGetComputeRunningProcesses": lambda _: [],
    }
    for name, answer in answers.items():
        monkeypatch.setattr(pynvml, name, answer)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return gpu
