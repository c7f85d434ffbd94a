"""bfloat16 where a device is faster with it, and only there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch

from cognate import cli, precision
from cognate.config import resolve
from cognate.model import Cognate
from cognate.report import diversity, evaluation, readiness, verify
from cognate.rundir import Places

PRODUCTS = torch.backends.mkldnn.matmul


@pytest.mark.parametrize(
    ("features", "dtype", "of_attention", "by_onednn"),
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
    features: dict[str, bool], dtype: torch.dtype, of_attention: torch.dtype, by_onednn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AVX512-BF16 without AMX makes products slower on an Intel, 168 GFLOP/s to 269, and faster on an AMD (sse4a), 980 to 209.

    Attention is faster in bf16 with AMX alone. An AMD's AVX512 is used whole by oneDNN.
    """
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    for name in ("_native_dtype", "_has"):
        monkeypatch.setattr(precision, name, getattr(precision, name).__wrapped__)  # past its cache
    cpu = torch.device("cpu")
    assert precision.native_dtype(cpu) is dtype
    assert precision.attention_dtype(torch.bfloat16, cpu) is of_attention
    assert precision.attention_dtype(torch.float32, cpu) is torch.float32
    with switched_back(monkeypatch):
        monkeypatch.setattr(precision, "_rounds", lambda: False)  # as on such a machine
        precision.use_whole_vectors(torch.device("cuda"))
        assert not precision.multiplies_by_onednn(cpu)
        precision.use_whole_vectors(cpu)
        assert precision.multiplies_by_onednn(cpu) is by_onednn
        assert not precision.multiplies_by_onednn(torch.device("cuda"))
        assert (PRODUCTS.fp32_precision == "bf16") is by_onednn


@contextmanager
def switched_back(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch as it begins, and afterwards as it was."""
    before, PRODUCTS.fp32_precision = PRODUCTS.fp32_precision, "none"
    before_cuda = torch.backends.cuda.matmul.fp32_precision
    monkeypatch.setattr(precision, "_by_onednn", False)
    try:
        yield
    finally:
        PRODUCTS.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before, before_cuda


def test_products_that_would_be_rounded_stay_where_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch is the one that allows it; should a later oneDNN do it without AMX, nothing is switched."""
    monkeypatch.setattr(precision, "_has", lambda capability: capability in {"avx512_f", "sse4a"})
    with switched_back(monkeypatch):
        matmul = torch.Tensor.__matmul__
        monkeypatch.setattr(torch.Tensor, "__matmul__", lambda x, y: matmul(x.bfloat16().float(), y))
        precision.use_whole_vectors(torch.device("cpu"))
        assert not precision.multiplies_by_onednn(torch.device("cpu"))
        assert PRODUCTS.fp32_precision == "none"


def test_what_is_small_is_multiplied_as_torch_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    with switched_back(monkeypatch):
        for is_on, setting in ((False, "none"), (True, "bf16")):
            monkeypatch.setattr(precision, "_by_onednn", is_on)
            PRODUCTS.fp32_precision = setting
            with pytest.raises(ZeroDivisionError), precision.as_torch_comes():
                assert PRODUCTS.fp32_precision == "none"
                raise ZeroDivisionError
            assert PRODUCTS.fp32_precision == setting


def test_products_are_as_exact_as_they_were() -> None:
    """Of every shape that a model has, whoever makes them here."""
    precision.use_whole_vectors(torch.device("cpu"))
    for shape in ((1, 320), (33, 320), (512, 320), (4, 64, 64), (3, 100, 32)):
        x, y = torch.randn(shape), torch.randn(*shape[:-2], shape[-1], 257)
        exact, made = x.double() @ y.double(), [x @ y]
        if x.ndim == 2 and precision.product_of_inference is not None:
            made.append(precision.product_of_inference(x, y.T.contiguous(), None, "none", [], ""))
        for each in made:
            assert (each - exact).norm() < 1e-6 * exact.norm()


class Switched(Exception):
    """For this device."""


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("module", "begin"),
    [
        (evaluation, lambda device: evaluation.evaluate_checkpoint(Path("none"), Places(None, None), device)),
        (diversity, lambda device: diversity.measure_runs([], Places(None, None), device)),
        (readiness, lambda device: readiness.readiness(resolve("quickstart"), Places(None, None), Path("none"), device)),
        (cli, lambda device: cli.generate(Path("none"), ["a prompt"])),
        (verify, lambda device: verify.logits_of(Cognate(resolve("quickstart").model).to(device), [1])),
    ],
)
def test_whoever_computes_uses_whole_vectors(
    module: ModuleType, begin: Callable[[torch.device], object], device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything else; else what one process finds, another does not."""

    def switch(device: torch.device) -> None:
        raise Switched(device.type)

    monkeypatch.setattr(module, "use_whole_vectors", switch)
    monkeypatch.setattr(readiness, "make_deterministic", lambda _: None)
    monkeypatch.setattr(cli, "_checkpoint_in", lambda path: path)
    monkeypatch.setattr(cli, "load_model", lambda _: (Cognate(resolve("quickstart").model).to(device), None))
    with pytest.raises(Switched, match=device):
        begin(torch.device(device))


def test_the_compiler_takes_the_choice_as_a_constant() -> None:
    """It cannot trace the question what a CPU can do."""

    def chosen(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        products = x.to(precision.product_dtype(torch.bfloat16, x.device)) + x.to(precision.native_dtype(x.device))
        return products, x.to(precision.attention_dtype(torch.bfloat16, x.device))

    cpu = torch.device("cpu")
    expected = precision.native_dtype(cpu), precision.attention_dtype(torch.bfloat16, cpu)
    assert tuple(made.dtype for made in torch.compile(chosen, fullgraph=True, backend="eager")(torch.ones(2))) == expected
