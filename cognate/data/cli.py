"""`cognate data status | show | fetch`: what is here of the datasets, what the model sees of them, and how to get them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from cognate.config import DatasetName
from cognate.data.files import DataMissing, DataUnreadable
from cognate.data.hub import fetch
from cognate.data.report import own_samples_of, samples_of, status
from cognate.data.sources import SOURCES
from cognate.jobdir import JobFailed
from cognate.rundir import Places
from cognate.visible import Screen, echo, visible

app = typer.Typer(help="The datasets: what is here, what the model sees of them, and how to get them.", no_args_is_help=False)
console = Screen(highlight=False)

_HELP = "Folder of Parquet datasets, beside what was fetched."
DataOption = Annotated[Path | None, typer.Option("--data", help=_HELP)]  # of a command; the variable is asked once, before it
DataOrVariable = Annotated[Path | None, typer.Option("--data", envvar="COGNATE_DATA_DIR", help=_HELP)]


@app.callback(invoke_without_command=True)
def main(context: typer.Context, data: DataOrVariable = None) -> None:
    """Without a command: status."""
    context.obj = data
    if context.invoked_subcommand is None:
        show_status(context)


@app.command("status")
def show_status(
    context: typer.Context,
    data: DataOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as one object.")] = False,
) -> None:
    """Show what is present of the datasets, and what the curriculum will be."""
    folder = data or context.obj
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"the data folder {str(folder)!r} does not exist")
    made = status(folder, cache_dir())
    if as_json:
        echo(json.dumps(made, ensure_ascii=False))
    else:
        _show_status(made)


@app.command("show")
def show_samples(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="A dataset, several with commas between, or extra/NAME for your own data.")],
    count: Annotated[int, typer.Option(min=1, help="Samples of each use.")] = 3,
    data: DataOption = None,
) -> None:
    """Show samples of a dataset as the model sees them: those trained on, held out and tested on."""
    folder, cache = data or context.obj, cache_dir()
    try:
        if name.startswith("extra/"):
            found = {name: own_samples_of(folder, cache, name, count)}
        else:
            found = {each: samples_of(folder, cache, each, count) for each in dataset_names(name)}
        for each, samples in found.items():
            for use, example in samples:
                console.rule(f"{each}: {use}", align="left")
                console.out(example.prompt, end="", style="dim", highlight=False)
                console.out(f"{example.answer}<|end|>", highlight=False)
    except (DataMissing, DataUnreadable) as error:
        raise typer.BadParameter(visible(str(error), sys.stderr)) from error


@app.command("fetch")
def fetch_datasets(
    names: Annotated[list[str] | None, typer.Argument(help="Datasets; see `cognate data`.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All fourteen.")] = False,
) -> None:
    """Download datasets from the Hugging Face hub. Training never does; it takes what is here."""
    if bool(names) == every:
        raise typer.BadParameter("name datasets, or --all")
    wanted = dataset_names(None if every else ",".join(names or ()))
    target = Places(None, cache_dir()).fetched
    assert target is not None, "there is always a cache folder here"
    failed = False
    for name in wanted:
        try:
            manifest = fetch(name, target, lambda sentence, _: console.print(escape(sentence)))
            console.print(f"  commit {manifest['commit']}, licence {manifest['licence']}")
        except JobFailed as error:
            console.print(f"[red]{name} was not fetched:[/red] {error.reason}: {escape(str(error))}")
            failed = True
            if error.reason == "offline":
                break
    raise typer.Exit(failed)


def dataset_names(text: str | None) -> tuple[DatasetName, ...]:
    """The datasets named, with commas between; all without a name."""
    wanted = [*SOURCES] if text is None else [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in SOURCES:
            raise typer.BadParameter(f"no dataset {name!r}; have {', '.join(SOURCES)}")
    return tuple(name for name in SOURCES if name in wanted)


def cache_dir() -> Path:
    """The service's, where its home is named."""
    return Path(os.environ.get("COGNATE_CACHE_DIR") or Path(os.environ.get("COGNATE_HOME") or "var") / "cache")


def _show_status(made: dict[str, Any]) -> None:
    table = Table("dataset", "category", "stage", "source", "train", "validation", "test", "used", box=None, pad_edge=False)
    for number, column in enumerate(table.columns):  # whole names in 80 columns; what has no room follows as lines
        column.no_wrap, column.justify = True, "right" if number >= 4 else "left"
    for row in made["datasets"]:
        counts = (f"{row[count]:,}" if row["present"] else "-" for count in ("train", "validation", "test", "samples"))
        table.add_row(row["name"], row["category"], str(row["stage"]), row["origin"] or "-", *counts)
    console.print(table)
    for row in made["datasets"]:
        if remark := _remark(row):
            console.print(f"{row['name']}: {remark}", soft_wrap=True)
    for title, name in (("all that is here", "all"), ("the six-dataset plan", "six_datasets")):
        sums = ", ".join(f"stage {stage}: {samples:,}" for stage, samples in made["stage_samples"][name].items())
        console.print(f"{title}: {sums} samples")
    for each in made["extra"]:
        left_out = f", {each['malformed']:,} rows left out" if each["malformed"] else ""
        console.print(f"{escape(each['name'])}: {each['samples']:,} samples{left_out}")
    if not any(row["present"] for row in made["datasets"]):
        console.print(
            "No dataset is here: name a folder with --data or COGNATE_DATA_DIR, or `cognate data fetch`. "
            "Without, only the quickstart can be trained, on generated problems."
        )


def _remark(row: dict[str, Any]) -> str:
    if row["damage"]:
        return f"[red]damaged:[/red] {escape(row['damage'])}"
    if row["missing_files"]:
        return escape(f"missing: {row['folder']}/{', '.join(row['missing_files'])}")
    parts = [f"{part['split']} {part['rows']:,} of {part['hub_rows']:,}" for part in row["partial"]]
    if row["without_passage"]:
        parts.append(f"{row['without_passage']:,} samples without a passage")
    return f"partial: {'; '.join(parts)}" if parts else ""
