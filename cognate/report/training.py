"""The training report: what was expected of one run or several, and what was measured, epoch by epoch.

Everything stems from the run directories (history.py) and from evaluations that were made of their checkpoints. Nothing is
estimated: what was not measured is a dash, and where that needs a reason it is said.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from cognate import events
from cognate.config import PRESETS, SPECIALISTS, DatasetName, RunConfig, resolve
from cognate.data.sources import SOURCES
from cognate.evaluation.suite import judge
from cognate.evaluation.tasks import TASKS, Figure
from cognate.events import Kind
from cognate.jobdir import JobContext
from cognate.metrics import EXPECTED_LOSS, METRICS
from cognate.report.charts import Band, Line, line_chart
from cognate.report.document import Block, Cell, Charts, Heading, Items, Table, Text, to_html, to_markdown
from cognate.report.history import Attempt, Epoch, History, epochs, falling_back, read_history
from cognate.rundir import RunDir, lease_is_free
from cognate.training.checkpoint import weights_digest

TITLE: Final = "Training report"
_CURVES: Final = ("perplexity", "learning_rate", "grad_norm", "act_avg_halting_steps", "ltm_memory_usage", "ltm_surprise_rate")
_LOGARITHMIC: Final = frozenset({"perplexity", "grad_norm"})
_METRIC: Final = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Told:
    """A run as the report tells of it. evaluations: those made of its checkpoints, oldest first"""

    name: str
    history: History
    epochs: tuple[Epoch, ...]
    evaluations: tuple[Mapping[str, Any], ...]


def training_report(runs: Mapping[str, RunDir], evaluations: Sequence[Mapping[str, Any]] = ()) -> list[Block]:
    """The report on runs, by the names that they go by. Evaluations of checkpoints of other runs are passed over."""
    told = [_tell(name, run, evaluations) for name, run in runs.items()]
    blocks: list[Block] = [
        Heading(f"{TITLE}: {', '.join(runs)}", 1),
        Text("Drawn from the journals and checkpoints in the run directories. A dash was not measured."),
        _summary(told),
        *_expected_losses([each for each in told if _expected(each)]),
        Heading("Accuracy: expected and measured"),
        Text(
            "Target is what the plan hoped for, forecast what published work on models of this size found. An evaluation counts before "
            "the sample of validation items that an epoch ends with."
        ),
        _expected_accuracies(told),
        _curves(told),
    ]
    for each in told:
        blocks += [Heading(each.name), *_one_run(each)]
    return blocks


def perform(spec: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `training_report`: of the runs in `names`, their names by id, with `evaluations`; makes report.html and report.md.

    as_of: what the service will know the report's age by; handed back
    """
    blocks = training_report({name: context.run(run_id) for run_id, name in spec["names"].items()}, spec["evaluations"])
    (context.folder / "report.html").write_text(to_html(TITLE, blocks), encoding="utf-8")
    (context.folder / "report.md").write_text(to_markdown(blocks), encoding="utf-8")
    return {"files": ["report.html", "report.md"], "as_of": spec["as_of"]}


def _tell(name: str, run: RunDir, evaluations: Sequence[Mapping[str, Any]]) -> Told:
    history = read_history(run)
    ours = {weights_digest(event.data["files"]) for event in history.checkpoints.values()}
    of_ours = tuple(each for each in evaluations if each["checkpoint"]["model_sha256"] in ours)
    return Told(name, history, tuple(epochs(history)), of_ours)


# --- all runs ---------------------------------------------------------------------------------------------


def _summary(told: Sequence[Told]) -> Table:
    columns = ("run", "preset", "seed", "parameters", "steps", "epochs", "state", "best held-out loss", "hours")
    return Table(columns, [_summarised(each) for each in told], frozenset({"seed", "parameters", "steps", "epochs", "hours"}))


def _summarised(told: Told) -> list[Cell]:
    history, plan = told.history, told.history.plan or {}
    best = history.run.best()
    hours = history.newest("training_time_hours")
    planned = len(plan["steps_per_epoch"]) if plan else None
    return [
        told.name,
        history.config.preset,
        str(history.config.seed),
        f"{plan['total_params']:,}" if plan else None,
        f"{history.rows[-1].step if history.rows else 0:,} of {plan['total_steps']:,}" if plan else None,
        f"{sum(epoch.is_whole for epoch in told.epochs)} of {planned}" if planned else None,
        _state(history),
        f"{best[1]:.4f} at step {best[0]:,}" if best else None,
        f"{hours:.2f}" if hours is not None else None,
    ]


def _state(history: History) -> str:
    if not history.attempts:
        return "never begun"
    return "finished" if history.is_finished else _how_ended(history, history.attempts[-1])


def _expected(told: Told) -> Mapping[int, tuple[float, float]]:
    """The loss that the plan hoped for, by epoch; of specialists only."""
    return EXPECTED_LOSS if told.history.config.preset in SPECIALISTS else {}


def _expected_losses(told: Sequence[Told]) -> Iterator[Block]:
    """Of specialists."""
    if not told:
        return
    yield Heading("Loss: expected and measured")
    yield Text(
        "Measured is the mean of the losses logged in the last quarter of an epoch, and beside it the held-out loss at its end. "
        "Expected is what the plan hoped for of a specialist at that time; an untrained model has about the natural logarithm of its "
        "vocabulary's size."
    )
    rows: list[list[Cell]] = []
    for number, (low, high) in EXPECTED_LOSS.items():
        for each in told:
            epoch = next((epoch for epoch in each.epochs if epoch.number == number), None)
            loss = epoch.last_loss if epoch else None
            place = "not reached" if epoch is None else "not over" if not epoch.is_whole else _place(loss, low, high)
            rows.append([str(number), each.name, f"{low:g}-{high:g}", _number(loss), _number(_at_end(epoch, "val_loss")), place])
    numbers = frozenset({"epoch", "expected", "measured", "held out"})
    yield Table(("epoch", "run", "expected", "measured", "held out", "measured is"), rows, numbers)


def _place(loss: float | None, low: float, high: float) -> str | None:
    if loss is None:
        return None
    return "lower" if loss < low else "higher" if loss > high else "as expected"


def _expected_accuracies(told: Sequence[Told]) -> Table:
    rows: list[list[Cell]] = []
    for dataset in SOURCES:
        task = TASKS[dataset]
        for figure in dict.fromkeys((task.figure, *task.targets)):
            target, forecast = task.targets.get(figure), task.forecasts.get(figure)
            for each in told:
                found = _measured(each, dataset, figure)
                if target or forecast or found.value is not None:
                    measured = [_number(value, 3) for value in (found.chance, found.untrained, found.value)]
                    rows.append([dataset, figure, each.name, _range(target), _range(forecast), *measured, found.verdict, found.source])
    columns = ("dataset", "figure", "run", "target", "forecast", "chance", "untrained", "measured", "target is", "on")
    return Table(columns, rows, frozenset({"target", "forecast", "chance", "untrained", "measured"}))


@dataclass(frozen=True)
class _Measured:
    """A figure and what it stands on, or None and why there is none; the verdict only where an evaluation measured it."""

    value: float | None
    source: str
    chance: float | None = None
    untrained: float | None = None
    verdict: str | None = None


def _measured(told: Told, dataset: DatasetName, figure: str) -> _Measured:
    """By the evaluation that measured it on most, of equals the newest; else by the sample that an epoch ends with."""
    evaluations = [each for each in reversed(told.evaluations) if figure in each["datasets"].get(dataset, {}).get("figures", ())]
    if evaluations:
        return _evaluated(max(evaluations, key=lambda each: int(each["datasets"][dataset]["figures"][figure]["n"])), dataset, figure)
    key = f"accuracy_{dataset}"
    value = told.history.newest(key) if figure == TASKS[dataset].figure else None
    if value is not None and math.isfinite(value):
        row = next(row for row in reversed(told.history.rows) if key in row.values)
        items = told.history.config.evaluation.epoch_items
        return _Measured(value, f"the sample of at most {items} validation items at step {row.step:,}: too few for a verdict")
    return _Measured(None, _why_not(told, dataset))


def _evaluated(evaluation: Mapping[str, Any], dataset: DatasetName, figure: str) -> _Measured:
    found, target = evaluation["datasets"][dataset], TASKS[dataset].targets.get(figure)
    measured = found["figures"][figure]
    value, low, high = (events.number(measured[end]) if end in measured else None for end in ("value", "low", "high"))
    assert value is not None
    interval = f", 95 % {low:.3f}-{high:.3f}" if low is not None and high is not None else ""
    met = judge(figure, Figure(value, measured["n"], low, high), target) if target else None
    return _Measured(
        value,
        f"{found['rows']} ({measured['n']:,}{interval}), {evaluation['checkpoint']['name']}",
        found["chance"] if figure == found["figure"] else None,
        events.number(found["untrained"][figure]["value"]) if figure in (found["untrained"] or {}) else None,
        {True: "reached", False: "not reached", None: "undecided"}[met] if target else None,
    )


def _why_not(told: Told, dataset: DatasetName) -> str:
    curriculum = (told.history.plan or {}).get("curriculum", {}).get("datasets", [])
    if dataset not in [part["dataset"] for part in curriculum]:
        return "the run was not trained on it, and it was not evaluated"
    return "it was not evaluated"


def _curves(told: Sequence[Told]) -> Charts:
    losses = [Line(each.name, _points(each, "loss"), number) for number, each in enumerate(told)]
    losses += [Line(f"{each.name}, held out", _points(each, "val_loss"), number, is_dotted=True) for number, each in enumerate(told)]
    reached = max((epoch.number for each in told if _expected(each) for epoch in each.epochs), default=0)
    bands = [Band(epoch, low, high) for epoch, (low, high) in EXPECTED_LOSS.items() if epoch <= reached]
    charts = [line_chart("Loss", "nats/token", [line for line in losses if line.points], bands)]
    accuracies = [metric.key for metric in METRICS if metric.group == "accuracy"]
    for key in (*_CURVES, *accuracies):
        lines = [Line(each.name, _points(each, key), number, key in accuracies) for number, each in enumerate(told)]
        metric = _METRIC[key]
        charts.append(line_chart(metric.label, metric.unit, [line for line in lines if line.points], is_log=key in _LOGARITHMIC))
    return Charts("Curves", [svg for svg in charts if svg is not None])


def _points(told: Told, key: str) -> list[tuple[float, float]]:
    return list(zip(*told.history.series(key), strict=True))


# --- one run ----------------------------------------------------------------------------------------------


def _one_run(told: Told) -> Iterator[Block]:
    yield Heading("Epochs", 3)
    yield _epochs(told)
    yield Heading("Checkpoints", 3)
    yield _checkpoints(told.history) if told.history.checkpoints else Text("None was saved.")
    yield Heading("Attempts", 3)
    yield _attempts(told.history) if told.history.attempts else Text("The run was never begun.")
    yield Heading("Warnings", 3)
    counted = Counter(sentence for _, sentence in told.history.warnings)
    yield Items([f"{sentence} ({times} times)" if times > 1 else sentence for sentence, times in counted.items()] or ["none"])
    yield Heading("Data and environment", 3)
    yield Items(list(_surroundings(told.history)))
    yield Heading("Settings", 3)
    yield Items(_settings(told.history.config))


def _epochs(told: Told) -> Table:
    accuracies = [metric.key for metric in METRICS if metric.group == "accuracy" and told.history.newest(metric.key) is not None]
    columns = ["epoch", "stage", "last step", "loss", "expected", "held-out loss", "held-out perplexity", "perplexity", "minutes"]
    rows: list[list[Cell]] = []
    if told.history.rows and told.history.rows[0].step == 0:
        before = told.history.rows[0].values
        held_out = [_number(before.get("val_loss")), _number(before.get("val_perplexity"), 1)]
        rows.append(["untrained", None, "0", None, None, *held_out, None, None, *(_number(before.get(key), 3) for key in accuracies)])
    for epoch in told.epochs:
        expected = _expected(told).get(epoch.number)
        rows.append(
            [
                str(epoch.number) if epoch.is_whole else f"{epoch.number} (not over)",
                _number(_at_end(epoch, "curriculum_stage"), 0),
                f"{epoch.last_step:,}",
                _number(epoch.loss),
                _range(expected),
                _number(_at_end(epoch, "val_loss")),
                _number(_at_end(epoch, "val_perplexity"), 1),
                _number(epoch.perplexity, 1),
                _number(_at_end(epoch, "epoch_time_minutes"), 2),
                *(_number(_at_end(epoch, key), 3) for key in accuracies),
            ]
        )
    columns += [key.removeprefix("accuracy_") for key in accuracies]
    return Table(columns, rows, frozenset(columns) - {"epoch"})


def _at_end(epoch: Epoch | None, key: str) -> float | None:
    return epoch.ended_with.get(key) if epoch else None


def _checkpoints(history: History) -> Table:
    kept = {step for step, _ in history.run.complete_checkpoints()}
    best, pinned = history.run.best(), history.run.pinned()
    ends = history.epoch_ends()
    held_out = {row.step: row.values["val_loss"] for row in history.rows if "val_loss" in row.values}
    rows: list[list[Cell]] = []
    for step, event in sorted(history.checkpoints.items()):
        remarks = [f"end of epoch {ends[step]}"] if step in ends else []
        remarks += ["best"] if best and best[0] == step else []
        remarks += ["pinned"] if step in pinned else []
        remarks += [] if step in kept else ["removed since"]
        size = sum(file["bytes"] for file in event.data["files"].values())
        digest = weights_digest(event.data["files"])
        rows.append([f"{step:,}", _time(event.at), _number(held_out.get(step)), f"{size / 2**20:,.1f}", ", ".join(remarks), digest])
    return Table(
        ("step", "saved", "held-out loss", "MiB", "", "sha-256 of the weights"), rows, frozenset({"step", "saved", "held-out loss", "MiB"})
    )


def _attempts(history: History) -> Table:
    again = {attempt.number: steps for attempt, steps in falling_back(history.attempts)}
    rows: list[list[Cell]] = [
        [
            str(attempt.number),
            _time(attempt.began) if attempt.began else None,
            str(attempt.environment.get("device")) if attempt.environment else None,
            None if attempt.resumed_from is None else f"{attempt.resumed_from:,}",
            None if attempt.last_step is None else f"{attempt.last_step:,}",
            f"{again[attempt.number]:,}" if attempt.number in again else None,
            _how_ended(history, attempt),
        ]
        for attempt in history.attempts
    ]
    columns = ("attempt", "began", "device", "resumed from step", "last step", "steps done again", "ended")
    return Table(columns, rows, frozenset({"attempt", "began", "resumed from step", "last step", "steps done again"}))


def _how_ended(history: History, attempt: Attempt) -> str:
    if attempt.ending is not None:
        data = attempt.ending.data
        if attempt.ending.kind is Kind.FAILED:
            return f"failed: {data['reason']}: {data['detail']}"
        return f"{attempt.ending.kind} at step {data['step']:,}"
    if attempt.exit is not None and attempt.exit.get("signal") is not None:
        return f"killed by signal {attempt.exit['signal']}, without a last word"
    if not lease_is_free(history.run.attempt(attempt.number)):
        return "at work"
    return "lost: its process is gone without a last word"


def _surroundings(history: History) -> Iterator[str]:
    newest = next((attempt.environment for attempt in reversed(history.attempts) if attempt.environment), None)
    if newest is None or history.plan is None:
        yield "unknown: no attempt came so far as to tell"
        return
    plan = history.plan
    yield ", ".join(f"{name} {value}" for name, value in newest.items())
    yield f"{plan['rows_at_once']} rows at once, compiled: {plan['compiled']}"
    yield f"tokenizer of {plan['tokenizer']['tokens']:,} tokens, sha-256 {plan['tokenizer']['sha256']}"
    yield f"{plan['fill_ratio']:.1%} of the places in the batches hold a target"
    for part in plan["curriculum"]["datasets"]:
        yield (
            f"{part['dataset']}: {part['trained']:,} rows trained from stage {part['stage']}, {part['validation']:,} held out, "
            f"{part['duplicates']:,} left out as equal to an evaluation item"
        )


def _settings(config: RunConfig) -> list[str]:
    """Where the configuration differs from its preset."""
    if config.preset not in PRESETS:
        return [f"there is no preset {config.preset!r} in this version to compare with"]
    ours, usual = (_flat(each.model_dump(mode="json")) for each in (config, resolve(config.preset)))
    changed = [f"{path} = {value} (preset: {usual.get(path)})" for path, value in ours.items() if value != usual.get(path)]
    return changed or [f"those of the preset {config.preset}"]


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return flat


def _number(value: float | None, digits: int = 4) -> Cell:
    return None if value is None else f"{value:,.{digits}f}"


def _range(ends: tuple[float, float] | None) -> Cell:
    return None if ends is None else f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}-{ends[1]:g}"


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
