"""Muon's orthogonalisation: the polar factor of a matrix by Polar Express, and the Gram form of the same product.

Sources: Muon, https://kellerjordan.github.io/posts/muon. Polar Express, arXiv:2505.16932.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Coefficients = Sequence[tuple[float, float, float]]

# Five odd quintics a x + b x^3 + c x^5 whose composition takes [0.001, 1] into [0.85, 1.15]. The paper's algorithm 1 with
# its safety factor 0.02 (hence MARGIN), as computed for modded-nanogpt (github.com/KellerJordan/modded-nanogpt).
POLAR_EXPRESS: Coefficients = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
MARGIN = 1.02

# Elements of the matrices that the CPU takes through all polynomials before it goes on to the next; 4 MiB in bfloat16.
AT_ONCE = 2**21


def orthogonalize(
    update: Tensor, coefficients: Coefficients = POLAR_EXPRESS, *, margin: float = MARGIN, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The nearest matrix with all singular values about 1 (the polar factor), by odd polynomials of `update`.

    Singular values of at least 1/1000 of the Frobenius norm come out within [0.84, 1.16]; smaller ones grow
    about a thousandfold and stay below that. Zero stays zero. The scale of `update` does not matter while float32 holds the squares of
    its elements.

    update: [..., rows, columns], any floating dtype
    returns [..., rows, columns] in `dtype`
    """
    rows, columns = update.shape[-2:]
    matrices = update.to(dtype).reshape(-1, rows, columns)
    if dtype == torch.float32 and max(rows, columns) >= 3 * min(rows, columns):
        return _apply_polynomials_by_gram(matrices, coefficients, margin).reshape(update.shape)
    wide = matrices.mT if rows > columns else matrices  # [matrix, short side, long side]: the products below are then short x short
    wide = _apply_polynomials(wide, _bound(torch.linalg.vector_norm(wide, dim=(-2, -1), keepdim=True), margin), coefficients)
    return (wide.mT if rows > columns else wide).reshape(update.shape)


def _bound(norm: Tensor, margin: float) -> Tensor:
    """What singular values are divided by to lie below 1 / margin; norm: Frobenius's"""
    # A norm below 1e-12 is not divided by: such an update fades to nothing, and its rounding is not amplified.
    return norm.clamp(min=1e-12) * margin


def _apply_polynomials(wide: Tensor, bounds: Tensor, coefficients: Coefficients) -> Tensor:
    """wide: [matrix, short side, long side]; bounds: [matrix, 1, 1], what each is divided by; returns the shape of `wide`, contiguous"""
    short, long = wide.shape[1:]
    out = torch.empty(wide.shape, dtype=wide.dtype, device=wide.device)
    at_once = len(wide) if wide.is_cuda else min(len(wide), max(1, AT_ONCE // (short * long)))
    # Results go where earlier ones were: on the CPU fresh memory made this a third slower for 36 matrices of 320 x 320.
    square, spare = wide.new_empty(2, at_once, short, short), wide.new_empty(at_once, short, long)
    for part, bound, result in zip(*(torch.split(tensor, at_once) for tensor in (wide, bounds, out)), strict=True):
        (gram, factor), results = square[:, : len(part)], (result, spare[: len(part)])
        left = len(coefficients)
        part = torch.div(part, bound, out=results[left % 2])
        for a, b, c in coefficients:
            left -= 1
            torch.bmm(part, part.mT, out=gram)
            torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=factor)
            part = torch.baddbmm(part, factor, part, beta=a, out=results[left % 2])  # the last one's is `result`
    return out


def _apply_polynomials_by_gram(matrices: Tensor, coefficients: Coefficients, margin: float) -> Tensor:
    """The same product, of matrices that are not yet scaled, multiplying only short x short ones between the first line and the last.

    In bfloat16 small singular values drown in the Gram matrix's rounding and come out up to 1.4: float32 only.
    """
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    gram = matrices.mT @ matrices if is_tall else matrices @ matrices.mT
    bound = _bound(gram.diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()[:, None, None], margin)
    gram /= bound.square()
    product = 1 / bound
    for number, (a, b, c) in enumerate(coefficients, start=1):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor * product if number == 1 else factor @ product
        if number < len(coefficients):  # the next one's
            gram = factor @ gram @ factor
    return matrices @ product if is_tall else product @ matrices  # it is symmetric, up to rounding
