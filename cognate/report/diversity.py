"""The diversity report of runs: their best checkpoints, measured on the same held-out problems (cognate/evaluation/diversity.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from cognate.config import RunConfig
from cognate.data import synthetic
from cognate.data.curriculum import is_held_out
from cognate.data.files import DataUnreadable
from cognate.data.rows import SYNTHETIC_SEED
from cognate.evaluation.diversity import Member, Text, diversity
from cognate.evaluation.suite import sample_items
from cognate.jobdir import JobContext, JobFailed
from cognate.report.history import NothingSaved, best
from cognate.rundir import CorruptCheckpoint, RunDir, file_digest
from cognate.training.checkpoint import load_model

ROWS_A_DATASET: Final = 8  # of each of the fourteen: about 20,000 tokens
GENERATED: Final = 64


def measure_runs(
    runs: Sequence[RunDir],
    data_dir: Path | None,
    device: torch.device,
    say: Callable[[str, float | None], None] = lambda sentence, fraction: None,
    cache_dir: Path | None = None,
) -> dict[str, Any]:
    """The report as plain JSON. Raises NothingSaved, CorruptCheckpoint or DataUnreadable."""
    configs = [run.config() for run in runs]
    members, described = [], []
    for run, config in zip(runs, configs, strict=True):
        chosen = best(run)
        net, tokenizer = load_model(chosen.path)
        members.append(Member(run.path.name, config.preset, net.to(device), tokenizer))
        model_sha256 = file_digest(chosen.path / "model.safetensors")
        described.append({"step": chosen.step, "chosen_because": chosen.why, "model_sha256": model_sha256})
    source, texts = held_out(configs, data_dir, cache_dir)
    made = diversity(members, texts, say)
    made["texts"]["source"] = source
    made["members"] = [measured | more for measured, more in zip(made["members"], described, strict=True)]
    return {"device": str(device), "threads": torch.get_num_threads(), **made}


def held_out(configs: Sequence[RunConfig], data_dir: Path | None, cache_dir: Path | None = None) -> tuple[str, list[Text]]:
    """(which they are, texts) that none of the runs was trained on: validation rows of the data folders; where there are none, or
    all were trained on generated problems, the problems that every run keeps aside."""
    if any(config.data.source != "synthetic" for config in configs):
        samples = sample_items(data_dir, count=ROWS_A_DATASET, cache_dir=cache_dir)
        items = [(chosen.name, item) for chosen in samples for item in chosen.items]
        if items:
            return "validation rows of the data folder", [Text(name, item.prompt, item.answer) for name, item in items]
    # Kept aside by a hash of the text, so it matters to no run how many problems another one has.
    texts: list[Text] = []
    index = 0
    while len(texts) < GENERATED:
        kind, example = synthetic.problem(SYNTHETIC_SEED, index)
        if is_held_out(example.key):
            texts.append(Text(kind, example.prompt, example.answer))
        index += 1
    return "generated problems that are kept aside", texts


def perform(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `diversity`: of the best checkpoints of `run_ids`."""
    try:
        runs = [context.run(run_id) for run_id in spec["run_ids"]]
        return measure_runs(runs, context.places.data_dir, torch.device(context.device), context.say, context.places.cache_dir)
    except NothingSaved as error:
        raise JobFailed("checkpoint_missing", str(error)) from error
    except (CorruptCheckpoint, FileNotFoundError) as error:  # also one that training has replaced meanwhile
        raise JobFailed("checkpoint_corrupt", str(error)) from error
    except DataUnreadable as error:
        raise JobFailed("data_missing", str(error)) from error
