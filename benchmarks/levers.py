"""What each lever for learning from little data is worth: the small model with and without it, side by side, on real held-out rows.

    make bench-levers ARGS="RESULTS.jsonl [renumber graphs mbpp_mutations choice dropout weight_ema ...] [--steps 2000] [--seeds 1 2 3]"

Each lever is tried on the datasets it is for, beside the same run without it: same seeds, same number of steps, the loop that `cognate
train` uses. The datasets are those in COGNATE_DATA_DIR, else in data/. Measured are validation rows, never test rows, so that nothing
is chosen by these: the figures of `cognate evaluate`, and the loss on the answers alone, nats a byte (whatever the tokens are), which
moves long before accuracy does. Every outcome is one line of RESULTS.jsonl and is never computed twice. The model is that of the
optimizer studies: two applications of the recursion's net.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.trials import CACHE, DATA, LITTLE_DATA, ONE_LOOK, SEEDS, SMALL
from cognate.config import DatasetName, RunConfig, parse
from cognate.data.corpus import load_corpus
from cognate.evaluation.items import load_items
from cognate.evaluation.scoring import likelihoods
from cognate.evaluation.tasks import Model, measure
from cognate.events import Kind
from cognate.rundir import Journal, Places, RunDir
from cognate.training.checkpoint import load_model
from cognate.training.loop import train
from cognate.training.reporter import Reporter

# Those at which MuGrokfast did best (docs/experiments.md).
OPTIMIZER = {"muon_lr": 5e-3, "embedding_lr": 1e-2, "adamw_lr": 3e-3, "grokfast_lambda": 0.0}
STEPS = 2000
ITEMS = 400


@dataclass(frozen=True)
class Lever:
    """settings: by path below data or training; datasets: trained on and measured"""

    datasets: tuple[DatasetName, ...]
    settings: dict[str, Any]


LEVERS = {
    "digits_merged": Lever(("gsm8k", "svamp"), {"data": {"digits": "merged"}}),
    "renumber": Lever(("gsm8k", "svamp"), {"data": {"augment": {"renumber": 3}}}),
    "graphs": Lever(("gsm8k", "svamp"), {"data": {"augment": {"graphs": 10_000}}}),
    "renumber+graphs": Lever(("gsm8k", "svamp"), {"data": {"augment": {"renumber": 3, "graphs": 10_000}}}),
    # In 800 steps the rows of the two together are not seen once; those of SVAMP alone many times, as in a whole run.
    "renumber_svamp": Lever(("svamp",), {"data": {"augment": {"renumber": 3}}}),
    "graphs_svamp": Lever(("svamp",), {"data": {"augment": {"graphs": 2_000}}}),
    "mbpp_mutations": Lever(("mbpp",), {"data": {"augment": {"mbpp_mutations": 4}}}),
    "choice": Lever(("arc_easy",), {"training": {"choice_weight": 0.3}}),
    "dropout": Lever(LITTLE_DATA, {"training": {"dropout": 0.1}}),
    "weight_ema": Lever(LITTLE_DATA, {"training": {"weight_ema": 0.995}}),
    "dropout+weight_ema": Lever(LITTLE_DATA, {"training": {"dropout": 0.1, "weight_ema": 0.995}}),
    "weight_decay": Lever(LITTLE_DATA, {"optimizer": {"weight_decay": 0.2}}),
}


@dataclass(frozen=True)
class Trial:
    """One run. settings: the lever's, or empty; as text, so that equal trials are equal"""

    datasets: tuple[DatasetName, ...]
    settings: str
    steps: int
    seed: int

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Outcome:
    """figures: of each dataset by name; answer_loss: nats a byte of its answers; samples: trained on in an epoch of the last stage"""

    figures: dict[str, dict[str, float]]
    answer_loss: dict[str, float]
    val_loss: float
    samples: dict[str, int]
    epochs: float
    minutes: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("levers", nargs="*", default=list(LEVERS), help=", ".join(LEVERS))
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--items", type=int, default=ITEMS, help="held-out rows of each dataset, at most")
    options = parser.parse_args()
    if unknown := set(options.levers) - set(LEVERS):
        parser.error(f"no lever {', '.join(unknown)}; have {', '.join(LEVERS)}")
    known = read(options.results)
    for name in options.levers:
        lever = LEVERS[name]
        pairs = []
        for seed in options.seeds:  # taking turns, so that a study that is stopped early is still side by side
            without, with_it = (
                outcome_of(Trial(lever.datasets, json.dumps(settings), options.steps, seed), options.items, known, options.results)
                for settings in ({}, lever.settings)
            )
            pairs.append((without, with_it))
        show(name, pairs)


def read(path: Path) -> dict[str, Outcome]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {entry["trial"]: Outcome(**entry["outcome"]) for entry in map(json.loads, lines)}


def outcome_of(trial: Trial, items: int, known: dict[str, Outcome], path: Path) -> Outcome:
    key = f"{trial.key} {items}"
    if key not in known:
        known[key] = run(trial, items)
        with path.open("a") as file:
            file.write(json.dumps({"trial": key, "outcome": asdict(known[key])}) + "\n")
    return known[key]


def run(trial: Trial, items: int) -> Outcome:
    config = config_of(trial)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = RunDir(Path(folder) / "run")
        made.create(config)
        attempt = made.attempt(1)
        attempt.create()
        last: dict[str, Any] = {}
        reporter = Reporter(Journal(attempt), lambda event: last.update(event.data) if event.kind is Kind.METRICS else None)
        ended = train(made, reporter, lambda: None, Places(DATA, CACHE), torch.device("cpu"))
        assert ended is Kind.FINISHED, f"the run ended with {ended}"
        net, tokenizer = load_model(made.complete_checkpoints()[-1][1])
    model = Model(net, tokenizer, calculator=True)
    figures, answer_loss = {}, {}
    for name in trial.datasets:
        chosen = load_items(DATA, name, "validation", items)
        figures[name] = {key: figure.value for key, figure in measure(model, chosen).figures.items()}
        scored = likelihoods(net, tokenizer, [item.prompt for item in chosen.items], [[item.answer] for item in chosen.items])
        answer_loss[name] = -sum(each.nats for (each,) in scored) / sum(len(item.answer.encode()) for item in chosen.items)
    parts = load_corpus(config, DATA, CACHE, tokenizer).curriculum.parts
    samples = {part.dataset: part.trained + part.augmented for part in parts}
    return Outcome(figures, answer_loss, last["values"]["val_loss"], samples, last["epoch"], (time.perf_counter() - began) / 60)


def config_of(trial: Trial) -> RunConfig:
    settings = json.loads(trial.settings)
    training = {
        **SMALL["training"], "sequence_length": 256, "batch_size": 8, "epochs": 10_000, "max_steps": trial.steps, "log_every_steps": 50,
        "checkpoint_every_steps": trial.steps, "keep_checkpoints": 1, "compile": "off",
    }  # fmt: skip
    tree = {
        **SMALL,
        "seed": trial.seed,
        "optimizer": {**OPTIMIZER, **settings.get("optimizer", {})},
        "model": {**SMALL["model"], **dict(ONE_LOOK)},
        "evaluation": {"epoch_items": 0, "samples": 0, "at_end": "off"},
        "data": {**SMALL["data"], "datasets": list(trial.datasets), **settings.get("data", {})},
        "training": {**training, **settings.get("training", {})},
    }
    return parse(tree)


def show(name: str, pairs: Sequence[tuple[Outcome, Outcome]]) -> None:
    """Without, with, and the difference: means over seeds, with the standard deviation of the differences."""

    def line(title: str, values: Sequence[tuple[float, float]]) -> None:
        differences = [after - before for before, after in values]
        spread = f" +- {statistics.stdev(differences):.4f}" if len(values) > 1 else ""
        before, after = (statistics.mean(column) for column in zip(*values, strict=True))
        print(f"{name:<16} {title:<32} {before:>8.4f} {after:>8.4f} {statistics.mean(differences):>+8.4f}{spread}", flush=True)

    first = pairs[0][0]
    for dataset, figures in first.figures.items():
        line(f"{dataset} loss of answers", [(before.answer_loss[dataset], after.answer_loss[dataset]) for before, after in pairs])
        for figure in figures:
            line(f"{dataset} {figure}", [(before.figures[dataset][figure], after.figures[dataset][figure]) for before, after in pairs])
    line("val_loss", [(before.val_loss, after.val_loss) for before, after in pairs])


if __name__ == "__main__":
    main()
