"""What a readiness report rests on. Everything here was measured or counted; what was not is None, and `absent` says why.

machine.py, plan.py and probe.py find these facts; verdict.py judges them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Machine:
    """memory_*: of the GPU, or of the host where there is none. has_*: None, not known"""

    python: str
    torch: str
    threads: int
    device: Literal["cpu", "cuda"]
    gpu: str | None = None
    compute_capability: str | None = None
    memory_total_bytes: int | None = None
    memory_free_bytes: int | None = None
    precision: str | None = None
    has_native_bf16: bool | None = None
    has_compiler: bool | None = None
    wandb: Mapping[str, Any] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Dataset:
    """Rows of its files, and those selected for training. planned: what docs/model.md section 3 counts on"""

    name: str
    category: str
    hub: str
    stage: int
    state: Literal["present", "partial", "missing", "not chosen"]
    train: int
    validation: int
    test: int
    samples: int
    planned: int
    missing_files: tuple[str, ...] = ()
    remark: str | None = None


@dataclass(frozen=True)
class Plan:
    """The curriculum as it will be. steps_per_epoch: optimizer steps, all epochs, before max_steps ends them

    stages: plain JSON, as Curriculum.describe() has them, with steps, tokens and fill ratio of an epoch
    error: why there is nothing to train on; the rest is empty then
    """

    source: Literal["folder", "generated"]
    folder: str | None
    datasets: tuple[Dataset, ...] = ()
    stages: tuple[Mapping[str, Any], ...] = ()
    is_six: bool = False
    steps_per_epoch: tuple[int, ...] = ()
    total_steps: int = 0
    epochs: int = 0  # that are begun
    different_tokens: int = 0  # of all training text, each document once
    vocabulary: int = 0
    warnings: tuple[str, ...] = ()
    error: str | None = None


@dataclass(frozen=True)
class Network:
    """Counted on the meta device: the shapes are the model's, nothing is allocated."""

    parameters: int
    parts: Mapping[str, int]
    groups: tuple[Mapping[str, Any], ...]  # of the optimizer: kind, tensors, parameters, learning_rate
    model_bytes: int
    optimizer_bytes: int
    average_bytes: int = 0  # of the weights' running mean, where one is kept

    @property
    def checkpoint_bytes(self) -> int:
        """Its tensors; the small text files beside them are not counted."""
        return self.model_bytes + self.optimizer_bytes + self.average_bytes

    @property
    def least_bytes(self) -> int:
        """Weights, gradient, optimizer state and running mean, before the first activation."""
        return 2 * self.model_bytes + self.optimizer_bytes + self.average_bytes


@dataclass(frozen=True)
class Probe:
    """A few steps of the real model and optimizer. whole_steps 0: no whole step fitted, and step_s is extrapolated

    rows: most rows of a batch that went through the model at once; rows_at_once: as many as a run would take
    others_share: of the processors' time, 0..1, that went to other processes meanwhile; None on a GPU, which is timed alone
    peak_bytes: of the GPU's allocator, or of the whole process; extrapolated like step_s
    """

    whole_steps: int
    rows: int
    rows_at_once: int
    step_s: float
    optimizer_s: float
    tokens_per_s: float
    peak_bytes: int | None
    metrics_line_bytes: int
    progress_line_bytes: int
    seconds: float
    others_share: float | None
    basis: str


@dataclass(frozen=True)
class Facts:
    """absent: what was not measured, by name, and why; is_partial: it could be at another time

    trouble: (what, sentence) where a step failed while it was measured
    """

    machine: Machine
    plan: Plan
    network: Network
    disk_free_bytes: int
    probe: Probe | None = None
    trouble: tuple[Literal["out_of_memory", "nonfinite_loss", "step_failed"], str] | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
    is_partial: bool = False
