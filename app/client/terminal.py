"""What the commands of commands.py and together.py share: options, exit codes, and how they speak.

Failures are sentences on standard error and an ExitCode, in one place: Sentences.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import httpx
import typer
from rich.console import RenderableType
from typer.core import TyperGroup

from app.client import view
from app.client.api import LOCAL, Api, ClientError, Json
from app.tokens import BadToken, token_in
from cognate.config import ConfigError, overrides
from cognate.visible import echo

EXIT_CODES = """Exit codes: 0 done; 1 the run came to another end (watch, --wait); 2 wrong usage; 3 not found, or several fit; \
4 refused; 5 no answer from the service; 6 the token is missing or wrong; 130 Ctrl-C.
"""

Url = Annotated[str, typer.Option(envvar="COGNATE_URL", help="Where the service is.")]
Token = Annotated[str | None, typer.Option(envvar="COGNATE_TOKEN", help="Bearer token; in the environment nobody else sees it.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, and nothing else.")]
Settings = Annotated[
    list[str], typer.Option("--set", metavar="NAME=VALUE", help="A parameter, such as training.batch_size=8; may be repeated.")
]
Save = Annotated[
    Literal["save", "latest"] | None, typer.Option("--checkpoint", help="Save one now, or make do with the newest.", show_default="save")
]
Priority = Annotated[int | None, typer.Option(min=-1000, max=1000, help="Of those that wait the highest goes first.", show_default="0")]
IdempotencyKey = Annotated[str | None, typer.Option(metavar="KEY", help="With the same key the same request takes effect once a day.")]
Deadline = Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="How long it may take.")]
OnTimeout = Annotated[Literal["keep_running", "stop"] | None, typer.Option(help="What then.")]
Grace = Annotated[float | None, typer.Option(metavar="SECONDS", min=0, help="Until it is killed.")]
Tags = Annotated[list[str], typer.Option(help="May be repeated.")]


class Sentences(TyperGroup):
    """A failure ends in words, not in a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ClientError as error:
            echo(f"cognate: {error}", err=True)
            raise typer.Exit(error.code) from error


def at(url: str, token: str | None) -> Api:
    """The service at this address; without a token from --token or COGNATE_TOKEN, with that of COGNATE_TOKEN_FILE."""
    if token is None and (file := os.environ.get("COGNATE_TOKEN_FILE")):
        try:
            token = token_in(Path(file))
        except BadToken as error:
            raise typer.BadParameter(f"{error}; --token takes precedence") from error
    if not url.startswith(("http://", "https://")):
        raise typer.BadParameter(f"{url!r} is no address of a service, such as {LOCAL}", param_hint="--url")
    try:
        return Api(url, token)
    except httpx.InvalidURL as error:
        raise typer.BadParameter(f"{url!r}: {error}", param_hint="--url") from error


def given(**values: Any) -> Json:
    return {name: value for name, value in values.items() if value is not None}


def tree(settings: list[str]) -> Json:
    try:
        return overrides(settings)
    except ConfigError as error:
        raise typer.BadParameter(f"--set {error}") from error


def show_all(*shown: RenderableType) -> None:
    out = view.stdout()
    for part in shown:
        out.print(part, markup=False)


def print_json(document: Json) -> None:
    echo(json.dumps(document, ensure_ascii=False, indent=2))


def print_json_line(line: Json) -> None:
    echo(json.dumps(line, ensure_ascii=False))
