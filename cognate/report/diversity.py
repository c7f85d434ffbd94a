"""The diversity report of runs: their best checkpoints, measured on the same held-out problems (cognate/evaluation/diversity.py)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
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
from cognate.precision import use_whole_vectors
from cognate.report.history import NothingSaved, best
from cognate.rundir import CorruptCheckpoint, Places, RunDir, file_digest, read_json
from cognate.training.checkpoint import load_model, weights_file

ROWS_A_DATASET: Final = 8  # of each of the fourteen: about 20,000 tokens
GENERATED: Final = 64


def measure_runs(
    runs: Sequence[RunDir],
    places: Places,
    device: torch.device,
    say: Callable[[str, float | None], None] = lambda sentence, fraction: None,
) -> dict[str, Any]:
    """The report as plain JSON. Raises NothingSaved, CorruptCheckpoint or DataUnreadable."""
    use_whole_vectors(device)
    configs = [run.config() for run in runs]
    members, described, files = [], [], []
    for run, config in zip(runs, configs, strict=True):
        chosen = best(run)
        net, tokenizer = load_model(chosen.path)
        members.append(Member(run.path.name, config.preset, net.to(device), tokenizer))
        files.append(read_json(chosen.path / "state.json").get("data_files") or {})
        model_sha256 = file_digest(weights_file(chosen.path))
        described.append({"step": chosen.step, "chosen_because": chosen.why, "model_sha256": model_sha256})
    source, texts = held_out(configs, places, files)
    made = diversity(members, texts, say)
    made["texts"]["source"] = source
    made["members"] = [measured | more for measured, more in zip(made["members"], described, strict=True)]
    return {"device": str(device), "threads": torch.get_num_threads(), **made}


def held_out(configs: Sequence[RunConfig], places: Places, files: Sequence[Mapping[str, str]] = ()) -> tuple[str, list[Text]]:
    """(which they are, texts) that none of the runs was trained on: validation rows of the datasets that are there; without any, or
    where all were trained on generated problems, the problems that every run keeps aside.

    files: the digests of the data files of each run; a dataset is left out where one of them had another copy than is here
    """
    if any(config.data.source != "synthetic" for config in configs):
        digests: dict[str, set[str]] = defaultdict(set)
        for of_run in files:
            for name, digest in of_run.items():
                digests[name].add(digest)
        known = {name: " or ".join(sorted(each)) for name, each in digests.items()}  # of two no file has the digest
        found = sample_items(places.data_dir, count=ROWS_A_DATASET, cache_dir=places.cache_dir, known=known)
        items = [(chosen.name, item) for chosen in found for item in chosen.items]
        if items:
            return "validation rows of the datasets that are there", [Text(name, item.prompt, item.answer) for name, item in items]
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
        return measure_runs([context.run(run_id) for run_id in spec["run_ids"]], context.places, torch.device(context.device), context.say)
    except NothingSaved as error:
        raise JobFailed("checkpoint_missing", str(error)) from error
    except (CorruptCheckpoint, FileNotFoundError) as error:  # also one that training has replaced meanwhile
        raise JobFailed("checkpoint_corrupt", str(error)) from error
    except DataUnreadable as error:
        raise JobFailed("data_missing", str(error)) from error
