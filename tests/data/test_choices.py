"""choices.py: training rows as problems with candidates, and the loss over them."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from data_folders import small_config, write_folder

from cognate.config import DatasetName, TrainingConfig
from cognate.data.batches import IGNORED
from cognate.data.choices import DATASETS, Choices, ChoiceStream, Problem, choice_loss, lay_out, problems, read
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.rows import plan

TRAINING = TrainingConfig(sequence_length=64, choice_problems=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def corpus(folder: Path) -> Corpus:
    return load_corpus(small_config(), folder, None)


@pytest.mark.parametrize(
    ("name", "text", "candidates", "correct"),
    [
        ("arc_easy", "Question: Which?\nA. iron\nB. water\nC. 1\nAnswer: B. water", (" A. iron", " B. water", " C. 1"), 1),
        ("piqa", "Goal: say\nA. B. or not\nB. so\nAnswer: A. B. or not", (" A. B. or not", " B. so"), 0),
        ("hellaswag", "X: Y.\nA. two\nlines\nB. one\nAnswer: A. two\nlines", (" A. two\nlines", " B. one"), 0),
        ("boolq", "Text.\nQuestion: is it?\nAnswer: no", (" yes", " no"), 1),
    ],
)
def test_a_document_is_read_back_as_a_problem(name: DatasetName, text: str, candidates: tuple[str, ...], correct: int) -> None:
    assert read(name, text) == Problem(text.removesuffix(candidates[correct]), candidates, correct)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("arc_easy", "Question: Which?\nA. iron\nB. water\nAnswer: C. air"),
        ("arc_easy", "Question: Which?\nAnswer: B. water"),
        ("piqa", "Goal: x\nA. one\nC. two\nAnswer: A. one"),
        ("boolq", "Question: is it?\nAnswer: maybe"),
        ("boolq", "no question"),
    ],
)
def test_what_cannot_be_told_apart_is_left_out(name: DatasetName, text: str) -> None:
    assert read(name, text) is None


def test_every_training_row_is_found_and_no_other(corpus: Corpus, folder: Path) -> None:
    rows = plan(small_config().data, folder).read()
    for name in DATASETS:
        found = problems(name, corpus.training[name], corpus.tokenizer)
        assert [(each.prompt, each.candidates[each.correct]) for each in found] == [(row.prompt, row.answer) for row in rows.training[name]]
        held_out = {row.prompt for row in rows.validation[name]}
        assert not held_out & {each.prompt for each in found}


def test_draws_depend_on_seed_and_step_alone(corpus: Corpus) -> None:
    stream = ChoiceStream(corpus, TRAINING, seed=1)
    drawn = [stream.draw(7, step) for step in range(1, 40)]
    assert drawn == [ChoiceStream(corpus, TRAINING, seed=1).draw(7, step) for step in range(1, 40)]
    assert drawn[0] != drawn[1]
    assert drawn != [ChoiceStream(corpus, TRAINING, seed=2).draw(7, step) for step in range(1, 40)]
    assert {len(some) for some in drawn} == {6}


def test_an_epoch_draws_from_the_datasets_of_its_stage(corpus: Corpus) -> None:
    stream = ChoiceStream(corpus, TRAINING, seed=1)
    sizes = {name: len(corpus.training[name]) for name in DATASETS}
    assert stream.count(1) == sizes["arc_easy"] + sizes["piqa"] + sizes["hellaswag"]
    assert stream.count(4) == sum(sizes.values())
    assert not any("Why" in problem.prompt for step in range(50) for problem in stream.draw(1, step))
    assert any("Why" in problem.prompt for step in range(50) for problem in stream.draw(4, step))


def test_a_plan_without_choices_draws_none(folder: Path) -> None:
    stream = ChoiceStream(load_corpus(small_config({"datasets": ["gsm8k"]}), folder, None), TRAINING, seed=1)
    assert stream.count(9) == 0
    assert stream.draw(9, 1) == []
    assert list(stream.batches([], 8)) == []


PROBLEMS = [Problem("Which is wet?\nAnswer:", (" A. iron", " B. water"), 1), Problem("So?\nAnswer:", (" yes", " no", " both"), 0)]


def test_rows_hold_prompt_and_candidate_and_score_the_candidate_only(corpus: Corpus) -> None:
    tokenizer = corpus.tokenizer
    made = lay_out(PROBLEMS, tokenizer, 64)
    texts = [problem.prompt + candidate for problem in PROBLEMS for candidate in problem.candidates]
    for row, text in enumerate(texts):
        prompt = PROBLEMS[int(made.problem[row])].prompt
        scored = made.targets[row][made.targets[row] != IGNORED]
        assert tokenizer.decode(scored.tolist()) == text.removeprefix(prompt)
        first = int((made.targets[row] != IGNORED).nonzero()[0])
        assert tokenizer.decode(made.tokens[row, : first + 1].tolist()) == prompt
        assert made.n_bytes[row] == len(text.removeprefix(prompt).strip())
    assert made.problem.tolist() == [0, 0, 1, 1, 1]
    assert made.correct.tolist() == [1, 2]


def test_a_long_prompt_keeps_its_end(corpus: Corpus) -> None:
    long = Problem("word " * 100 + "\nAnswer:", (" A. iron", " B. water"), 1)
    made = lay_out([long], corpus.tokenizer, 32)
    assert made.tokens.shape[1] <= 32
    assert corpus.tokenizer.decode(made.tokens[1].tolist()).count("Answer:") == 1
    assert corpus.tokenizer.decode(made.targets[1][made.targets[1] != IGNORED].tolist()) == " B. water"


def test_few_rows_at_once_keep_the_order(corpus: Corpus) -> None:
    stream = ChoiceStream(corpus, TRAINING, seed=1)
    for rows, sizes in ((2, [1, 1, 1]), (4, [1, 1, 1]), (5, [2, 1]), (100, [3])):
        assert [len(some.correct) for some in stream.batches([*PROBLEMS, PROBLEMS[1]], rows)] == sizes


def scores(nats: list[float], n_bytes: list[float], problem: list[int], correct: list[int]) -> tuple[float, float]:
    empty = torch.zeros(len(nats), 1, dtype=torch.long)
    made = Choices(empty, empty, torch.tensor(n_bytes), torch.tensor(problem), torch.tensor(correct))
    loss, accuracy = choice_loss(torch.tensor(nats), made)
    return float(loss), float(accuracy)


def test_the_loss_is_the_softmax_over_nats_per_byte() -> None:
    nats, n_bytes = [6.0, 8.0, 3.0, 3.0], [3.0, 5.0, 2.0, 2.0]
    first = [-6.0 * 4 / 3, -8.0 * 4 / 5]  # mean bytes are 4
    expected = (math.log(sum(math.exp(score) for score in first)) - first[1] + math.log(2)) / 2
    loss, accuracy = scores(nats, n_bytes, [0, 0, 1, 1], [1, 2])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert accuracy == 1.0
    assert scores(nats, n_bytes, [0, 0, 1, 1], [0, 2])[1] == 0.5


def test_its_choice_is_that_of_the_evaluation() -> None:
    """A long candidate is worse in nats and better per byte: acc_norm would choose it."""
    assert scores([10.0, 12.0], [5.0, 12.0], [0, 0], [1])[1] == 1.0
    assert scores([10.0, 12.0], [5.0, 12.0], [0, 0], [0])[1] == 0.0
