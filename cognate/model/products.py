"""x W^T and its gradients, by the library of torch's that is fast at it.

torch leaves float32 products on a CPU to MKL, which fills half of an AMD's AVX512 vectors; its convolutions go to oneDNN, which fills
them. With a kernel of one pixel a convolution is the same product. Measured on two cores of an AMD EPYC (Zen 5), GFLOP/s of MKL / of
this, x of [2048, 320] and 2,048 outputs: 170 to 210 / 484, the gradient of x 220 / 482, that of W 208 / 356. In bfloat16 both are oneDNN.

A convolution of few rows torch makes by MKL as well, which then reads W with 14 GB/s of the 54 that the memory gives. Without a
gradient there is the product that torch.compile calls in inference: 40 GB/s, of one row 187 / 66 us, of 16 239 / 131, of 64 515 / 250.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from cognate.precision import fills_vectors_only_by_onednn

ROWS = 128  # from which a convolution pays

# Torch's own, of no public name; the arguments after x and W say: no bias, nothing else to do.
_OF_FEW_ROWS: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x W^T, [..., outputs]; x: [..., inputs], weight: [outputs, inputs], of one dtype; in `out`, of x's rows, where it can be"""
    if not as_convolution(x):
        if out is not None:
            return torch.mm(x, weight.mT, out=out)
        if _is_for_onednn(x) and _OF_FEW_ROWS is not None and not torch.compiler.is_compiling():  # there it wants a constant for W
            return _OF_FEW_ROWS(x, weight, None, "none", [], "")
        return functional.linear(x, weight)
    return functional.conv2d(_as_image(x), _as_kernel(weight)).permute(0, 2, 3, 1).reshape(*x.shape[:-1], len(weight))


def gradient_of_x(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of x in product(x, weight), of the shape of x; gradient: [..., outputs]. Of x only shape and dtype matter."""
    if not as_convolution(x):
        return gradient @ weight
    to_x, _, _ = _backward(gradient, x, weight, [True, False, False])
    return to_x.permute(0, 2, 3, 1).reshape(x.shape)


def gradient_of_weight(gradient: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The gradient of weight in product(x, weight), of its shape; gradient: [..., outputs]. Of weight only shape and dtype matter."""
    if not as_convolution(x):
        return gradient.flatten(0, -2).mT @ x.flatten(0, -2)
    _, to_weight, _ = _backward(gradient, x, weight, [False, True, False])
    return to_weight[..., 0, 0]


def add_gradient_of_weight(total: Tensor, gradient: Tensor, x: Tensor, *, is_first: bool) -> None:
    """total += that of two-dimensional x, without a second tensor of that size where it can be; `total` may hold anything if `is_first`."""
    if total.dtype == x.dtype and not as_convolution(x):
        torch.addmm(total, gradient.mT, x, beta=0 if is_first else 1, out=total)
        return
    more = gradient_of_weight(gradient, x, total)
    if is_first:
        total.copy_(more)
    else:
        total += more


def as_convolution(x: Tensor) -> bool:
    """Whether a product with this x is made as a convolution."""
    return x.numel() >= ROWS * x.size(-1) and _is_for_onednn(x)


def _is_for_onednn(x: Tensor) -> bool:
    return x.dtype == torch.float32 and fills_vectors_only_by_onednn(x.device)


def _as_image(x: Tensor) -> Tensor:
    """[..., channels] as an image one pixel wide, [1, channels, row, 1], its channels next to each other: no copy."""
    # By strides: where the compiler makes them up for sides of one, oneDNN takes the image for one in another layout, and rearranges it.
    flat = x.flatten(0, -2).contiguous()
    rows, channels = flat.shape
    return flat.as_strided((1, channels, rows, 1), (rows * channels, 1, channels, channels))


def _as_kernel(weight: Tensor) -> Tensor:
    """[outputs, inputs] as a kernel, [outputs, inputs, 1, 1], in the same layout."""
    outputs, inputs = weight.shape
    return weight.contiguous().as_strided((outputs, inputs, 1, 1), (inputs, 1, inputs, inputs))


def _backward(gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    # torch.nn.grad's conv2d_input and conv2d_weight leave out what the gradient needs the shape of only, and lose the layout: half as fast.
    one, none = [1, 1], [0, 0]
    gradients: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        _as_image(gradient), _as_image(x), _as_kernel(weight), None, one, none, one, False, none, 1, wanted
    )
    return gradients
