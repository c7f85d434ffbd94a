"""batches.py: every pair of a document exactly once, no target from another document, and the same batch for the same position."""

from __future__ import annotations

from collections import Counter
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cognate.config import TrainingConfig
from cognate.data.batches import IGNORED, Batch, TrainingBatches, best_fit, validation_batches
from cognate.data.corpus import Corpus, Documents
from cognate.data.curriculum import Curriculum, Part
from cognate.data.sources import Stage
from cognate.data.tokenizer import Tokenizer

TIME, BATCH = 16, 4
TRAINING = TrainingConfig(batch_size=BATCH, sequence_length=TIME)
Pair = tuple[int, int]


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a"], 257)


def documents(lengths: list[int], first: int) -> Documents:
    """Documents whose tokens are all different and tell where they are from: token n is followed by n + 1, or the document ends."""
    offsets = np.array([0, *lengths]).cumsum()
    ids = first + np.arange(offsets[-1]) + np.repeat(np.arange(len(lengths)), lengths)  # a gap of one between documents
    return Documents(ids.astype(np.uint16), offsets, np.zeros(len(lengths), np.int64))


def corpus(lengths: dict[Stage, list[int]]) -> Corpus:
    """One dataset for each stage, of documents with these lengths; held out is what is trained on."""
    training = {f"stage{stage}": documents(each, 1000 + 20_000 * (stage - 1)) for stage, each in lengths.items()}
    parts = tuple(Part(f"stage{stage}", "math", stage, len(each), 0, 0, len(each)) for stage, each in lengths.items())
    return Corpus(tokenizer(), Curriculum(parts), training, training, (), (), {})


def pairs_of(each: Documents) -> list[Pair]:
    runs = [each.ids[first:last].tolist() for first, last in pairwise(each.offsets)]
    return [pair for run in runs for pair in pairwise(run)]


def pairs_in(batches: list[Batch]) -> list[Pair]:
    pairs: list[Pair] = []
    for batch in batches:
        real = batch.targets != IGNORED
        pairs += zip(batch.tokens[real].tolist(), batch.targets[real].tolist(), strict=True)
    return pairs


def epoch_of(batches: TrainingBatches, epoch: int) -> list[Batch]:
    return [batches.batch(epoch, index) for index in range(batches.steps_in_epoch(epoch))]


def equal(left: Batch, right: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(vars(left).values(), vars(right).values(), strict=True))


LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=40).filter(lambda lengths: max(lengths) > 1)
PLANS = st.fixed_dictionaries({1: LENGTHS}, optional={2: LENGTHS, 3: LENGTHS})


@settings(deadline=None)
@given(PLANS, st.integers(0, 2**31 - 1), st.integers(1, 12))
@example({1: [2]}, 0, 1)
@example({1: [TIME + 1] * BATCH}, 0, 1)
@example({1: [TIME + 2] * BATCH}, 0, 1)
def test_an_epoch_has_every_pair_of_its_stage_exactly_once(lengths: dict[Stage, list[int]], seed: int, epoch: int) -> None:
    """No text is lost or repeated, and no target crosses into another document: such a pair is in no document."""
    made = corpus(lengths)
    batches = TrainingBatches(made, TRAINING, seed)
    expected = [
        pair for part in made.curriculum.parts if part.stage <= min((epoch + 2) // 3, 3) for pair in pairs_of(made.training[part.dataset])
    ]
    assert Counter(pairs_in(epoch_of(batches, epoch))) == Counter(expected)
    assert batches.tokens_in_epoch(epoch) == len(expected)


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 2**31 - 1))
def test_document_numbers_change_exactly_where_documents_do(lengths: list[int], seed: int) -> None:
    """Attention and memory are cut by these numbers alone."""
    for batch in epoch_of(TrainingBatches(corpus({1: lengths}), TRAINING, seed), 1):
        for tokens, targets, numbers in zip(batch.tokens, batch.targets, batch.documents, strict=True):
            real = int((targets != IGNORED).sum())
            assert (targets[:real] != IGNORED).all(), "padding stands at the end of a row"
            follows = tokens[1:real] == targets[: max(real - 1, 0)]
            assert torch.equal(numbers[1:real] == numbers[: max(real - 1, 0)], follows)
            assert torch.equal(numbers.diff(), (numbers.diff() != 0).long()), "numbers count up by one"
            assert numbers[0] == 0
            if 0 < real < TIME:
                assert (numbers[real:] == numbers[real - 1] + 1).all(), "padding is a document of its own"
            assert (tokens[real:] == tokenizer().end_id).all()


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 2**31 - 1), st.integers(1, 12))
def test_every_batch_has_the_same_shape(lengths: list[int], seed: int, epoch: int) -> None:
    for batch in epoch_of(TrainingBatches(corpus({1: lengths}), TRAINING, seed), epoch):
        for values in (batch.tokens, batch.targets, batch.documents):
            assert (values.dtype, values.shape) == (torch.int64, (BATCH, TIME))


@settings(deadline=None)
@given(LENGTHS, st.integers(0, 2**31 - 1), st.integers(1, 12), st.data())
def test_a_batch_is_a_function_of_seed_epoch_and_index(lengths: list[int], seed: int, epoch: int, data: st.DataObject) -> None:
    """Resuming asks a new object for a batch in the middle; it must be the one that would have come."""
    made = corpus({1: lengths, 2: lengths})
    straight = TrainingBatches(made, TRAINING, seed)
    expected = epoch_of(straight, epoch)
    index = data.draw(st.integers(0, len(expected) - 1))
    resumed = TrainingBatches(made, TRAINING, seed)
    assert equal(resumed.batch(epoch, index), expected[index])
    straight.batch(epoch % 12 + 1, 0)
    assert equal(straight.batch(epoch, index), expected[index])


def test_the_order_is_pinned() -> None:
    """A checkpoint of today must find the same batches tomorrow, also with another numpy."""
    batches = TrainingBatches(corpus({1: [3, 5, 9, 9, 17, 20, 2]}), TRAINING, 7)
    assert [batches.batch(epoch, 0).tokens[:, 0].tolist() for epoch in (1, 2)] == [[1020, 1004, 1048, 1030], [1048, 1004, 1030, 1020]]


@pytest.mark.parametrize(("left", "right"), [((7, 1), (8, 1)), ((7, 1), (7, 2))])
def test_another_seed_or_epoch_gives_another_order(left: Pair, right: Pair) -> None:
    made = corpus({1: [2 + n % 30 for n in range(200)]})
    batches = [TrainingBatches(made, TRAINING, seed).batch(epoch, 0) for seed, epoch in (left, right)]
    assert not equal(*batches)


def test_all_epochs_of_a_stage_have_the_same_number_of_batches() -> None:
    """So the length of a run is known before it begins."""
    batches = TrainingBatches(corpus({1: [2 + n % 30 for n in range(200)], 2: [9] * 50}), TRAINING, 7)
    steps = [batches.steps_in_epoch(epoch) for epoch in range(1, 13)]
    assert steps[0] < steps[3]
    assert steps == [steps[0]] * 3 + [steps[3]] * 9


def test_a_long_document_is_cut_into_pieces_that_do_not_see_each_other() -> None:
    batch = TrainingBatches(corpus({1: [2 * TIME + 5]}), TRAINING, 7).batch(1, 0)
    filled = (batch.targets != IGNORED).sum(dim=1)
    assert sorted(filled.tolist()) == [0, 4, TIME, TIME]
    assert (batch.documents[filled == TIME] == 0).all()


def test_the_least_there_can_be_is_one_batch() -> None:
    batches = TrainingBatches(corpus({1: [2]}), TRAINING, 7)
    assert batches.steps_in_epoch(1) == 1
    assert batches.tokens_in_epoch(1) == 1
    assert batches.fill_ratio(1) == 1 / (BATCH * TIME)
    assert int((batches.batch(1, 0).targets != IGNORED).sum()) == 1


def test_empty_rows_go_to_different_batches() -> None:
    """One batch of nothing but padding would take a whole optimizer step for a few tokens."""
    batches = TrainingBatches(corpus({1: [TIME + 1] * (BATCH * 5 + 1)}), TRAINING, 7)
    empty = [int((batch.targets == IGNORED).all(dim=1).sum()) for batch in epoch_of(batches, 1)]
    assert sorted(empty) == [0, 0, 0, 1, 1, 1]


def test_an_index_beyond_the_epoch_is_refused() -> None:
    batches = TrainingBatches(corpus({1: [9] * 30}), TRAINING, 7)
    with pytest.raises(AssertionError, match="none has the index"):
        batches.batch(1, batches.steps_in_epoch(1))


# --- packing ----------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, TIME), max_size=80))
def test_pieces_are_packed_without_overlap(lengths: list[int]) -> None:
    shape = best_fit(np.array(lengths, np.int64), TIME)
    used = np.zeros((shape.n_rows, TIME), int)
    for row, offset, length in zip(shape.rows, shape.offsets, sorted(lengths, reverse=True), strict=True):
        used[row, offset : offset + length] += 1
    assert used.max(initial=0) <= 1
    assert used.sum() == sum(lengths)


@settings(deadline=None)
@given(st.lists(st.integers(1, TIME), min_size=1, max_size=80))
def test_no_row_is_needless(lengths: list[int]) -> None:
    """No two rows could have been one."""
    shape = best_fit(np.array(lengths, np.int64), TIME)
    filled = sorted(np.bincount(shape.rows, weights=sorted(lengths, reverse=True)))
    assert len(filled) < 2 or filled[0] + filled[1] > TIME


def test_a_piece_goes_where_it_fits_best() -> None:
    shape = best_fit(np.array([4, 10, 9, 6]), TIME)
    assert (shape.rows.tolist(), shape.offsets.tolist(), shape.n_rows) == ([0, 1, 0, 1], [0, 0, 10, 9], 2)  # of 10, 9, 6, 4
    shape = best_fit(np.array([5, 10, 9]), TIME)
    assert (shape.rows.tolist(), shape.offsets.tolist()) == ([0, 1, 0], [0, 0, 10])  # of 10, 9, 5: both rows have room for 5


# --- validation -------------------------------------------------------------------------------------------


def tokens_by_stage(batches: list[Batch]) -> list[int]:
    counts = Counter((token - 1000) // 20_000 for token, _ in pairs_in(batches))
    return [counts[stage] for stage in range(3)]


def test_validation_shares_its_places_evenly_among_datasets() -> None:
    """hellaswag has a hundred times the held-out text of mbpp; the loss should not be hellaswag's."""
    batches = validation_batches(corpus({1: [9] * 2000, 2: [9] * 200, 3: [9] * 1000}), TRAINING, 12)
    shares = tokens_by_stage(batches)
    assert len(batches) == 12
    assert max(shares) - min(shares) < 0.1 * sum(shares)
    assert sum(shares) == 12 * BATCH * TIME


def test_what_a_small_dataset_lacks_the_others_give() -> None:
    shares = tokens_by_stage(validation_batches(corpus({1: [9] * 2000, 2: [9], 3: [9] * 1000}), TRAINING, 12))
    assert shares[1] == 8
    assert sum(shares) == 12 * BATCH * TIME


def test_less_text_than_asked_for_gives_fewer_batches_and_all_of_it() -> None:
    made = corpus({1: [9] * 20, 2: [30]})
    batches = validation_batches(made, TRAINING, 50)
    assert len(batches) < 50
    assert Counter(pairs_in(batches)) == Counter(pair for each in made.validation.values() for pair in pairs_of(each))


def test_where_nothing_is_held_out_there_is_nothing_to_validate_on() -> None:
    """Five per cent of a handful of rows can be none."""
    assert validation_batches(corpus({1: []}), TRAINING, 3) == []


def test_validation_is_the_same_every_time() -> None:
    made = corpus({1: [2 + n % 30 for n in range(200)]})
    left, right = (validation_batches(made, TRAINING, 3) for _ in range(2))
    assert all(equal(a, b) for a, b in zip(left, right, strict=True))
