"""Orthogonalisation against its definition: singular values near one, singular vectors as they were."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cognate.optimizer import orthogonalize, polar

SHAPES = [(64, 64), (320, 320), (192, 320), (1024, 320), (320, 1024), (64, 320)]


def with_singular_values(rows: int, columns: int, values: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(rows + columns)
    left = torch.linalg.qr(torch.randn(rows, len(values), generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(columns, len(values), generator=generator, dtype=torch.float64))[0]
    return ((left * values) @ right.T).float()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("condition", [1, 30, 100])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_singular_values_come_out_near_one(rows: int, columns: int, condition: float, dtype: torch.dtype) -> None:
    """That is the whole point of the update: every direction is used, tall, wide or square, however uneven the gradient."""
    values = torch.logspace(0, -math.log10(condition), min(rows, columns), dtype=torch.float64)
    out = torch.linalg.svdvals(orthogonalize(with_singular_values(rows, columns, values), dtype=dtype).double())
    assert out.min() > 0.7
    assert out.max() < 1.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_singular_value_too_small_to_lift_never_overshoots(rows: int, columns: int, dtype: torch.dtype) -> None:
    """Five iterations lift a thousandfold and no more; below that rounding must not be blown up into an update."""
    values = torch.logspace(0, -6, min(rows, columns), dtype=torch.float64)
    out = torch.linalg.svdvals(orthogonalize(with_singular_values(rows, columns, values), dtype=dtype).double())
    large = int((values / values.norm() > 1e-3).sum())
    assert out[:large].min() > 0.7
    assert out.max() < 1.2


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_singular_vectors_stay(rows: int, columns: int) -> None:
    """Only the lengths change: U'OV is diagonal, for a transpose gone missing would still have good singular values."""
    values = torch.linspace(1, 0.1, min(rows, columns), dtype=torch.float64)
    update = with_singular_values(rows, columns, values)
    left, _, right = torch.linalg.svd(update.double(), full_matrices=False)
    inside = left.mT @ orthogonalize(update).double() @ right.mT
    assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-3
    assert inside.diagonal().min() > 0.7


@pytest.mark.parametrize(("rows", "columns"), [(64, 320), (320, 64), (1024, 320)])
def test_the_gram_form_is_the_same_polynomial(rows: int, columns: int) -> None:
    """float64 takes the direct form, float32 the Gram form: an optimisation must not be another function."""
    update = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))
    direct = orthogonalize(update.double(), dtype=torch.float64)
    torch.testing.assert_close(orthogonalize(update).double(), direct, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("at_once", [6, 4])  # of the stack's six, in one part and in two, the second of which is smaller
@pytest.mark.parametrize(("rows", "columns"), [(48, 48), (48, 32), (48, 160)])
def test_a_stack_is_its_matrices(rows: int, columns: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrices of one shape are stacked for speed; they must not see each other."""
    monkeypatch.setattr(polar, "AT_ONCE", at_once * rows * columns)
    stack = torch.randn(2, 3, rows, columns, generator=torch.Generator().manual_seed(0))
    alone = torch.stack([torch.stack([orthogonalize(matrix) for matrix in pair]) for pair in stack])
    torch.testing.assert_close(orthogonalize(stack), alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("exponent", [-30, -7, 1, 40])
def test_the_gradients_scale_does_not_matter(exponent: int, dtype: torch.dtype) -> None:
    """A loss in other units gives the same update, to the bit for a power of two."""
    update = torch.randn(40, 160, generator=torch.Generator().manual_seed(0))
    assert torch.equal(orthogonalize(update * 2.0**exponent, dtype=dtype), orthogonalize(update, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [0.0, 1e-45, 1e-30, 1e-15])
def test_next_to_nothing_becomes_next_to_nothing(size: float, dtype: torch.dtype) -> None:
    """Output projections start at zero, so the first gradients behind them are exactly zero: never NaN, never noise."""
    out = orthogonalize(torch.full((40, 160), size), dtype=dtype)
    assert out.isfinite().all()
    assert torch.linalg.matrix_norm(out.float(), 2) < 1.2
    if size == 0:
        assert not out.any()
