"""Multiple choice as a choice: prompts with all their candidates, for a loss that compares these instead of reading one.

The problems are the training documents of five datasets, decoded, so nothing held out can be among them. What a step draws is a
function of (seed, step) and of the stage; problems are drawn evenly, with replacement.

choice_loss(): minus the logarithm of the right candidate's share in a softmax over log-likelihood per byte, times the mean number
of bytes of the problem's candidates. So the likeliest candidate is the one that the evaluation chooses (acc_norm), while differences
keep the size they have in nats.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final, final

import numpy as np
import torch
from torch import Tensor

from cognate.config import DatasetName, TrainingConfig
from cognate.data.batches import IGNORED
from cognate.data.corpus import Corpus, Documents
from cognate.data.curriculum import stage_for
from cognate.data.tokenizer import Tokenizer
from cognate.transfer import to_device

DATASETS: Final[tuple[DatasetName, ...]] = ("arc_easy", "arc_challenge", "piqa", "hellaswag", "boolq")
_STREAM: Final = 1  # apart from the order of documents, which is drawn from (seed, epoch)


@dataclass(frozen=True)
class Problem:
    """candidates[correct] is the right one"""

    prompt: str
    candidates: tuple[str, ...]
    correct: int


@dataclass(frozen=True)
class Choices:
    """Problems side by side, on the CPU: a row for each candidate, with its prompt before it.

    tokens, targets: int64 [row, time]; only a candidate's own tokens are targets, the rest is IGNORED
    n_bytes: float32 [row], of the candidate without the spaces around it
    problem: int64 [row], counted from 0; rows of one problem follow each other
    correct: int64 [problem], the row of its right candidate
    """

    tokens: Tensor
    targets: Tensor
    n_bytes: Tensor
    problem: Tensor
    correct: Tensor


def choice_loss(nats: Tensor, choices: Choices) -> tuple[Tensor, Tensor]:
    """(mean loss, share of problems whose likeliest candidate is right).

    nats: [row], the candidates' negative log-likelihoods, on any device, which is not waited for
    """
    counts = torch.bincount(choices.problem)
    mean_bytes = torch.zeros(len(counts)).index_add(0, choices.problem, choices.n_bytes) / counts
    scores = -nats * to_device(mean_bytes[choices.problem] / choices.n_bytes, nats.device)
    each = torch.split(scores, counts.tolist())
    right = scores[to_device(choices.correct, nats.device)]
    losses = torch.stack([some.logsumexp(0) for some in each]) - right
    best = torch.stack([some.max() for some in each])
    return losses.mean(), (best <= right).float().mean().detach()


@final
class ChoiceStream:
    """The problems of a run, and those of each step. Empty where no dataset of the plan has any."""

    def __init__(self, corpus: Corpus, training: TrainingConfig, seed: int) -> None:
        self._curriculum, self._training, self._seed = corpus.curriculum, training, seed
        self._tokenizer = corpus.tokenizer
        self._problems = {name: problems(name, corpus.training[name], corpus.tokenizer) for name in DATASETS if name in corpus.training}

    def count(self, epoch: int) -> int:
        """Problems that a step of the epoch draws from."""
        return sum(map(len, self._of(epoch)))

    def draw(self, epoch: int, step: int) -> list[Problem]:
        """The problems of a step; none where the epoch has none."""
        known = [problem for some in self._of(epoch) for problem in some]
        if not known:
            return []
        bits = np.random.PCG64(np.random.SeedSequence([self._seed, step, _STREAM])).random_raw(self._training.choice_problems)
        return [known[int(each) % len(known)] for each in bits]

    def batches(self, drawn: Sequence[Problem], rows: int) -> Iterator[Choices]:
        """The problems in their order, so many at once that there are at most `rows` rows; one, if it alone has more."""
        some: list[Problem] = []
        for problem in drawn:
            if some and sum(len(each.candidates) for each in (*some, problem)) > rows:
                yield lay_out(some, self._tokenizer, self._training.sequence_length)
                some = []
            some.append(problem)
        if some:
            yield lay_out(some, self._tokenizer, self._training.sequence_length)

    def _of(self, epoch: int) -> list[list[Problem]]:
        names = {part.dataset for part in self._curriculum.parts_of(stage_for(epoch))}
        return [some for name, some in self._problems.items() if name in names]


def problems(name: DatasetName, documents: Documents, tokenizer: Tokenizer) -> list[Problem]:
    """Those of a dataset's training documents; one whose options cannot be told apart is left out."""
    texts = (tokenizer.decode(ids.tolist()) for ids in np.split(documents.ids, documents.offsets[1:-1]))
    return [problem for text in texts if (problem := read(name, text)) is not None]


def read(name: DatasetName, text: str) -> Problem | None:
    """A training document as its prompt and its candidates."""
    prompt, mark, answer = text.rpartition("\nAnswer:")
    candidates = (" yes", " no") if name == "boolq" else tuple(f" {option}" for option in _options(prompt))
    if not mark or len(set(candidates)) < 2 or candidates.count(answer) != 1:
        return None
    return Problem(prompt + mark, candidates, candidates.index(answer))


def _options(prompt: str) -> list[str]:
    """The lines "A. ...", "B. ..." and so on at the end."""
    start = prompt.rfind("\nA. ")
    if start < 0:
        return []
    options = re.split(r"\n(?=[A-Z]\. )", prompt[start + 1 :])
    in_order = all(option.startswith(f"{chr(ord('A') + number)}. ") for number, option in enumerate(options))
    return options if in_order else []


def lay_out(some: Sequence[Problem], tokenizer: Tokenizer, sequence_length: int) -> Choices:
    """Prompt and candidate are encoded apart, as everywhere. A prompt that is too long keeps its end."""
    rows: list[tuple[list[int], list[int]]] = []
    for problem in some:
        tails = [tail[:sequence_length] for tail in tokenizer.encode_batch(list(problem.candidates))]
        head = tokenizer.encode(problem.prompt)[-(sequence_length + 1 - max(map(len, tails))) :]
        rows += [(head, tail) for tail in tails]
    longest = max(len(head) + len(tail) for head, tail in rows) - 1
    tokens = torch.full((len(rows), longest), tokenizer.end_id)
    targets = torch.full_like(tokens, IGNORED)
    for row, (head, tail) in enumerate(rows):
        whole = torch.tensor(head + tail)
        tokens[row, : len(whole) - 1] = whole[:-1]
        targets[row, len(head) - 1 : len(whole) - 1] = whole[len(head) :]
    candidates = [text for problem in some for text in problem.candidates]
    firsts = np.cumsum([0, *(len(problem.candidates) for problem in some)])[:-1]
    return Choices(
        tokens,
        targets,
        n_bytes=torch.tensor([float(len(text.strip().encode())) for text in candidates]),
        problem=torch.tensor([number for number, problem in enumerate(some) for _ in problem.candidates]),
        correct=torch.tensor([int(first) + problem.correct for first, problem in zip(firsts, some, strict=True)]),
    )
