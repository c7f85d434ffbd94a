"""The chunked cross-entropy is the naive one."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cognate.model import cross_entropy
from cognate.model.cross_entropy import cross_entropy_of, linear_cross_entropy


@pytest.fixture(params=[(1, 11), (3, 4), (7, 1), (100, 10), (100, 2048)], ids=lambda sizes: f"{sizes[0]} rows, {sizes[1]} tokens")
def _chunk(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows and tokens held at once."""
    rows, tokens = request.param
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 11 * rows)
    monkeypatch.setattr(cross_entropy, "BLOCK", tokens)
    monkeypatch.setattr(cross_entropy, "SLICE_ELEMENTS", tokens * 2)


@pytest.fixture(params=[False, True], ids=["as on a CPU", "as on a GPU"])
def _way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done there, whatever is here."""
    monkeypatch.setattr(cross_entropy, "_on_gpu", lambda tensor: request.param)


def problem(scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """20 rows, width 5, vocabulary 11."""
    torch.manual_seed(0)
    hidden, weight = (scale * torch.randn(20, 5)).requires_grad_(), torch.randn(11, 5, requires_grad=True)
    return hidden, weight, torch.randint(11, (20,)), torch.rand(20)


@pytest.mark.usefixtures("_chunk", "_way")
@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_value_and_gradient_are_those_of_the_naive_cross_entropy(scale: float) -> None:
    """Also where probabilities underflow, and under a factor that later code puts on the loss."""
    hidden, weight, targets, row_weights = problem(scale)
    expected_each = functional.cross_entropy(hidden @ weight.T, targets, reduction="none")
    expected = (expected_each * row_weights).sum()
    expected_gradients = torch.autograd.grad(0.3 * expected, (hidden, weight))
    total, each = linear_cross_entropy(hidden, weight, targets, row_weights)
    gradients = torch.autograd.grad(0.3 * total, (hidden, weight))
    torch.testing.assert_close((total, each), (expected, expected_each.detach()))
    torch.testing.assert_close(gradients, expected_gradients, rtol=3e-5, atol=1e-5)
    torch.testing.assert_close(cross_entropy_of(hidden, weight, targets), expected_each.detach())


@pytest.mark.usefixtures("_chunk")
def test_without_a_gradient_the_value_is_the_same() -> None:
    hidden, weight, targets, row_weights = problem()
    total, each = linear_cross_entropy(hidden, weight, targets, row_weights)
    with torch.no_grad():
        torch.testing.assert_close(linear_cross_entropy(hidden, weight, targets, row_weights), (total, each))
    assert total.requires_grad
    assert not each.requires_grad


def test_a_second_backward_pass_is_refused_not_wrong() -> None:
    """The first one scales the gradients in their place."""
    hidden, weight, targets, row_weights = problem()
    total, _ = linear_cross_entropy(hidden, weight, targets, row_weights)
    (0.5 * total).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_frozen_weights_get_no_gradient_and_cost_none() -> None:
    hidden, weight, targets, row_weights = problem()
    expected = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, row_weights)[0], hidden)
    gradient = torch.autograd.grad(linear_cross_entropy(hidden, weight.detach(), targets, row_weights)[0], hidden)
    torch.testing.assert_close(gradient, expected)


def test_logits_of_more_than_one_chunk_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the file is for: of the 20 rows by 11 tokens, at most 3 rows exist at a time."""
    monkeypatch.setattr(cross_entropy, "CHUNK_BYTES", 4 * 33)
    rows: list[int] = []

    class Record(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = function(*args, **(kwargs or {}))
            if isinstance(out, Tensor) and out.dim() == 2 and out.size(1) == 11:
                rows.append(len(out))
            return out

    hidden, weight, targets, row_weights = problem()
    with Record():
        linear_cross_entropy(hidden, weight, targets, row_weights)[0].backward()
        cross_entropy_of(hidden, weight, targets)
    assert max(set(rows) - {5}) == 3  # the head, transposed, has 5 rows


@pytest.mark.usefixtures("bf16_products")
def test_narrow_hidden_states_give_float32_losses_and_weight_gradients() -> None:
    hidden, weight, targets, row_weights = problem()
    narrow = hidden.detach().bfloat16().requires_grad_()
    total, each = linear_cross_entropy(narrow, weight, targets, row_weights)
    expected = functional.cross_entropy(narrow.float() @ weight.T, targets, reduction="none")
    torch.testing.assert_close(each, expected.detach(), rtol=0.02, atol=0.02)
    total.backward()
    assert total.dtype == each.dtype == weight.grad.dtype == torch.float32
    assert narrow.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_narrow_gradients_are_those_of_the_rounded_logits(scale: float, bf16_products: torch.dtype) -> None:
    """Of a vocabulary as large as ours; the rounding of what is left of the logits is all that differs, also where they underflow."""
    torch.manual_seed(0)
    hidden, weight = (scale * torch.randn(6, 16)).bfloat16().requires_grad_(), torch.randn(32768, 16, requires_grad=True)
    targets, row_weights = torch.randint(32768, (6,)), torch.rand(6)
    total, each = linear_cross_entropy(hidden, weight, targets, row_weights)
    gradients = torch.autograd.grad(total, (hidden, weight))
    logits = (hidden.to(bf16_products) @ weight.to(bf16_products).T).detach().float().requires_grad_()
    expected_each = functional.cross_entropy(logits, targets, reduction="none")
    (to_logits,) = torch.autograd.grad((expected_each * row_weights).sum(), logits)
    torch.testing.assert_close(each, expected_each.detach(), rtol=1e-5, atol=1e-5)
    for found, expected in zip(gradients, (to_logits @ weight, to_logits.T @ hidden.float()), strict=True):
        assert (found.float() - expected).norm() < 0.01 * expected.norm()


@pytest.mark.usefixtures("bf16_products", "_way")
@pytest.mark.parametrize("probability", [0.3, 0.99, 0.999, 0.9999])
def test_of_narrow_logits_a_sure_guess_still_learns(probability: float) -> None:
    """In bf16 the probabilities nearest to 1 are 0.996 and 1: what is missing must not be taken from a rounded one.

    Each row's logits are its hidden state's, and the others share what the target leaves; the reference is in float64.
    """
    torch.manual_seed(0)
    others = torch.randn(3, 40).log_softmax(1) + math.log1p(-probability)
    hidden = torch.cat([torch.full((3, 1), math.log(probability)), others], 1).bfloat16().requires_grad_()
    weight, targets = torch.eye(41).requires_grad_(), torch.zeros(3, dtype=torch.int64)
    logits = hidden.detach().double().requires_grad_()
    expected = functional.cross_entropy(logits, targets, reduction="none")
    expected.sum().backward()
    total, each = linear_cross_entropy(hidden, weight, targets, torch.ones(3))
    total.backward()
    torch.testing.assert_close(each.double(), expected.detach(), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(cross_entropy_of(hidden.detach(), weight, targets), each)
    torch.testing.assert_close(hidden.grad.double(), logits.grad, rtol=3 * 2**-8, atol=1e-9)  # rounded three times


def test_no_rows_cost_nothing() -> None:
    hidden, weight, targets, row_weights = problem()
    total, each = linear_cross_entropy(hidden[:0], weight, targets[:0], row_weights[:0])
    total.backward()
    assert total == 0
    assert len(each) == 0
    assert not weight.grad.any()
