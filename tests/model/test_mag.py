"""The gate between attention and memory, and what a block says of the two."""

import torch
from torch import Tensor

from cognate.config import ModelConfig
from cognate.model.layers import rms_norm
from cognate.model.mag import Backbone, Gate, watch
from cognate.model.memory import Signals, cut, step
from cognate.model.sight import look


def binary_entropy(g: Tensor) -> Tensor:
    return -(g * g.log() + (1 - g) * (1 - g).log())


def test_a_new_gate_is_open_to_attention() -> None:
    """g = sigmoid(2) = 0.88 everywhere, whatever it is fed."""
    attended, recalled = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    mixed, gate, entropy = Gate(8, 2)(attended, recalled)
    g = torch.tensor(2.0).sigmoid()
    torch.testing.assert_close(mixed, g * attended + (1 - g) * rms_norm(recalled))
    torch.testing.assert_close(gate, g.expand(2, 3, 8))
    torch.testing.assert_close(entropy, binary_entropy(g).expand(2, 3))


def test_the_gate_follows_its_equation() -> None:
    gate = Gate(8, 2)
    with torch.no_grad():
        for parameter in gate.parameters():
            parameter.normal_()
    attended, recalled = torch.randn(2, 3, 8), 7 * torch.randn(2, 3, 8)
    y, m = rms_norm(attended), rms_norm(recalled)
    g = torch.sigmoid(gate.bias.repeat_interleave(4) + gate.attention_weight * y + gate.memory_weight * m)
    mixed, actual, entropy = gate(attended, recalled)
    torch.testing.assert_close(mixed, g * attended + (1 - g) * m)
    torch.testing.assert_close(entropy, binary_entropy(g).mean(-1))
    torch.testing.assert_close(actual, g)


def test_a_shut_gate_has_no_entropy_and_a_finite_gradient() -> None:
    gate = Gate(8, 2)
    with torch.no_grad():
        gate.bias.copy_(torch.tensor([200.0, -200.0]))
    _, _, entropy = gate(torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    entropy.sum().backward()
    assert not entropy.any()
    assert gate.bias.grad is not None
    assert gate.bias.grad.isfinite().all()


def test_a_watched_memory_is_seen_before_the_padding() -> None:
    """Usage is that of the memory after the row's last counted token, as the recurrence gives it, document by document."""
    torch.manual_seed(0)
    config = ModelConfig(d_model=16, n_heads=2, n_layers=1, d_ff=16, memory_key_dim=4, memory_value_dim=4, memory_chunk=4)
    backbone, x = Backbone(config), torch.randn(2, 14, 16)
    segments = torch.tensor([[0] * 5 + [1] * 6 + [2] * 3, [0] * 14])
    counted = torch.zeros(2, 14, dtype=torch.bool)
    counted[0, 2], counted[0, 9], counted[1, 12] = True, True, True
    chunks, sight = cut(segments, 4), look(segments, 8, 8, 1e4, torch.float32)
    _, (reading,) = backbone(x, sight, chunks, watch(segments, counted, 4))
    block = backbone.blocks[0]
    signals = block.memory.signals(block.norm_mixer(x))
    for row, first, last in ((0, 5, 9), (1, 0, 12)):
        state = torch.zeros(1, 2, 4, 4)
        for t in range(first, last + 1):
            state, _ = step(state, Signals(*(tensor[row : row + 1, :, t : t + 1] for tensor in signals)))
        torch.testing.assert_close(reading.recollection.memory[row], state[0])


def test_an_unwatched_block_measures_nothing() -> None:
    config = ModelConfig(d_model=16, n_heads=2, n_layers=2, d_ff=16)
    segments = torch.zeros(1, 5, dtype=torch.long)
    _, readings = Backbone(config)(torch.randn(1, 5, 16), look(segments, 8, 8, 1e4, torch.float32), cut(segments, 4))
    assert [reading.recollection for reading in readings] == [None, None]


def test_a_new_block_is_the_identity() -> None:
    config = ModelConfig(d_model=16, n_heads=2, n_layers=1, d_ff=16)
    segments, x = torch.zeros(1, 5, dtype=torch.long), torch.randn(1, 5, 16)
    out, _ = Backbone(config).blocks[0](x, look(segments, 8, 8, 1e4, torch.float32), cut(segments, 4), None)
    assert torch.equal(out, x)
