"""What may go wrong with a run that is ready: each risk with what it rests on. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cognate.config import RunConfig
from cognate.evaluation.tasks import TASKS
from cognate.report.facts import Facts, Plan
from cognate.report.projection import project_time

# Hoffmann et al., arXiv:2203.15556, table 3: about 20 tokens a parameter are compute-optimal.
TOKENS_A_PARAMETER = 20
# Muennighoff et al., arXiv:2305.16264: up to 4 passes are nearly as good as new data; after 16 more give almost nothing.
PASSES_AS_GOOD_AS_NEW = 4


@dataclass(frozen=True)
class Risk:
    risk: str
    evidence: str
    answer: str


def targets(plan: Plan) -> list[dict[str, Any]]:
    """What was hoped for, beside what published work on models of this size lets expect, of the datasets that are trained on."""
    trained = {name for stage in plan.stages for name in stage["datasets"]}
    rows = []
    for name, task in TASKS.items():
        for figure, (low, high) in task.targets.items() if name in trained else ():
            forecast = task.forecasts.get(figure)
            rows.append({"dataset": name, "figure": figure, "target": [low, high], "forecast": list(forecast) if forecast else None})
    return rows


def risks(config: RunConfig, facts: Facts) -> list[Risk]:
    return [*_targets(facts), *_data(facts), *_model(config), *_time(facts)]


def _targets(facts: Facts) -> Iterator[Risk]:
    beyond = [row for row in targets(facts.plan) if row["forecast"] and row["forecast"][1] < row["target"][0]]
    if beyond:
        shown = "; ".join(f"{row['dataset']} {_range(row['target'])} and {_range(row['forecast'])}" for row in beyond)
        size = f"{facts.network.parameters / 1e6:,.1f} M parameters"
        yield Risk(
            f"{len(beyond)} targets are out of reach of a model of {size}",
            f"hoped for, and to be expected: {shown} (published results of models of this size and larger, docs/evaluation.md)",
            "Judge the run by its distance from chance and from the untrained model, which every evaluation shows beside the target.",
        )


def _data(facts: Facts) -> Iterator[Risk]:
    plan, network = facts.plan, facts.network
    if not plan.different_tokens:
        return
    share = plan.different_tokens / network.parameters
    if share < TOKENS_A_PARAMETER:
        yield Risk(
            "There is little text for a model of this size",
            f"{plan.different_tokens:,} different tokens for {network.parameters:,} parameters: {share:.2g} a parameter, where about "
            f"{TOKENS_A_PARAMETER} are usual (arXiv:2203.15556)",
            "Watch val_loss; the best checkpoint by it is kept, whatever comes after.",
        )
    if plan.epochs > PASSES_AS_GOOD_AS_NEW:
        yield Risk(
            "The first stage's text is repeated until it is learned by heart",
            f"{plan.epochs} epochs; repeated text is nearly as good as new for {PASSES_AS_GOOD_AS_NEW} of them (arXiv:2305.16264)",
            "Watch the gap between loss and val_loss; raise weight_decay or end the run earlier with training.max_steps.",
        )


def _model(config: RunConfig) -> Iterator[Risk]:
    if config.model.trm:
        yield Risk(
            "The recursion may gain nothing over a plain model of equal compute",
            "published work found no reliable gain for autoregressive models (arXiv:2603.08082); our comparison is in docs/experiments.md",
            "model.trm false trains the same backbone without it.",
        )


def _time(facts: Facts) -> Iterator[Risk]:
    if facts.probe is None:
        return
    took = project_time(facts.plan, facts.probe)
    if not facts.probe.whole_steps:
        yield Risk(
            "The run may take another time than is said here",
            f"no whole step fitted into the {facts.probe.seconds:.0f} s of the probe; {took.basis}",
            "Believe the run's own time left, which follows its steps.",
        )


def _range(ends: list[float]) -> str:
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}-{ends[1]:g}"
