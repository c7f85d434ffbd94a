"""How the service keeps and gives back metrics, beside MLflow and trackio: `make bench-service`, or python -m benchmarks.service.

One after the other on one machine, each as its own documentation sets it up, each with 37 metrics a step:

    ours      a worker's journal through app/services/journal.py into SQLite; then `python -m app`, asked over HTTP
    mlflow    `mlflow server` with SQLite, one log-batch a step over HTTP without its client library, which would cost more
    trackio   trackio.log() and finish() in a process of its own; it has no server to ask for runs here

MLflow cannot be installed beside our dependencies: --rivals names the interpreter of an environment that has both.
A point is one value of one metric; it counts once it would outlive a power cut. Times over HTTP are medians, one caller waiting for
each answer; requests/s have 16 connections. Server and callers share the machine, so only ratios mean anything.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import os
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table
from sqlalchemy import text

from app.executors.local import SPARE_AFTER_S
from app.services import journal
from app.store import metrics, runs
from app.store.engine import Store, migrate
from app.store.tables import Attempt, Run
from cognate.config import resolve
from cognate.metrics import KEYS
from cognate.rundir import AttemptDir, Journal, RunDir
from cognate.training.reporter import Reporter

CONNECTIONS = 16
REPEATS = 15
LAUNCHES = 3
CURVE_STEPS, CURVE_POINTS = 20_000, 500


class RivalMissing(RuntimeError):
    """A rival's package is not where --rivals says."""


@dataclass(frozen=True)
class Options:
    """steps: of the run that ours and trackio write; mlflow_steps: of MLflow's, which takes longer; runs: in the list."""

    steps: int
    mlflow_steps: int
    runs: int
    seconds: float
    rivals: str


@dataclass(frozen=True)
class Written:
    points_per_s: float
    bytes_per_point: float


@dataclass(frozen=True)
class Asked:
    """Milliseconds for one thinned metric and for the list of runs; requests for one run a second."""

    curve_ms: float
    list_ms: float
    gets_per_s: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--mlflow-steps", type=int, default=500)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=5.0, help="of asking for one run again and again")
    parser.add_argument("--rivals", type=os.path.abspath, default=sys.executable, help="interpreter that has mlflow and trackio")
    options = Options(**vars(parser.parse_args()))
    writing = Table("", "points/s, durable", "bytes a point", "ours is faster by")
    asking = Table("", f"{CURVE_STEPS} steps in {CURVE_POINTS} points, ms", f"list of {options.runs} runs, ms", "GET of a run, requests/s")
    console = Console(width=130, highlight=False)
    with tempfile.TemporaryDirectory() as folder:
        reported, ours, asked = measure_ours(options, Path(folder))
        writing.add_row("ours", f"{ours.points_per_s:,.0f}", f"{ours.bytes_per_point:.1f}", "1")
        asking.add_row("ours", *_cells(asked))
    for name, measure in (("mlflow", measure_mlflow), ("trackio", measure_trackio)):
        try:
            with tempfile.TemporaryDirectory() as folder:
                written, answered = measure(options, Path(folder))
        except RivalMissing as error:
            console.print(f"{name} is left out: {error}")
            continue
        faster = ours.points_per_s / written.points_per_s
        writing.add_row(name, f"{written.points_per_s:,.0f}", f"{written.bytes_per_point:.1f}", f"{faster:.1f}")
        if answered:
            asking.add_row(name, *_cells(answered))
    console.print(writing, asking)
    console.print(f"One row costs the trainer {reported:.0f} microseconds (Reporter.metrics, p50).")
    with tempfile.TemporaryDirectory() as folder:
        warm, cold = (measure_launch(Path(folder), spare=spare) for spare in (True, False))
    console.print(f"From POST to the first optimizer step of a quickstart run: {warm:.2f} s with a spare worker, {cold:.2f} s without.")


def _cells(asked: Asked) -> list[str]:
    return [f"{asked.curve_ms:.1f}", f"{asked.list_ms:.1f}", f"{asked.gets_per_s:,.0f}"]


def values_at(step: int) -> dict[str, float]:
    """37 values with all their digits."""
    return {key: math.sin(step + number) for number, key in enumerate(KEYS)}


# --- ours -------------------------------------------------------------------------------------------------


def measure_ours(options: Options, folder: Path) -> tuple[float, Written, Asked]:
    """Microseconds a row for the trainer, what was written, what was asked."""
    migrate(folder / "cognate.db")
    store = Store(folder / "cognate.db")
    written_id = _add_run(store, 0)
    attempt = RunDir(folder / "runs" / written_id).attempt(1)
    attempt.create()
    reported = _report(attempt, options.steps)
    began = time.perf_counter()
    _ingest(store, written_id, attempt)
    seconds = time.perf_counter() - began
    written = Written(options.steps * len(KEYS) / seconds, _bytes_of(folder / "cognate.db") / options.steps / len(KEYS))
    curve_id = _add_run(store, 1)
    with store.write() as write:
        metrics.add(write, curve_id, 1, (metrics.Row(step, 0.0, 0.0, values_at(step)) for step in range(CURVE_STEPS)))
    for number in range(2, options.runs):
        _add_run(store, number)
    store.close()
    with _server([sys.executable, "-m", "app", "--no-quickstart"], "/readyz", "COGNATE_PORT", COGNATE_HOME=str(folder)) as client:

        def read_list() -> None:
            found, after = 0, None
            while True:
                page = client.get("/v1/runs", params={"limit": 500} | ({"after": after} if after else {})).raise_for_status().json()
                found, after = found + len(page["data"]), page["next_cursor"]
                if after is None:
                    assert found == options.runs
                    return

        curve = f"/v1/runs/{curve_id}/metrics?keys=loss&max_points={CURVE_POINTS}"
        asked = Asked(
            _median_ms(lambda: client.get(curve).raise_for_status()), _median_ms(read_list), _gets(client, f"/v1/runs/{curve_id}", options)
        )
    return reported, written, asked


def _add_run(store: Store, number: int) -> str:
    run_id = f"run_00000000-0000-7000-8000-{number:012d}"
    config = resolve("quickstart").model_dump(mode="json")
    now = time.time()
    row = Run(
        id=run_id,
        name=f"run {number}",
        preset="quickstart",
        config=config,
        tags=[],
        state="completed",
        attempt=1,
        created_at=now,
        updated_at=now,
    )
    row.latest = dict(values_at(number))
    with store.write(durable=False) as write:
        write.session.add(row)
        write.session.flush()
        write.session.add(Attempt(run_id=run_id, number=1, device="cpu", launched_at=0.0))
    return run_id


def _report(attempt: AttemptDir, steps: int) -> float:
    """Write the journal as a trainer does; the median microseconds of a row."""
    lines = Journal(attempt)
    reporter = Reporter(lines)
    times = []
    for step in range(1, steps + 1):
        values = values_at(step)
        began = time.perf_counter()
        reporter.metrics(step, step / steps, values, {"step": step, "total_steps": steps})
        times.append(time.perf_counter() - began)
    lines.close()
    return 1e6 * statistics.median(times)


def _ingest(store: Store, run_id: str, attempt: AttemptDir) -> None:
    """As the supervisor does, a commit a block; the last one waits for the disk."""
    took = True
    while took:
        with store.write(durable=False) as write:
            took = journal.ingest(write, runs.get(write.session, run_id), runs.attempt(write.session, run_id, 1), attempt)
    with store.write(durable=True) as write:
        write.session.execute(text("UPDATE meta SET value = value"))


def measure_launch(folder: Path, *, spare: bool) -> float:
    """Seconds from POST to the end of the first optimizer step, by the clock in its row; the data have been made before."""
    seconds = []
    with _server(
        [sys.executable, "-m", "app", "--no-quickstart"],
        "/readyz",
        "COGNATE_PORT",
        COGNATE_HOME=str(folder),
        COGNATE_SPARE_WORKER=str(spare),
    ) as client:
        for _ in range(LAUNCHES + 1):
            time.sleep(SPARE_AFTER_S + 15)  # a spare is started when nothing was launched for a while, and has to import torch
            began = time.time()
            config = {"training": {"max_steps": 2, "log_every_steps": 1}}
            run = client.post("/v1/runs", json={"preset": "quickstart", "config": config}).raise_for_status().json()
            rows: dict[str, list[float]] = {"step": []}
            while 1 not in rows["step"]:
                time.sleep(0.05)
                rows = client.get(f"/v1/runs/{run['id']}/metrics?keys=loss").raise_for_status().json()["columns"]
            seconds.append(rows["at"][rows["step"].index(1)] - began)
    return statistics.median(seconds[1:])


# --- MLflow -----------------------------------------------------------------------------------------------


def measure_mlflow(options: Options, folder: Path) -> tuple[Written, Asked]:
    _require("mlflow", options.rivals)
    database = folder / "mlflow.db"
    command = [options.rivals, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{database}", "--host", "127.0.0.1"]
    with _server([*command, "--artifacts-destination", str(folder / "artifacts")], "/health", "MLFLOW_PORT") as client:

        def post(path: str, **body: Any) -> Any:
            return client.post(f"/api/2.0/mlflow/{path}", json=body).raise_for_status().json()

        def new_run() -> str:
            return str(post("runs/create", experiment_id="0")["run"]["info"]["run_id"])

        def log(run_id: str, points: list[tuple[str, float, int]]) -> None:
            named = [{"key": key, "value": value, "timestamp": step, "step": step} for key, value, step in points]
            post("runs/log-batch", run_id=run_id, metrics=named)

        run_id, before = new_run(), _bytes_of(database)
        began = time.perf_counter()
        for step in range(options.mlflow_steps):
            log(run_id, [(key, value, step) for key, value in values_at(step).items()])
        points = options.mlflow_steps * len(KEYS)
        written = Written(points / (time.perf_counter() - began), (_bytes_of(database) - before) / points)
        curve_id = new_run()
        for first in range(0, CURVE_STEPS, 1000):
            log(curve_id, [("loss", math.sin(step), step) for step in range(first, first + 1000)])
        for number in range(2, options.runs):
            log(new_run(), [(key, value, 0) for key, value in values_at(number).items()])

        def read_list() -> None:
            assert len(post("runs/search", experiment_ids=["0"], max_results=options.runs)["runs"]) == options.runs

        curve = f"/ajax-api/2.0/mlflow/metrics/get-history-bulk-interval?run_ids={curve_id}&metric_key=loss&max_results={CURVE_POINTS}"
        get = f"/api/2.0/mlflow/runs/get?run_id={run_id}"
        return written, Asked(
            _median_ms(lambda: client.get(curve).raise_for_status()), _median_ms(read_list, 5), _gets(client, get, options)
        )


# --- trackio ----------------------------------------------------------------------------------------------

_TRACKIO = """
import json, math, os, pathlib, sys, time
import trackio
keys, steps = json.loads(sys.argv[1]), int(sys.argv[2])
trackio.init(project="bench", embed=False, auto_log_gpu=False, auto_log_cpu=False)
began = time.perf_counter()
for step in range(steps):
    trackio.log({key: math.sin(step + number) for number, key in enumerate(keys)}, step=step)
trackio.finish()
for path in pathlib.Path(os.environ["TRACKIO_DIR"]).iterdir():
    with path.open("rb") as file:
        os.fsync(file.fileno())
print("seconds", time.perf_counter() - began)
"""


def measure_trackio(options: Options, folder: Path) -> tuple[Written, None]:
    _require("trackio", options.rivals)
    environment = {**os.environ, "TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    command = [options.rivals, "-c", _TRACKIO, json.dumps(KEYS), str(options.steps)]
    said = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
    seconds = float(said.split("seconds ")[-1])
    connection = sqlite3.connect(folder / "bench.db")
    [(kept,)] = connection.execute("SELECT count(*) FROM metrics").fetchall()
    connection.close()
    assert kept == options.steps, f"trackio kept {kept} of {options.steps} steps when finish() returned"
    points = options.steps * len(KEYS)
    return Written(points / seconds, _bytes_of(folder / "bench.db") / points), None


# --- both -------------------------------------------------------------------------------------------------


def _require(package: str, python: str) -> None:
    if shutil.which(python) is None or subprocess.run([python, "-c", f"import {package}"], capture_output=True).returncode:
        raise RivalMissing(f"{python} cannot import it; `make bench-service` installs it")


@contextlib.contextmanager
def _server(command: list[str], healthy: str, port_variable: str, **environment: str) -> Iterator[httpx.Client]:
    """A server process on a free port, once it answers at `healthy`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, **environment, port_variable: str(port)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            deadline = time.monotonic() + 120
            while not _answers(client, healthy):
                assert process.poll() is None, f"{' '.join(command)} ended with {process.returncode}"
                assert time.monotonic() < deadline, f"{' '.join(command)} does not answer"
                time.sleep(0.1)
            yield client
    finally:
        process.terminate()
        process.wait()


def _answers(client: httpx.Client, path: str) -> bool:
    try:
        return client.get(path).status_code == 200
    except httpx.TransportError:
        return False


def _median_ms(ask: Callable[[], object], repeats: int = REPEATS) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        ask()
        times.append(time.perf_counter() - began)
    return 1000 * statistics.median(times[1:])


def _gets(client: httpx.Client, path: str, options: Options) -> float:
    """Answers a second to GET `path`, CONNECTIONS at a time; httpx itself would be the slower side."""
    assert client.get(path).status_code == 200
    request = f"GET {path} HTTP/1.1\r\nHost: {client.base_url.host}:{client.base_url.port}\r\n\r\n".encode()

    async def call(until: float) -> int:
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        count = 0
        while time.perf_counter() < until:
            writer.write(request)
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            assert head.startswith(b"http/1.1 200"), head
            await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
            count += 1
        writer.close()
        return count

    async def load() -> float:
        began = time.perf_counter()
        counts = await asyncio.gather(*(call(began + options.seconds) for _ in range(CONNECTIONS)))
        return sum(counts) / (time.perf_counter() - began)

    return asyncio.run(load())


def _bytes_of(database: Path) -> int:
    """What the database takes on disk, its write-ahead log included once that is folded in."""
    connection = sqlite3.connect(database, timeout=30)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return database.stat().st_size


if __name__ == "__main__":
    main()
