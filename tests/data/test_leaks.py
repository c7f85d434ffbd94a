"""No held-out text is in a training batch: looked for in the batches themselves, decoded, by the text of every item.

The other tests of this look at rows and keys, which are how it is done; this one knows tokens and texts only.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow.parquet as pq
import pytest
from data_folders import row, small_config, write_folder, write_split
from hypothesis import given, settings
from hypothesis import strategies as st

from cognate.config import DatasetName, RunConfig, resolve
from cognate.data.batches import IGNORED, TrainingBatches
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.formats import FORMATS, words
from cognate.data.sources import SOURCES, Source
from cognate.evaluation.items import load_items

LAST_STAGE = 7  # epochs of all stages, whose batches hold every document there is


def batch_texts(corpus: Corpus, config: RunConfig, epoch: int) -> Iterator[str]:
    """Every document, or piece of one, in the packed batches of an epoch, as words."""
    batches = TrainingBatches(corpus, config.training, config.seed)
    for index in range(batches.steps_in_epoch(epoch)):
        batch = batches.batch(epoch, index)
        for tokens, targets, documents in zip(batch.tokens.numpy(), batch.targets.numpy(), batch.documents.numpy(), strict=True):
            ends = np.flatnonzero(np.diff(documents)) + 1
            for inputs, outputs in zip(np.split(tokens, ends), np.split(targets, ends), strict=True):
                if outputs[0] != IGNORED:  # else it is padding
                    yield words(corpus.tokenizer.decode([int(inputs[0]), *outputs.tolist()]))


def held_out_examples(data_dir: Path, source: Source) -> Iterator[tuple[str, str]]:
    """Prompt and answer of what must not be trained on, straight from the files: all evaluation rows, and what evaluation asks."""
    for split in source.evaluation:
        for each in pq.read_table(data_dir / source.folder / f"{split}.parquet").to_pylist():
            example = FORMATS[source.name](each)
            yield example.prompt, example.answer
    for item in (*load_items(data_dir, source.name, "validation").items, *load_items(data_dir, source.name, "final").items):
        yield item.prompt, item.answer


def leaked(data_dir: Path, corpus: Corpus, config: RunConfig, epochs: tuple[int, ...] = (1, 4, LAST_STAGE)) -> set[str]:
    """Held-out texts that are in training documents: a prompt at the beginning, whatever the answer; a line without prompt as a whole."""
    examples = {each for source in SOURCES.values() for each in held_out_examples(data_dir, source)}
    prompts = {hash_of(text): text for text in {words(prompt) for prompt, _ in examples} - {""}}
    lines = {words(answer) for prompt, answer in examples if not prompt} - {""}
    found = set()
    for epoch in epochs:
        for text in batch_texts(corpus, config, epoch):
            found |= {prompts[beginning] for beginning in beginnings(text) if beginning in prompts} | ({text} & lines)
    return found


def beginnings(text: str) -> Iterator[int]:
    """A hash of the first word, of the first two, and so on; equal within one process."""
    so_far = 0
    for word in text.split(" "):
        so_far = hash((so_far, word))
        yield so_far


def hash_of(text: str) -> int:
    return list(beginnings(text))[-1]


# Few words, so that the same text often is on both sides, in other letters and in other datasets.
_TEXTS = st.lists(
    st.sampled_from(["alpha", "Alpha?", "beta", "gamma delta", "Gamma, delta", "delta", "alpha beta"]), min_size=2, max_size=9
)
_NAMES: tuple[DatasetName, ...] = ("gsm8k", "svamp", "boolq", "mbpp")
_COLUMN = {"gsm8k": "question", "svamp": "question_concat", "boolq": "question", "mbpp": "text"}


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({(name, split): _TEXTS for name in _NAMES for split in SOURCES[name].splits}))
def test_no_held_out_text_is_in_any_batch(texts: dict[tuple[DatasetName, str], list[str]]) -> None:
    with TemporaryDirectory() as name:
        folder = write_folder(Path(name), n_train=5, n_other=2)
        for (dataset, split), each in texts.items():
            # The same rows but for the text, so that nothing else tells a copy from its original.
            write_split(folder, dataset, split, [row(dataset, 1) | {_COLUMN[dataset]: text} for text in each])
        config = small_config({"synthetic_problems": 100})
        corpus = load_corpus(config, folder, None)
        assert leaked(folder, corpus, config) == set()


def test_a_leak_would_be_seen(tmp_path: Path) -> None:
    """The net has no hole: without the rule that keeps it out, the same look finds the text."""
    write_folder(tmp_path, n_train=5, n_other=2)
    write_split(tmp_path, "boolq", "train", [row("boolq", 1), row("boolq", 2)])
    config = small_config()
    corpus = load_corpus(config, tmp_path, None)
    write_split(tmp_path, "boolq", "validation", [row("boolq", 2)])
    assert leaked(tmp_path, corpus, config) == {"ann ran question did boolq train two answer"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_real_held_out_item_is_in_any_batch(data_dir: Path, real_cache: Path) -> None:
    config = resolve("reasoning", {"training": {"batch_size": 64, "sequence_length": 2048}})
    corpus = load_corpus(config, data_dir, real_cache)
    assert leaked(data_dir, corpus, config, (LAST_STAGE,)) == set()
