"""What a run is trained and measured on, loaded as the run began with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cognate.config import RunConfig
from cognate.data.batches import Batch, TrainingBatches, validation_batches
from cognate.data.choices import ChoiceStream
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.sources import SOURCES
from cognate.evaluation.items import Items
from cognate.evaluation.suite import sample_items
from cognate.evaluation.writing import Prompt, choose_prompts
from cognate.rundir import Places
from cognate.training.checkpoint import Saved
from cognate.training.reporter import Reporter


class DataChanged(RuntimeError):
    """The data of a resumed run are not those it was started on."""


@dataclass(frozen=True)
class Data:
    """What a run is trained and measured on.

    samples: items that an epoch's end answers; prompts: what it writes on from; steps_in: by epoch, from 1
    """

    corpus: Corpus
    batches: TrainingBatches
    choices: ChoiceStream | None
    held_out: Sequence[Batch]
    samples: Sequence[Items]
    prompts: Sequence[Prompt]
    steps_in: dict[int, int]
    total_steps: int


def load_data(config: RunConfig, places: Places, saved: Saved | None, reporter: Reporter) -> Data:
    """The data as the run began with them; raises DataChanged."""
    training = config.training
    reporter.phase("loading_data")
    corpus = load_corpus(config, places.data_dir, places.cache_dir, *((saved.tokenizer, saved.data_files) if saved else ()))
    for sentence in corpus.warnings:
        reporter.warning(sentence)
    if saved and saved.data != corpus.fingerprint:
        raise DataChanged("the data are not those this run was started on: its place in them would mean nothing; launch a new run")
    batches = TrainingBatches(corpus, training, config.seed)
    held_out = validation_batches(corpus, training, config.data.validation_batches)
    samples = evaluation_samples(config, places, corpus)
    prompts = choose_prompts(corpus, config.evaluation.samples)
    choices = ChoiceStream(corpus, training, config.seed) if training.choice_weight else None
    if choices is not None and not choices.count(training.epochs):
        reporter.warning("training.choice_weight has no effect: no dataset of the plan is multiple choice")
    steps_in = {epoch: math.ceil(batches.steps_in_epoch(epoch) / training.gradient_accumulation) for epoch in range(1, training.epochs + 1)}
    total_steps = min(sum(steps_in.values()), training.max_steps or sum(steps_in.values()))
    return Data(corpus, batches, choices, held_out, samples, prompts, steps_in, total_steps)


def evaluation_samples(config: RunConfig, places: Places, corpus: Corpus) -> list[Items]:
    """What an epoch ends with: a few held-out items of each real dataset that the run uses, from the copy that it uses."""
    if config.evaluation.epoch_items == 0:
        return []
    used = [name for name in SOURCES if name in corpus.training]
    return sample_items(places.data_dir, used, config.evaluation.epoch_items, places.cache_dir, corpus.digests)
