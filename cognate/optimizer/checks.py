"""What MuGrokfast's settings, parameters and saved states may be."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor


def check_group(group: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that is out of range, or of the whole optimizer and no group's own."""
    for name in ("muon_lr", "embedding_lr", "adamw_lr", "qk_clip", "gradient_clip", "orthogonalization_dtype", "state_dtype", "capturable"):
        if name in group:
            raise ValueError(f"{name} is the whole optimizer's; a group has its rate in lr, and none of its own of the others")
    own = ("lr", "momentum", "weight_decay", "grokfast_alpha", "grokfast_lambda", "grokfast_ramp_steps", "eps")
    check_ranges({name: group[name] for name in own if name in group})
    if "betas" in group:
        check_ranges(named_betas(group["betas"]))


def named_betas(betas: Sequence[float]) -> dict[str, float]:
    if len(betas) != 2:
        raise ValueError(f"betas are {betas}; there are two")
    return {"beta1": betas[0], "beta2": betas[1]}


def check_ranges(options: Mapping[str, float]) -> None:
    """Raises ValueError for a number out of range, or one that is none."""
    for name, value in options.items():
        if name in {"momentum", "grokfast_alpha", "beta1", "beta2"}:
            if not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        elif name in {"qk_clip", "gradient_clip", "eps"}:
            if not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        elif not 0 <= value < math.inf:
            raise ValueError(f"{name} is {value}; it must be a finite number of at least 0")


def check_new(named: Iterable[object], known: Sequence[Tensor]) -> list[tuple[str, Tensor]]:
    """A group's named parameters, none of which may be in `known`, in a list.

    Raises TypeError without names or for complex numbers, ValueError for what is there already.
    """
    checked: list[tuple[str, Tensor]] = []
    seen = {id(each) for each in known}
    for item in [named] if isinstance(named, Tensor) else named:
        if not (isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], Tensor)):
            raise TypeError(
                f"MuGrokfast tells embeddings and gains by name, but got a bare {type(item).__name__}; pass model.named_parameters()"
            )
        name, parameter = item
        if parameter.is_complex():
            raise TypeError(f"{name} is complex; MuGrokfast moves real parameters only")
        if id(parameter) in seen:
            raise ValueError(f"{name} is given twice, perhaps as another name of the same tensor; each parameter is in one group, once")
        seen.add(id(parameter))
        checked.append((name, parameter))
    return checked


def check_gradient(gradient: Tensor) -> None:
    if gradient.is_sparse:
        raise TypeError("MuGrokfast does not take sparse gradients; make the embedding without sparse=True")


def check_state(state: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """Raises ValueError for a state_dict() of other parameters than those in `groups`, or one that is not whole."""
    saved, names = ([name for group in each for name in group.get("param_names", ())] for each in (state["param_groups"], groups))
    for place, (old, new) in enumerate(zip_longest(saved, names)):
        if _bare(old) != _bare(new):  # torch tells tensors by their places, and would give one's momentum to another
            raise ValueError(
                f"the state is of other parameters: of its {len(saved)}, number {place + 1} is {old}; of these {len(names)} it is {new}"
            )
    if [len(group["params"]) for group in state["param_groups"]] != [len(group["params"]) for group in groups]:
        raise ValueError("the state is of the same parameters in other groups")
    if "counters" not in state:
        raise ValueError("the state has no counters: it was not made by MuGrokfast.state_dict(), or only torch's part of it was kept")


def _bare(name: str | None) -> str | None:
    """Without what torch.compile and DistributedDataParallel put before it."""
    return None if name is None else name.replace("_orig_mod.", "").removeprefix("module.")
