"""Which of the three rules moves a tensor, what is kept of it between steps, and which tensors are heads' gains."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast, get_args

from torch import Tensor

Kind = Literal["matrix", "embedding", "vector"]
Group = dict[str, Any]  # one of torch's parameter groups

STATE: Mapping[Kind, tuple[str, ...]] = {
    "matrix": ("momentum",),
    "embedding": ("momentum", "mean_square", "channel_square", "step"),
    "vector": ("exp_avg", "exp_avg_sq", "step"),
}

# What modules are called whose weight has a vector a token: by the end of the name, and by all of it (GPT-2, LLaMA, and their kin).
EMBEDDING_ENDS = ("embedding", "embeddings", "emb")
EMBEDDING_NAMES = ("embed", "embed_tokens", "lm_head", "wpe", "wte")


def kind_of(name: str, parameter: Tensor) -> Kind:
    """Which of the three rules moves a parameter."""
    if parameter.ndim != 2:
        return "vector"
    if _is_embedding(name):
        return "embedding"
    if min(parameter.shape) <= 8:
        return "vector"
    return "embedding" if _is_long(parameter.shape) or _is_long(parameter.shape[::-1]) else "matrix"


def checked_kind(kind: str, name: str, parameter: Tensor) -> Kind:
    """The kind that a group asks for a parameter; raises ValueError where there is no such rule, or it does not fit."""
    if kind not in get_args(Kind):
        raise ValueError(f"a group has kind {kind!r}; it must be one of {', '.join(get_args(Kind))}, or left out")
    if kind != "vector" and parameter.ndim != 2:
        raise ValueError(f"{name} has shape {[*parameter.shape]}; kind {kind!r} is for two dimensions, others are vectors")
    return cast(Kind, kind)


def state_keys(group: Group) -> tuple[str, ...]:
    """The names of each parameter's state."""
    return (*(("slow",) if group["grokfast_lambda"] else ()), *STATE[group["kind"]])


def shape_of(key: str, name: str, parameter: Tensor) -> Sequence[int]:
    """Of one entry of a parameter's state."""
    if key == "step":
        return ()
    if key == "mean_square":
        return (1, parameter.shape[1]) if _is_sideways(name, parameter) else (parameter.shape[0], 1)
    if key == "channel_square":
        return (1, parameter.shape[0] if _is_sideways(name, parameter) else parameter.shape[1])
    return parameter.shape


def head_gains(groups: Sequence[Group]) -> list[tuple[Tensor, Tensor, int]]:
    """(query gain, key gain, head_dim) of every attention whose gains are trained, by its parameters' names (model/attention.py)."""
    named = {name: parameter for group in groups for name, parameter in zip(group["param_names"], group["params"], strict=True)}
    times = Counter(name for group in groups for name in group["param_names"])
    gains = []
    for name in named:
        if not name.endswith("query_gain"):
            continue
        prefix = name.removesuffix("query_gain")
        for each in (name, f"{prefix}key_gain", f"{prefix}query.weight"):
            if times[each] != 1:
                raise ValueError(f"{name} needs one {each} for QK-clip, not {times[each]}; rename, or pass qk_clip=math.inf")
        query_gain, key_gain = named[name], named[f"{prefix}key_gain"]
        if query_gain.shape != key_gain.shape:
            raise ValueError(f"{name} has shape {[*query_gain.shape]} and its key_gain {[*key_gain.shape]}; pass qk_clip=math.inf")
        if query_gain.requires_grad and key_gain.requires_grad:
            gains.append((query_gain, key_gain, named[f"{prefix}query.weight"].shape[0] // query_gain.numel()))
    return gains


def _is_embedding(name: str) -> bool:
    module = name.removesuffix(".weight").rpartition(".")[2]
    return name.endswith(".weight") and (module.endswith(EMBEDDING_ENDS) or module in EMBEDDING_NAMES)


def _is_sideways(name: str, table: Tensor) -> bool:
    """Whether a table's tokens are its columns: no name says that they are rows, and it is so wide that they cannot be."""
    return not _is_embedding(name) and _is_long(table.shape[::-1])


def _is_long(shape: Sequence[int]) -> bool:
    return shape[0] > 4096 and shape[0] > 16 * shape[1]
