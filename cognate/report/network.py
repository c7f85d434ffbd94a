"""The sizes of model and optimizer, counted from their shapes: the model is built on the meta device, so nothing is allocated."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import torch

from cognate.config import RunConfig
from cognate.model import Cognate
from cognate.report.facts import Network
from cognate.training.loop import build_optimizer


def count(config: RunConfig) -> Network:
    with torch.device("meta"):
        model = Cognate(config.model)
    optimizer = build_optimizer(model, config)
    parts = Counter({part: 0 for _, part in _PARTS})  # in this order
    for name, parameter in model.named_parameters():
        parts[part_of(name)] += parameter.numel()
    groups = tuple(
        {
            "kind": group["kind"],
            "tensors": len(group["params"]),
            "parameters": sum(parameter.numel() for parameter in group["params"]),
            "learning_rate": group["lr"],
        }
        for group in optimizer.param_groups
    )
    model_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    average_bytes = model_bytes if config.training.weight_ema else 0
    sizes = {part: size for part, size in parts.items() if size}
    return Network(parts.total(), sizes, groups, model_bytes, optimizer.state_bytes(), average_bytes)


_PARTS: Final = (
    (r"embedding\.", "token embedding, which is the output head"),
    (r"backbone\.blocks\.\d+\.attention\.\w+\.", "attention: query, key, value, out"),
    (r"backbone\.blocks\.\d+\.mlp\.", "MLP"),
    (r"backbone\.blocks\.\d+\.memory\.gates\.", "memory: decay and write gates"),
    (r"backbone\.blocks\.\d+\.memory\.", "memory: query, key, value, out"),
    (r"backbone\.blocks\.\d+\.gate\.", "gate between attention and memory"),
    (r"backbone\.", "norms, attention gains, residual weights"),
    (r"recursion\.(query|key|value|out|mlp)\.", "recursion: attention and MLP"),
    (r"recursion\.", "recursion: norms and first states"),
    (r"halting\.", "halting head"),
)


def part_of(name: str) -> str:
    """The part of the model that a parameter belongs to: the rows of docs/model.md's first table."""
    return next(part for pattern, part in _PARTS if re.match(pattern, name))
