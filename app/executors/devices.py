"""GPUs as NVML sees them. Without a driver there are none, which is no error."""

from __future__ import annotations

import pynvml


def gpu_count() -> int:
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0
