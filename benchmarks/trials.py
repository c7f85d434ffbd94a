"""One trial of benchmarks/experiments.py: a small model trained on real data by one of the optimizers that are compared.

Data are those of COGNATE_DATA_DIR.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch

from cognate.config import RunConfig, parse
from cognate.data.batches import Batch, TrainingBatches, validation_batches
from cognate.data.corpus import Corpus, load_corpus
from cognate.model import NOT_COUNTED, Cognate
from cognate.model.act import halting_depths
from cognate.model.cross_entropy import cross_entropy_of
from cognate.optimizer import MuGrokfast, kind_of
from cognate.training.loop import seed_of_step
from cognate.training.measure import validate
from cognate.training.schedule import lr_scale

DATA = Path(os.environ.get("COGNATE_DATA_DIR", "data"))
CACHE = Path("var/cache")
SMALL: dict[str, Any] = {
    "preset": "reasoning",
    "model": {
        "vocab_size": 2048, "d_model": 128, "n_layers": 3, "n_heads": 4, "d_ff": 384, "trm_d_ff": 384, "window": 64,
        "memory_key_dim": 16, "memory_value_dim": 32,
    },
    "data": {"source": "real"},
    "training": {"batch_size": 16, "sequence_length": 128},
}  # fmt: skip
LITTLE_DATA = ("svamp", "mbpp", "arc_challenge")
ONE_LOOK = (("recursions", 1), ("micro_steps", 1))  # the optimizer studies: two applications of the recursion's net instead of nine
STEPS = 800
COMPILED_FROM = 1600  # steps
SEEDS = (1, 2, 3)
THRESHOLDS = (0.5, 0.8, 0.9, 0.95, 0.99)
VECTOR_LR = 3e-3
WEIGHT_DECAY = 0.01

Optimizers = list[torch.optim.Optimizer]


@dataclass(frozen=True)
class Trial:
    """One training run.

    steps: None is the whole curriculum, ten epochs; precision: of activations
    """

    optimizer: str
    matrix_lr: float
    embedding_lr: float
    seed: int = 1
    steps: int | None = STEPS
    model: tuple[tuple[str, Any], ...] = ()
    datasets: tuple[str, ...] | None = None
    optimizer_options: tuple[tuple[str, float], ...] = ()
    precision: str = "fp32"

    @property
    def key(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class Outcome:
    """val_loss: nats/token after the last step; best_loss: the least of those taken every twentieth of the run

    halting: by act_threshold, held-out nats/token where tokens halt by it, and the recursions that takes a token on average
    """

    val_loss: float
    best_loss: float
    train_loss: float
    step_ms: float
    steps: int
    parameters: int
    curve: list[float] = field(default_factory=list)
    halting: dict[str, tuple[float, float]] = field(default_factory=dict)


class Book:
    """Outcomes by trial, kept in a file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        entries = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        self._known = {entry["trial"]: Outcome(**entry["outcome"]) for entry in entries if "trial" in entry}
        self._notes = {entry["note"]: entry["value"] for entry in entries if "note" in entry}

    def of(self, trial: Trial) -> Outcome:
        if trial.key not in self._known:
            outcome = run(trial)
            self._known[trial.key] = outcome
            self._keep({"trial": trial.key, "outcome": asdict(outcome)})
            print(f"{outcome.val_loss:.4f}  {outcome.step_ms:.0f} ms/step  {trial.key}", flush=True)
        return self._known[trial.key]

    def mean(self, trial: Trial, seeds: Iterable[int] = SEEDS) -> tuple[float, float]:
        losses = [self.of(replace(trial, seed=seed)).val_loss for seed in seeds]
        return statistics.mean(losses), statistics.stdev(losses)

    def note(self, name: str, measure: Callable[[], Any]) -> Any:
        """What was measured under this name, once."""
        if name not in self._notes:
            self._notes[name] = measure()
            self._keep({"note": name, "value": self._notes[name]})
        return self._notes[name]

    def _keep(self, entry: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def run(trial: Trial) -> Outcome:
    config = config_of(trial)
    corpus = corpus_of(config)
    batches = TrainingBatches(corpus, config.training, trial.seed)
    held_out = validation_batches(corpus, config.training, 16)
    total = trial.steps or sum(batches.steps_in_epoch(epoch) for epoch in range(1, config.training.epochs + 1))
    torch.manual_seed(trial.seed)
    model = Cognate(config.model)
    model.train()
    if trial.precision == "bf16":
        model.compute_dtype = torch.bfloat16
    if total >= COMPILED_FROM:  # what takes a minute and changes no number beyond rounding pays for itself there
        model.compile_regions()
    optimizers = OPTIMIZERS[trial.optimizer](model, trial)
    peaks = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    cpu = torch.device("cpu")
    curve, losses, seconds = [], [], []
    epoch, index = 1, 0
    for step in range(1, total + 1):
        began = time.perf_counter()
        scale = lr_scale(step, total, config.training)
        for optimizer, rates in zip(optimizers, peaks, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        torch.manual_seed(seed_of_step(trial.seed, step))
        model.zero_grad(set_to_none=True)
        batch = batches.batch(epoch, index)
        loss = model.loss(batch.tokens, batch.targets, batch.documents)
        loss.loss.backward()
        if not isinstance(optimizers[0], MuGrokfast):  # which clips by itself
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.training.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
        seconds.append(time.perf_counter() - began)
        losses.append(float(loss.ce_last))
        if not math.isfinite(losses[-1]):
            return Outcome(math.inf, math.inf, math.inf, 0, step, 0)
        if step % max(1, total // 20) == 0 or step == total:
            curve.append(validate(model, held_out, cpu)["val_loss"])
        epoch, index = (epoch, index + 1) if index + 1 < batches.steps_in_epoch(epoch) else (epoch + 1, 0)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    step_ms = 1000 * statistics.median(seconds)
    halting = halted(model, held_out)
    return Outcome(curve[-1], min(curve), statistics.mean(losses[-total // 20 :]), step_ms, total, parameters, curve, halting)


def paces(trials: dict[str, Trial], rounds: int = 10, steps: int = 3) -> dict[str, float]:
    """Milliseconds a step, the median over rounds in which all take their turns, so that whatever else is going on slows all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in trials}
    for _ in range(rounds):
        for name, trial in trials.items():
            seconds[name].append(run(replace(trial, steps=steps)).step_ms)
    return {name: statistics.median(times) for name, times in seconds.items()}


@torch.no_grad()
def halted(model: Cognate, batches: Sequence[Batch]) -> dict[str, tuple[float, float]]:
    """Outcome.halting. By the full pass, whose answers at those depths are what reading with halting gives (tests/model)."""
    if model.halting is None:
        return {}
    model.eval()
    sums = {threshold: [0.0, 0.0] for threshold in THRESHOLDS}
    count = 0
    for batch in batches:
        segments = model._segments(batch.tokens, batch.documents)
        thoughts, _ = model._think(batch.tokens, *model._surroundings(batch.tokens, segments))
        scored = batch.targets != NOT_COUNTED
        targets = batch.targets[scored]
        each = torch.stack([cross_entropy_of(thought.answer[scored], model.embedding.weight, targets) for thought in thoughts])
        probabilities = model.halting.probabilities(model.halting(torch.stack([thought.latent[scored] for thought in thoughts])))
        count += len(targets)
        for threshold, (nats, depth) in sums.items():
            depths = halting_depths(probabilities, threshold)
            sums[threshold] = [nats + float(each.gather(0, depths[None] - 1).sum()), depth + float(depths.sum())]
    return {str(threshold): (nats / count, depth / count) for threshold, (nats, depth) in sums.items()}


def config_of(trial: Trial) -> RunConfig:
    data = {**SMALL["data"], **({"datasets": list(trial.datasets)} if trial.datasets else {})}
    return parse({**SMALL, "seed": trial.seed, "model": {**SMALL["model"], **dict(trial.model)}, "data": data})


@cache
def _corpus(data: str) -> Corpus:
    return load_corpus(RunConfig.model_validate_json(data), DATA, CACHE)


def corpus_of(config: RunConfig) -> Corpus:
    return _corpus(config.model_copy(update={"seed": 0, "model": parse(SMALL).model}).model_dump_json())


def adamw(model: Cognate, trial: Trial) -> Optimizers:
    by_kind = _by_kind(model)
    rates = {"matrix": trial.matrix_lr, "embedding": trial.embedding_lr, "vector": VECTOR_LR}
    groups = [
        {"params": by_kind[kind], "lr": rate, "weight_decay": WEIGHT_DECAY if kind == "matrix" else 0.0} for kind, rate in rates.items()
    ]
    return [torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)]


def muon(model: Cognate, trial: Trial) -> Optimizers:
    by_kind = _by_kind(model)
    matrices = torch.optim.Muon(
        by_kind["matrix"], lr=trial.matrix_lr, momentum=0.95, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"
    )
    rest = [{"params": by_kind["embedding"], "lr": trial.embedding_lr}, {"params": by_kind["vector"], "lr": VECTOR_LR}]
    return [matrices, torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def heavyball_muon(model: Cognate, trial: Trial) -> Optimizers:
    import heavyball  # type: ignore[import-untyped, unused-ignore]

    by_kind = _by_kind(model)
    rest = [{"params": by_kind["embedding"], "lr": trial.embedding_lr}, {"params": by_kind["vector"], "lr": VECTOR_LR}]
    matrices = heavyball.Muon(by_kind["matrix"], lr=trial.matrix_lr, weight_decay=WEIGHT_DECAY)
    return [matrices, torch.optim.AdamW(rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]


def mugrokfast(grokfast_lambda: float) -> Callable[[Cognate, Trial], Optimizers]:
    def build(model: Cognate, trial: Trial) -> Optimizers:
        rates = {"muon_lr": trial.matrix_lr, "embedding_lr": trial.embedding_lr, "adamw_lr": VECTOR_LR}
        options = {"weight_decay": WEIGHT_DECAY, "grokfast_lambda": grokfast_lambda, **rates, **dict(trial.optimizer_options)}
        return [MuGrokfast(model.named_parameters(), **options)]  # type: ignore[arg-type]

    return build


def _by_kind(model: Cognate) -> dict[str, list[torch.nn.Parameter]]:
    by_kind: dict[str, list[torch.nn.Parameter]] = {"matrix": [], "embedding": [], "vector": []}
    for name, parameter in model.named_parameters():
        by_kind[kind_of(name, parameter)].append(parameter)
    return by_kind


OPTIMIZERS: dict[str, Callable[[Cognate, Trial], Optimizers]] = {
    "adamw": adamw,
    "muon": muon,
    "heavyball": heavyball_muon,
    "mugrokfast-0": mugrokfast(0.0),
    "mugrokfast-0.3": mugrokfast(0.3),
    "mugrokfast-2": mugrokfast(2.0),
}
