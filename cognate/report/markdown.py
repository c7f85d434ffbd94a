"""A readiness report (readiness.py) as Markdown: for a file, and for the terminal. Only this file knows its layout."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

VERDICTS: Final = {"ready": "Ready", "ready_with_warnings": "Ready, with warnings", "not_ready": "Not ready"}
NOTHING: Final = "–"


def markdown(report: dict[str, Any]) -> str:
    sections = [
        f"# Training readiness: {report['preset']}\n\n**{VERDICTS[report['verdict']]}.** Cognate {report['version']}.",
        _section("Findings", _findings(report)),
        _section("Datasets", _datasets(report["data"])),
        _section("Curriculum", _curriculum(report["data"])),
        _section("Model and optimizer", _model(report)),
        _section("Machine", _machine(report)),
        _section("Time, memory and disk", _projected(report)),
        _section("Targets and what to expect", _targets(report)),
        _section("Risks", _risks(report)),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _findings(report: dict[str, Any]) -> str:
    lines = (f"- **{each['severity']}** ({each['code']}): {each['message']} {each['remedy']}" for each in report["findings"])
    return "\n".join(lines) or "None."


def _datasets(data: dict[str, Any]) -> str:
    if data["source"] == "generated":
        return "Generated problems; no data folder is used."
    rows = (
        (
            each["name"], each["category"], each["stage"], each["state"],
            *(f"{each[key]:,}" for key in ("train", "validation", "test", "samples", "planned")),
        )
        for each in sorted(data["datasets"], key=lambda each: each["category"])
    )  # fmt: skip
    table = _table(("dataset", "category", "from stage", "state", "train", "validation", "test", "used", "planned"), rows)
    origin = f"From `{data['folder']}`" if data["folder"] else "From what was fetched"
    return f"{origin}.\n\n{table}"


def _curriculum(data: dict[str, Any]) -> str:
    if data["error"]:
        return ""
    rows = (
        (
            f"{stage['stage']} {stage['name']}", f"{stage['first_epoch']}-{stage['last_epoch'] or ''}", len(stage["datasets"]),
            *(f"{stage[key]:,}" for key in ("samples", "held_out", "duplicates", "trained", "batches", "tokens")),
            f"{stage['fill_ratio']:.3f}",
        )
        for stage in data["stages"]
    )  # fmt: skip
    columns = ("stage", "epochs", "datasets", "samples", "held out", "duplicates", "trained", "batches", "tokens", "fill")
    text = f"{_table(columns, rows)}\n\n{data['total_steps']:,} steps in {data['epochs']} epochs."
    if six := data["six_plan"]:
        text += f" Six-dataset plan: {_list(six['counted'])} samples by stage; {_list(six['expected'])} were planned."
    return text


def _model(report: dict[str, Any]) -> str:
    model = report["model"]
    parts = _table(
        ("part", "parameters"), [*((part, f"{size:,}") for part, size in model["parts"].items()), ("all", f"{model['parameters']:,}")]
    )
    groups = _table(
        ("optimizer group", "tensors", "parameters", "learning rate"),
        ((group["kind"], group["tensors"], f"{group['parameters']:,}", f"{group['learning_rate']:g}") for group in model["groups"]),
    )
    settings = ", ".join(f"{name} {value:g}" for name, value in report["optimizer"].items())
    counts = report["metrics"]
    cadence = f"{counts['total']} metrics: {counts['step']} by step, {counts['epoch']} by epoch, {counts['final']} at the end."
    return f"{parts}\n\n{groups}\n\nMuGrokfast: {settings}.\n\n{cadence}"


def _machine(report: dict[str, Any]) -> str:
    machine, absent = report["machine"], report["machine"]["absent"]

    def fact(key: str, text: str | None) -> str:
        return f"not known: {absent[key]}" if key in absent else text or NOTHING

    wandb = machine["wandb"]
    shown = wandb and f"{wandb['mode']}; {'installed' if wandb['installed'] else 'not installed'}, {'a' if wandb['key'] else 'no'} key"
    rows = (
        ("Python, torch", f"{machine['python']}, {machine['torch']}"),
        ("GPU", fact("gpu", machine["gpu"] or "none: CPU")),
        ("compute capability", fact("compute_capability", machine["compute_capability"])),
        (
            "memory, free of total",
            fact("memory_free_bytes", f"{_gib(machine['memory_free_bytes'])} of {_gib(machine['memory_total_bytes'])}"),
        ),
        ("precision", fact("precision", machine["precision"])),
        ("threads", machine["threads"]),
        ("disk free", _gib(report["disk_free_bytes"])),
        ("W&B", fact("wandb", shown)),
    )
    return _table(("", ""), rows)


def _projected(report: dict[str, Any]) -> str:
    probe, disk = report["probe"], report["projected"]["disk"]
    most = f"{_gib(disk['total_bytes'])} at most. " if disk["checkpoints"] else ""
    on_disk = f"Disk: {most}{_sentence(disk['basis'])}"
    if probe is None:
        why = report["absent"].get("probe") or "a step failed, see the findings"
        return f"Time and memory were not measured: {why}.\n\n{on_disk}"
    time = report["projected"]["time"]
    rows = (
        ("a step", f"{probe['step_s']:.3g} s; of this the optimizer {probe['optimizer_s']:.3g} s"),
        ("tokens a second", f"{probe['tokens_per_s']:,.0f}"),
        ("memory at most", _gib(probe["peak_bytes"])),
        ("epochs", ", ".join(map(_duration, time["epochs_s"]))),
        ("training", _duration(time["total_s"])),
    )
    left_out = "Validation, evaluation, checkpoints and compilation are not included."
    return f"{_table(('', ''), rows)}\n\nTime: {time['basis']}. {left_out}\n\n{on_disk}"


def _targets(report: dict[str, Any]) -> str:
    rows = ((each["dataset"], each["figure"], _range(each["target"]), _range(each["forecast"])) for each in report["targets"])
    return _table(("dataset", "figure", "target", "forecast"), rows) if report["targets"] else ""


def _risks(report: dict[str, Any]) -> str:
    return "\n".join(f"- {each['risk']}. {_sentence(each['evidence'])} {each['answer']}" for each in report["risks"])


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    head = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    return "\n".join([*head, *(f"| {' | '.join(map(str, row))} |" for row in rows)])


def _list(counts: Iterable[int]) -> str:
    return ", ".join(f"{count:,}" for count in counts)


def _range(ends: Sequence[float] | None) -> str:
    if ends is None:
        return NOTHING
    return f"{ends[0]:g}" if ends[0] == ends[1] else f"{ends[0]:g}-{ends[1]:g}"


def _gib(size: int | None) -> str:
    return NOTHING if size is None else f"{size / 2**30:,.2f} GiB"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
