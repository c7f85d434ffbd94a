"""The data a run would train on, and the steps that makes: counted from the files and the real packing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cognate.config import SIX_DATASETS, DatasetName, RunConfig
from cognate.data.batches import TrainingBatches
from cognate.data.choices import ChoiceStream
from cognate.data.corpus import Corpus, load_corpus
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.report import SourceRow, describe_sources
from cognate.report.facts import Dataset, Plan
from cognate.rundir import Places

# Training samples the plan counts on. Source: docs/model.md, section 3.
PLANNED: Final[Mapping[DatasetName, int]] = {
    "gsm8k": 7_473, "svamp": 700, "asdiv": 2_096, "mbpp": 374, "codexglue": 1_000, "arc_easy": 2_251, "arc_challenge": 1_119,
    "hotpotqa": 10_000, "drop": 10_000, "strategyqa": 2_061, "piqa": 16_113, "hellaswag": 10_000, "boolq": 9_427, "wikitext": 5_000,
}  # fmt: skip
SIX_PLAN: Final = {1: 20_798, 2: 21_917}


@dataclass(frozen=True)
class Material:
    """A plan, and what its steps are made of: None where there is nothing to train on. choices: None also where no step has any"""

    plan: Plan
    batches: TrainingBatches | None = None
    choices: ChoiceStream | None = None


def make_plan(config: RunConfig, places: Places, say: Callable[[str], None] = lambda _: None) -> Material:
    """Read, tokenise and pack what `config` would train on."""
    folder = str(places.data_dir) if places.data_dir is not None else None
    datasets: tuple[Dataset, ...] = ()
    try:
        if config.data.source != "synthetic":
            say("counting the rows of the datasets")
            datasets = tuple(describe(row, config.data.datasets) for row in describe_sources(places.data_dir, places.cache_dir))
        say("reading and tokenising the training text")
        corpus = load_corpus(config, places.data_dir, places.cache_dir)
    except (DataMissing, DataUnreadable) as error:
        return Material(Plan("folder", folder, datasets, error=str(error)))
    batches = TrainingBatches(corpus, config.training, config.seed)
    choices = ChoiceStream(corpus, config.training, config.seed) if config.training.choice_weight else None
    source, datasets = ("folder", datasets) if corpus.digests else ("generated", ())  # without digests no file was read
    return Material(_count(source, folder, datasets, corpus, batches, config), batches, choices)


def describe(row: SourceRow, chosen: tuple[DatasetName, ...] | None) -> Dataset:
    """One dataset as this run would use it."""
    planned = PLANNED[row.name]
    state: Any = "missing" if not row.is_present else "partial" if row.train < planned else "present"
    if chosen is not None and row.name not in chosen:
        state = "not chosen"
    remark = f"{row.without_passage:,} of {row.samples:,} samples have no paragraphs to read" if row.without_passage else row.damage
    return Dataset(
        row.name, row.category, row.hub, row.stage, state, row.train, row.validation, row.test, row.samples, planned, row.missing_files,
        remark,
    )  # fmt: skip


def _count(
    source: Any, folder: str | None, datasets: tuple[Dataset, ...], corpus: Corpus, batches: TrainingBatches, config: RunConfig
) -> Plan:
    training = config.training
    steps = [math.ceil(batches.steps_in_epoch(epoch) / training.gradient_accumulation) for epoch in range(1, training.epochs + 1)]
    total = min(sum(steps), training.max_steps or sum(steps))
    stages = [{**described, **_measures(batches, described["first_epoch"])} for described in corpus.curriculum.describe()["stages"]]
    return Plan(
        source, folder, datasets, tuple(stages),
        is_six=config.data.datasets is not None and set(config.data.datasets) == set(SIX_DATASETS),
        steps_per_epoch=tuple(steps),
        total_steps=total,
        epochs=epochs_of(steps, total),
        different_tokens=sum(len(documents.ids) for documents in corpus.training.values()),
        vocabulary=corpus.tokenizer.vocab_size,
        warnings=corpus.warnings,
    )  # fmt: skip


def epochs_of(steps_per_epoch: list[int], total_steps: int) -> int:
    """Epochs that are begun in `total_steps` steps."""
    begun, done = 0, 0
    while done < total_steps:
        done, begun = done + steps_per_epoch[begun], begun + 1
    return begun


def _measures(batches: TrainingBatches, epoch: int) -> dict[str, Any]:
    """Batches are steps where no gradients are accumulated."""
    return {
        "batches": batches.steps_in_epoch(epoch),
        "tokens": batches.tokens_in_epoch(epoch),
        "fill_ratio": batches.fill_ratio(epoch),
    }
