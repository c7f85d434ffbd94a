"""`cognate report training | diversity | handoff | verify`: reports on run directories, without the service."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.table import Table

from cognate import worker
from cognate.data.cli import cache_dir
from cognate.data.files import DataUnreadable
from cognate.events import spelled
from cognate.report import handoff as handing_off
from cognate.report import readiness_cli
from cognate.report import training as of_training
from cognate.report import verify as verifying
from cognate.report.diversity import measure_runs
from cognate.report.document import to_html, to_markdown
from cognate.report.history import NothingSaved
from cognate.rundir import CorruptCheckpoint, Places, RunDir, file_digest, read_json
from cognate.visible import Screen, echo, visible

app = typer.Typer(no_args_is_help=True, help="Report on run directories: training, diversity, readiness, and the hand-off to Phase 2.")
app.command("readiness")(readiness_cli.show)
console = Screen(highlight=False)

Runs = Annotated[list[Path], typer.Argument(help="Run directories.")]
Evaluations = Annotated[list[Path], typer.Option("--evaluation", help="What `cognate evaluate --json` printed; may be repeated.")]


@app.command()
def training(
    runs: Runs,
    html: Annotated[Path | None, typer.Option(help="Write one HTML file, curves included.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown; the default is to print it.")] = None,
    evaluation: Evaluations = [],  # noqa: B006
) -> None:
    """What was expected of training and what was measured, epoch by epoch."""
    found = _run_directories(runs)
    blocks = of_training.training_report(
        {run.path.name: run for run in found}, [_result(path, "checkpoint", "datasets") for path in evaluation]
    )
    if html is not None:
        _write(html, to_html(of_training.TITLE, blocks))
    if markdown is not None:
        _write(markdown, to_markdown(blocks))
    if html is None and markdown is None:
        echo(to_markdown(blocks), nl=False)


@app.command()
def diversity(
    runs: Runs,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as one object.")] = False,
    data: Annotated[
        Path | None,
        typer.Option(
            envvar="COGNATE_DATA_DIR", help="Folder of Parquet datasets, beside what was fetched; without any, generated problems."
        ),
    ] = None,
) -> None:
    """How different the models of a group are, measured on the same held-out texts."""
    found = _run_directories(runs)
    try:
        made = measure_runs(found, Places(data, cache_dir()), worker.choose_device("auto"), lambda sentence, _: echo(sentence, err=True))
    except (NothingSaved, CorruptCheckpoint, DataUnreadable, FileNotFoundError) as error:
        _refuse(str(error))
    if as_json:
        echo(json.dumps(spelled(made), ensure_ascii=False))
    else:
        show_diversity(made)


@app.command()
def handoff(
    runs: Runs,
    output: Annotated[Path, typer.Option(help="The archive to write.")],
    evaluation: Evaluations = [],  # noqa: B006
    diversity: Annotated[Path | None, typer.Option(help="What `cognate report diversity --json` printed.")] = None,
    allow_any_size: Annotated[
        bool,
        typer.Option("--allow-any-size", help="Take other sizes and presets too; the archive then says that it is not fit for Phase 2."),
    ] = False,
) -> None:
    """Three models in one archive for Phase 2, loaded and checked by a new process."""
    found = _run_directories(runs)
    try:
        manifest = handing_off.build(
            found,
            output,
            evaluations=[_result(path, "checkpoint", "datasets") for path in evaluation],
            diversity=None if diversity is None else _result(diversity, "members", "metrics"),
            allow_any_size=allow_any_size,
            say=lambda sentence, _: echo(sentence, err=True),
        )
    except (handing_off.NotFit, NothingSaved, CorruptCheckpoint, verifying.BadArchive, OSError) as error:
        _refuse(str(error))
    for model in manifest["models"]:
        console.print(
            f"{model['name']}: {model['parameters']:,} parameters, step {model['best']['step']:,}, {model['best']['chosen_because']}"
        )
    for name, reason in (item for files in manifest["absent"].values() for item in files.items()):
        console.print(f"absent: {name}: {reason}")
    for reason in manifest["not_fit_because"]:
        console.print(f"not fit for Phase 2: {reason}")
    console.print(f"{output}: {output.stat().st_size:,} bytes, sha-256 {file_digest(output)}", soft_wrap=True)


@app.command()
def verify(archive: Annotated[Path, typer.Argument(help="A hand-off archive, or the folder it was unpacked to.")]) -> None:
    """Check a hand-off archive: digests, shapes, parameters, and what the loaded models answer."""
    try:
        echo(json.dumps(verifying.verify(archive), indent=1))
    except verifying.BadArchive as error:
        echo(str(error), err=True)
        raise typer.Exit(1) from error


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"{str(path)!r} cannot be written: {error.strerror}") from error


def _run_directories(paths: list[Path]) -> list[RunDir]:
    for path in paths:
        if not RunDir(path).config_file.is_file():
            _refuse(f"{path} is no run directory: it has no {RunDir(path).config_file.name}")
    return [RunDir(path.resolve()) for path in paths]


def _result(path: Path, *keys: str) -> dict[str, Any]:
    """What a command printed with --json; refuses what has not these keys."""
    try:
        found: dict[str, Any] = read_json(path)
    except (OSError, ValueError) as error:
        _refuse(f"{path} cannot be read: {error}")
    if not isinstance(found, dict) or not found.keys() >= set(keys):
        _refuse(f"{path} is something else: it has no {' and '.join(keys)}")
    return found


def _refuse(sentence: str) -> NoReturn:
    raise typer.BadParameter(visible(sentence, sys.stderr))


def show_diversity(made: dict[str, Any]) -> None:
    table = Table("model", "preset", "step", "recursions a token", "memory usage", "surprise rate", "nats a token", "ms a token", box=None)
    for member in made["members"]:
        pace = member["ms_per_token"]
        shown = (member[name] for name in ("halting_steps", "ltm_usage", "surprise_rate", "cross_entropy"))
        numbers = ("-" if value is None else f"{value:.4f}" for value in shown)
        timed = f"{pace['median']:.2f} ({pace['low']:.2f}-{pace['high']:.2f})"
        table.add_row(member["name"], member["preset"], str(member["step"]), *numbers, timed)
    console.print(table)
    for key, value in made["metrics"].items():
        console.print(f"{key}: {'absent' if value is None else f'{value:.4f}'}")
    order = made["required_order"]
    console.print(f"{order['rule']}: {order.get('absent') or ('holds' if order['holds'] else 'does not hold')}")
    for pair in made["pairs"]:
        weights, agreement = pair["weights"], pair["agreement"]
        agree = f"agree on {agreement:.1%} of the next tokens" if agreement is not None else pair["agreement_absent"]
        distances = (weights["relative_l2"], weights["cosine"])
        apart = ", ".join(
            f"{name} {'absent' if value is None else f'{value:.4f}'}" for name, value in zip(("distance", "cosine"), distances, strict=True)
        )
        console.print(f"{pair['of'][0]} and {pair['of'][1]}: {agree}; weights: {apart}")
    texts = made["texts"]
    console.print(f"{texts['count']} texts: {texts['source']}; on {made['device']}, {made['threads']} threads")
