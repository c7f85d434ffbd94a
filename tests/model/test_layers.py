"""The layers against their formulas."""

import math

import pytest
import torch
from torch.nn import functional

from cognate.model.layers import MLP, Attention, Linear, Sight, attend, look, rms_norm, rotate, segment


def sight_of(segments: torch.Tensor, window: int = 4, head_dim: int = 4) -> Sight:
    return look(segments, window, head_dim, 10_000.0, torch.float32)


def test_documents_are_numbered_by_their_runs() -> None:
    documents = torch.tensor([[7, 7, 3, 3, 7], [0, 0, 0, 0, 0]])
    assert segment(documents).tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]]


def test_a_query_sees_its_window_of_its_document() -> None:
    """0 <= i - j < window, same document; element by element."""
    segments = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1]])
    mask = sight_of(segments).mask[0, 0]
    for i in range(9):
        for j in range(9):
            sees = 0 <= i - j < 4 and segments[0, i] == segments[0, j]
            assert mask[i, j] == (0 if sees else -math.inf)


def test_attention_is_the_softmax_average_of_what_is_seen() -> None:
    query, key, value = (torch.randn(2, 9, 2, 4) for _ in range(3))
    segments = torch.tensor([[0] * 9, [0, 0, 0, 1, 1, 1, 1, 1, 1]])
    out = attend(query, key, value, sight_of(segments)).view(2, 9, 2, 4)
    for row, i, head in ((0, 8, 0), (1, 3, 1), (1, 7, 0), (0, 0, 1)):
        seen = [j for j in range(9) if 0 <= i - j < 4 and segments[row, i] == segments[row, j]]
        weights = torch.softmax(key[row, seen, head] @ query[row, i, head] / math.sqrt(4), 0)
        torch.testing.assert_close(out[row, i, head], weights @ value[row, seen, head])


def test_rotation_turns_scores_into_functions_of_distance() -> None:
    """RoPE: the score of a query and a key depends on how far apart they stand, not on where."""
    sight = sight_of(torch.zeros(1, 12, dtype=torch.long))
    query, key = (rotate(torch.randn(4).expand(1, 12, 1, 4), sight)[0, :, 0] for _ in range(2))
    scores = query @ key.T
    for distance in range(11):
        torch.testing.assert_close(scores.diagonal(-distance), scores[distance, 0].expand(12 - distance))
    assert not torch.isclose(scores[5, 0], scores[6, 0])


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x, sight = torch.randn(1, 6, 1, 4), sight_of(torch.zeros(1, 6, dtype=torch.long))
    turned = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(
        torch.ones(6, 1, 2), torch.arange(6.0)[:, None, None] * torch.tensor([1.0, 0.01])
    )
    torch.testing.assert_close(rotate(x, sight), torch.cat((turned.real, turned.imag), -1))


def test_no_score_exceeds_what_the_gains_allow() -> None:
    """QK-norm bounds a head's logits by 8 g_q g_k (head_dim 64), which is what the optimizer's QK-clip relies on."""
    attention, seen = Attention(128, 2), []
    with torch.no_grad():
        attention.query_gain.copy_(torch.tensor([2.0, 1.0]))
        attention.key_gain.copy_(torch.tensor([3.0, 1.0]))
    x, sight = 100 * torch.randn(1, 40, 128), sight_of(torch.zeros(1, 40, dtype=torch.long), 40, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cognate.model.layers.attend", lambda q, k, v, _: seen.append((q, k)) or v.flatten(2))
        attention(x, sight)
    query, key = seen[0]
    scores = torch.einsum("bihd,bjhd->hij", query, key) / math.sqrt(64)
    assert (scores.abs().amax((1, 2)) <= torch.tensor([8 * 6.0, 8.0]) * (1 + 1e-5)).all()
    assert scores[0].abs().max() > 8


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 8)])
def test_rms_norm_and_its_gradient_are_torchs(shape: tuple[int, ...]) -> None:
    x = (3 * torch.randn(shape)).requires_grad_()
    weights = torch.randn(shape)
    expected = functional.rms_norm(x, shape[-1:], eps=1e-6)
    torch.testing.assert_close(rms_norm(x), expected)
    torch.testing.assert_close(
        torch.autograd.grad((rms_norm(x) * weights).sum(), x), torch.autograd.grad((expected * weights).sum(), x), rtol=1e-4, atol=1e-6
    )


def test_rms_norm_of_narrow_numbers_is_computed_wide() -> None:
    x = (1000 * torch.randn(4, 64)).bfloat16().requires_grad_()
    out = rms_norm(x)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), rms_norm(x.detach().float()), rtol=2**-8, atol=1e-6)


def test_the_mlp_squares_what_is_positive() -> None:
    mlp, x = MLP(4, 6), torch.randn(3, 4, requires_grad=True)
    with torch.no_grad():
        mlp.down.weight.normal_()
    expected = functional.linear(functional.relu(functional.linear(x, mlp.up.weight)).square(), mlp.down.weight)
    torch.testing.assert_close(mlp(x), expected)
    torch.testing.assert_close(torch.autograd.grad(mlp(x).sum(), x), torch.autograd.grad(expected.sum(), x))


def test_a_linear_layer_computes_in_the_dtype_of_its_input() -> None:
    linear = Linear(4, 3)
    assert linear(torch.randn(2, 4).bfloat16()).dtype == torch.bfloat16
    assert linear.weight.dtype == torch.float32
    assert linear.bias is None
