"""Attention against its definition: who sees whom, rotation, and the strips it is computed in."""

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from cognate.config import ModelConfig
from cognate.model import Cognate
from cognate.model.attention import Attention, attend, rotate
from cognate.model.sight import KEYS, LONG, QUERIES, Sight, block_mask, has_flex, look, segment


def sight_of(segments: torch.Tensor, window: int = 4, head_dim: int = 4, *, flex: bool = False) -> Sight:
    return look(segments, window, head_dim, 10_000.0, torch.float32, flex=flex)


def _skip_without_strips() -> None:
    if torch.get_default_device().type != "cpu":
        pytest.skip("attention in strips is the CPU's")


@pytest.fixture(name="_in_strips", params=["by SDPA's kernel", "by products"])
def in_strips(request: pytest.FixtureRequest) -> Iterator[None]:
    """Rows of any length, and either way, whatever this machine does better."""
    _skip_without_strips()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cognate.model.sight.LONG", 1)
        multiply(patch, multiplies=request.param == "by products")
        yield


def multiply(patch: pytest.MonkeyPatch, *, multiplies: bool) -> None:
    for module in ("sight", "attention"):
        patch.setattr(f"cognate.model.{module}.multiplies_by_onednn", lambda _: multiplies)


def test_documents_are_numbered_by_their_runs() -> None:
    documents = torch.tensor([[7, 7, 3, 3, 7], [0, 0, 0, 0, 0]])
    assert segment(documents).tolist() == [[0, 0, 1, 1, 2], [0, 0, 0, 0, 0]]


def test_a_query_sees_its_window_of_its_document() -> None:
    """0 <= i - j < window, same document; element by element."""
    segments = torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1, 1]])
    mask = sight_of(segments).dense[0, 0]
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


@pytest.mark.usefixtures("_in_strips")
@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 2**32))
def test_strips_leave_out_only_what_nobody_sees(rows: int, time: int, window: int, is_shared: bool, seed: int) -> None:
    """Values and gradients are those of attention to all keys under the mask, wherever documents begin and strips end."""
    torch.manual_seed(seed)
    starts = (torch.rand(1 if is_shared else rows, time) < torch.rand(1) ** 3).expand(rows, -1)
    sight = sight_of(segment(starts.cumsum(1)), window, 8)
    query, key, value, weights = torch.randn(4, rows, time, 2, 8).unbind()
    query.requires_grad_(), key.requires_grad_(), value.requires_grad_()
    results = []
    for each in (sight, whole(sight)):
        out = attend(query, key, value, each)
        results.append((out, *torch.autograd.grad((out * weights.flatten(2)).sum(), (query, key, value))))
    for ours, plain in zip(*results, strict=True):
        torch.testing.assert_close(ours, plain, atol=2e-5, rtol=1e-4)


def whole(sight: Sight) -> Sight:
    """For one call with the mask of all pairs."""
    assert sight.strips is not None
    return replace(sight, mask=sight.dense, strips=None)


@pytest.mark.usefixtures("_in_strips")
def test_a_strip_needs_no_key_before_its_window() -> None:
    strips = sight_of(torch.zeros(1, 200, dtype=torch.long), 50).strips
    assert strips is not None
    # Query 64 sees from key 15 on, query 128 from 79: the multiples of 16 before them.
    ranges = [(part.start, part.stop) for strip in strips for part in (strip.queries, strip.keys)]
    assert ranges == [(0, 64), (0, 64), (64, 128), (0, 128), (128, 192), (64, 192), (192, 200), (128, 200)]


@pytest.mark.parametrize("multiplies", [False, True])
def test_only_long_rows_go_in_strips_unless_they_are_multiplied(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _skip_without_strips()
    multiply(monkeypatch, multiplies=multiplies)
    strips = [sight_of(torch.zeros(1, time, dtype=torch.long)).strips for time in (LONG - 1, LONG)]
    assert [each is None for each in strips] == [not multiplies, False]


@pytest.mark.parametrize("multiplies", [False, True])
def test_a_row_is_rounded_alike_in_any_company(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    _skip_without_strips()
    multiply(monkeypatch, multiplies=multiplies)
    query, key, value = torch.randn(3, 2, LONG, 2, 8).bfloat16().unbind()
    segments = segment((torch.rand(2, LONG) < 0.02).cumsum(1))
    both, alone = (attend(query[:n], key[:n], value[:n], look(segments[:n], 100, 8, 10_000.0, torch.bfloat16)) for n in (2, 1))
    assert torch.equal(both[:1], alone)


def test_long_rows_are_trained_without_a_mask_of_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take 17 GB for 16 rows of 16,384 tokens."""
    _skip_without_strips()

    def refuse(_: Sight) -> torch.Tensor:
        raise AssertionError("a mask of all pairs was made")

    monkeypatch.setattr(Sight, "dense", property(refuse))
    time, window = 4 * LONG, 64
    sight = sight_of(torch.zeros(2, time, dtype=torch.long), window)
    assert sight.strips is not None
    pairs = sum(strip.mask.numel() for strip in sight.strips)
    assert pairs <= 2 * time * (window + QUERIES + KEYS)
    model = Cognate(ModelConfig(vocab_size=258, d_model=32, n_layers=1, n_heads=2, d_ff=32, trm_d_ff=32, window=window))
    tokens = torch.randint(0, 96, (2, time))
    loss = model.loss(tokens, tokens.roll(-1, 1), torch.zeros_like(tokens)).loss
    loss.backward()
    assert loss.isfinite()


@pytest.mark.usefixtures("_in_strips")
def test_one_row_of_segments_may_speak_for_all_rows() -> None:
    query, key, value = torch.randn(3, 2, 300, 2, 8).unbind()
    segments = torch.tensor([[0] * 100 + [1] * 200])
    shared, own = (attend(query, key, value, sight_of(each, 50, 8)) for each in (segments, segments.expand(2, -1)))
    torch.testing.assert_close(shared, own, atol=2e-5, rtol=1e-4)


def test_narrow_attention_is_computed_in_the_faster_dtype(bf16_products: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows too short for strips, and what is read on with a cache, take one call."""
    multiply(monkeypatch, multiplies=False)
    sight = look(torch.zeros(1, 20, dtype=torch.long), 8, 16, 10_000.0, torch.bfloat16)
    parts = [torch.randn(1, 20, 2, 16).bfloat16() for _ in range(3)]
    assert sight.strips is None
    out = attend(*parts, sight)
    wide = attend(*(part.to(bf16_products) for part in parts), replace(sight, mask=sight.dense.to(bf16_products)))
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, wide.bfloat16())


@pytest.mark.parametrize("multiplies", [False, True])
def test_narrow_attention_in_strips_is_as_close_to_the_truth(multiplies: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch's kernel over all pairs in bfloat16: its gradients, too."""
    _skip_without_strips()
    multiply(monkeypatch, multiplies=multiplies)
    sights = [look(torch.zeros(1, 300, dtype=torch.long), 256, 64, 10_000.0, dtype) for dtype in (torch.bfloat16, torch.float32)]
    parts = [torch.randn(1, 300, 2, 64).bfloat16() for _ in range(3)]
    weights = torch.randn(1, 300, 128)

    def made(sight: Sight, *, narrow: bool = True) -> list[torch.Tensor]:
        inputs = [part.to(sight.cosine.dtype).requires_grad_() for part in parts]
        with pytest.MonkeyPatch.context() as patch:
            if narrow:
                patch.setattr("cognate.model.attention.attention_dtype", lambda *_: torch.bfloat16)
            out = attend(*inputs, sight).float()
        return [out, *torch.autograd.grad((out * weights).sum(), inputs)]

    for ours, usual, true in zip(made(sights[0]), made(whole(sights[0])), made(whole(sights[1]), narrow=False), strict=True):
        assert (ours - true).norm() < 1.5 * (usual - true).norm() < 0.01 * true.norm()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.integers(1, 3), st.integers(1, 300), st.integers(1, 300), st.booleans(), st.integers(0, 2**32))
def test_flex_attention_is_told_the_same_mask(rows: int, time: int, window: int, is_shared: bool, seed: int) -> None:
    """Pair by pair as a kernel asks; and of blocks of 128 keys none is left out in which something is seen, and none else read."""
    torch.manual_seed(seed)
    starts = (torch.rand(1 if is_shared else rows, time) < torch.rand(1) ** 3).expand(rows, -1)
    segments = segment(starts.cumsum(1))
    told, seen = block_mask(segments, window), sight_of(segments, window).dense[:, 0] == 0
    row, position = torch.arange(rows), torch.arange(time)
    asked = told.mask_mod(row[:, None, None], torch.tensor(0), position[None, :, None], position[None, None, :])
    assert torch.equal(asked, seen)
    missing = -time % 128
    blocks = functional.pad(seen, (0, missing, 0, missing)).unflatten(2, (-1, 128)).unflatten(1, (-1, 128)).any(4).any(2)
    assert torch.equal(told.to_dense()[:, 0].bool(), blocks)
    for asker, counts, named in ((blocks, told.kv_num_blocks, told.kv_indices), (blocks.mT, told.q_num_blocks, told.q_indices)):
        for row, index in asker.any(2).nonzero().tolist():
            assert set(named[row, 0, index, : counts[row, 0, index]].tolist()) == set(asker[row, index].nonzero()[:, 0].tolist())


@pytest.fixture(name="_flex_on_the_cpu")
def flex_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses gradients of FlexAttention on the CPU for want of a kernel; the arithmetic that it is made from has them."""
    monkeypatch.setattr("torch.nn.attention.flex_attention._validate_device", lambda *_: None)


@pytest.mark.filterwarnings("ignore")  # what torch has to say of itself while it traces, and of what it does here
@pytest.mark.usefixtures("_flex_on_the_cpu")
def test_flex_attention_is_masked_attention() -> None:
    """The same values and gradients, from the arithmetic that torch turns into kernels."""
    segments = segment((torch.rand(3, 150) < 0.03).cumsum(1))
    parts = [torch.randn(3, 150, 2, 8, requires_grad=True) for _ in range(3)]
    weights, results = torch.randn(3, 150, 16), []
    for flex in (False, True):
        out = attend(*parts, sight_of(segments, 40, 8, flex=flex))
        results.append((out, *torch.autograd.grad((out * weights).sum(), parts)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(
    not has_flex(torch.device("cuda" if torch.cuda.is_available() else "cpu"), torch.bfloat16), reason="no CUDA device from sm80 on"
)
@pytest.mark.filterwarnings("ignore")  # what torch has to say of itself while it compiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_fused_kernels_are_masked_attention(dtype: torch.dtype) -> None:
    """Forward and backward of what the compiler generates, in rows that fill no whole number of blocks."""
    segments = segment((torch.rand(3, 500, device="cuda") < 0.01).cumsum(1))
    parts = [torch.randn(3, 500, 5, 64, device="cuda", dtype=dtype, requires_grad=True) for _ in range(3)]
    weights, results = torch.randn(3, 500, 320, device="cuda"), []
    for flex in (False, True):
        compute = torch.compile(attend, fullgraph=True, dynamic=False) if flex else attend
        out = compute(*parts, look(segments, 256, 64, 10_000.0, dtype, flex=flex))
        results.append((out, *torch.autograd.grad((out.float() * weights).sum(), parts)))
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(results[1], results[0], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((9, 0), True)])
def test_flex_attention_is_for_gpus_with_bf16(capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert has_flex(torch.device("cuda"), torch.bfloat16) is expected
    assert not has_flex(torch.device("cuda"), torch.float32)
    assert not has_flex(torch.device("cpu"), torch.bfloat16)


def test_rotation_turns_scores_into_functions_of_distance() -> None:
    """RoPE: the score of a query and a key depends on how far apart they stand, not on where."""
    sight = sight_of(torch.zeros(1, 12, dtype=torch.long))
    query, key = (rotate(torch.randn(4).expand(1, 12, 1, 4), sight.cosine, sight.sine)[0, :, 0] for _ in range(2))
    scores = query @ key.T
    for distance in range(11):
        torch.testing.assert_close(scores.diagonal(-distance), scores[distance, 0].expand(12 - distance))
    assert not torch.isclose(scores[5, 0], scores[6, 0])


def test_rotation_is_multiplication_by_a_complex_number() -> None:
    x, sight = torch.randn(1, 6, 1, 4), sight_of(torch.zeros(1, 6, dtype=torch.long))
    turned = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(
        torch.ones(6, 1, 2), torch.arange(6.0)[:, None, None] * torch.tensor([1.0, 0.01])
    )
    torch.testing.assert_close(rotate(x, sight.cosine, sight.sine), torch.cat((turned.real, turned.imag), -1))


def test_no_score_exceeds_what_the_gains_allow() -> None:
    """QK-norm bounds a head's logits by 8 g_q g_k (head_dim 64), which is what the optimizer's QK-clip relies on."""
    attention, seen = Attention(128, 2), []
    with torch.no_grad():
        attention.query_gain.copy_(torch.tensor([2.0, 1.0]))
        attention.key_gain.copy_(torch.tensor([3.0, 1.0]))
    x, sight = 100 * torch.randn(1, 40, 128), sight_of(torch.zeros(1, 40, dtype=torch.long), 40, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cognate.model.attention.attend", lambda q, k, v, _: seen.append((q, k)) or v.flatten(2))
        attention(x, sight)
    query, key = seen[0]
    scores = torch.einsum("bihd,bjhd->hij", query, key) / math.sqrt(64)
    assert (scores.abs().amax((1, 2)) <= torch.tensor([8 * 6.0, 8.0]) * (1 + 1e-5)).all()
    assert scores[0].abs().max() > 8
