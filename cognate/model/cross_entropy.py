"""Cross-entropy of a linear head over a large vocabulary, without the logits of a whole batch in memory.

Rows are taken a chunk at a time; when a gradient is wanted it is computed in the same pass, while the chunk's probabilities
are at hand, and backward() only scales it. Softmax and losses are float32 whatever the dtype of the hidden states.

Source: the fused linear cross-entropy of Liger Kernel, arXiv:2410.10989, section 3.2, in plain torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cognate.precision import product_dtype

CHUNK_BYTES = 2**26  # logits held at once; fewer, larger chunks mean fewer passes over the head's gradient
CUDA_CHUNK_BYTES = 2**28  # there no cache holds them, whatever their size
BLOCK_ELEMENTS = 2**18  # of these, what the CPU turns into probabilities at once: small enough for its caches


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over rows of row_weight * cross-entropy of softmax(hidden weight^T) at the target.

    hidden:      [row, width]
    weight:      [vocabulary, width], float32
    targets:     int64 [row], each a valid token
    row_weights: [row]
    returns the sum, with a gradient to hidden and weight, and each row's cross-entropy [row] in nats, without one
    """
    if not torch.is_grad_enabled() or not (hidden.requires_grad or weight.requires_grad):
        each = cross_entropy_of(hidden, weight, targets)
        return (each * row_weights).sum(), each
    total, each = _LinearCrossEntropy.apply(hidden, weight, targets, row_weights)  # type: ignore[no-untyped-call]
    return total, each


@torch.no_grad()
def cross_entropy_of(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each row in nats, [row], float32; arguments as above."""
    hidden = hidden.to(product_dtype(hidden.dtype, hidden.device))
    head = weight.to(hidden.dtype)
    each = torch.empty(len(hidden), device=hidden.device)
    for rows in _chunks(hidden, weight):
        each[rows], _ = _to_gradient(hidden[rows] @ head.mT, targets[rows, None])
    return each


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        hidden_gradient = torch.empty_like(hidden)
        hidden = hidden.to(product_dtype(hidden.dtype, hidden.device))
        head = weight.to(hidden.dtype)
        each = torch.empty(len(hidden), device=hidden.device)
        chunks = _chunks(hidden, weight)
        weight_gradient = torch.empty_like(weight) if chunks else torch.zeros_like(weight)
        # One buffer for all chunks: memory this large goes back to the system when freed, and costs page faults anew.
        buffer = torch.empty(min(len(hidden), chunks[0].stop) if chunks else 0, len(weight), dtype=hidden.dtype, device=hidden.device)
        for rows in chunks:
            logits = torch.mm(hidden[rows], head.mT, out=buffer[: len(hidden[rows])])  # [chunk, vocabulary]
            each[rows], total = _to_gradient(logits, targets[rows, None])
            # The factor of a row goes onto the narrow side of each product.
            scale = (row_weights[rows, None] / total).to(hidden.dtype)
            hidden_gradient[rows] = (logits @ head) * scale
            _add_product(weight_gradient, logits.mT, hidden[rows] * scale, is_first=rows.start == 0)
        ctx.save_for_backward(hidden_gradient, weight_gradient)
        ctx.mark_non_differentiable(each)
        return (each * row_weights).sum(), each

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        return hidden_gradient * gradient.to(hidden_gradient.dtype), weight_gradient * gradient, None, None


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    """total += left @ right, where the dtypes allow without a second tensor of that size; the first time `total` may hold anything."""
    if left.dtype == total.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _to_gradient(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Overwrite logits with total * (softmax - one_hot), their cross-entropy's gradient up to the factor `total` of each row.

    logits: [row, vocabulary]; target: [row, 1]
    returns the cross-entropies [row] and total [row, 1], float32
    """
    each, totals = [], []
    for rows in _slices(len(logits), len(logits) if logits.is_cuda else BLOCK_ELEMENTS // logits.size(1)):
        narrow = logits[rows]
        wide = narrow.float()  # the same tensor if it is float32; in bf16 a probability of 0.998 would be 1 and teach nothing
        largest, at_target = wide.amax(1, keepdim=True), wide.gather(1, target[rows])
        total = wide.sub_(largest).exp_().sum(1, keepdim=True)
        if logits.is_cuda:  # one kernel with its neighbours when compiled; a scatter is not, where torch is to be deterministic
            token = torch.arange(wide.size(1), device=wide.device)
            wide = torch.where(token == target[rows], wide - total, wide)
        else:
            wide.scatter_add_(1, target[rows], -total)
        narrow.copy_(wide)
        each.append(largest + total.log() - at_target)
        totals.append(total)
    return torch.cat(each)[:, 0], torch.cat(totals)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Of rows whose logits are held at once."""
    held = CUDA_CHUNK_BYTES if hidden.is_cuda else CHUNK_BYTES
    return _slices(len(hidden), held // (len(weight) * hidden.element_size()))


def _slices(rows: int, length: int) -> list[slice]:
    length = max(1, length)
    return [slice(start, min(start + length, rows)) for start in range(0, rows, length)]
