"""bfloat16 where a device is faster with it, and only there."""

from __future__ import annotations

import pytest
import torch

from cognate.precision import native_dtype


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, torch.bfloat16),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.float32),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_faster(
    features: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 without AMX made a step of the default model slower: 865 ms of orthogonalisation to 371, products 168 GFLOP/s to 269."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert native_dtype.__wrapped__(torch.device("cpu")) is dtype  # past its cache
