"""The layers every part of Cognate is made of: linear maps, RMSNorm, the MLP. attention.py has the one that mixes tokens.

Weights stay float32; activations have whatever dtype they came in with, and norms are computed in float32.

Source: docs/model.md section 1. RMSNorm arXiv:1910.07467, ReLU^2 arXiv:2109.08668 (Primer), section 3, ternary weights
arXiv:2402.17764 (BitNet b1.58), section 2; there activations are rounded too, here they are not.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from cognate.precision import multiplies_by_onednn, product_dtype, product_of_inference

EPSILON = 1e-6

Method = TypeVar("Method", bound=Callable[..., Any])


@functools.cache
def compiled(method: Callable[..., Any]) -> Callable[..., Any]:
    return torch.compile(method, fullgraph=True, dynamic=False)


def region(method: Method) -> Method:
    """A module's method of tensors of fixed shapes that torch.compile may make: where the module says `is_compiled`, and a
    gradient is recorded. All modules of a kind share what is compiled once.
    """

    @functools.wraps(method)
    def call(module: Any, *given: Any) -> Any:
        made = compiled(method) if module.is_compiled and torch.is_grad_enabled() else method
        return made(module, *given)

    return cast(Method, call)


class Compilable(nn.Module):
    """A module with a region."""

    is_compiled = False


class Linear(nn.Linear):
    """y = x W^T without bias, in the dtype of x; the weight itself stays float32. If `is_ternary`, W is ternary(weight)."""

    is_ternary = False

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def reset_parameters(self) -> None:
        """Uniform with variance 1/inputs, so that what is normalised stays so."""
        bound = math.sqrt(3 / self.in_features)
        nn.init.uniform_(self.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.matrix())

    def matrix(self) -> Tensor:
        """W, float32"""
        return ternary(self.weight) if self.is_ternary else self.weight


class RMSNorm(nn.Module):
    """rms_norm times a learned weight per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight)


class MLP(nn.Module):
    """W_down relu(W_up x)^2; W_down begins at zero."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up = Linear(width, hidden)
        self.down = Linear(hidden, width)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.down.matrix().to(product_dtype(x.dtype, x.device))
        if not torch.is_grad_enabled():
            return _product(self.up(x).relu_().to(weight.dtype).square_(), weight).to(x.dtype)
        out: Tensor = _SquaredReLULinear.apply(self.up(x), weight)  # type: ignore[no-untyped-call]
        return out


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T in the dtype of x, computed in its product_dtype; x: [..., token, inputs], weight: [outputs, inputs], float32"""
    weight = weight.to(product_dtype(x.dtype, x.device))
    if not torch.is_grad_enabled():
        return _product(x.to(weight.dtype), weight).to(x.dtype)
    if x.dtype == weight.dtype:
        return functional.linear(x, weight)
    out: Tensor = _WideLinear.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def _product(x: Tensor, weight: Tensor) -> Tensor:
    """x W^T without a gradient"""
    # Of a single row in 72 us (MKL: 191), of 16 in 142 (271); W [2048, 320]. The compiler wants a constant for W.
    if x.dtype == torch.float32 and multiplies_by_onednn(x.device) and product_of_inference and not torch.compiler.is_compiling():
        return product_of_inference(x, weight, None, "none", [], "")
    return functional.linear(x, weight)


def drop(x: Tensor, rates: Tensor) -> Tensor:
    """Each channel of a token is 0 with the token's probability, the others are larger by as much: the mean stays.

    x: [batch, time, width]; rates: float [batch, time], at least 0 and below 1 (Srivastava et al., JMLR 15, 2014)
    """
    kept = 1 - rates[..., None]
    return x * ((torch.rand(x.shape, device=x.device) < kept) / kept).to(x.dtype)


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[batch, time, width] -> [batch, time, head, width / head]"""
    return x.view(*x.shape[:-1], n_heads, -1)


def ternary(weight: Tensor) -> Tensor:
    """Each weight rounded to -1, 0 or 1 times the mean absolute weight; the gradient passes straight through to `weight`."""
    size = weight.detach().abs().mean()
    rounded = (weight.detach() / (size + EPSILON)).round().clamp(-1, 1) * size
    return rounded + (weight - weight.detach())  # adds 0, and the gradient


def rms_norm(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """x / sqrt(mean(x^2) + 1e-6) over the last dimension, computed in float32, in the dtype of x; times weight [width]."""
    if x.is_cuda or not torch.is_grad_enabled():
        return _normalized(x, weight)
    out: Tensor = _RMSNorm.apply(x, weight)  # type: ignore[no-untyped-call]
    return out


def _normalized(x: Tensor, weight: Tensor | None) -> Tensor:
    return functional.rms_norm(x, x.shape[-1:], None if weight is None else weight.to(x.dtype), EPSILON)


class _RMSNorm(torch.autograd.Function):
    """On the CPU torch's own is fused forward but not backward, where it costs three to five times this one. Keeps x alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _normalized(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        x, weight = ctx.saved_tensors
        wide, gradient, to_weight = x.float(), gradient.float(), None
        scale = torch.rsqrt(torch.linalg.vecdot(wide, wide) / x.size(-1) + EPSILON)
        if weight is None:
            along = torch.linalg.vecdot(gradient, wide)
        else:
            both = gradient * wide
            along, to_weight = both @ weight, scale.flatten() @ both.flatten(0, -2)
            gradient = gradient * weight
        along, scale = (along / x.size(-1) * scale.square())[..., None], scale[..., None]
        return torch.addcmul(gradient, wide, along, value=-1).mul_(scale).to(x.dtype), to_weight


class _WideLinear(torch.autograd.Function):
    """linear() in a wider dtype than that of x, which is kept for the gradient as narrow as it is."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.linear(x.to(weight.dtype), weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        return (gradient @ weight).to(x.dtype), _gradient_of_weight(gradient, x.to(weight.dtype))


class _SquaredReLULinear(torch.autograd.Function):
    """relu(x)^2 W^T, as linear(). The square, the widest tensor of a block, is computed again for the gradient instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rectified = functional.relu(x)
        ctx.save_for_backward(rectified, weight)
        return functional.linear(rectified.to(weight.dtype).square(), weight).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        rectified, weight = ctx.saved_tensors
        gradient = gradient.to(weight.dtype)
        wide = rectified.to(weight.dtype)
        to_x = ((2 * gradient) @ weight).mul_(wide).to(rectified.dtype)  # doubled on the narrow side
        square = wide.square_()  # in its place where it has that dtype; a second backward pass is then refused
        return to_x, _gradient_of_weight(gradient, square)


def _gradient_of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    """That of x W^T, [outputs, inputs]; gradient: [..., outputs], x: [..., inputs]"""
    return gradient.flatten(0, -2).mT @ x.flatten(0, -2)
