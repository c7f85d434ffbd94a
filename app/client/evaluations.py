"""`cognate runs evaluate | evaluations`: a checkpoint measured on held-out data by the service, and what came of it.

Options, output and exit codes are those of `cognate runs` (terminal.py).
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from app.client import view
from app.client.api import LOCAL, Api, ExitCode, Json
from app.client.commands import Reference, app
from app.client.terminal import AsJson, Token, Url, at, given, print_json, show_all
from cognate.visible import echo

EVERY_S = 1.0
runs = app


@runs.command()
def evaluate(
    run: Reference,
    checkpoint: Annotated[str | None, typer.Option(metavar="ID", help="Which one.", show_default="the newest")] = None,
    datasets: Annotated[str | None, typer.Option(help="Names with commas between.", show_default="all that are there")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="A fixed sample of so many items a dataset.", show_default="every item")] = None,
    calculator: Annotated[bool, typer.Option("--calculator", help="Also measure numbers with a calculator behind <<expression=.")] = False,
    vote: Annotated[int | None, typer.Option(min=2, max=100, help="Also measure the majority of so many drawn answers.")] = None,
    overlap: Annotated[
        bool, typer.Option("--overlap/--no-overlap", help="Count the items that share 13 words in a row with the training text.")
    ] = True,
    wait: Annotated[bool, typer.Option("--wait", help="Come back with the figures; with 1 if there are none.")] = False,
    url: Url = LOCAL,
    token: Token = None,
    as_json: AsJson = False,
) -> None:
    """Measure a checkpoint on held-out data, as a job of the service."""
    names = datasets.split(",") if datasets is not None else None
    body = given(checkpoint_id=checkpoint, datasets=names, limit=limit, calculator=calculator, vote=vote, overlap=overlap)
    with at(url, token) as api:
        found = api.find(run)
        job = api.post(f"/v1/runs/{found['id']}/evaluations", body)
        if wait:
            job = _ended(api, job, found)
    if as_json:
        print_json(job)
    elif job["state"] == "completed":
        show_all(*view.evaluation_page(job))
    else:
        show_all(_line(job))
    if wait and job["state"] != "completed":
        raise typer.Exit(ExitCode.ENDED_OTHERWISE)


@runs.command()
def evaluations(run: Reference, url: Url = LOCAL, token: Token = None, as_json: AsJson = False) -> None:
    """What was measured: the newest evaluation with its figures, a line for each of the others."""
    with at(url, token) as api:
        jobs = list(api.pages(f"/v1/runs/{api.find(run)['id']}/evaluations"))
    newest = next((job for job in jobs if job["state"] == "completed"), None)
    if as_json:
        print_json({"data": jobs})
        return
    for job in jobs:
        show_all(*(view.evaluation_page(job) if job is newest else [_line(job)]))
    if not jobs:
        show_all("no evaluations")


def _ended(api: Api, job: Json, run: Json) -> Json:
    """The job once it has ended; what it says meanwhile goes to standard error."""
    said = None
    try:
        while job["ended_at"] is None:
            time.sleep(EVERY_S)
            job = api.get(f"/v1/jobs/{job['id']}")
            if job["progress"] is not None and job["progress"]["message"] != said:
                said = job["progress"]["message"]
                echo(said, err=True)
    except KeyboardInterrupt:
        echo(f"the evaluation goes on; come back with: cognate runs evaluations {view.short(run)}", err=True)
        raise typer.Exit(ExitCode.CTRL_C) from None
    return job


def _line(job: Json) -> str:
    why = f": {job['detail']}" if job["detail"] else ""
    return f"{job['id']}  step {job['spec']['step']}  {job['state']}{why}"
