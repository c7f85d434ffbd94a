"""The evaluation of a model on held-out items of the 14 datasets: the report, and its small sister at the end of an epoch.

evaluate() gives a Result per dataset, with its interval, what chance and the untrained model reach on the same items, the
target that was set and what published work lets expect. sample_accuracies() gives the metrics accuracy_*. What could not be
measured is absent, with the reason. How each dataset is measured: tasks.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cognate.config import DatasetName
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.sources import SOURCES
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.items import Item, Items, find_items
from cognate.evaluation.scoring import USUAL, Batching
from cognate.evaluation.tasks import TASKS, Figure, Model, Outcome, Range, measure
from cognate.model import Cognate

_NOT_SHOWN: Final = ("dataset", "items", "right")


@dataclass(frozen=True)
class Result:
    """One dataset. met: judge() of the figures that have a target. untrained: None, not measured"""

    dataset: DatasetName
    rows: str
    figure: str
    chance: float
    figures: Mapping[str, Figure]
    untrained: Mapping[str, Figure] | None
    targets: Mapping[str, Range]
    forecasts: Mapping[str, Range]
    met: Mapping[str, bool | None]
    absent: Mapping[str, str]
    remarks: tuple[str, ...]
    items: tuple[Item, ...]
    right: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """absent: datasets that were not measured, and why"""

    results: tuple[Result, ...]
    absent: Mapping[DatasetName, str]


def evaluate(
    model: Model,
    data_dir: Path | None,
    datasets: Iterable[DatasetName] = tuple(SOURCES),
    limit: int | None = None,
    untrained: Callable[[Items], Outcome] | None = None,
    say: Callable[[str], None] = lambda _: None,
    cache_dir: Path | None = None,
    known: Mapping[str, str] | None = None,
) -> Report:
    """Measure the model on the final items of each dataset, or a fixed sample of `limit` of them.

    untrained: what the untrained model does on the same items (baseline.py); None leaves that out
    known: the digests of the files that the model was trained on; items are of the same copy, or the dataset is absent
    """
    results: list[Result] = []
    absent: dict[DatasetName, str] = {}
    for name in datasets:
        try:
            chosen = find_items(data_dir, cache_dir, name, "final", limit, known)
        except (DataMissing, DataUnreadable) as error:
            absent[name] = str(error)
            continue
        if not chosen.items:
            absent[name] = f"no {chosen.rows}"
            continue
        say(f"{name}: {chosen.rows}")
        results.append(_result(chosen, measure(model, chosen), untrained(chosen) if untrained else None))
    return Report(tuple(results), absent)


def sample_items(
    data_dir: Path | None,
    datasets: Iterable[DatasetName] | None = None,
    count: int = 32,
    cache_dir: Path | None = None,
    known: Mapping[str, str] | None = None,
) -> list[Items]:
    """The fixed small samples that an epoch ends with: validation items of those datasets that are there. Load them once.

    known: as in evaluate()
    """
    samples = []
    for name in SOURCES if datasets is None else datasets:
        try:
            sample = find_items(data_dir, cache_dir, name, "validation", count, known)
        except DataMissing:
            continue
        if sample.items:
            samples.append(sample)
    return samples


def sample_accuracies(net: Cognate, tokenizer: Tokenizer, samples: Iterable[Items], batching: Batching = USUAL) -> dict[str, float]:
    """The metrics accuracy_<dataset> on the samples; draws no random number and leaves the model as it was."""
    model = Model(net, tokenizer, batching)
    outcomes = {sample.name: measure(model, sample) for sample in samples}
    return {f"accuracy_{name}": outcome.figures[TASKS[name].figure].value for name, outcome in outcomes.items()}


def _result(chosen: Items, outcome: Outcome, untrained: Outcome | None) -> Result:
    task = TASKS[chosen.name]
    met = {name: judge(name, outcome.figures[name], target) for name, target in task.targets.items() if name in outcome.figures}
    return Result(
        chosen.name, chosen.rows, task.figure, outcome.chance, outcome.figures, untrained.figures if untrained else None,
        task.targets, task.forecasts, met, outcome.absent, outcome.remarks, chosen.items, outcome.right,
    )  # fmt: skip


def judge(name: str, figure: Figure, target: Range) -> bool | None:
    """Whether a figure reaches the nearer end of its target: of a perplexity from above, of all else from below.

    None where its interval lies on both sides of that end: so few items do not tell. A model at chance, 0.25, has 0.30 or more of
    100 items in one case of seven.
    """
    low, high = (figure.value if end is None else end for end in (figure.low, figure.high))
    if "perplexity" in name:
        return True if high <= target[1] else False if low > target[1] else None
    return True if low >= target[0] else False if high < target[0] else None


def to_json(report: Report) -> dict[str, Any]:
    """The report as plain JSON; the items and each one's score are left out, but for how many there were."""
    results = {
        result.dataset: {
            **{key: _plain(value) for key, value in vars(result).items() if key not in _NOT_SHOWN},
            "item_count": len(result.items),
        }
        for result in report.results
    }
    return {"datasets": results, "absent": dict(report.absent)}


def _plain(value: Any) -> Any:
    if isinstance(value, Figure):
        return {key: each for key, each in vars(value).items() if each is not None}
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value
