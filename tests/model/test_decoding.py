"""Reading on from a state, halting early, and generating: all must say what a full forward pass says."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from cognate.config import ModelConfig
from cognate.model import Cognate, State
from cognate.model.generate import choose
from cognate.model.state import look_back
from tests.model.conftest import SMALL

Build = Callable[..., Cognate]
# Where an embedding is one rounding off, five recursions of these weights answer up to 1.1e-5 more or less.
ROUNDING = {"atol": 1e-4, "rtol": 1e-5}
SWITCHES = [{}, {"ltm": False}, {"act": False}, {"trm": False}, {"ltm": False, "trm": False}]


def full(model: Cognate, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens).logits


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("cuts", [[1] * 23, [9, *[1] * 14], [23], [3, 5, 1, 14], [8, 7, 8]], ids=str)
def test_reading_in_pieces_is_reading_at_once(small: Build, switches: dict[str, bool], cuts: list[int]) -> None:
    """Prefill, decode and whatever is between; the window of 7 is passed three times, chunks of 4 are cut anywhere."""
    model, tokens = small(**switches), torch.randint(300, (3, 23))
    state, logits = None, []
    for piece in tokens.split(cuts, dim=1):
        read = model.extend(piece, state, adaptive=False)
        state = read.state
        logits.append(model.logits(read.answers))
    torch.testing.assert_close(torch.cat(logits, 1), full(model, tokens), **ROUNDING)
    assert state is not None
    assert state.position.tolist() == [23] * 3


CALLS = st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3), min_size=1, max_size=6)


def read_in(model: Cognate, texts: Tensor, calls: list[list[int]], *, adaptive: bool) -> list[tuple[Tensor, Tensor]]:
    """Each row's answers and depths, [time, width] and [time]; each call gives row r `call[r]` of its tokens, none included."""
    state = State.empty(model.config, 3, torch.float32, torch.get_default_device())
    done, answers, depths = [0, 0, 0], [[], [], []], [[], [], []]  # type: ignore[var-annotated]
    for call in calls:
        fed = torch.randint(300, (3, max(*call, 1)))
        for row, length in enumerate(call):
            fed[row, :length] = texts[row, done[row] : done[row] + length]
        read = model.extend(fed, state, torch.tensor(call), adaptive=adaptive)
        assert torch.isfinite(read.answers).all()
        for row, length in enumerate(call):
            answers[row].append(read.answers[row, :length])
            depths[row].append(read.depths[row, :length])
            done[row] += length
    assert state.position.tolist() == done
    return [(torch.cat(answers[row]), torch.cat(depths[row])) for row in range(3)]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(CALLS)
def test_rows_read_on_at_their_own_pace(calls: list[list[int]]) -> None:
    """Padding leaves no trace in windows and memories."""
    model, texts = stirred(), torch.randint(300, (3, 60))
    for row, (answers, _) in enumerate(read_in(model, texts, calls, adaptive=False)):
        if len(answers):
            expected = full(model, texts[row : row + 1, : len(answers)])[0]
            torch.testing.assert_close(model.logits(answers), expected, **ROUNDING)


def test_a_long_prompt_is_read_in_pieces(small: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once takes memory that grows with its square; in pieces, each row at its own length, all is as at once."""
    model, tokens, lengths = small(), torch.randint(300, (3, 40)), torch.tensor([40, 16, 21])
    sizes: list[int] = []
    at_once = model.extend(tokens, None, lengths)
    monkeypatch.setattr("cognate.model.cognate.PIECE", 16)
    read_piece = model._read
    monkeypatch.setattr(model, "_read", lambda piece, *rest, **named: sizes.append(piece.size(1)) or read_piece(piece, *rest, **named))
    read = model.extend(tokens, None, lengths)
    assert sizes == [16, 16, 8]
    assert torch.equal(read.state.position, lengths)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(read.depths[row, :length], at_once.depths[row, :length])
        torch.testing.assert_close(read.answers[row, :length], at_once.answers[row, :length], **ROUNDING)
    more = torch.randint(300, (3, 5))
    torch.testing.assert_close(model.extend(more, read.state).answers, model.extend(more, at_once.state).answers, **ROUNDING)


@pytest.mark.parametrize("lengths", [[7, 6], [-1, 6], [6.0, 6.0]])
def test_lengths_that_are_none_are_refused(small: Build, lengths: list[float]) -> None:
    with pytest.raises(ValueError, match="lengths are"):
        small().extend(torch.randint(300, (2, 6)), None, torch.tensor(lengths))


@pytest.mark.parametrize("wrong", ["weights", "autocast"])
def test_other_ways_to_bfloat16_are_refused(small: Build, wrong: str) -> None:
    model, tokens = small(), torch.randint(300, (2, 6))
    if wrong == "weights":
        model.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=wrong == "autocast"):
        for call in (model, model.extend, lambda same: model.loss(same, same), lambda same: model.validation_loss(same, same)):
            with pytest.raises(TypeError, match="compute_dtype"):
                call(tokens)


def test_a_state_goes_on_in_two_ways_when_cloned(small: Build) -> None:
    model, tokens = small(), torch.randint(300, (2, 12))
    state = model.extend(tokens).state
    twin, a, b = state.clone(), torch.randint(300, (2, 3)), torch.randint(300, (2, 3))
    first = model.extend(a, state, adaptive=False)
    second = model.extend(b, twin, adaptive=False)
    for piece, read in ((a, first), (b, second)):
        torch.testing.assert_close(model.logits(read.answers), full(model, torch.cat((tokens, piece), 1))[:, 12:], **ROUNDING)


def test_a_beginning_is_shared_by_its_endings(small: Build) -> None:
    """One context, read once, for several candidates: what scoring multiple choices does."""
    model, context, endings = small(), torch.randint(300, (1, 11)), torch.randint(300, (4, 5))
    state = model.extend(context).state.rows(torch.zeros(4, dtype=torch.long))
    logits = model.logits(model.extend(endings, state, adaptive=False).answers)
    torch.testing.assert_close(logits, full(model, torch.cat((context.expand(4, -1), endings), 1))[:, 11:], **ROUNDING)


# --- halting --------------------------------------------------------------------------------------------------


def undecided(model: Cognate) -> Cognate:
    """With a head that lets some tokens halt at each recursion."""
    assert model.halting is not None
    with torch.no_grad():
        model.halting.linear.weight.mul_(3)
        model.halting.linear.bias.fill_(0.0)
    model.config = model.config.model_copy(update={"act_threshold": 0.6})
    return model


def thoughts_of(model: Cognate, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Answers and latents of all recursions, [recursion, batch, time, width], by the path that training takes."""
    with torch.no_grad():
        thoughts, _ = model._think(tokens, *model._surroundings(tokens, torch.zeros_like(tokens[:1])))
    return torch.stack([thought.answer for thought in thoughts]), torch.stack([thought.latent for thought in thoughts])


def first_halts(model: Cognate, latents: Tensor) -> tuple[Tensor, float]:
    """A plain loop over recursions, from the definition: the number of the first that reaches the threshold, else the last;
    and how near a probability came to the threshold."""
    assert model.halting is not None
    depths, nearest = torch.full(latents.shape[1:3], len(latents)), math.inf
    for number in reversed(range(1, len(latents))):
        odds = torch.logit(model.halting.observed[number - 1]) - torch.logit(model.halting.predicted[number - 1])
        logit = latents[number - 1] @ model.halting.linear.weight[0] + model.halting.linear.bias + odds
        above = torch.sigmoid(logit.detach()) - model.config.act_threshold
        nearest = min(nearest, float(above.abs().min()))
        depths[above >= 0] = number
    return depths, nearest


@pytest.mark.parametrize("pieces", [[40], [30, *[1] * 10]], ids=str)
def test_a_token_that_halts_says_what_the_full_pass_says_at_that_depth(small: Build, pieces: list[int]) -> None:
    model, tokens = undecided(small(recursions=4)), torch.randint(300, (3, 40))
    assert model.halting is not None
    model.halting.observed.copy_(torch.tensor([0.2, 0.5, 0.9]))
    model.halting.predicted.copy_(torch.tensor([0.5, 0.6, 0.5]))
    answers, latents = thoughts_of(model, tokens)
    expected, _ = first_halts(model, latents)
    assert set(expected.flatten().tolist()) == {1, 2, 3, 4}  # else this test says little
    state, read = None, []
    for piece in tokens.split(pieces, dim=1):
        read.append(model.extend(piece, state))
        state = read[-1].state
    assert torch.equal(torch.cat([each.depths for each in read], 1), expected)
    at_depth = answers.gather(0, (expected - 1)[None, ..., None].expand(1, -1, -1, answers.size(-1)))[0]
    torch.testing.assert_close(torch.cat([each.answers for each in read], 1), at_depth, **ROUNDING)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(CALLS, st.integers(1, 5), st.lists(st.floats(0.1, 0.9), min_size=8, max_size=8))
def test_rows_halt_at_their_own_pace(calls: list[list[int]], recursions: int, means: list[float]) -> None:
    """Whatever the pieces, the padding, the state before and the calibration, a token halts where the plain loop over the full
    pass says, with that pass's answer: who goes on with whom is put together anew after every recursion."""
    model = undecided(stirred(SMALL.model_copy(update={"recursions": recursions})))
    assert model.halting is not None
    known = max(1, recursions - 1)
    model.halting.observed.copy_(torch.tensor(means[:known]))
    model.halting.predicted.copy_(torch.tensor(means[4 : 4 + known]))
    texts = torch.randint(300, (3, 60))
    for row, (answers, depths) in enumerate(read_in(model, texts, calls, adaptive=True)):
        if len(answers):
            each, latents = thoughts_of(model, texts[row : row + 1, : len(answers)])
            (expected,), nearest = first_halts(model, latents)
            assume(nearest > 1e-4)  # else rounding decides
            assert torch.equal(depths, expected)
            torch.testing.assert_close(answers, each[expected - 1, 0, torch.arange(len(answers))], **ROUNDING)


def test_halted_tokens_cost_nothing_more(small: Build) -> None:
    """Counted where the work is: the tokens that pass through the net's query projection."""
    model, tokens = undecided(small(recursions=4)), torch.randint(300, (4, 16))
    assert model.recursion is not None
    seen: list[int] = []
    model.recursion.query.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // 32))
    depths = model.extend(tokens).depths
    expected = []
    for number in range(1, int(depths.max()) + 1):
        alive = (depths >= number).sum(1)
        expected += 3 * [int((alive > 0).sum() * alive.max())]  # rows are as long as the longest of them
    assert seen == expected
    assert sum(seen) < 3 * 4 * tokens.numel()
    seen.clear()
    one_each = model.extend(tokens[:, :1])  # while decoding, a row that halts is gone entirely
    assert sum(seen) == 3 * int(one_each.depths.sum())


def test_a_model_may_think_longer_than_it_was_trained_to(small: Build) -> None:
    model, tokens = undecided(small()), torch.randint(300, (2, 9))
    assert int(model.extend(tokens, recursions=6).depths.max()) > 3
    longer = copy.deepcopy(model)
    assert longer.recursion is not None
    longer.recursion.recursions = 6
    read = model.extend(tokens, adaptive=False, recursions=6)
    torch.testing.assert_close(model.logits(read.answers), full(longer, tokens), **ROUNDING)
    assert read.depths.eq(6).all()


def test_who_else_is_in_the_batch_decides_nothing(small: Build) -> None:
    """Whatever the company, its order and its padding: the same answers and the same depths."""
    model, tokens = undecided(small()), torch.randint(300, (5, 12))
    alone = [model.extend(row[None]) for row in tokens]
    together = model.extend(torch.cat((tokens, torch.randint(300, (5, 6))), 1).flip(0), lengths=torch.full((5,), 12))
    assert set(together.depths[:, :12].flatten().tolist()) == {1, 2, 3}  # else it says little of who halts
    for row in range(5):
        assert torch.equal(together.depths[4 - row, :12], alone[row].depths[0])
        torch.testing.assert_close(together.answers[4 - row, :12], alone[row].answers[0], **ROUNDING)


# --- generation -----------------------------------------------------------------------------------------------


def greedy(model: Cognate, prompt: list[int], count: int, stop: int) -> list[int]:
    """The definition: recompute everything for each token."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(int(full(model, torch.tensor([tokens]))[0, -1].argmax()))
        if tokens[-1] == stop:
            break
    return tokens[len(prompt) :]


def test_generation_is_what_recomputing_gives(small: Build) -> None:
    """Prompts of any lengths; rows stop at different times, and the others go on as if alone."""
    model, prompts = small(), [torch.randint(300, (length,)).tolist() for length in (1, 9, 4, 17, 2)]
    stop = greedy(model, prompts[1], 3, -1)[-1]
    made = model.generate(prompts, 20, stop={stop}, adaptive=False)
    assert made.tokens == [greedy(model, prompt, 20, stop) for prompt in prompts]
    assert len(made.tokens[1]) <= 3 < max(map(len, made.tokens))
    assert [len(row) for row in made.depths] == [len(row) for row in made.tokens]
    assert {depth for row in made.depths for depth in row} == {3}


def test_generation_goes_on_from_its_state(small: Build) -> None:
    model, prompts = undecided(small()), [[5, 6, 7], [8]]
    whole = model.generate(prompts, 15)
    first = model.generate(prompts, 6)
    second = model.generate([row[-1:] for row in first.tokens], 9, state=first.state)
    assert [a + b for a, b in zip(first.tokens, second.tokens, strict=True)] == whole.tokens
    assert [a + b for a, b in zip(first.depths, second.depths, strict=True)] == whole.depths
    assert second.state.position.tolist() == [3 + 15 - 1, 1 + 15 - 1]


def test_the_state_of_a_row_that_stopped_is_kept(small: Build) -> None:
    model, prompts = small(), [[5, 6, 7], [8, 9]]
    alone = model.generate(prompts[:1], 4)
    made = model.generate(prompts, 12, stop={alone.tokens[0][-1]})
    assert len(made.tokens[0]) < len(made.tokens[1]), "the rows must stop at different times"
    assert made.state.position.tolist() == [len(prompt) + len(row) - 1 for prompt, row in zip(prompts, made.tokens, strict=True)]
    again = model.generate([made.tokens[0][-1:]], 5, state=made.state.rows(torch.tensor([0])))
    assert again.tokens[0] == greedy(model, prompts[0] + made.tokens[0], 5, -1)


def test_samples_depend_on_seed_and_row_alone(small: Build) -> None:
    model, prompts = small(), [[1, 2], [3], [4, 5, 6]]
    drawn = model.generate(prompts, 12, temperature=1.0, seed=3)
    assert drawn.tokens == model.generate(prompts, 12, temperature=1.0, seed=3).tokens
    assert drawn.tokens != model.generate(prompts, 12, temperature=1.0, seed=4).tokens
    for company in ([], [[200, 201, 202, 203], [9]], [[7]] * 4):
        assert model.generate([prompts[0], *company], 12, temperature=1.0, seed=3).tokens[0] == drawn.tokens[0]


def test_rows_of_one_prompt_draw_apart(small: Build) -> None:
    one, other = small().generate([[1, 2], [1, 2]], 12, temperature=1.0, seed=3).tokens
    assert one != other


def test_a_row_that_stops_does_not_change_what_others_draw(small: Build) -> None:
    model, prompts = small(), [[1, 2], [3], [4, 5, 6]]
    drawn = model.generate(prompts, 12, temperature=1.0, seed=3).tokens
    stop = drawn[0][2]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in drawn]
    assert len(cut[0]) < min(len(cut[1]), len(cut[2]))
    assert model.generate(prompts, 12, temperature=1.0, seed=3, stop={stop}).tokens == cut


def test_padding_in_a_row_that_has_read_nothing_sees_something() -> None:
    """Some kernels answer NaN where nothing is seen, and a NaN times the 0 that keeps padding out of a memory is NaN."""
    state = State.empty(SMALL, 2, torch.float32, torch.get_default_device())
    state.position, state.is_blank = torch.tensor([0, 5]), False
    sight = look_back(state, torch.tensor([[True], [False]]), 1, SMALL, torch.float32)
    assert sight.dense.isfinite().any(-1).all()


def test_draws_have_the_probabilities_of_the_tempered_softmax() -> None:
    logits, draws = torch.tensor([2.0, -1.0, 0.5, 1.0]), torch.linspace(0, 1, 20_001)[:-1]
    counts = torch.bincount(choose(logits.expand(20_000, -1), draws, 0.7, None), minlength=4) / 20_000
    torch.testing.assert_close(counts, torch.softmax(logits / 0.7, 0), atol=1e-3, rtol=0)
    counts = torch.bincount(choose(logits.expand(20_000, -1), draws, 0.7, 2), minlength=4) / 20_000
    expected = torch.softmax(torch.tensor([2.0, -torch.inf, -torch.inf, 1.0]) / 0.7, 0)
    torch.testing.assert_close(counts, expected, atol=1e-3, rtol=0)


def test_the_hottest_and_the_coldest_draws_are_tokens() -> None:
    """A temperature next to zero is the likeliest; a draw of next to one is still in the vocabulary."""
    logits = torch.randn(50, 40)
    assert torch.equal(choose(logits, torch.rand(50), 1e-6, None), logits.argmax(-1))
    assert choose(logits, torch.full((50,), 1 - 2**-24), 5.0, None).max() < 40


@pytest.mark.parametrize(
    ("prompts", "options"),
    [([], {}), ([[1], []], {}), ([[1]], {"temperature": -1.0}), ([[1]], {"top_k": 0}), ([[1]], {"seed": [1, 2]})],
    ids=str,
)
def test_what_cannot_be_generated_is_refused(small: Build, prompts: list[list[int]], options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"none may be empty|must be at least|2 seeds for 1 prompts"):
        small().generate(prompts, 3, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be at least 0"):
        small().generate([[1]], -1)


def test_mismatched_rows_are_refused(small: Build) -> None:
    with pytest.raises(ValueError, match=r"tokens have 3 rows, the state has 2"):
        small().extend(torch.zeros(3, 1, dtype=torch.long), State.empty(SMALL, 2, torch.float32, torch.get_default_device()))


def stirred(config: ModelConfig = SMALL) -> Cognate:
    torch.manual_seed(0)
    model = Cognate(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()
