"""The evaluation of a checkpoint: the suite's figures with all that stands beside them, as plain JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import torch

from cognate.config import DatasetName, parse
from cognate.data.cache import Cache
from cognate.data.files import DataMissing, DataUnreadable, has_any
from cognate.evaluation import suite
from cognate.evaluation.baseline import untrained
from cognate.evaluation.items import Items
from cognate.evaluation.overlap import check
from cognate.evaluation.referee import RefereeMissing, referee
from cognate.evaluation.scoring import Batching
from cognate.evaluation.tasks import Model
from cognate.jobdir import JobContext, JobFailed
from cognate.precision import use_whole_vectors
from cognate.rundir import CorruptCheckpoint, Places, file_digest, read_json
from cognate.training.checkpoint import load_model, weights_file

DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)
REFEREE_TOLERANCE = 0.005


def evaluate_checkpoint(
    folder: Path,
    places: Places,
    device: torch.device,
    datasets: Sequence[DatasetName] = DATASETS,
    limit: int | None = None,
    *,
    calculator: bool = False,
    votes: int = 0,
    with_untrained: bool = True,
    with_overlap: bool = True,
    with_referee: bool = False,
    say: Callable[[str], None] = lambda _: None,
    before_batch: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Measure a checkpoint on the final items of `datasets`, or a fixed sample of `limit` of each. Raises CorruptCheckpoint.

    calculator, votes: figures of datasets whose answers are numbers (tasks.Model); the headline is without either
    with_overlap: count the items that share 13 words in a row with the training text
    with_referee: let lm-evaluation-harness measure the same items
    """
    use_whole_vectors(device)
    # All that is needed of the checkpoint is read now: a run at work may remove it before its figures are there.
    net, tokenizer = load_model(folder)
    config, state = parse(read_json(folder / "config.json")), read_json(folder / "state.json")
    named = {"name": folder.name, "model_sha256": file_digest(weights_file(folder)), "tokenizer_sha256": tokenizer.digest}
    batching = Batching(before_each=before_batch)
    model = Model(net.to(device), tokenizer, batching, calculator=calculator, votes=votes)
    warnings: list[str] = []
    fresh = untrained(config, tokenizer, device, Cache(places.cache_dir, warnings.append), batching) if with_untrained else None
    report = suite.evaluate(model, places.data_dir, datasets, limit, fresh, say, places.cache_dir, state.get("data_files"))
    made: dict[str, Any] = {"checkpoint": named, "limit": limit, **suite.to_json(report)}
    if with_overlap:
        say("overlap with the training text")
        try:
            made["overlap"] = check(report, config, places.data_dir, places.cache_dir, tokenizer, state["data"], state.get("data_files"))
        except (DataMissing, DataUnreadable) as error:
            made["overlap"] = {"absent": f"the training text is not here: {error}"}
    if with_referee:
        say("lm-evaluation-harness")
        try:
            made["referee"] = referee(model, [Items(each.dataset, each.items, each.rows) for each in report.results])
            warnings += disagreements(made["datasets"], made["referee"])
        except RefereeMissing as error:
            made["referee"] = {"absent": str(error)}
    made["warnings"] = warnings
    return made


def disagreements(ours: Mapping[str, Any], theirs: Mapping[str, Mapping[str, float]]) -> list[str]:
    """A sentence for each figure that the referee sees otherwise, by more than half a point."""
    pairs = [
        (name, figure, ours[name]["figures"][figure]["value"], value) for name, each in theirs.items() for figure, value in each.items()
    ]
    return [
        f"the referee sees {figure} of {name} otherwise: {value:.4f}, here {own:.4f}"
        for name, figure, own, value in pairs
        if abs(own - value) > REFEREE_TOLERANCE
    ]


def perform(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `evaluation`: of checkpoint `step` of run `run_id`; the rest of the specification as evaluate_checkpoint() has it."""
    if not has_any(context.places.data_dir, context.places.cache_dir):
        raise JobFailed("data_missing", "evaluation items come from real datasets only: set COGNATE_DATA_DIR, or fetch a dataset")
    folder = context.run(spec["run_id"]).checkpoint(spec["step"])
    if not folder.is_dir():
        raise JobFailed("checkpoint_missing", f"{folder.name} was removed before its turn came; evaluate another, or pin one first")
    datasets = tuple(spec["datasets"] or DATASETS)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        say_again()

    def say_again() -> None:
        context.say(said[-1], (len(said) - 1) / (len(datasets) + spec["overlap"]))

    try:
        return evaluate_checkpoint(
            folder,
            context.places,
            torch.device(context.device),
            datasets,
            spec["limit"],
            calculator=spec["calculator"],
            votes=spec["vote"] or 0,
            with_overlap=spec["overlap"],
            say=say,
            before_batch=say_again,
        )
    except CorruptCheckpoint as error:
        raise JobFailed("checkpoint_corrupt", str(error)) from error
