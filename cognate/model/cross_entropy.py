"""Cross-entropy of a linear head over a large vocabulary, without the logits of a whole batch in memory.

Rows are taken a chunk at a time, and on the CPU the vocabulary a block at a time, so that logits become exponentials while its caches
hold them. A block's are relative to its own largest logit; what each counts among the others is known after the last one. When a
gradient is wanted it is computed while the chunk's exponentials are at hand, and backward() only scales it. Softmax and losses
are float32 whatever the dtype of the hidden states.

Sources: the fused linear cross-entropy of Liger Kernel, arXiv:2410.10989, section 3.2, in plain torch; blocks are joined as in online
softmax, arXiv:1805.02867, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cognate.precision import product_dtype

CHUNK_BYTES = 2**26  # logits held at once; fewer, larger chunks mean fewer passes over the head's gradient
CUDA_CHUNK_BYTES = 2**28  # there no cache holds them, whatever their size
BLOCK = 2048  # tokens of the vocabulary in a block, on the CPU
SLICE_ELEMENTS = 2**18  # of a block, what becomes exponentials at once
LEAST_SHARE = 1e-20  # of a block in the softmax: one whose is less is said to have as much, since it is divided by


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
        each[rows] = _join([_exponentiate(hidden[rows] @ head[tokens].mT, targets[rows], tokens) for tokens in _blocks(head)]).losses
    return each


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor) -> tuple[Tensor, Tensor]:
        to_hidden, to_weight = torch.zeros(hidden.shape, device=hidden.device), torch.empty_like(weight)
        narrow = hidden.dtype
        hidden = hidden.to(product_dtype(narrow, hidden.device))
        head = weight.to(hidden.dtype)
        each = torch.empty(len(hidden), device=hidden.device)
        chunks = _chunks(hidden, weight)
        # For all chunks: memory this large goes back to the system when freed, and costs page faults anew.
        room = hidden.new_empty(chunks[0].stop if chunks else 0, len(head))
        for rows in chunks:
            states, blocks = hidden[rows], []
            for tokens in _blocks(head):
                out = room.flatten()[len(states) * tokens.start : len(states) * tokens.stop].view(len(states), -1)
                blocks.append(_exponentiate(torch.mm(states, head[tokens].mT, out=out), targets[rows], tokens))
            softmax = _join(blocks)
            each[rows] = softmax.losses
            # The factor of a row goes onto the narrow side of each product.
            scales = (softmax.shares * (row_weights[rows, None] / softmax.total)).to(hidden.dtype)
            for number, block in enumerate(blocks):
                scale, part = scales[:, number, None], head[block.tokens]
                gradient = block.gradient(softmax.total / softmax.shares[:, number, None])
                to_hidden[rows] += (gradient @ part) * scale
                _add_product(to_weight[block.tokens], gradient.mT, states * scale, is_first=rows.start == 0)
        if not len(hidden):
            to_weight.zero_()
        ctx.save_for_backward(to_hidden.to(narrow), to_weight)
        ctx.mark_non_differentiable(each)
        return (each * row_weights).sum(), each

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, Tensor, None, None]:
        to_hidden, to_weight = ctx.saved_tensors
        return to_hidden.mul_(gradient), to_weight.mul_(gradient), None, None  # in their place: a second backward pass is then refused


class _Block(NamedTuple):
    """The exponentials of some rows' logits at a block of the vocabulary.

    tokens:       which
    exponentials: exp(logit - largest), [row, token], in the dtype of the logits
    largest:      the row's largest logit, [row, 1], float32 as the rest
    total:        of the row's exponentials, [row, 1]
    column:       where in the block the row's target is, [row, 1]; outside in all blocks but one
    at_target:    the target's logit, [row, 1]; -inf where it is outside
    """

    tokens: slice
    exponentials: Tensor
    largest: Tensor
    total: Tensor
    column: Tensor
    at_target: Tensor

    def gradient(self, total: Tensor) -> Tensor:
        """total * (softmax - one_hot), the cross-entropy's gradient up to a factor of the row; overwrites the exponentials.

        total: of the row's exponentials in all blocks, relative to `largest` of this one, [row, 1]
        """
        # From the logit in float32: in bf16 a probability of 0.998 would be 1 and teach nothing.
        at_target = ((self.at_target - self.largest).exp() - total).to(self.exponentials.dtype)
        if _on_gpu(self.exponentials):  # one kernel with its neighbours when compiled; a scatter is not, where torch is to be deterministic
            token = torch.arange(self.exponentials.size(1), device=at_target.device)
            return torch.where(token == self.column, at_target, self.exponentials)
        place, inside = _inside(self.column, self.exponentials)
        return self.exponentials.scatter_(1, place, torch.where(inside, at_target, self.exponentials.gather(1, place)))


class _Softmax(NamedTuple):
    """What the blocks of a row say together.

    losses: the cross-entropies, [row]
    shares: exp(largest of the block - largest of all), [row, block], at least LEAST_SHARE
    total:  of all exponentials relative to the largest of all, [row, 1]
    """

    losses: Tensor
    shares: Tensor
    total: Tensor


def _exponentiate(logits: Tensor, targets: Tensor, tokens: slice) -> _Block:
    """Overwrites the logits, [row, token]; targets: [row], of the whole vocabulary"""
    column = targets[:, None] - tokens.start
    place, inside = _inside(column, logits)
    at_target = torch.where(inside, logits.gather(1, place).float(), -torch.inf)
    largest, total = [], []
    for rows in _slices(len(logits), len(logits) if _on_gpu(logits) else SLICE_ELEMENTS // logits.size(1)):
        narrow = logits[rows]
        wide = narrow.float()  # the same tensor if it is float32
        largest.append(wide.amax(1, keepdim=True))
        total.append(wide.sub_(largest[-1]).exp_().sum(1, keepdim=True))
        narrow.copy_(wide)
    return _Block(tokens, logits, torch.cat(largest), torch.cat(total), column, at_target)


def _inside(column: Tensor, block: Tensor) -> tuple[Tensor, Tensor]:
    """The column where the block, [row, token], has it and 0 elsewhere; and whether it has."""
    inside = (column >= 0) & (column < block.size(1))
    return torch.where(inside, column, 0), inside


def _join(blocks: Sequence[_Block]) -> _Softmax:
    largest = torch.cat([block.largest for block in blocks], 1)
    largest_of_all = largest.amax(1, keepdim=True)
    shares = (largest - largest_of_all).exp().clamp(min=LEAST_SHARE)
    total = (shares * torch.cat([block.total for block in blocks], 1)).sum(1, keepdim=True)
    at_target = torch.cat([block.at_target for block in blocks], 1).amax(1, keepdim=True)
    return _Softmax((largest_of_all + total.log() - at_target)[:, 0], shares, total)


def _add_product(total: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
    """total += left @ right, without a second tensor of that size where it can be; `total` may hold anything if `is_first`."""
    if total.dtype == left.dtype:
        torch.addmm(total, left, right, beta=0 if is_first else 1, out=total)
    elif is_first:
        total.copy_(left @ right)
    else:
        total += left @ right


def _blocks(head: Tensor) -> list[slice]:
    """Of the vocabulary."""
    return _slices(len(head), len(head) if _on_gpu(head) else BLOCK)


def _chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """Of rows whose logits are held at once."""
    held = CUDA_CHUNK_BYTES if _on_gpu(hidden) else CHUNK_BYTES
    return _slices(len(hidden), held // (len(weight) * hidden.element_size()))


def _on_gpu(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _slices(number: int, length: int) -> list[slice]:
    length = max(1, length)
    return [slice(start, min(start + length, number)) for start in range(0, number, length)]
