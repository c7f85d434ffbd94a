"""Lists of tensors, a block of rows at a time and in float32, whatever is stored."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Elements of a tensor that the CPU takes through all operations of an update before it goes on to the next; 4 MiB in float32.
# Measured, the default model on two cores, ms a step: 2^15 282, 2^17 348, 2^19 279, 2^20 to 2^22 254. Smaller blocks would stay
# in the second-level cache, but each operation then wakes the other core for too little. On one core all are alike.
BLOCK = 2**20


def blocks(*lists: list[Tensor], scratch: int) -> Iterator[tuple[list[Tensor], ...]]:
    """The lists again; on the CPU in blocks of rows, each to go through all operations before the next.

    With them come `scratch` lists of tensors shaped like the first list's, uninitialised and wide. On the CPU their memory is
    always the same: touching fresh memory takes longer than the arithmetic on it.

    lists: equally long; the tensors at one place have equally many rows
    """
    if lists[0][0].device.type != "cpu":
        yield (*lists, *(wide_like(lists[0]) for _ in range(scratch)))
        return
    size = max(BLOCK, *(tensor[0].numel() for tensor in lists[0]))
    memory = torch.empty(scratch, size, dtype=wide_dtype(lists[0][0]), device="cpu").unbind()
    for tensors in zip(*lists, strict=True):
        rows = max(1, BLOCK // tensors[0][0].numel())
        for block in zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True):
            shape, elements = block[0].shape, block[0].numel()
            yield (*([part] for part in block), *([part[:elements].view(shape)] for part in memory))


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """All arithmetic is in float32 or float64, whatever is stored."""
    return torch.promote_types(tensor.dtype, torch.float32)


def wide_like(tensors: list[Tensor]) -> list[Tensor]:
    return [torch.empty_like(tensor, dtype=wide_dtype(tensor)) for tensor in tensors]


def widen(tensors: list[Tensor], scratch: list[Tensor] | None = None) -> list[Tensor]:
    """The tensors themselves, or where they are narrow their copies, in `scratch` if there is any."""
    if tensors[0].dtype == wide_dtype(tensors[0]):
        return tensors
    wide = wide_like(tensors) if scratch is None else scratch
    torch._foreach_copy_(wide, tensors)
    return wide


def laid_out_as(examples: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """The tensors themselves, or, where one lies otherwise in memory than its example, copies: fused kernels go by the address alone."""
    if all(tensor.stride() == example.stride() for tensor, example in zip(tensors, examples, strict=True)):
        return tensors
    copies = [torch.empty_like(example, dtype=tensor.dtype) for tensor, example in zip(tensors, examples, strict=True)]
    torch._foreach_copy_(copies, tensors)
    return copies


def narrow(wide: list[Tensor], tensors: list[Tensor]) -> None:
    """Round `wide`, from widen(tensors), back into `tensors`."""
    if wide is not tensors:
        torch._foreach_copy_(tensors, wide)
