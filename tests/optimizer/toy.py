"""A model with one of everything, and gradients for it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cognate.optimizer import MuGrokfast


class Toy(nn.Module):
    """One of everything that MuGrokfast tells apart. Gradients are set, never computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(24, 16)
        self.query = nn.Linear(16, 16, bias=False)
        self.key = nn.Linear(16, 16, bias=False)
        self.query_gain = nn.Parameter(torch.ones(2))
        self.key_gain = nn.Parameter(torch.ones(2))
        self.up = nn.Linear(16, 64, bias=False)
        self.down = nn.Linear(64, 16, bias=False)
        self.gates = nn.Linear(16, 4)
        self.norm = nn.Parameter(torch.ones(16))
        self.scale = nn.Parameter(torch.tensor(0.5))


def toy(seed: int = 0) -> Toy:
    torch.manual_seed(seed)
    return Toy()


def random_gradients(model: nn.Module, seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: scale * torch.randn(parameter.shape, generator=generator) for name, parameter in model.named_parameters()}


def optimizer_of(model: nn.Module, **options: Any) -> MuGrokfast:
    """In float32, so that what is compared does not depend on the machine."""
    return MuGrokfast(model.named_parameters(), **{"orthogonalization_dtype": torch.float32, **options})


def step_with(optimizer: MuGrokfast, model: nn.Module, gradients: dict[str, Tensor]) -> None:
    for name, parameter in model.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_same_bits(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert [name for name in left if not torch.equal(left[name], right[name])] == []


def train(gradients: Iterable[dict[str, Tensor]], **options: Any) -> dict[str, Tensor]:
    """The weights of a Toy after one step a gradient."""
    model = toy()
    optimizer = optimizer_of(model, **options)
    for gradient in gradients:
        step_with(optimizer, model, gradient)
    return weights(model)


def published_grokfast(gradients: list[Tensor], alpha: float, weights: list[float]) -> list[Tensor]:
    """Grokfast-EMA as its authors wrote it, with a weight of its own for each step."""
    slow = gradients[0]
    filtered = []
    for gradient, weight in zip(gradients, weights, strict=True):
        slow = alpha * slow + (1 - alpha) * gradient
        filtered.append(gradient + weight * slow)
    return filtered
