"""The long-term memory: the chunked form is the recurrence, and what is measured is what it holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cognate.config import ModelConfig
from cognate.model.memory import LongTermMemory, Signals, cut, observe, scan, step, usage


def random_signals(batch: int, heads: int, time: int, key_dim: int = 4, value_dim: int = 3, forgetting: float = 1.0) -> Signals:
    unit = (torch.nn.functional.normalize(torch.randn(batch, heads, time, key_dim, dtype=torch.double), dim=-1) for _ in range(2))
    value = torch.randn(batch, heads, time, value_dim, dtype=torch.double)
    log_decay = -forgetting * torch.rand(batch, heads, time, dtype=torch.double)
    return Signals(*unit, value, log_decay, torch.rand(batch, heads, time, dtype=torch.double))


def recur(signals: Signals, segments: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The plain recurrence with a reset where a document starts: what is read, the last state, and the surprise."""
    read, surprise = [], []
    for t in range(segments.size(1)):
        if t:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        now = Signals(*(tensor[:, :, t : t + 1] for tensor in signals))
        foretold = torch.einsum("bhkv,bhtk->bhtv", state, now.key)
        surprise.append((now.value - foretold).flatten(1).norm(dim=1) / now.value.flatten(1).norm(dim=1))
        state, value = step(state, now)
        read.append(value)
    return torch.cat(read, 2), state, torch.stack(surprise, 1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_the_chunked_memory_is_the_recurrence(data: st.DataObject) -> None:
    """For any lengths, chunk sizes, document boundaries, decays and initial states; in value and in gradient."""
    batch, heads = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    time, length = data.draw(st.integers(1, 23)), data.draw(st.integers(1, 9))
    torch.manual_seed(data.draw(st.integers(0, 1000)))
    boundaries = data.draw(st.lists(st.lists(st.booleans(), min_size=time, max_size=time), min_size=batch, max_size=batch))
    segments = torch.tensor(boundaries).long().cumsum(1)
    signals = random_signals(batch, heads, time, forgetting=data.draw(st.sampled_from([0.0, 0.01, 1.0, 50.0])))
    empty = torch.zeros(batch, heads, 4, 3, dtype=torch.double)
    initial = data.draw(st.sampled_from([None, torch.randn_like(empty)]))

    leaves = [tensor.requires_grad_() for tensor in signals]
    expected, expected_state, _ = recur(signals, segments, empty if initial is None else initial)
    weights = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad((expected * weights).sum(), leaves, materialize_grads=True)
    actual, actual_state = scan(signals, cut(segments, length), initial)
    gradients = torch.autograd.grad((actual * weights).sum(), leaves, materialize_grads=True)

    torch.testing.assert_close(actual, expected.to(actual.dtype))
    torch.testing.assert_close(actual_state, expected_state.to(actual.dtype))
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(gradient, expected_gradient)


def test_a_memory_carried_on_is_the_memory_of_the_whole() -> None:
    """Reading in two parts, the second from the first one's state, is reading at once: what cached decoding relies on."""
    signals, segments = random_signals(2, 2, 20), torch.zeros(2, 20, dtype=torch.long)
    whole, state = scan(signals, cut(segments, 4))
    first = Signals(*(tensor[:, :, :11] for tensor in signals))
    second = Signals(*(tensor[:, :, 11:] for tensor in signals))
    one, between = scan(first, cut(segments[:, :11], 4))
    other, end = scan(second, cut(segments[:, 11:], 4), between)
    torch.testing.assert_close(torch.cat((one, other), 2), whole)
    torch.testing.assert_close(end, state)


def test_strong_forgetting_gives_neither_infinity_nor_nan() -> None:
    """Every exponent is <= 0; a difference of the wrong sign would overflow here."""
    signals = random_signals(1, 1, 300, forgetting=1000.0)
    leaves = [tensor.float().requires_grad_() for tensor in signals]
    read, state = scan(Signals(*leaves), cut(torch.zeros(1, 300, dtype=torch.long), 64))
    (read.sum() + state.sum()).backward()
    assert read.isfinite().all()
    assert all(leaf.grad is not None and leaf.grad.isfinite().all() for leaf in leaves)


def test_the_memory_reaches_beyond_any_window() -> None:
    """What was written first is still read 200 tokens later, shrunk by the decay in between."""
    time = 201
    key = torch.zeros(1, 1, time, 4)
    key[..., 0, 0] = 1
    value, write = torch.zeros(1, 1, time, 3), torch.zeros(1, 1, time)
    value[..., 0, :], write[..., 0] = torch.tensor([1.0, 2.0, 3.0]), 1
    query = torch.zeros_like(key)
    query[..., -1, 0] = 1
    read, _ = scan(Signals(query, key, value, torch.full((1, 1, time), -0.001), write), cut(torch.zeros(1, time, dtype=torch.long), 64))
    torch.testing.assert_close(read[0, 0, -1], torch.tensor([1.0, 2.0, 3.0]) * math.exp(-0.2))
    assert not read[0, 0, :-1].any()


@pytest.mark.parametrize("capacity", [2048, 4096, 8192])
def test_nothing_is_remembered_longer_than_the_capacity(capacity: int) -> None:
    """The decay has a floor that training cannot lower; new models start with horizons between 1/64 and 1/4 of it."""
    memory = LongTermMemory(ModelConfig(memory_capacity=capacity))
    x = torch.randn(1, 5, 320)
    horizons = -1 / memory.signals(x).log_decay[0, :, 0]
    torch.testing.assert_close(1 / horizons, torch.tensor([64 + 1, 4 + 1]) / capacity, rtol=1e-4, atol=0)
    with torch.no_grad():
        memory.gates.bias.fill_(-100)
    torch.testing.assert_close(memory.signals(x).log_decay, torch.full((1, 2, 5), -1 / capacity))


def test_queries_and_keys_have_unit_length_and_writes_are_shares() -> None:
    memory = LongTermMemory(ModelConfig())
    signals = memory.signals(torch.randn(2, 5, 320))
    assert [tuple(tensor.shape) for tensor in signals] == [(2, 2, 5, 32), (2, 2, 5, 32), (2, 2, 5, 64), (2, 2, 5), (2, 2, 5)]
    torch.testing.assert_close(signals.query.norm(dim=-1), torch.ones(2, 2, 5))
    torch.testing.assert_close(signals.key.norm(dim=-1), torch.ones(2, 2, 5))
    assert ((signals.write > 0) & (signals.write < 1)).all()


def test_surprise_is_what_a_plain_loop_says() -> None:
    signals = random_signals(3, 2, 19, forgetting=0.1)
    segments = (torch.arange(19) >= torch.tensor([[4], [8], [16]])).long()
    _, state, expected = recur(signals, segments, torch.zeros(3, 2, 4, 3, dtype=torch.double))
    surprise, actual_state = observe(signals, cut(segments, 4))
    torch.testing.assert_close(surprise, expected.to(surprise.dtype), check_dtype=False)
    torch.testing.assert_close(actual_state, state, check_dtype=False)


def test_what_is_known_does_not_surprise() -> None:
    """The same key and value again and again, no forgetting: all news at first, none the second time."""
    key = torch.tensor([1.0, 0, 0, 0]).expand(1, 1, 4, 4)
    value = torch.tensor([3.0, 4.0]).expand(1, 1, 4, 2)
    write = torch.tensor([[[1.0, 0, 0, 0]]])
    surprise, _ = observe(Signals(key, key, value, torch.zeros(1, 1, 4), write), cut(torch.tensor([[0, 0, 0, 1]]), 4))
    torch.testing.assert_close(surprise, torch.tensor([[1.0, 0, 0, 1.0]]))


@pytest.mark.parametrize(
    ("singular_values", "expected"),
    [
        ([1, 1, 1, 1], 1.0),
        ([5, 5, 0, 0], 0.5),
        ([1e-9, 0, 0, 0], 0.25),
        ([0, 0, 0, 0], 0.0),
        ([3, 1, 0, 0], math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))) / 4),
    ],
)
def test_usage_is_the_effective_rank(singular_values: list[float], expected: float) -> None:
    """exp of the entropy of the singular values' shares, over the key width; scale does not matter, rotation neither."""
    left, right = torch.linalg.qr(torch.randn(4, 4))[0], torch.linalg.qr(torch.randn(6, 6))[0]
    state = left @ torch.diag(torch.tensor(singular_values, dtype=torch.float32)) @ right[:4]
    assert usage(state).item() == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rank", [0, 1, 7, 32])
def test_usage_is_that_of_all_singular_values(rank: int) -> None:
    """They are taken of a smaller matrix with the same ones: random memories, and such as hold few keys, of any scale."""
    state = torch.randn(6, 2, 32, rank) @ torch.randn(6, 2, rank, 64) * 10.0 ** torch.arange(-3, 3).view(6, 1, 1, 1)
    values = torch.linalg.svdvals(state.double())
    shares = values / values.sum(-1, keepdim=True).clamp(min=1e-30)
    expected = torch.special.entr(shares).sum(-1).exp() / 32 if rank else torch.zeros(6, 2)
    torch.testing.assert_close(usage(state), expected, rtol=2e-4, atol=0, check_dtype=False)


@pytest.mark.parametrize("rank", [32, 45])
def test_usage_is_never_above_one(rank: int) -> None:
    """Rounding alone would take a full memory to 1.000001."""
    assert 0.9999 < usage(torch.eye(rank, 2 * rank)) <= 1
