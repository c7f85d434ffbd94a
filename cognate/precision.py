"""Which dtype a device multiplies fast.

Measured on two cores of an Intel Xeon. With AMX: orthogonalising all matrices of the default model 76 ms in bf16, 224 in fp32. With
AVX512-BF16 alone: 865 ms and 371, and products of [2048, 320] and [320, 2048] go at 168 GFLOP/s and 269. So that instruction
decides nothing; whether it pays on another maker's CPU was not measured.
"""

from __future__ import annotations

import functools

import torch


@functools.cache
def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products of it are faster, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if torch.cpu.get_capabilities().get("amx_bf16") else torch.float32
    return torch.float32


# To torch.compile a constant: it cannot look at what a CPU can do.
@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products of such tensors are computed in: their own dtype, but float32 for bfloat16 where the device is faster with it.

    Activations are still kept in bfloat16; a training step's passes take 0.6 of what they take with such products (docs/performance.md).
    """
    return native_dtype(device) if dtype == torch.bfloat16 else dtype
