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
        ({"avx512_bf16": True, "amx_bf16": False, "sse4a": True}, torch.bfloat16),
        ({"sse4a": True}, torch.float32),
        ({"avx2": True}, torch.float32),
        ({}, torch.float32),
    ],
)
def test_a_cpu_computes_in_bf16_only_where_that_is_faster(
    features: dict[str, bool], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 without AMX makes products slower on an Intel, 168 GFLOP/s to 269, and faster on an AMD (sse4a), 800 to 209."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert native_dtype.__wrapped__(torch.device("cpu")) is dtype  # past its cache
