"""Which dtype a device multiplies fast.

Measured on two cores, torch 2.13: products of [2048, 320] and [320, 2048], and orthogonalising all matrices of the default model:

| CPU | bf16 | fp32 |
|---|---|---|
| Intel Xeon with AMX | 76 ms | 224 ms |
| Intel Xeon with AVX512-BF16 alone | 168 GFLOP/s, 865 ms | 269 GFLOP/s, 371 ms |
| AMD EPYC (Zen 5) with AVX512-BF16 | 980 GFLOP/s, 134 ms | 209 GFLOP/s (490 after use_whole_vectors), 367 ms |
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """What torch's kernel for attention is fast in: as products, but on a CPU in bfloat16 with AMX only."""
    return torch.float32 if device.type == "cpu" and not _has("amx_bf16") else product_dtype(dtype, device)


def use_whole_vectors(device: torch.device) -> None:
    """Have this process, where it computes on an AMD CPU, multiply float32 by oneDNN: MKL fills half of its AVX512 vectors (decision 13).

    torch's switch for that is the one that lets oneDNN round to bfloat16 what it multiplies. It does where there is AMX, and here it is
    seen not to; otherwise nothing changes. torch.get_float32_matmul_precision() raises from then on.
    """
    global _by_onednn
    if _by_onednn or device.type != "cpu" or not (_has("avx512_f") and _is_amd()) or _has("amx_bf16"):
        return
    _PRODUCTS.fp32_precision = "bf16"
    try:
        _by_onednn = not _rounds()
    finally:
        if not _by_onednn:
            _PRODUCTS.fp32_precision = "none"
    if _by_onednn and torch.backends.cuda.matmul.fp32_precision == "none":
        # Said aloud, though it is so anyway: FlexAttention's compiler asks the function that raises where nothing is said.
        torch.backends.cuda.matmul.fp32_precision = "ieee"


_by_onednn = False
_PRODUCTS = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
# x W^T without a gradient, as torch.compile calls it in inference, by no public name: after x and W no bias, and nothing else to do.
product_of_inference: Callable[..., torch.Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def multiplies_by_onednn(device: torch.device) -> bool:
    """Whether float32 products there go to oneDNN, whose kernels for one thing and another differ from what is fast otherwise."""
    return device.type == "cpu" and _by_onednn


@contextmanager
def as_torch_comes() -> Iterator[None]:
    """For products of so few rows that the switch costs more than it brings: a token's attention is MKL's again (15 us to 93), and of a row
    oneDNN, which may not round, takes the faster of its kernels (72 us to 110, of 2,048 x 320). Not in two threads at once.
    """
    if not _by_onednn:
        yield
        return
    _PRODUCTS.fp32_precision = "none"
    try:
        yield
    finally:
        _PRODUCTS.fp32_precision = "bf16"


def _rounds() -> bool:
    """Whether float32 products are not of float32."""
    fine = torch.full((4, 128, 128), 1 + 2**-20, device="cpu")
    same = torch.eye(128, device="cpu").expand(4, -1, -1)
    made = [fine @ same, fine[0] @ same[0], torch.nn.functional.linear(fine[0, :1], same[0])]
    if product_of_inference is not None:
        made += [product_of_inference(fine[0, :rows], same[0], None, "none", [], "") for rows in (1, 128)]
    return any((each != fine[0, 0, 0]).any() for each in made)


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
