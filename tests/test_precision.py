"""bfloat16 where a device is faster with it, and only there."""

from __future__ import annotations

import pytest
import torch

from cognate import precision


@pytest.mark.parametrize(
    ("features", "dtype", "of_attention", "convolves"),
    [
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": True}, torch.bfloat16, torch.bfloat16, False),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False}, torch.float32, torch.float32, False),
        ({"avx512_f": True, "avx512_bf16": True, "amx_bf16": False, "sse4a": True}, torch.bfloat16, torch.float32, True),
        ({"avx512_f": False, "sse4a": True}, torch.float32, torch.float32, False),
        ({"avx2": True}, torch.float32, torch.float32, False),
        ({}, torch.float32, torch.float32, False),
    ],
)
def test_a_cpu_computes_as_it_is_fastest(
    features: dict[str, bool], dtype: torch.dtype, of_attention: torch.dtype, convolves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 without AMX makes products slower on an Intel, 168 GFLOP/s to 269, and faster on an AMD (sse4a), 800 to 209.

    Attention is faster in bf16 with AMX alone. An AMD's AVX512 is used whole in convolutions.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    for name in ("_native_dtype", "_has"):
        monkeypatch.setattr(precision, name, getattr(precision, name).__wrapped__)  # past its cache
    cpu = torch.device("cpu")
    assert precision.native_dtype(cpu) is dtype
    assert precision.attention_dtype(torch.bfloat16, cpu) is of_attention
    assert precision.attention_dtype(torch.float32, cpu) is torch.float32
    assert precision.fills_vectors_only_by_onednn(cpu) is convolves
    assert not precision.fills_vectors_only_by_onednn(torch.device("cuda"))


def test_the_compiler_takes_the_choice_as_a_constant() -> None:
    """It cannot trace the question what a CPU can do."""

    def chosen(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = x + 1 if precision.fills_vectors_only_by_onednn(x.device) else x
        products = x.to(precision.product_dtype(torch.bfloat16, x.device)) + x.to(precision.native_dtype(x.device))
        return products, x.to(precision.attention_dtype(torch.bfloat16, x.device))

    cpu = torch.device("cpu")
    expected = precision.native_dtype(cpu), precision.attention_dtype(torch.bfloat16, cpu)
    assert tuple(made.dtype for made in torch.compile(chosen, fullgraph=True, backend="eager")(torch.ones(2))) == expected
