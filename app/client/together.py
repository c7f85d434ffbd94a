"""`cognate groups ...` and `cognate queue ...`: several runs commanded as one, and who waits for a device.

Options, output and exit codes are those of `cognate runs` (terminal.py).
"""

from __future__ import annotations

from typing import Annotated

import typer

from app.client import view
from app.client.api import LOCAL, PAGE, Json
from app.client.terminal import (
    EXIT_CODES,
    AsJson,
    Deadline,
    Grace,
    IdempotencyKey,
    OnTimeout,
    Priority,
    Save,
    Sentences,
    Settings,
    Tags,
    Token,
    Url,
    at,
    given,
    print_json,
    show_all,
    tree,
)

GROUPS_HELP = f"""Launch and command several runs as one: the three specialists.

A group is named by its id, its name, or the beginning or the end of its id.

{EXIT_CODES}"""
groups = typer.Typer(cls=Sentences, help=GROUPS_HELP, no_args_is_help=True, add_completion=False)
queue = typer.Typer(cls=Sentences, help=f"Runs that wait for a device.\n\n{EXIT_CODES}", no_args_is_help=True, add_completion=False)

Group = Annotated[str, typer.Argument(metavar="GROUP", help="Its id, its name, or the beginning or end of its id.")]


@groups.command("launch")
def launch(
    presets: Annotated[list[str] | None, typer.Argument(help="Of which presets.", show_default="the three specialists")] = None,
    settings: Settings = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Of the group; each run adds its preset.")] = None,
    tag: Tags = [],  # noqa: B006
    priority: Priority = None,
    idempotency_key: IdempotencyKey = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Launch several runs as one group."""
    body = given(name=name, presets=presets or None, config=tree(settings) or None, tags=tag or None, priority=priority)
    with at(url, token) as api:
        _show(api.post("/v1/groups", body, idempotency_key), as_json)


@groups.command("list")
def list_groups(
    limit: Annotated[int, typer.Option(min=1, max=PAGE, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Only groups older than this one.")] = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Groups, newest first."""
    with at(url, token) as api:
        page = api.get("/v1/groups", limit=limit, after=after)
    if as_json:
        print_json(page)
    elif page["data"]:
        more = [f"\nolder ones: --after {page['next_cursor']}"] if page["has_more"] else []
        show_all(view.groups_table(page["data"]), *more)
    else:
        show_all("no groups")


@groups.command("show")
def show(group: Group, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """A group and how far each of its runs is."""
    with at(url, token) as api:
        _show(api.find_group(group), as_json)


@groups.command("pause")
def pause(
    group: Group,
    checkpoint: Save = None,
    deadline: Deadline = None,
    on_timeout: OnTimeout = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Pause every run of the group that can be."""
    _command(group, "pause", given(checkpoint=checkpoint, deadline_s=deadline, on_timeout=on_timeout), url, token, as_json)


@groups.command("resume")
def resume(group: Group, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Queue every run of the group again that can be."""
    _command(group, "resume", {}, url, token, as_json)


@groups.command("stop")
def stop(
    group: Group,
    checkpoint: Save = None,
    grace: Grace = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """End every run of the group for good, saving first."""
    _command(group, "stop", given(checkpoint=checkpoint, grace_s=grace), url, token, as_json)


@groups.command("kill")
def kill(group: Group, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """End every process of the group at once, saving nothing; these runs cannot be resumed."""
    _command(group, "kill", {}, url, token, as_json)


@queue.command("show")
def show_queue(url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Who waits, in the order in which they will be launched."""
    with at(url, token) as api:
        _show_queue(api.get("/v1/queue"), as_json)


@queue.command("hold")
def hold(url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Launch nothing that waits; what is at work goes on."""
    _hold(True, url, token, as_json)


@queue.command("release")
def release(url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Launch again what waits."""
    _hold(False, url, token, as_json)


def _command(group: str, command: str, body: Json, url: str, token: str | None, as_json: bool) -> None:
    with at(url, token) as api:
        _show(api.post(f"/v1/groups/{api.find_group(group)['id']}/{command}", body), as_json)


def _show(group: Json, as_json: bool) -> None:
    if as_json:
        print_json(group)
    else:
        show_all(f"{group['name']}  {group['id']}", view.members_table(group["runs"]))


def _hold(held: bool, url: str, token: str | None, as_json: bool) -> None:
    with at(url, token) as api:
        _show_queue(api.put("/v1/queue", {"held": held}), as_json)


def _show_queue(found: Json, as_json: bool) -> None:
    if as_json:
        print_json(found)
    else:
        held = "the queue is held" if found["held"] else "the queue is open"
        show_all(f"{held}, {len(found['data'])} waiting", *([view.queue_table(found["data"])] if found["data"] else []))
