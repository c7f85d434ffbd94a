"""The GPUs this service may use: those CUDA_VISIBLE_DEVICES leaves it, else all that NVML sees."""

from __future__ import annotations

import os

import pynvml


def usable_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES must say for each, in order. Without a driver there are none, which is no error."""
    try:
        pynvml.nvmlInit()
        present = [str(index) for index in range(int(pynvml.nvmlDeviceGetCount()))]
    except pynvml.NVMLError:
        return []
    granted = os.environ.get("CUDA_VISIBLE_DEVICES")
    return present if granted is None else [name.strip() for name in granted.split(",") if name.strip()]
