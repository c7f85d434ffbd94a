"""The halting head: what it is taught, how it is calibrated, what it decides."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cognate.model.act import HaltingHead, halting_depths, halting_loss, halting_targets


@pytest.mark.parametrize(
    ("cross_entropy", "delta", "targets"),
    [
        ([3.0, 2.0, 1.0], 0.0, [0, 0, 1]),  # every recursion helps
        ([1.0, 2.0, 3.0], 0.0, [1, 1, 1]),  # none does
        ([1.0, 1.0, 1.0], 0.0, [1, 1, 1]),
        ([2.0, 3.0, 1.0], 0.0, [0, 0, 1]),  # worse before it is better
        ([2.0, 1.0, 1.5], 0.0, [0, 1, 1]),
        ([3.0, 2.5, 2.25], 0.5, [0, 1, 1]),  # 0.75 would be saved, then 0.25
        ([3.0, 2.5, 2.5], 0.5, [1, 1, 1]),  # exactly delta is not enough
        ([5.0], 0.0, [1]),
    ],
)
def test_a_token_should_halt_when_no_later_recursion_saves_more_than_delta(
    cross_entropy: list[float], delta: float, targets: list[int]
) -> None:
    assert halting_targets(torch.tensor(cross_entropy)[:, None], delta)[:, 0].tolist() == targets


@pytest.mark.parametrize(
    ("probabilities", "threshold", "depth"),
    [
        ([0.2, 0.6, 0.9], 0.5, 2),
        ([0.5, 0.1, 0.1], 0.5, 1),
        ([0.1, 0.1, 0.1], 0.5, 3),  # the cap
        ([0.9, 0.1, 0.9], 0.5, 1),  # the first counts
        ([0.1], 0.5, 1),
    ],
)
def test_a_token_halts_at_the_first_recursion_that_reaches_the_threshold(probabilities: list[float], threshold: float, depth: int) -> None:
    column = torch.tensor(probabilities)[:, None]
    assert halting_depths(column, threshold).tolist() == [depth]
    assert column[:, 0].tolist() == pytest.approx(probabilities)  # left as it was


def test_the_loss_is_the_mean_binary_cross_entropy() -> None:
    logits, targets = torch.tensor([[0.0, 2.0], [-1.0, 0.5]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    p = logits.sigmoid()
    expected = -(targets * p.log() + (1 - targets) * (1 - p).log()).mean()
    weights = even(logits)
    torch.testing.assert_close(halting_loss(logits, targets, weights), expected)
    assert halting_loss(logits[:, :0], targets[:, :0], weights[:0]) == 0
    uncounted = functional.pad(logits, (0, 2), value=9.0), functional.pad(targets, (0, 2)), functional.pad(weights, (0, 2))
    torch.testing.assert_close(halting_loss(*uncounted), expected)


def test_only_the_head_learns_from_it() -> None:
    """Otherwise the model would learn to be predictable instead of right."""
    head, latents = HaltingHead(4, 3), torch.randn(3, 5, 4, requires_grad=True)
    halting_loss(head(latents), torch.ones(3, 5), torch.full((5,), 0.2)).backward()
    assert latents.grad is None
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.parameters())


def even(logits: Tensor) -> Tensor:
    """The weights of a plain mean over tokens."""
    return torch.full((logits.size(1),), 1 / logits.size(1))


def converge(head: HaltingHead, logits: Tensor, targets: Tensor) -> Tensor:
    for _ in range(500):
        head.calibrate(logits, targets, even(logits))
    return head.probabilities(logits)


def test_calibration_is_a_running_mean_per_recursion() -> None:
    head = HaltingHead(4, 3)
    logits, targets = torch.tensor([[0.0, 2.0], [1.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 1.0]])
    head.calibrate(logits, targets, even(logits))
    torch.testing.assert_close(head.predicted, 0.98 * 0.5 + 0.02 * logits.sigmoid().mean(1))
    torch.testing.assert_close(head.observed, torch.tensor([0.98 * 0.5 + 0.02 * 0.5, 0.98 * 0.5 + 0.02 * 1.0]))
    before = head.predicted.clone()
    head.calibrate(logits, targets, 0 * even(logits))
    assert torch.equal(head.predicted, before)


def test_the_parts_of_a_step_are_forgotten_no_faster_than_the_whole() -> None:
    """Sixteen parts, each taken for a step, would turn a memory of fifty steps into one of three."""
    whole, parted = HaltingHead(4, 3), HaltingHead(4, 3)
    logits, targets = torch.randn(2, 32), torch.randint(2, (2, 32)).float()
    whole.calibrate(logits, targets, even(logits))
    for some, truths in zip(logits.split(2, 1), targets.split(2, 1), strict=True):
        parted.calibrate(some, truths, even(some), share=1 / 16)
    torch.testing.assert_close(dict(parted.named_buffers()), dict(whole.named_buffers()), rtol=0, atol=2e-4)


def test_a_new_head_is_not_corrected() -> None:
    logits = torch.randn(2, 5)
    torch.testing.assert_close(HaltingHead(4, 2).probabilities(logits), logits.sigmoid())


def test_calibrated_probabilities_are_as_frequent_as_the_truth() -> None:
    """A head that says 12 % where 75 % are true is moved to 75 %; a certainty stays finite."""
    head = HaltingHead(4, 3)
    logits = torch.full((2, 8), -2.0)
    targets = torch.tensor([[1.0, 1, 1, 0] * 2, [1.0] * 8])
    probabilities = converge(head, logits, targets)
    torch.testing.assert_close(probabilities[0], torch.full((8,), 0.75), atol=1e-3, rtol=0)
    assert 0.99 < probabilities[1, 0] < 1


def test_recursions_never_trained_are_calibrated_as_the_last_that_was() -> None:
    """Three recursions decide twice; a model that thinks on to the fifth goes by the second decision."""
    head = HaltingHead(4, 3)
    head.observed.copy_(torch.tensor([0.2, 0.9]))
    probabilities = head.probabilities(torch.zeros(5, 1))[:, 0]
    torch.testing.assert_close(probabilities, torch.tensor([0.2, 0.9, 0.9, 0.9, 0.9]))
    with torch.no_grad():
        head.linear.bias.zero_()
    for number, probability in enumerate(probabilities.tolist(), start=1):
        assert head.halts(torch.zeros(1, 4), number, probability - 1e-4)
        assert not head.halts(torch.zeros(1, 4), number, probability + 1e-4)


def test_the_head_starts_by_thinking_on_and_calibration_is_saved() -> None:
    head = HaltingHead(4, 3)
    assert head(torch.randn(3, 2, 4)).tolist() == [[-2.0] * 2] * 3
    assert set(head.state_dict()) == {"linear.weight", "linear.bias", "predicted", "observed"}
    assert math.isclose(sum(parameter.numel() for parameter in head.parameters()), 5)
