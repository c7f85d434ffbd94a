"""`cognate report readiness`: the report of readiness.py on the terminal, as JSON, or in a file. Exit code 1: not ready."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.markdown import Markdown

from cognate.config import ConfigError, overrides, resolve
from cognate.data.cli import cache_dir
from cognate.report.markdown import markdown
from cognate.report.readiness import PROBE_S, readiness
from cognate.rundir import Places
from cognate.visible import Screen, echo
from cognate.wandb_mode import seen_here
from cognate.worker import choose_device


def show(
    preset: Annotated[str, typer.Option(help="reasoning, memory, speed or quickstart.")] = "reasoning",
    settings: Annotated[list[str], typer.Option("--set", help="A parameter, such as training.batch_size=8; may be repeated.")] = [],  # noqa: B006
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as one object.")] = False,
    with_probe: Annotated[bool, typer.Option("--probe/--no-probe", help="Time a few steps, for about half a minute.")] = True,
    file: Annotated[Path | None, typer.Option("--markdown", help="Write the report to this file too.")] = None,
    data: Annotated[Path | None, typer.Option("--data", envvar="COGNATE_DATA_DIR", help="Folder of Parquet datasets.")] = None,
    output: Annotated[Path, typer.Option(help="Folder that the run directories would be in.")] = Path("var/cli"),
) -> None:
    """Say whether a preset can be trained here, what it would take, and what to expect of it."""
    try:
        config = resolve(preset, overrides(settings))
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from error
    report = readiness(
        config,
        Places(data, cache_dir()),
        output,
        choose_device(config.training.device),
        probe_s=PROBE_S,
        not_now=None if with_probe else "--no-probe was given",
        wandb=seen_here(os.environ.get("COGNATE_WANDB") or "auto", config.tracking.wandb),
        say=lambda sentence, _: echo(sentence, err=True),
    )
    text = markdown(report)
    if file is not None:
        file.write_text(text, encoding="utf-8")
    if as_json:
        echo(json.dumps(report, ensure_ascii=False))
    else:
        Screen(highlight=False).print(Markdown(text))
    raise typer.Exit(1 if report["verdict"] == "not_ready" else 0)
