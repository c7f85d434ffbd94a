"""The machine a run would be on: versions, device, memory, precision."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final

import torch

from cognate.config import RunConfig
from cognate.precision import native_dtype
from cognate.report.facts import Machine
from cognate.training.execution import activation_dtype, available, has_compiler

GPU_IS_BUSY: Final = "every GPU is at work on a run"
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def look_around(config: RunConfig, device: torch.device, wandb: Mapping[str, Any] | None, *, gpu_is_busy: bool) -> Machine:
    """What a run would meet on this machine.

    wandb: of wandb_mode.seen_here(), where the caller knows it
    gpu_is_busy: a run would get a GPU, but not now, and it cannot be looked at
    """
    is_gpu = device.type == "cuda"
    total, free = _gpu_memory(config, device) if is_gpu else host_memory()
    absent = {} if wandb is not None else {"wandb": "this process does not see the settings of Weights & Biases"}
    machine = Machine(platform.python_version(), torch.__version__, torch.get_num_threads(), "cuda" if is_gpu else "cpu", wandb=wandb)
    if gpu_is_busy:
        unseen = ("gpu", "compute_capability", "memory_total_bytes", "memory_free_bytes", "precision")
        return replace(machine, device="cuda", absent=absent | dict.fromkeys(unseen, GPU_IS_BUSY))
    if total is None:
        absent["memory_total_bytes"] = absent["memory_free_bytes"] = "the system does not say how much memory there is"
    return replace(
        machine,
        gpu=torch.cuda.get_device_name(device) if is_gpu else None,
        compute_capability=".".join(map(str, torch.cuda.get_device_capability(device))) if is_gpu else None,
        memory_total_bytes=total,
        memory_free_bytes=free,
        precision=str(activation_dtype(config, device)).removeprefix("torch."),
        has_native_bf16=native_dtype(device) is torch.bfloat16,
        has_compiler=has_compiler(device),
        absent=absent,
    )


def host_memory(proc: Path = PROC, cgroup: Path = CGROUP) -> tuple[int | None, int | None]:
    """(total, free) bytes of this machine or of the container that limits it; free counts what caches would give up."""
    try:
        found = dict(re.findall(r"(\w+): +(\d+) kB", (proc / "meminfo").read_text()))
        total, free = (1024 * int(found[name]) for name in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError):
        return None, None
    try:
        limit = int((cgroup / "memory.max").read_text())  # "max" where there is none
        used = int((cgroup / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (cgroup / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return total, free
    return min(total, limit), min(free, limit - used + (int(cached[1]) if cached else 0))


@final
class Peak:
    """The most memory since it was made: reserved by the GPU's allocator, or resident in this whole process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._is_watching = True
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            return
        try:
            (PROC / "self/clear_refs").write_text("5")
        except OSError:  # not every container allows it
            self._is_watching = False

    def bytes(self) -> int | None:
        """None where the system does not say."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_reserved(self._device)
        found = re.search(r"VmHWM:\s+(\d+) kB", (PROC / "self/status").read_text()) if self._is_watching else None
        return 1024 * int(found[1]) if found else None


@final
class Neighbours:
    """What other processes took of the processors' time since it was made."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._before = self._look()

    def share(self) -> float | None:
        """0..1 of all there was; None where the system does not say."""
        now = self._look()
        if now is None or self._before is None:
            return None
        total, busy, own = (after - before for after, before in zip(now, self._before, strict=True))
        return min(1.0, max(0.0, busy - own) / total) if total > 0 else None

    def _look(self) -> tuple[float, float, float] | None:
        """Seconds: of all processors, of these not idle, of this process."""
        try:
            fields = (self._proc / "stat").read_text().split("\n", 1)[0].split()[1:9]
        except OSError:
            return None
        ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
        return sum(ticks), sum(ticks) - ticks[3] - ticks[4], sum(os.times()[:2])  # without idle and waiting for disks


def _gpu_memory(config: RunConfig, device: torch.device) -> tuple[int, int]:
    return torch.cuda.mem_get_info(device)[1], available(config.training, device)
