"""x W^T and its gradients, by the library of torch's that is fast at it.

torch leaves float32 products on a CPU to MKL, which fills half of an AMD's AVX512 vectors; its convolutions go to oneDNN, which fills
them. With a kernel of one pixel a convolution is the same product. Measured on two cores of an AMD EPYC (Zen 5), GFLOP/s of MKL / of
this, x of [2048, 320] and 2,048 outputs: 170 to 210 / 484, the gradient of x 220 / 482, that of W 208 / 356. In bfloat16 both are oneDNN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cognate.precision import fills_vectors_only_in_convolutions

ROWS = 128  # from which a convolution pays; with fewer torch makes it by MKL as well


def product(x: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """x W^T, [..., outputs]; x: [..., inputs], weight: [outputs, inputs], of one dtype; in `out`, of x's rows, where it can be"""
    if not as_convolution(x):
        return functional.linear(x, weight) if out is None else torch.mm(x, weight.mT, out=out)
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
    return x.dtype == torch.float32 and x.numel() >= ROWS * x.size(-1) and fills_vectors_only_in_convolutions(x.device)


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
