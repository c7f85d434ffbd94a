"""The recursion against a plain reading of its figure."""

import pytest
import torch

from cognate.config import ModelConfig
from cognate.model.layers import rms_norm
from cognate.model.sight import Sight, look
from cognate.model.trm import Recursion

CONFIG = ModelConfig(d_model=16, n_heads=2, trm_d_ff=24, recursions=4, micro_steps=3)


@pytest.fixture
def sight() -> Sight:
    return look(torch.zeros(1, 9, dtype=torch.long), 4, 8, 1e4, torch.float32)


def test_z_is_updated_micro_steps_times_for_each_update_of_y(sight: Sight) -> None:
    """TRM figure 3, with an arithmetic net: z <- net(x + y + z), repeated; then y <- net(y + z)."""
    recursion, x = Recursion(CONFIG), torch.randn(2, 9, 16)
    recursion._net = lambda h, kept, sight: 0.5 * h + 1  # type: ignore[method-assign]
    y, z = x, torch.zeros_like(x)
    for thought in recursion(x, sight):
        for _ in range(3):
            z = 0.5 * (x + y + z) + 1
        y = 0.5 * (y + z) + 1
        torch.testing.assert_close(thought.answer, y)
        torch.testing.assert_close(thought.latent, z)


def test_a_new_recursion_only_normalises(sight: Sight) -> None:
    """Output projections start at zero, so every answer points along x and has RMS 1."""
    x = torch.randn(2, 9, 16)
    thoughts = Recursion(CONFIG)(x, sight)
    assert len(thoughts) == 4
    for thought in thoughts:
        torch.testing.assert_close(thought.answer, rms_norm(x), rtol=1e-4, atol=1e-4)


def test_keys_and_values_come_from_the_features_once(sight: Sight) -> None:
    """However long the loop, each of W_k and W_v is applied once: what makes halting exact and the cache single."""
    recursion, calls = Recursion(CONFIG), {"key": 0, "value": 0, "query": 0}
    for name in calls:
        getattr(recursion, name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    recursion(torch.randn(2, 9, 16), sight)
    assert calls == {"key": 1, "value": 1, "query": 4 * (3 + 1)}


def test_a_token_stopped_early_leaves_the_others_as_they_were(sight: Sight) -> None:
    """Queries read x's keys, never each other's thoughts: freezing one token changes no other."""
    recursion, x = Recursion(CONFIG), torch.randn(1, 9, 16)
    with torch.no_grad():
        recursion.out.weight.normal_()
    kept = recursion.keys_values(x, sight)
    thought = recursion.begin(x)
    first = recursion.advance(thought, x, kept, sight)
    second = recursion.advance(first, x, kept, sight)
    frozen = first._replace(answer=first.answer.clone(), latent=first.latent.clone())
    frozen.answer[0, 3], frozen.latent[0, 3] = 0, 0
    other = recursion.advance(frozen, x, kept, sight)
    others = [t for t in range(9) if t != 3]
    assert torch.equal(other.answer[0, others], second.answer[0, others])
