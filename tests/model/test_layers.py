"""The layers against their formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from cognate.model import layers
from cognate.model.layers import MLP, Linear, rms_norm, ternary


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 8)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_rms_norm_and_its_gradients_are_torchs(shape: tuple[int, ...], is_weighted: bool) -> None:
    x = (3 * torch.randn(shape)).requires_grad_()
    weight = torch.randn(shape[-1], requires_grad=True) if is_weighted else None
    factors, inputs = torch.randn(shape), [x] if weight is None else [x, weight]
    expected, found = functional.rms_norm(x, shape[-1:], weight, eps=1e-6), rms_norm(x, weight)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad((out * factors).sum(), inputs) for out in (found, expected)]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_rms_norm_of_narrow_numbers_is_computed_wide() -> None:
    x = (1000 * torch.randn(4, 64)).bfloat16().requires_grad_()
    weight = torch.randn(64, requires_grad=True)
    out = rms_norm(x, weight)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16
    wide = rms_norm(x.detach().float())
    torch.testing.assert_close(out.float(), wide * weight, rtol=2**-6, atol=1e-6)
    torch.testing.assert_close(weight.grad, wide.sum(0), rtol=1e-5, atol=1e-5)


def test_the_mlp_squares_what_is_positive() -> None:
    mlp, x = MLP(4, 6), torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        mlp.down.weight.normal_()
    expected = functional.linear(functional.relu(functional.linear(x, mlp.up.weight)).square(), mlp.down.weight)
    torch.testing.assert_close(mlp(x), expected)
    torch.testing.assert_close(torch.autograd.grad(mlp(x).sum(), x), torch.autograd.grad(expected.sum(), x))


def test_a_linear_layer_answers_in_the_dtype_of_its_input() -> None:
    linear = Linear(4, 3)
    assert linear(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float32
    assert linear.bias is None


@pytest.mark.parametrize("layer", [Linear(16, 8), MLP(16, 32)], ids=["linear", "mlp"])
def test_narrow_numbers_are_multiplied_in_the_faster_dtype(layer: nn.Module, bf16_products: torch.dtype) -> None:
    """In float32 weights are not rounded, and only what goes in and comes out is; what is kept for the gradient is narrow."""
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 3, 16).bfloat16().requires_grad_()
    products: list[torch.dtype] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default):
                products.append(args[-1].dtype)
            return function(*args, **(kwargs or {}))

    kept: list[Tensor] = []
    with Record():
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
            out = layer(x)
        found = torch.autograd.grad(out.float().square().sum(), [x, *layer.parameters()])
        with torch.no_grad():
            assert torch.equal(layer(x), out)
    assert set(products) == {bf16_products}
    assert out.dtype == found[0].dtype == torch.bfloat16
    weights = {parameter.numel() for parameter in layer.parameters()}
    assert kept
    assert not [tensor.shape for tensor in kept if tensor.dtype == torch.float32 and tensor.numel() not in weights]
    wide = x.detach().float().requires_grad_()
    expected_out = layer(wide)
    expected = torch.autograd.grad(expected_out.square().sum(), [wide, *layer.parameters()])
    assert (out.float() - expected_out).norm() < 0.01 * expected_out.norm()
    for ours, true in zip(found, expected, strict=True):
        assert (ours.float() - true).norm() < 0.015 * true.norm()


# --- ternary weights ------------------------------------------------------------------------------------------


def test_ternary_weights_follow_the_equation() -> None:
    """BitNet b1.58, equations 1-3: round(W / mean|W|), clipped to -1..1; here times the scale again."""
    weight = torch.tensor([[0.2, -0.8, 4.0], [-6.0, 0.0, 1.0]])
    size = (0.2 + 0.8 + 4.0 + 6.0 + 0.0 + 1.0) / 6  # 2.0
    torch.testing.assert_close(ternary(weight), torch.tensor([[0, 0, 1.0], [-1.0, 0, 0]]) * size, atol=1e-5, rtol=0)
    assert ternary(torch.zeros(3, 4)).eq(0).all()  # as output projections begin


def test_the_gradient_goes_straight_through() -> None:
    """To the float32 weight, as if it were the rounded one: also where the rounding is flat or clipped."""
    layer, x, wanted = Linear(6, 4), torch.randn(9, 6), torch.randn(9, 4)
    layer.is_ternary = True
    (layer(x) - wanted).square().sum().backward()
    rounded = ternary(layer.weight).detach().requires_grad_()
    (functional.linear(x, rounded) - wanted).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, rounded.grad)
    assert layer.weight.grad.ne(0).all()
    assert layer.weight.dtype == torch.float32


@pytest.mark.skipif(layers.product_of_inference is None, reason="a torch without oneDNN")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24)])
@pytest.mark.parametrize("is_dense", [True, False])
def test_without_a_gradient_products_are_those_of_inference(
    shape: tuple[int, ...], is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where oneDNN multiplies; of the same value, also of what does not lie one after the other, and nowhere else."""
    x, mlp = torch.randn(shape), MLP(24, 16)
    nn.init.normal_(mlp.down.weight)
    if not is_dense:
        x, mlp.up.weight.data = x.repeat_interleave(2, -1)[..., ::2], mlp.up.weight.data.T.contiguous().T
    for by_onednn in (True, False):
        monkeypatch.setattr(layers, "multiplies_by_onednn", lambda _, by_onednn=by_onednn: by_onednn)
        with torch.profiler.profile() as profile:
            expected = mlp(x)
            with torch.no_grad():
                torch.testing.assert_close(mlp(x), expected.detach())
        called = [event.count for event in profile.key_averages() if event.key == "mkldnn::_linear_pointwise"]
        assert called == [2] * by_onednn
