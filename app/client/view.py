"""How runs look on a terminal: tables and sentences. Takes what the service answered, asks nothing.

Where standard output is no terminal there are no colours, no live drawing, and lines are as long as they need to be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from textwrap import indent
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from app.client.api import Json
from cognate.visible import Screen

_NO_LIMIT = 10_000  # columns
_STYLES = {
    "queued": "cyan", "starting": "cyan", "running": "bold green", "pausing": "yellow", "paused": "yellow",
    "stopping": "yellow", "stopped": "magenta", "interrupted": "bold red", "failed": "bold red", "completed": "green",
}  # fmt: skip
_SEVERITIES = {"warning": "yellow", "critical": "bold red"}


def stdout() -> Console:
    return Screen(highlight=False, width=None if sys.stdout.isatty() else _NO_LIMIT)


def runs_table(runs: Iterable[Json], now: datetime) -> Table:
    table = _table("ID", "NAME", "PRESET", "STATE", ">STEP", ">DONE", ">LOSS", ">ALERTS", "CREATED")
    for run in runs:
        progress = run["progress"] or {}
        done = f"{progress['percent']:.0f} %" if progress.get("percent") is not None else "-"
        loss = number(run["metrics"].get("loss"))
        alerts = Text(str(run["alert_count"]), "bold yellow") if run["alert_count"] else Text("-")
        created = f"{_ago(run['created_at'], now)} ago"
        table.add_row(short(run), run["name"], run["preset"], state(run), steps(run) or "-", done, loss, alerts, created)
    return table


def groups_table(groups: Iterable[Json]) -> Table:
    table = _table("ID", "NAME", "RUNS")
    for group in groups:
        table.add_row(short(group), group["name"], ", ".join(f"{count} {name}" for name, count in group["states"].items()))
    return table


def members_table(runs: Iterable[Json]) -> Table:
    """The runs of a group, and how far they are."""
    table = _table("ID", "NAME", "PRESET", "STATE", "PROGRESS")
    for run in runs:
        table.add_row(short(run), run["name"], run["preset"], state(run, detail=True), progress_line(run) or "-")
    return table


def queue_table(runs: Iterable[Json]) -> Table:
    table = _table(">NO.", "ID", "NAME", "PRESET", ">PRIORITY")
    for run in runs:
        table.add_row(str(run["queue_position"]), short(run), run["name"], run["preset"], str(run["priority"]))
    return table


def run_page(
    run: Json, changed: dict[str, tuple[Any, Any]], checkpoints: Sequence[Json], attempts: Sequence[Json], events: Sequence[Json]
) -> Iterator[RenderableType]:
    """`changed`: by dotted name, the value here and the preset's."""
    about = _table("", "", header=False)
    about.add_row("id", run["id"])
    about.add_row("name", run["name"])
    about.add_row("preset", run["preset"])
    about.add_row("state", state(run, detail=True))
    about.add_row("progress", progress_line(run) or "-")
    about.add_row("metrics", ", ".join(f"{key} {number(value)}" for key, value in run["metrics"].items()) or "-")
    about.add_row("created", _clock(run["created_at"]))
    if origin := run["forked_from"]:
        about.add_row("forked from", f"{origin['run_id']} at step {origin['step']}")
    about.add_row("tags", ", ".join(run["tags"]) or "-")
    about.add_row("notes", run["notes"] or "-")
    about.add_row("commands", ", ".join(run["allowed_commands"]) or "-")
    yield about
    for alert in run["alerts"]:
        yield Text(f"\n{alert['severity']}: {alert['kind']}, since step {plain(alert['since_step'])}", _SEVERITIES[alert["severity"]])
        yield Text(f"{alert['message']}\n{evidence(alert['evidence'])}\n{alert['remedy']}")
    settings = _table("SETTING", "VALUE", "PRESET'S")
    for name, (here, there) in changed.items():
        settings.add_row(name, plain(here), plain(there))
    yield from _titled("configuration, where it differs from the preset", settings)
    saved = _table(">STEP", "CHECKPOINT", ">SIZE", "SAVED", "")
    for point in checkpoints:
        gone = "removed" if point["removed_at"] else ""
        saved.add_row(str(point["step"]), point["id"], size(point["bytes"]), _clock(point["created_at"]), gone)
    yield from _titled("checkpoints", saved)
    lives = _table(">NO", "DEVICE", "LAUNCHED", "ENDED", ">FROM STEP", "ENDING")
    for attempt in attempts:
        ended = _clock(attempt["ended_at"]) if attempt["ended_at"] else "-"
        from_step = str(attempt["resumed_from_step"] or 0)
        lives.add_row(str(attempt["number"]), attempt["device"], _clock(attempt["launched_at"]), ended, from_step, _ending(attempt))
    yield from _titled("attempts", lives)
    happened = _table("AT", "EVENT", "")
    for event in events:
        happened.add_row(_clock(event["at"]), event["kind"], event_words(event["kind"], event["step"], event["data"]))
    yield from _titled("last events", happened)


def comparison(runs: Sequence[Json], config: dict[str, list[Any]], metrics: dict[str, list[Any]]) -> Iterator[RenderableType]:
    """`config` and `metrics`: by name, one value a run."""
    table = _table("RUN", *(run["name"] for run in runs))
    table.add_row("id", *(short(run) for run in runs))
    table.add_row("state", *(state(run) for run in runs))
    table.add_row("step", *(steps(run) or "-" for run in runs))
    yield table
    settings = _table("SETTING", *(run["name"] for run in runs))
    for name, values in config.items():
        settings.add_row(name, *(plain(value) for value in values))
    yield from _titled("configuration, where it differs", settings, nothing="the configurations are the same")
    measured = _table("METRIC", *(f">{run['name']}" for run in runs))
    for key, values in metrics.items():
        measured.add_row(key, *(number(value) for value in values))
    yield from _titled("newest metrics", measured, nothing="nothing has been measured yet")


def evaluation_page(job: Json) -> Iterator[RenderableType]:
    """What came of an evaluation: a line a figure, then what a table has no room for."""
    spec, made = job["spec"], job["result"]
    items = f"at most {spec['limit']:,} items a dataset" if spec["limit"] else "every item"
    yield Text(f"checkpoint of step {spec['step']}, {items}, {_clock(job['ended_at'])}", "bold")
    figures = _table("DATASET", "FIGURE", ">ITEMS", ">VALUE", "95 %", ">CHANCE", ">UNTRAINED", "TARGET", "FORECAST", "")
    for name, each in made["datasets"].items():
        for figure, found in each["figures"].items():
            interval = f"{number(found['low'])}-{number(found['high'])}" if "low" in found else "-"
            chance = number(each["chance"]) if figure in (each["figure"], "acc") else "-"
            before = number((each["untrained"] or {}).get(figure, {}).get("value"))
            ranges = ("-".join(map(number, each[kind].get(figure, ()))) or "-" for kind in ("targets", "forecasts"))
            told = {True: "met", False: "not met", None: "undecided"}
            met = told[each["met"][figure]] if figure in each["met"] else ""
            figures.add_row(name, figure, f"{found['n']:,}", number(found["value"]), interval, chance, before, *ranges, met)
    yield figures
    for name, each in made["datasets"].items():
        yield Text(
            f"{name}: {'; '.join([each['rows'], *each['remarks'], *(f'no {figure}: {why}' for figure, why in each['absent'].items())])}"
        )
    for name, why in made["absent"].items():
        yield Text(f"{name} was not measured: {why}")
    for name, found in made.get("overlap", {}).items():
        yield Text(f"overlap with the training text: {name}: {found if isinstance(found, str) else evidence(found)}")
    yield from (Text(f"warning: {sentence}", "yellow") for sentence in made["warnings"])


def samples_page(samples: Iterable[Json]) -> Iterator[RenderableType]:
    """What the model wrote, a paragraph a prompt; spaces and line ends around the texts are left out."""
    for sample in samples:
        yield Text(f"step {sample['step']}, epoch {sample['epoch']:.2f}, {sample['dataset']}", "bold")
        for title, part in (("prompt", "prompt"), ("wrote", "text"), ("expected", "expected")):
            yield Text(f"{title}:", "dim")
            yield Text(indent(sample[part].strip().expandtabs() or "(nothing)", "  "))
        yield Text()


def state(run: Json, *, detail: bool = False) -> Text:
    """The state with its reason; of a queued run its place, of a running one its phase."""
    more = [run["state_reason"]] if run["state_reason"] else []
    if run["state"] == "queued" and run.get("queue_position"):
        more.append(f"no. {run['queue_position']}")
    if run["state"] == "running" and run.get("phase"):
        more.append(run["phase"])
    if detail and run["state_detail"]:
        more.append(run["state_detail"])
    return Text.assemble((run["state"], _STYLES.get(run["state"], "")), *(f": {word}" for word in more))


def steps(run: Json) -> str:
    progress = run["progress"]
    return f"{progress['step']}/{progress.get('total_steps') or '?'}" if progress else ""


def progress_line(run: Json) -> str:
    """step 45/200  epoch 1.20  1,234 tokens/s  0:01:23 to go"""
    progress = run["progress"]
    if not progress:
        return ""
    words = [f"step {steps(run)}"]
    if progress.get("epoch") is not None:
        words.append(f"epoch {progress['epoch']:.2f}")
    return "  ".join([*words, *(pace(progress) if run["state"] == "running" else [])])


def event_words(kind: str, step: int | None, data: Json) -> str:
    """What an event tells, in a line."""
    match kind:
        case "state" | "failed":
            return ": ".join(str(data[part]) for part in ("state", "reason", "detail") if data.get(part))
        case "phase":
            return str(data["phase"])
        case "checkpoint":
            return str(data["name"])
        case "warning":
            return str(data["message"])
        case "alert" | "alert_cleared":
            return f"{data['kind']}: {data['message']}"
        case "sample":
            return str(data["dataset"])
        case "plan":
            return f"{data['total_params']:,} parameters, {data['total_steps']:,} steps"
    return "" if step is None else f"step {step}"


def short(run: Json) -> str:
    """The end of an id, which is random; every command takes it."""
    return str(run["id"][-8:])


def number(value: float | str | None) -> str:
    """A measured value; one that is not finite comes as its name."""
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if value >= 1000 and float(value).is_integer() else f"{value:.4g}"


def plain(value: Any) -> str:
    """A parameter's value."""
    if isinstance(value, list):
        return ", ".join(plain(part) for part in value)
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def evidence(found: Json) -> str:
    """Numbers by name, in a line."""
    return ", ".join(f"{name} {number(value) if isinstance(value, float | int) else plain(value)}" for name, value in found.items())


def size(count: int) -> str:
    amount = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def pace(progress: Json) -> list[str]:
    pace = [f"{progress['tokens_per_s']:,.0f} tokens/s"] if progress.get("tokens_per_s") is not None else []
    return [*pace, *([f"{duration(progress['eta_s'])} to go"] if progress.get("eta_s") is not None else [])]


def _ago(instant: str, now: datetime) -> str:
    seconds = (now - datetime.fromisoformat(instant)).total_seconds()
    for length, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _clock(instant: str) -> str:
    return datetime.fromisoformat(instant).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _ending(attempt: Json) -> str:
    exits = {"exit": attempt["exit_code"], "signal": attempt["exit_signal"]}
    said = [attempt["ending"], *(f"{name} {value}" for name, value in exits.items() if value)]
    return ", ".join(word for word in said if word) or "-"


def _table(*headings: str, header: bool = True) -> Table:
    """A plain table; a heading that begins with > is of a column of numbers."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", show_header=header)
    for heading in headings:
        table.add_column(heading.removeprefix(">"), justify="right" if heading.startswith(">") else "left")
    return table


def _titled(title: str, table: Table, nothing: str = "") -> Iterator[RenderableType]:
    if table.row_count:
        yield Text(f"\n{title}", "bold")
        yield table
    elif nothing:
        yield Text(f"\n{nothing}")
