"""Which dtype a device multiplies fast.

Measured on two cores, torch 2.13: products of [2048, 320] and [320, 2048], and orthogonalising all matrices of the default model:

| CPU | bf16 | fp32 |
|---|---|---|
| Intel Xeon with AMX | 76 ms | 224 ms |
| Intel Xeon with AVX512-BF16 alone | 168 GFLOP/s, 865 ms | 269 GFLOP/s, 371 ms |
| AMD EPYC (Zen 5) with AVX512-BF16 | 800 GFLOP/s, 134 ms | 209 GFLOP/s (484 as model/products.py makes them), 367 ms |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def known_to_compiler(function: Function) -> Function:
    """To torch.compile what it returns is a constant: it cannot look at what a CPU can do.

    As torch.compiler.assume_constant_result, which imports the compiler: a second of each process' CPU time, compiled or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@known_to_compiler
def native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where products of it are faster, else float32."""
    return _native_dtype(device)


@known_to_compiler
def product_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What products of such tensors are computed in: their own dtype, but float32 for bfloat16 where the device is faster with it.

    Activations are still kept in bfloat16; a training step's passes take 0.6 of what they take with such products (docs/performance.md).
    """
    return native_dtype(device) if dtype == torch.bfloat16 else dtype


@known_to_compiler
def attention_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What attention over such tensors is computed in: as products, but torch's kernel for the CPU is fast in bfloat16 with AMX only."""
    return torch.float32 if device.type == "cpu" and not _has("amx_bf16") else product_dtype(dtype, device)


@known_to_compiler
def fills_vectors_only_by_onednn(device: torch.device) -> bool:
    """Whether float32 products are two to three times as fast by oneDNN as by MKL, which torch leaves them to (model/products.py)."""
    return device.type == "cpu" and _has("avx512_f") and _is_amd()


@functools.cache
def _native_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if _has("amx_bf16") or (_has("avx512_bf16") and _is_amd()) else torch.float32
    return torch.float32


def _is_amd() -> bool:
    return _has("sse4a")  # which Intel never had; a virtual machine may rename its CPU


@functools.cache
def _has(capability: str) -> bool:
    return bool(torch.cpu.get_capabilities().get(capability))
