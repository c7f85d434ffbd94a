"""The filter and the clips against their papers. The other equations are tested where a step uses them, in test_mugrokfast.py."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cognate.optimizer import grokfast_ema, muon_clip, qk_clip
from tests.optimizer.toy import published_grokfast


def run_filter(gradients: list[Tensor], alpha: float, weight: float) -> list[Tensor]:
    slow, filtered = [gradients[0].clone()], [gradient.clone() for gradient in gradients]
    for gradient in filtered:
        grokfast_ema([gradient], slow, alpha, weight)
    return filtered


def test_the_filter_is_the_published_one() -> None:
    """The predecessor of this project subtracted what Grokfast adds."""
    generator = torch.Generator().manual_seed(0)
    gradients = [torch.randn(7, 5, generator=generator) for _ in range(20)]
    expected = published_grokfast(gradients, 0.98, [0.3] * 20)
    for ours, theirs in zip(run_filter(gradients, 0.98, 0.3), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_constant_gradient_is_amplified_by_one_plus_lambda() -> None:
    """The slow part is what Grokfast amplifies; a constant is nothing but slow, from the first step."""
    gradient = torch.tensor([1.0, -2.0, 0.5])
    for filtered in run_filter([gradient] * 50, 0.98, 0.3):
        torch.testing.assert_close(filtered, 1.3 * gradient)


def test_an_alternating_gradient_is_amplified_by_less() -> None:
    """The fast part must not grow by the same factor, or the filter is a learning rate."""
    gradient = torch.tensor([1.0, -2.0, 0.5])
    late = run_filter([gradient * (-1) ** i for i in range(400)], 0.98, 0.3)[-1]
    assert (late.norm() / gradient.norm()).item() < 1.01


@pytest.mark.parametrize(
    ("query_gain", "key_gain", "head_dim", "expected_product", "clipped"),
    [
        (1.0, 1.0, 64, 1.0, False),  # 8 is allowed
        (1.9, 1.9, 64, 1.9 * 1.9, False),  # 28.88
        (2.0, 2.0, 64, 30 / 8, True),  # 32
        (5.0, 5.0, 64, 30 / 8, True),  # 200
        (100.0, 0.5, 64, 30 / 8, True),  # 400, lopsided
        (-5.0, 5.0, 64, -30 / 8, True),  # a negative gain makes large logits of opposite vectors
        (2.0, 2.0, 16, 4.0, False),  # a narrow head: 16
        (0.0, 1e30, 64, 0.0, False),
    ],
)
def test_the_largest_possible_logit_is_bounded(
    query_gain: float, key_gain: float, head_dim: int, expected_product: float, clipped: bool
) -> None:
    """sqrt(head_dim) |g_q g_k| <= 30, and nothing is touched below that."""
    query, key, was_clipped = qk_clip(torch.tensor([query_gain]), torch.tensor([key_gain]), head_dim, 30.0)
    assert was_clipped.item() is clipped
    assert (query * key).item() == pytest.approx(expected_product, rel=1e-6)
    if clipped:  # both shrink by the same factor
        assert (query / query_gain).item() == pytest.approx((key / key_gain).item(), rel=1e-6)
    else:
        assert (query.item(), key.item()) == (torch.tensor(query_gain).item(), torch.tensor(key_gain).item())


def test_clipping_twice_is_clipping_once() -> None:
    """A head that sits at the threshold after rounding must not count a clip in every step."""
    gains = torch.linspace(2.0, 50.0, 500)
    query, key, clipped = qk_clip(gains, gains.flip(0), 64, 30.0)
    assert clipped.all()
    assert not qk_clip(query, key, 64, 30.0)[2].any()


def logits(query: Tensor, key: Tensor, x: Tensor, n_heads: int) -> Tensor:
    """q.k / sqrt(head_dim) between all tokens, as attention without QK-norm has them; [head, time, time] in float64."""
    q, k = ((x.double() @ weight.double().T).unflatten(-1, (n_heads, -1)).transpose(0, 1) for weight in (query, key))
    return q @ k.mT / math.sqrt(q.shape[-1])


def projections(n_heads: int = 4, head_dim: int = 8, width: int = 24) -> tuple[Tensor, Tensor, Tensor]:
    """(W_q, W_k, x) with heads whose logits differ in size."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-1, 1, n_heads).repeat_interleave(head_dim)[:, None]
    query, key = (sizes * torch.randn(n_heads * head_dim, width, generator=generator) for _ in range(2))
    return query, key, torch.randn(50, width, generator=generator)


@pytest.mark.parametrize(
    ("largest", "shrink"),
    [(29.9, 1.0), (30.0, 1.0), (60.0, math.sqrt(0.5)), (3000.0, 0.1), (0.0, 1.0), (-500.0, 1.0), (math.inf, 1.0), (math.nan, 1.0)],
)
def test_muon_clip_is_the_papers(largest: float, shrink: float) -> None:
    """Kimi K2, section 2.1: both W_q and W_k of a head by sqrt(tau / S_max), and nothing else. What is not finite clips nothing:
    it would shrink the head to 0."""
    query, key, _ = projections(n_heads=2)
    clipped_query, clipped_key, clipped = muon_clip(query, key, torch.tensor([largest, 1.0]), 30.0)
    assert clipped.tolist() == [shrink < 1, False]
    for weight, ours in ((query, clipped_query), (key, clipped_key)):
        torch.testing.assert_close(ours[:8], shrink * weight[:8])
        assert torch.equal(ours[8:], weight[8:])


def test_no_logit_is_above_the_threshold_after_muon_clip() -> None:
    """The bound itself, with the scores computed again; and the next step, seeing them, clips nothing."""
    query, key, x = projections()
    largest = logits(query, key, x, 4).amax((1, 2))
    query, key, clipped = muon_clip(query, key, largest, 30.0)
    again = logits(query, key, x, 4).amax((1, 2))
    assert clipped.tolist() == (largest > 30).tolist()
    assert 0 < clipped.sum() < 4
    assert again[clipped].tolist() == pytest.approx([30.0] * int(clipped.sum()), rel=1e-6)
    assert torch.equal(again[~clipped], largest[~clipped])
    assert not muon_clip(query, key, again.float(), 30.0)[2].any()
