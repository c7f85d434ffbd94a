"""What a model writes after a few held-out prompts: for people to read as an epoch ends, not to be scored.

choose_prompts() takes them from the documents that the held-out loss is measured on; write_on() has the model continue them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from typing import Final

from cognate.data.corpus import Corpus
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.scoring import continue_texts
from cognate.model import Cognate

NEW_TOKENS: Final = 128  # half of GSM8K's answers are as short as 115, nearly all others shorter
LONGEST_PROMPT: Final = 256
FIRST_TOKENS: Final = 32  # of a text without a prompt, in place of one


@dataclass(frozen=True)
class Prompt:
    """expected: how its document goes on, for as long as the model may write"""

    dataset: str
    prompt: str
    expected: str


def choose_prompts(corpus: Corpus, count: int) -> list[Prompt]:
    """One of each dataset in the order of the curriculum, then the next of each; the same for every run on the same data."""
    in_turn = chain.from_iterable(zip_longest(*(islice(_prompts_of(corpus, part.dataset), count) for part in corpus.curriculum.parts)))
    return [prompt for prompt in in_turn if prompt is not None][:count]


def write_on(model: Cognate, tokenizer: Tokenizer, prompts: Sequence[Prompt]) -> list[str]:
    """The likeliest token each time, up to the end token; draws no random number and leaves the model as it was."""
    was_training = model.training
    model.eval()
    try:
        return continue_texts(model, tokenizer, [each.prompt for each in prompts], NEW_TOKENS)
    finally:
        model.train(was_training)


def _prompts_of(corpus: Corpus, dataset: str) -> Iterator[Prompt]:
    documents, decode = corpus.validation[dataset], corpus.tokenizer.decode
    for start, end, length in zip(documents.offsets[:-1], documents.offsets[1:], documents.prompts, strict=True):
        ids = documents.ids[start : end - 1].tolist()
        length = int(length) or FIRST_TOKENS
        if length <= LONGEST_PROMPT and length < len(ids):
            yield Prompt(dataset, decode(ids[:length]), decode(ids[length : length + NEW_TOKENS]))
