"""Memory, halting and masks against their definitions, in the plainest loops, for anything hypothesis can think of.

Structure (sizes, document boundaries, decays, ties) is drawn by hypothesis and shrinks; the numbers that fill it come from a seed.
Reference and code are compared in float64, where they agree to 1e-10; the memory is checked in float32 too, in which it runs.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from cognate.model.act import EMA_DECAY, HaltingHead, halting_depths, halting_targets
from cognate.model.memory import Signals, cut, observe, scan, step, usage
from cognate.model.sight import look, segment

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
FLOAT32 = torch.finfo(torch.float32)


def examples(count: int) -> settings:
    return settings(max_examples=count, deadline=None, derandomize=True)


class History(NamedTuple):
    """What a memory lives through.

    segments: [batch or 1, time]; length: tokens in a chunk, also more than there are
    initial:  [batch, head, key_dim, value_dim], or None
    """

    signals: Signals
    segments: Tensor
    length: int
    initial: Tensor | None

    @property
    def start(self) -> Tensor:
        query, _, value, *_ = self.signals
        return query.new_zeros(*query.shape[:2], query.size(3), value.size(3)) if self.initial is None else self.initial


@st.composite
def histories(draw: st.DrawFn, longest: int = 150) -> History:
    batch, heads, key_dim, value_dim = (draw(st.integers(1, most)) for most in (3, 3, 5, 5))
    time, length = draw(st.integers(1, longest)), draw(st.integers(1, 70))
    segments = torch.zeros(draw(st.sampled_from([1, batch])), time, dtype=torch.long)
    for row in segments:
        some = st.sets(st.integers(0, time - 1), max_size=9)
        one, every_chunk, every_token = (st.just(set(range(0, time, apart))) for apart in (time, length, 1))
        row[list(draw(some | one | every_chunk | every_token))] = 1
    decays = draw(st.sampled_from([(1e-4,), (50.0,), (1e-4, 50.0), (1e-4, 0.03, 1.0, 50.0)]))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.double, generator=random)

    signals = Signals(
        query=normalize(normal(batch, heads, time, key_dim), dim=-1),
        key=normalize(normal(batch, heads, time, key_dim), dim=-1),
        value=normal(batch, heads, time, value_dim),
        log_decay=-torch.tensor(decays).double()[torch.randint(len(decays), (batch, heads, time), generator=random)],
        write=normal(batch, heads, time).add(0.5).clamp(0, 1),  # a third are 0, a third are 1
    )
    initial = normal(batch, heads, key_dim, value_dim) if draw(st.booleans()) else None
    return History(signals, segments.cumsum(1), length, initial)


def recur(signals: Signals, segments: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """docs/model.md section 1, token by token: S_t = a_t S_{t-1} + b_t k_t v_t^T and S_t^T q_t, where S is zero when a document starts.

    returns what is read [batch, head, time, value_dim], the last S, and ||v_t - S_{t-1}^T k_t|| / ||v_t|| [batch, time]
    """
    read, surprise = [], []
    for t in range(segments.size(1)):
        query, key, value, log_decay, write = (tensor[:, :, t] for tensor in signals)
        if t:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        missed = value - torch.einsum("bhkv,bhk->bhv", state, key)
        surprise.append(missed.square().sum((1, 2)).sqrt() / value.square().sum((1, 2)).sqrt())
        state = torch.einsum("bh,bhkv->bhkv", log_decay.exp(), state) + torch.einsum("bh,bhk,bhv->bhkv", write, key, value)
        read.append(torch.einsum("bhkv,bhk->bhv", state, query))
    return torch.stack(read, 2), state, torch.stack(surprise, 1)


@examples(150)
@given(histories())
def test_scan_is_the_recurrence(history: History) -> None:
    """The parallel form is an optimisation: chunks, padding and shared rows may change nothing that is read or kept."""
    signals, segments, length, initial = history
    read, state = scan(signals, cut(segments, length), initial)
    expected_read, expected_state, _ = recur(signals, segments, history.start)
    torch.testing.assert_close(read, expected_read, **TIGHT)
    torch.testing.assert_close(state, expected_state, **TIGHT)


@examples(120)
@given(histories())
def test_scan_has_the_gradient_of_the_recurrence(history: History) -> None:
    """A right value with a wrong gradient trains a different memory than the equation's, and nothing else would show it."""
    signals, segments, length, initial = history
    leaves = [tensor.requires_grad_() for tensor in (*signals, *([] if initial is None else [initial]))]
    outcomes = recur(signals, segments, history.start)[:2], scan(signals, cut(segments, length), initial)
    projection = [torch.randn_like(tensor) for tensor in outcomes[0]]
    expected, actual = (torch.autograd.grad(outcome, leaves, projection) for outcome in outcomes)
    torch.testing.assert_close(actual, expected, **TIGHT)


@examples(80)
@given(histories())
def test_in_float32_scan_is_as_exact_as_its_exponents(history: History) -> None:
    """It runs in float32, and a decay is exp of a difference of sums: it errs by an ulp of the sum, at most that of all log decays.

    That share, and a rounding a term, is allowed of what would be read if nothing cancelled. exp(sum) / exp(sum) would overflow.
    """
    signals = Signals(*(tensor.float() for tensor in history.signals))
    initial = None if history.initial is None else history.initial.float()
    read, state = scan(signals, cut(history.segments, history.length), initial)
    exact = Signals(*(tensor.double() for tensor in signals))
    size = Signals(exact.query.abs(), exact.key.abs(), exact.value.abs(), exact.log_decay, exact.write)
    start = history.start.float().double()
    expected_read, expected_state, _ = recur(exact, history.segments, start)
    read_size, state_size, _ = recur(size, history.segments, start.abs())
    allowed = FLOAT32.eps * (10 + signals.value.size(2) + exact.log_decay.abs().sum(2).max())
    assert ((read - expected_read).abs() <= allowed * read_size + FLOAT32.tiny).all()
    assert ((state - expected_state).abs() <= allowed * state_size + FLOAT32.tiny).all()


@examples(120)
@given(histories(), st.data())
def test_a_memory_carried_over_any_split_is_the_memory_of_the_whole(history: History, data: st.DataObject) -> None:
    """A prompt is read in one scan and continued in another: wherever that is, in a document or between two, nothing may differ."""
    signals, segments, length, initial = history
    split = data.draw(st.integers(0, segments.size(1) - 1), label="split") + 1
    read, state = scan(signals, cut(segments, length), initial)
    first, second = (Signals(*(tensor[:, :, part] for tensor in signals)) for part in (slice(split), slice(split, None)))
    read_first, between = scan(first, cut(segments[:, :split], length), initial)
    torch.testing.assert_close(read_first, read[:, :, :split], **TIGHT)
    if split == segments.size(1):
        torch.testing.assert_close(between, state, **TIGHT)
        return
    goes_on = segments[:, split] == segments[:, split - 1]
    chunks = cut(segments[:, split:], data.draw(st.integers(1, 70), label="second length"))
    read_second, end = scan(second, chunks, between * goes_on[:, None, None, None])
    torch.testing.assert_close(read_second, read[:, :, split:], **TIGHT)
    torch.testing.assert_close(end, state, **TIGHT)


@examples(80)
@given(histories(longest=60))
def test_scan_is_step_for_every_token(history: History) -> None:
    """Cached decoding steps, training scans: a model must say the same in both."""
    signals, segments, length, initial = history
    read, last = scan(signals, cut(segments, length), initial)
    state = history.start
    for t in range(segments.size(1)):
        if t:
            state = state * (segments[:, t] == segments[:, t - 1])[:, None, None, None]
        state, now = step(state, Signals(*(tensor[:, :, t : t + 1] for tensor in signals)))
        torch.testing.assert_close(read[:, :, t : t + 1], now, **TIGHT)
    torch.testing.assert_close(last, state, **TIGHT)


@examples(80)
@given(histories())
def test_surprise_is_the_share_of_a_value_that_the_memory_before_it_missed(history: History) -> None:
    """Read before the token is written and over all heads together; a token's own write would make everything look foretold."""
    signals, segments, length, _ = history
    _, expected_state, expected = recur(signals, segments, torch.zeros_like(history.start))
    surprise, state = observe(signals, cut(segments, length))
    torch.testing.assert_close(surprise, expected, **TIGHT)
    torch.testing.assert_close(state, expected_state, **TIGHT)


@examples(200)
@given(histories(), st.data())
def test_what_a_document_holds_reaches_no_other_document_and_no_earlier_token(history: History, data: st.DataObject) -> None:
    """To the bit, in float32: packing must not be visible, and a rounding error that leaks is a leak."""
    signals, initial = Signals(*(tensor.float() for tensor in history.signals)), history.start.float()
    segments, time = history.segments.expand(len(initial), -1), history.segments.size(1)
    row, token = (data.draw(st.integers(0, size - 1), label=label) for size, label in ((len(initial), "row"), (time, "from token")))
    changed = torch.zeros_like(segments, dtype=torch.bool)
    changed[row, token:] = segments[row, token:] == segments[row, token]
    here = changed[:, None].expand(-1, signals.key.size(1), -1)
    other = Signals(*(torch.where(here[..., None] if tensor.dim() == 4 else here, 3 * tensor.roll(1, 0) - 1, tensor) for tensor in signals))
    other_initial = initial.clone()
    if token == 0:  # then the document is the row's first, whose memory `initial` is
        other_initial[row] = 7

    chunks = cut(history.segments, history.length)
    (read, state), (other_read, other_state) = scan(signals, chunks, initial), scan(other, chunks, other_initial)
    assert torch.equal(other_read.transpose(1, 2)[~changed], read.transpose(1, 2)[~changed])
    assert torch.equal(other_state[~changed[:, -1]], state[~changed[:, -1]])
    assert torch.equal(observe(other, chunks)[0][~changed], observe(signals, chunks)[0][~changed])


@examples(100)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 6), st.integers(-6, 6), st.integers(0, 2**32))
def test_usage_is_the_effective_rank_whatever_the_scale_and_order(key_dim: int, value_dim: int, rank: int, scale: int, seed: int) -> None:
    """A metric compared between runs: it may depend on how a memory is filled, not on how strongly, nor on which rows it uses."""
    random = np.random.default_rng(seed)
    state = 10.0**scale * random.normal(size=(3, key_dim, rank)) @ random.normal(size=(rank, value_dim))
    values = np.linalg.svd(state, compute_uv=False)
    shares = values / np.maximum(values.sum(-1, keepdims=True), 1e-300)
    expected = np.exp(-(shares * np.log(np.maximum(shares, 1e-300))).sum(-1)) / key_dim * (rank > 0)

    actual = usage(torch.tensor(state)).cpu()
    np.testing.assert_allclose(actual, expected, rtol=1e-9)
    assert ((actual >= 0) & (actual <= min(rank, key_dim, value_dim) / key_dim * (1 + 1e-9))).all()
    shuffled = state[:, random.permutation(key_dim)][:, :, random.permutation(value_dim)]
    np.testing.assert_allclose(usage(torch.tensor(-3 * shuffled)).cpu(), actual, rtol=1e-9)


def columns(draw: st.DrawFn, elements: st.SearchStrategy[float]) -> Tensor:
    """[recursion, token], float64; also a single recursion, and no token."""
    recursions, tokens = draw(st.integers(1, 6)), draw(st.integers(0, 6))
    rows = st.lists(st.lists(elements, min_size=tokens, max_size=tokens), min_size=recursions, max_size=recursions)
    return torch.tensor(draw(rows), dtype=torch.double).view(recursions, tokens)


# Multiples of a quarter are exact in binary: ties are ties, and "exactly delta" is exact.
QUARTERS = st.integers(0, 12).map(lambda n: n / 4)
EIGHTHS = st.integers(0, 8).map(lambda n: n / 8)
losses = st.composite(columns)(QUARTERS)
shares = st.composite(columns)(EIGHTHS)


@examples(150)
@given(losses, QUARTERS)
def test_a_target_is_1_when_no_recursion_from_here_saves_more_than_delta(cross_entropy: Tensor, delta: float) -> None:
    """The definition, token by token; a strict or forward-looking-only-one comparison teaches the head another fact."""
    expected = [
        [float(all(now - later[token] <= delta for later in cross_entropy.tolist()[t:])) for token, now in enumerate(row)]
        for t, row in enumerate(cross_entropy.tolist())
    ]
    assert halting_targets(cross_entropy, delta).tolist() == expected


@examples(100)
@given(losses, QUARTERS, QUARTERS)
def test_more_patience_never_takes_a_halt_back(cross_entropy: Tensor, delta: float, more: float) -> None:
    """The specialists differ in delta alone: a larger one can only halt earlier. After the last recursion there is nothing to gain."""
    targets = halting_targets(cross_entropy, delta)
    assert (halting_targets(cross_entropy, delta + more) >= targets).all()
    assert (targets[-1] == 1).all()


@examples(150)
@given(shares, EIGHTHS, EIGHTHS)
def test_a_token_halts_where_its_probability_first_reaches_the_threshold_or_last(
    probabilities: Tensor, threshold: float, more: float
) -> None:
    """The definition, token by token; and asking for more certainty never ends a thought earlier."""
    expected = []
    for column in probabilities.T.tolist():
        depth = 1
        while depth < len(column) and column[depth - 1] < threshold:
            depth += 1
        expected.append(depth)
    depths = halting_depths(probabilities, threshold)
    assert depths.tolist() == expected
    assert (halting_depths(probabilities, threshold + more) >= depths).all()


@examples(60)
@given(st.integers(1, 4), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2**32)), max_size=6))
def test_calibration_keeps_running_means(recursions: int, steps: list[tuple[int, int]]) -> None:
    """mean <- 0.98 mean + 0.02 new, from 1/2, per recursion but the last; a step without tokens has no mean and must leave no NaN."""
    head = HaltingHead(1, recursions + 1).double()  # the last one has no means
    predicted, observed = [0.5] * recursions, [0.5] * recursions
    for tokens, seed in steps:
        random = torch.Generator().manual_seed(seed)
        logits = 3 * torch.randn(recursions, tokens, dtype=torch.double, generator=random)
        targets = torch.randint(2, (recursions, tokens), generator=random).double()
        # Between the tokens stand others that do not count, whose weight is 0.
        weights = torch.tensor([1 / tokens, 0.0] * tokens + [0.0], dtype=torch.double) if tokens else torch.zeros(1, dtype=torch.double)
        between = torch.full((recursions, len(weights)), 7.0, dtype=torch.double)
        between[:, : 2 * tokens : 2] = logits
        head.calibrate(between, torch.ones_like(between).index_copy(1, torch.arange(0, 2 * tokens, 2), targets), weights)
        for t in range(recursions if tokens else 0):
            said = sum(1 / (1 + math.exp(-logit)) for logit in logits[t].tolist()) / tokens
            predicted[t] = EMA_DECAY * predicted[t] + (1 - EMA_DECAY) * said
            observed[t] = EMA_DECAY * observed[t] + (1 - EMA_DECAY) * sum(targets[t].tolist()) / tokens
    assert head.predicted.tolist() == pytest.approx(predicted, rel=1e-12)
    assert head.observed.tolist() == pytest.approx(observed, rel=1e-12)


@examples(100)
@given(
    st.lists(st.integers(-16, 16).map(lambda n: n / 2), min_size=1, max_size=8, unique=True),
    st.floats(0, 1) | st.sampled_from([0.0, 1.0]),
    st.floats(0, 1) | st.sampled_from([0.0, 1.0]),
)
def test_calibration_keeps_the_order_and_moves_the_mean_towards_the_truth(logits: list[float], observed: float, predicted: float) -> None:
    """It may correct how often a head says yes, never which token it says it of; certain means (0 and 1) included.

    Adding c to a logit maps q to q e^c / (1 - q + q e^c), which is concave in q for c > 0 and convex for c < 0: where `predicted` is
    the mean of the very q it corrects, the corrected mean therefore never passes `observed` (Jensen), and never moves away.
    """
    head, ascending = HaltingHead(1, 2).double(), torch.tensor([sorted(logits)] * 2, dtype=torch.double)
    head.observed.fill_(observed)
    head.predicted.fill_(predicted)
    assert (head.probabilities(ascending).diff() > 0).all()
    mean = ascending.sigmoid().mean().item()
    head.predicted.fill_(mean)
    low, high = sorted((mean, observed))
    corrected = head.probabilities(ascending).mean().item()
    assert low - 1e-12 <= corrected <= high + 1e-12
    if 0.01 < mean < 0.99 and abs(observed - mean) > 1e-6:
        assert abs(corrected - observed) < abs(mean - observed)


@st.composite
def documents(draw: st.DrawFn) -> list[list[int]]:
    """[batch, time]: ids that come back, as a curriculum's do; a document is a run of one id."""
    time = draw(st.integers(1, 14))
    return draw(st.lists(st.lists(st.integers(0, 2), min_size=time, max_size=time), min_size=1, max_size=3))


@examples(120)
@given(documents(), st.integers(1, 16), st.sampled_from([torch.float32, torch.bfloat16]))
def test_a_query_sees_the_last_keys_of_its_own_run_of_ids(rows: list[list[int]], window: int, dtype: torch.dtype) -> None:
    """Element by element from the ids themselves: not ahead, less than `window` behind, and no other id in between."""
    mask = look(segment(torch.tensor(rows)), window, 4, 1e4, dtype).dense
    expected = [
        [[[0.0 if 0 <= i - j < window and len(set(row[j : i + 1])) == 1 else -math.inf for j in range(len(row))] for i in range(len(row))]]
        for row in rows
    ]
    assert mask.tolist() == expected
    assert mask.dtype == dtype


@examples(150)
@given(documents(), st.integers(1, 16))
def test_chunks_know_who_belongs_with_whom(rows: list[list[int]], length: int) -> None:
    """Each field of Chunks from its sentence and the ids themselves; what fills the last chunk belongs to the last document."""
    chunks = cut(segment(torch.tensor(rows)), length)
    length = min(length, len(rows[0]))
    assert chunks.length == length
    for number, ids in enumerate(rows):
        row = ids + ids[-1:] * (-len(ids) % length)
        begins = range(0, len(row), length)
        ends = [begin + length - 1 for begin in begins]

        def one(a: int, b: int, row: list[int] = row) -> bool:
            return len(set(row[min(a, b) : max(a, b) + 1])) == 1

        def of(field: Tensor, number: int = number) -> list[object]:
            return field[number].squeeze(0).tolist()

        inside = range(length)
        assert of(chunks.together) == [[[j <= i and one(b + j, b + i) for j in inside] for i in inside] for b in begins]
        assert of(chunks.arriving) == [[one(max(b - 1, 0), b + i) for i in inside] for b in begins]
        assert of(chunks.leaving) == [[one(b + i, b + length - 1) for i in inside] for b in begins]
        assert of(chunks.linked) == [[m <= n and one(m, n) for m in ends] for n in ends]
        assert of(chunks.untouched) == [one(0, end) for end in ends]
        assert chunks.starts[number].tolist() == [t > 0 and ids[t] != ids[t - 1] for t in range(len(ids))]
