"""A product is the same however it is made, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cognate.model import products
from cognate.model.layers import MLP, Linear


@pytest.fixture(params=[False, True], ids=["as a product", "as a convolution"])
def convolves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whatever this machine does better."""
    monkeypatch.setattr(products, "fills_vectors_only_by_onednn", lambda device: request.param)
    return bool(request.param)


class Operations(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts those with a name like this."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name, self.n = name, 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += self.name in str(operation)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", [(2, 64, 24), (128, 24), (131, 24)])
@pytest.mark.parametrize("is_dense", [True, False])
def test_a_product_and_its_gradients_are_torchs(convolves: bool, shape: tuple[int, ...], is_dense: bool) -> None:
    """Also of tensors whose rows do not lie one after the other; in the layout that is asked of a parameter's gradient."""
    x, weight, gradient = torch.randn(shape), torch.randn(16, 24), torch.randn(*shape[:-1], 16)
    if not is_dense:
        x, gradient = (tensor.transpose(0, -2).contiguous().transpose(0, -2) for tensor in (x, gradient))
        weight = weight.T.contiguous().T
    x, weight = x.requires_grad_(), weight.requires_grad_()
    expected = functional.linear(x, weight)
    to_x, to_weight = torch.autograd.grad(expected, (x, weight), gradient)
    with torch.no_grad(), Operations("convolution") as counted:
        found = products.product(x, weight)
        found_to_x, found_to_weight = products.gradient_of_x(gradient, x, weight), products.gradient_of_weight(gradient, x, weight)
    assert counted.n == 3 * convolves
    torch.testing.assert_close(found, expected.detach())
    torch.testing.assert_close(found_to_x, to_x)
    torch.testing.assert_close(found_to_weight, to_weight)
    assert found.is_contiguous()
    assert found_to_weight.is_contiguous()


@pytest.mark.usefixtures("convolves")
def test_a_gradient_is_added_to_others() -> None:
    x, gradient = torch.randn(130, 24), torch.randn(130, 16)
    total = torch.full((16, 24), torch.nan)
    products.add_gradient_of_weight(total, gradient, x, is_first=True)
    torch.testing.assert_close(total, gradient.T @ x, rtol=1e-4, atol=1e-4)
    products.add_gradient_of_weight(total, 2 * gradient, x, is_first=False)
    torch.testing.assert_close(total, 3 * gradient.T @ x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("rows", "dtype"), [(127, torch.float32), (128, torch.bfloat16), (128, torch.float64)])
def test_few_rows_and_other_dtypes_are_no_convolution(rows: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "fills_vectors_only_by_onednn", lambda device: True)
    x, weight = torch.randn(rows, 24, dtype=dtype), torch.randn(16, 24, dtype=dtype)
    with Operations("convolution") as counted:
        torch.testing.assert_close(products.product(x, weight), functional.linear(x, weight))
    assert counted.n == 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="a torch without oneDNN")
@pytest.mark.parametrize("shape", [(24,), (1, 24), (3, 5, 24)])
@pytest.mark.parametrize("is_dense", [True, False])
def test_few_rows_are_made_by_onednn_where_no_gradient_is_wanted(
    shape: tuple[int, ...], is_dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, layer = torch.randn(shape), Linear(24, 16)
    if not is_dense:
        x, layer.weight.data = x.repeat_interleave(2, -1)[..., ::2], layer.weight.data.T.contiguous().T
    expected = functional.linear(x, layer.weight)
    monkeypatch.setattr(products, "fills_vectors_only_by_onednn", lambda device: True)
    with Operations("mkldnn") as counted:
        found = layer(x)  # with one
        assert counted.n == 0
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected.detach())
    assert counted.n == 1
    assert torch.equal(found, expected)
    monkeypatch.setattr(products, "_OF_FEW_ROWS", None)  # elsewhere
    with torch.no_grad():
        assert torch.equal(layer(x), functional.linear(x, layer.weight))


@pytest.mark.parametrize("layer", [Linear(24, 16), MLP(24, 40)])
def test_layers_convolve_forward_and_backward(layer: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every product of theirs, with a gradient and without; nothing else makes another result of it."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    x, results = torch.randn(2, 70, 24), []
    for convolves in (False, True):
        monkeypatch.setattr(products, "fills_vectors_only_by_onednn", lambda device, convolves=convolves: convolves)
        given = x.clone().requires_grad_()
        with Operations("convolution") as counted:
            out: Tensor = layer(given)
            results.append((out, *torch.autograd.grad(out.square().sum(), (given, *layer.parameters()))))
            with torch.no_grad():
                torch.testing.assert_close(layer(given), out)
        n_products = len(list(layer.parameters()))
        assert counted.n == convolves * 4 * n_products  # forward twice, and two gradients
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # the compiler instantiates autograd functions
@pytest.mark.parametrize("rows", [140, 6])
def test_compiled_layers_convolve_too(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not of few rows; those compile all the same."""
    monkeypatch.setattr(products, "fills_vectors_only_by_onednn", lambda device: True)
    layer = MLP(24, 40)
    torch.nn.init.normal_(layer.down.weight)
    x, results = torch.randn(2, rows // 2, 24), []
    for made in (layer, torch.compile(layer, fullgraph=True, dynamic=False)):
        for _ in ("compiled", "run"):
            given = x.clone().requires_grad_()
            with torch.profiler.profile() as profile:
                out: Tensor = made(given)
                gradients = torch.autograd.grad(out.square().sum(), (given, *layer.parameters()))
        results.append((out, *gradients))
        convolved = sum(event.count for event in profile.key_averages() if event.key == "aten::convolution_backward")
        assert convolved == (4 if rows >= 128 else 0)
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-3)
