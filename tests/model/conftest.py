"""Small models whose every weight is at work: a new model's output projections are zero, which would hide a leak."""

from collections.abc import Callable, Iterator

import pytest
import torch

from cognate import precision
from cognate.config import ModelConfig
from cognate.model import Cognate

SMALL = ModelConfig(
    vocab_size=300, d_model=32, n_layers=2, n_heads=2, d_ff=48, window=7, memory_key_dim=8, memory_value_dim=8, memory_chunk=4,
    memory_capacity=64, trm_d_ff=48,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _same_bits_every_time() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=["bfloat16", "float32"])
def bf16_products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.dtype:
    """What bfloat16 tensors are multiplied in, whatever this machine does better."""
    dtype: torch.dtype = getattr(torch, request.param)
    monkeypatch.setattr(precision, "native_dtype", lambda device: dtype)
    return dtype


@pytest.fixture
def small() -> Callable[..., Cognate]:
    """small(**changes to SMALL) is a model in eval mode with random weights everywhere."""

    def build(**changes: object) -> Cognate:
        model = Cognate(ModelConfig.model_validate({**SMALL.model_dump(), **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        return model.eval()

    return build
