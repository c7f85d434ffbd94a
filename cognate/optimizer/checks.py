"""What MuGrokfast's settings may be."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def check_group(group: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that is out of range, or of the whole optimizer and no group's own."""
    for name in ("muon_lr", "embedding_lr", "adamw_lr", "qk_clip", "gradient_clip", "orthogonalization_dtype", "state_dtype", "capturable"):
        if name in group:
            raise ValueError(f"{name} is the whole optimizer's; a group has its rate in lr, and none of its own of the others")
    own = ("lr", "momentum", "weight_decay", "grokfast_alpha", "grokfast_lambda", "grokfast_ramp_steps", "eps")
    check_ranges({name: group[name] for name in own if name in group})
    if "betas" in group:
        check_ranges(dict(zip(("beta1", "beta2"), group["betas"], strict=True)))


def check_ranges(options: Mapping[str, float]) -> None:
    """Raises ValueError for a number out of range, or one that is none."""
    for name, value in options.items():
        if name in {"momentum", "grokfast_alpha", "beta1", "beta2"}:
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        elif name in {"qk_clip", "gradient_clip"}:
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        elif not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")
