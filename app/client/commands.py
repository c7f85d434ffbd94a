"""`cognate runs list | show | launch | watch | pause | resume | stop | kill | logs | samples | compare`, and a few more.

A command finds its runs, asks the service and shows the answer: tables for people; with --json one document, or JSON lines
from watch and logs, and nothing else. terminal.py has the options and failures, view.py and live.py what is shown.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from app.client import live, stream, view
from app.client.api import LOCAL, PAGE, Api, ClientError, ExitCode, Json, NotFound
from app.client.logs import blocks
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
    print_json_line,
    show_all,
    tree,
)
from app.services.lifecycle import State
from cognate.visible import echo, visible

HELP = f"""Launch, watch and command the runs of a service.

A run is named by its id, its name, or the beginning or the end of its id.

{EXIT_CODES}"""
LAST_EVENTS = 10
_IN_TRANSIT = ("queued", "starting", "pausing", "stopping")
_REACHED = {"pause": ("paused",), "resume": ("running", "completed"), "stop": ("stopped",), "kill": ("stopped",)}

app = typer.Typer(cls=Sentences, help=HELP, no_args_is_help=True, add_completion=False)

Reference = Annotated[str, typer.Argument(metavar="RUN", help="Its id, its name, or the beginning or end of its id.")]
References = Annotated[list[str], typer.Argument(metavar="RUN", help="Ids, names, or beginnings or ends of ids.")]
Wait = Annotated[bool, typer.Option("--wait", help="Come back once it is so; with 1 if the run comes to something else.")]
Watch = Annotated[bool, typer.Option("--watch", help="And watch it.")]


@app.command("list")
def list_runs(
    state: Annotated[State | None, typer.Option(help="Only runs in this state.")] = None,
    preset: Annotated[str | None, typer.Option(help="Only runs of this preset.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    after: Annotated[str | None, typer.Option(metavar="ID", help="Only runs older than this one.")] = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Runs, newest first."""
    query = {"state": state, "preset": preset, "after": after, "limit": min(limit + 1, PAGE)}
    with at(url, token) as api:
        found = list(islice(api.pages("/v1/runs", **query), limit + 1))
    runs, cursor = found[:limit], found[limit - 1]["id"] if len(found) > limit else None
    if as_json:
        print_json({"data": runs, "has_more": cursor is not None, "next_cursor": cursor})
    elif runs:
        show_all(view.runs_table(runs, datetime.now(UTC)), *([f"\nolder ones: --after {cursor}"] if cursor else []))
    else:
        show_all("no runs")


@app.command()
def show(run: Reference, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """One run: state, progress, what differs from its preset, checkpoints, attempts, last events."""
    with at(url, token) as api:
        found = api.find(run)
        path = f"/v1/runs/{found['id']}"
        presets = {preset["name"]: preset["config"] for preset in api.get("/v1/presets")["data"]}
        checkpoints, attempts = (list(api.pages(f"{path}/{name}")) for name in ("checkpoints", "attempts"))
        events = list(api.pages(f"{path}/events"))[-LAST_EVENTS:]
    there = _flat(presets.get(found["preset"], {}))
    changed = {name: (value, there.get(name)) for name, value in _flat(found["config"]).items() if value != there.get(name)}
    if as_json:
        changes = {name: value for name, (value, _) in changed.items()}
        print_json({"run": found, "changed": changes, "checkpoints": checkpoints, "attempts": attempts, "events": events})
    else:
        show_all(*view.run_page(found, changed, checkpoints, attempts, events))


@app.command()
def launch(
    preset: Annotated[str, typer.Argument(help="reasoning, memory, speed or quickstart.")],
    settings: Settings = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Instead of one made from the preset.")] = None,
    tag: Tags = [],  # noqa: B006
    seed: Annotated[int | None, typer.Option(help="The same as --set seed=N.")] = None,
    priority: Priority = None,
    idempotency_key: IdempotencyKey = None,
    watch: Watch = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Launch a run."""
    body = given(preset=preset, config=tree(settings), name=name, tags=tag, seed=seed, priority=priority)
    with at(url, token) as api:
        _launched(api, api.post("/v1/runs", body, idempotency_key), watch, as_json)


@app.command()
def fork(
    run: Reference,
    checkpoint: Annotated[str | None, typer.Option(metavar="ID", help="Where to start from.", show_default="the newest")] = None,
    settings: Settings = [],  # noqa: B006
    name: Annotated[str | None, typer.Option(help="Of the new run.")] = None,
    priority: Priority = None,
    idempotency_key: IdempotencyKey = None,
    watch: Watch = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Launch a new run from a checkpoint of this one."""
    body = given(checkpoint_id=checkpoint, config=tree(settings) or None, name=name, priority=priority)
    with at(url, token) as api:
        _launched(api, api.post(f"/v1/runs/{api.find(run)['id']}/fork", body, idempotency_key), watch, as_json)


@app.command()
def edit(
    run: Reference,
    name: Annotated[str | None, typer.Option(help="Its new name.")] = None,
    notes: Annotated[str | None, typer.Option(help="In place of those it has; empty takes them away.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="In place of those it has; may be repeated.")] = None,
    no_tags: Annotated[bool, typer.Option("--no-tags", help="Take its tags away.")] = False,
    priority: Priority = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Change its name, notes, tags or priority."""
    body = given(name=name, notes=notes, tags=[] if no_tags else tag or None, priority=priority)
    if not body:
        raise typer.BadParameter("say what to change: --name, --notes, --tag, --no-tags or --priority")
    with at(url, token) as api:
        edited = api.patch(f"/v1/runs/{api.find(run)['id']}", {**body, **({"notes": None} if notes == "" else {})})
    _show([edited], lambda run: Text.assemble(f"{run['name']}  ", view.state(run), "  changed ", ", ".join(body)), as_json)


@app.command()
def watch(
    run: Reference,
    after: Annotated[
        str, typer.Option(metavar="now|start|CURSOR", help="What is told: from now on, all of it, or what lies behind a cursor (--json).")
    ] = "now",
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Progress as it happens, until the run is over; a pause is waited through. Ctrl-C leaves the run running."""
    with at(url, token) as api:
        raise typer.Exit(_watch(api, api.find(run), after, as_json))


@app.command()
def pause(
    runs: References,
    checkpoint: Save = None,
    deadline: Deadline = None,
    on_timeout: OnTimeout = None,
    wait: Wait = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Finish the step, save a checkpoint, leave the device free."""
    body = given(checkpoint=checkpoint, deadline_s=deadline, on_timeout=on_timeout)
    _command(at(url, token), "pause", runs, body, wait, as_json)


@app.command()
def resume(runs: References, wait: Wait = False, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Queue it again; it goes on from its newest whole checkpoint."""
    _command(at(url, token), "resume", runs, {}, wait, as_json)


@app.command()
def stop(
    runs: References,
    checkpoint: Save = None,
    grace: Grace = None,
    wait: Wait = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Finish the step, save a checkpoint, end the run for good."""
    _command(at(url, token), "stop", runs, given(checkpoint=checkpoint, grace_s=grace), wait, as_json)


@app.command()
def kill(runs: References, wait: Wait = False, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """End its processes at once, saving nothing; it cannot be resumed."""
    _command(at(url, token), "kill", runs, {}, wait, as_json)


@app.command()
def checkpoint(runs: References, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Save a checkpoint and go on."""
    _command(at(url, token), "checkpoint", runs, {}, False, as_json)


@app.command()
def delete(
    runs: References,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Delete runs and all that they saved. Asks first."""
    with at(url, token) as api:
        found = [api.find(run) for run in runs]
        if not yes:
            if as_json or not sys.stdin.isatty():
                raise typer.BadParameter("deleting asks first; where nobody can answer, say --yes")
            typer.confirm(visible(f"delete {', '.join(run['name'] for run in found)} and all that was saved?"), abort=True)

        def remove(run: Json) -> Json:
            api.delete(f"/v1/runs/{run['id']}")
            return run

        deleted, code = _each(found, remove)
    _show(deleted, lambda run: f"{run['name']}  deleted", as_json)
    raise typer.Exit(code)


@app.command()
def logs(
    run: Reference,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="And what is printed from now on, until the run is over.")] = False,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt.", show_default="the newest")] = None,
    tail: Annotated[int | None, typer.Option(metavar="LINES", min=0, help="Only so many of the last lines.", show_default="all")] = None,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """What the worker printed."""
    with at(url, token) as api:
        found = api.find(run)
        if not found["attempt"] and not follow:
            raise NotFound(f"{found['name']} has printed nothing: it is {found['state']} and has not started")
        for block in blocks(api, found["id"], attempt, tail, follow):
            if as_json:
                print_json_line(block)
            else:
                sys.stdout.write(visible(block["text"]))
                sys.stdout.flush()


@app.command()
def samples(
    run: Reference,
    all_steps: Annotated[bool, typer.Option("--all", help="Of every step, oldest first, not only of the newest.")] = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """What the model wrote after held-out prompts at the end of an epoch."""
    with at(url, token) as api:
        found = list(api.pages(f"/v1/runs/{api.find(run)['id']}/samples"))
    shown = [sample for sample in found if all_steps or sample["step"] == found[-1]["step"]]
    if as_json:
        print_json({"data": shown})
    elif shown:
        show_all(*view.samples_page(shown))
    else:
        show_all("no samples")


@app.command()
def compare(runs: References, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """Runs side by side: what differs in their configuration, and their newest metrics."""
    if len(runs) < 2:
        raise typer.BadParameter("name two runs or more")
    with at(url, token) as api:
        found = [api.find(run) for run in runs]
    settings = _side_by_side([_flat(run["config"]) for run in found])
    config = {name: values for name, values in settings if any(value != values[0] for value in values)}
    metrics = dict(_side_by_side([run["metrics"] for run in found]))
    if as_json:
        named = [{key: run[key] for key in ("id", "name", "preset", "state", "progress")} for run in found]
        print_json({"runs": named, "config": config, "metrics": metrics})
    else:
        show_all(*view.comparison(found, config, metrics))


def _launched(api: Api, run: Json, watch: bool, as_json: bool) -> None:
    if not as_json:
        show_all(Text.assemble(f"{run['name']}  {run['id']}  ", view.state(run)))
    elif not watch:
        print_json(run)
    if watch:
        raise typer.Exit(_watch(api, run, "start", as_json))


def _watch(api: Api, run: Json, after: str, as_json: bool) -> ExitCode:
    """Show the run until it is over."""
    frames = stream.follow(stream.connecting(api, run["id"], () if as_json else live.WATCHED), after)
    out = view.stdout()
    lines = live.Bar if out.is_terminal else live.Lines
    display = live.JsonLines(print_json_line) if as_json else lines(out, replayed=after != "now")
    try:
        with display as tell:
            for now, frame in stream.until_over(frames, stream.is_last_state(api, run["id"])):
                run = now or run  # hello comes before the first snapshot
                tell(now, frame)
    except KeyboardInterrupt:
        echo(f"{run['name']} goes on; come back with: cognate runs watch {view.short(run)}", err=True)
        return ExitCode.CTRL_C
    return ExitCode.OK if run["state"] == State.COMPLETED else ExitCode.ENDED_OTHERWISE


def _command(api: Api, command: str, references: Iterable[str], body: Json, wait: bool, as_json: bool) -> None:
    """Ask `command` of each run. All are found before any is asked, and all are asked before any is waited for."""
    with api:
        found = [api.find(reference) for reference in references]
        runs, code = _each(found, lambda run: api.post(f"/v1/runs/{run['id']}/{command}", body))
        if wait:
            runs = [_settled(api, run["id"]) for run in runs]
            if any(run["state"] not in _REACHED[command] for run in runs):
                code = code or ExitCode.ENDED_OTHERWISE
    asked = "  asked for a checkpoint" if command == "checkpoint" else ""
    _show(runs, lambda run: Text.assemble(f"{run['name']}  ", view.state(run, detail=True), asked), as_json)
    raise typer.Exit(code)


def _each(runs: Iterable[Json], act: Callable[[Json], Json]) -> tuple[list[Json], ExitCode]:
    """What `act` made of each run; one that fails is said, and does not keep the others from their turn."""
    done: list[Json] = []
    code = ExitCode.OK
    for run in runs:
        try:
            done.append(act(run))
        except ClientError as error:
            echo(f"cognate: {run['name']}: {error}", err=True)
            code = error.code
    return done, code


def _settled(api: Api, run_id: str) -> Json:
    """The run once it is no longer on its way to another state."""
    for run, _ in stream.until_over(stream.follow(stream.connecting(api, run_id, ["loss"]), "now"), lambda _: True):
        if run and run["state"] not in _IN_TRANSIT:
            break
    return api.get(f"/v1/runs/{run_id}")


def _flat(tree: Json, path: str = "") -> Json:
    """A configuration by dotted name."""
    flat: Json = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{path}{name}.") if isinstance(value, dict) else {f"{path}{name}": value}
    return flat


def _side_by_side(trees: list[Json]) -> Iterator[tuple[str, list[Any]]]:
    for name in dict.fromkeys(name for each in trees for name in each):
        yield name, [each.get(name) for each in trees]


def _show(runs: list[Json], words: Callable[[Json], RenderableType], as_json: bool) -> None:
    if as_json:
        print_json({"data": runs})
    else:
        show_all(*(words(run) for run in runs))
