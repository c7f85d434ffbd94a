"""bfloat16 where a device is faster with it, and only there."""

from __future__ import annotations

import pytest
import torch

from cognate import precision


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
    monkeypatch.setattr(precision, "_native_dtype", precision._native_dtype.__wrapped__)  # past its cache
    assert precision.native_dtype(torch.device("cpu")) is dtype


def test_the_compiler_takes_the_choice_as_a_constant() -> None:
    """It cannot trace the question what a CPU can do."""

    def chosen(x: torch.Tensor) -> torch.Tensor:
        return x.to(precision.product_dtype(torch.bfloat16, x.device)) + x.to(precision.native_dtype(x.device))

    expected = precision.native_dtype(torch.device("cpu"))
    assert torch.compile(chosen, fullgraph=True, backend="eager")(torch.ones(2)).dtype is expected
