"""Streams under load: a thousand websockets on the server as `make run` starts it: python -m benchmarks.stream.

    python -m benchmarks.stream --clients 1000 --seconds 15
    python -m benchmarks.stream --clients 200 --stalled 20 --json stream.json

The server is the product's own command in a process of its own; a thread in it commits rows of all metrics to the store, as
taking in a journal would, and each row carries the time of its making. Clients are raw sockets in other processes; a latency
runs from the making of a row to its arrival at one of them. Every client checks that it got every row once. Then, with the
others still there: clients that never read, with the server's memory before and after; and, from the first phase on, one that
is cut at random and comes back with its cursor. All processes share the cores: the client's work is in the figures too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import orjson
import psutil  # type: ignore[import-untyped]
from fastapi import FastAPI
from rich.console import Console
from rich.table import Table

from app import cli
from app.main import create_app
from app.store import metrics
from app.store.engine import Store
from app.store.tables import Run
from cognate.metrics import KEYS

RUN = f"run_{'0' * 36}"
HISTORY_ROWS = 3000  # more than a connection's buffers hold: a client that asks for it and does not read is stuck at once
UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


@dataclass(frozen=True)
class Phase:
    """One stretch of measuring. Times in ms; broken: clients that missed or doubled a row."""

    name: str
    clients: int
    rows: int
    p50_ms: float
    p99_ms: float
    max_ms: float
    broken: int
    server_cpu: float  # cores
    clients_cpu: float
    rss_mib: float
    load: float


def serve(hz: float) -> None:
    """`cognate serve` with a writer beside it; address and folder come by the environment, as ever."""

    def create(*args: Any, **options: Any) -> FastAPI:
        app = create_app(*args, **options)
        inner = app.router.lifespan_context

        @contextlib.asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with inner(app):
                stop = threading.Event()
                writer = threading.Thread(target=write, args=(app.state.parts.store, hz, stop))
                writer.start()
                yield
                stop.set()
                await asyncio.to_thread(writer.join)

        app.router.lifespan_context = lifespan
        return app

    vars(cli)["create_app"] = create
    cli.serve(quickstart=False)


def write(store: Store, hz: float, stop: threading.Event) -> None:
    """HISTORY_ROWS at once, then one row in a transaction of its own every 1/hz seconds."""
    values = {key: 1.0 / 3 + number for number, key in enumerate(KEYS)}
    with store.write() as write:
        write.session.add(Run(id=RUN, name="bench", preset="p", config={}, tags=[], created_at=0, updated_at=0, state="stopped", attempt=1))
        write.session.flush()
        for step in range(HISTORY_ROWS):
            metrics.add(write, RUN, 1, [metrics.Row(step, 0.0, time.time(), values)])
    step, due = HISTORY_ROWS, time.monotonic()
    while not stop.wait(max(0.0, due - time.monotonic())):
        with store.write(durable=False) as write:
            metrics.add(write, RUN, 1, [metrics.Row(step, 0.0, time.time(), values)])
        step, due = step + 1, due + 1 / hz


@dataclass
class Tally:
    """What the clients of one process received: latencies in seconds, and how many missed or doubled a row."""

    latencies: array[float] = field(default_factory=lambda: array("d"))
    broken: set[int] = field(default_factory=set)


class Client(asyncio.Protocol):
    """A websocket that reads, checks that rows follow each other, and notes how old they are."""

    def __init__(self, path: str, port: int, tally: Tally, rows: list[int] | None = None) -> None:
        self._request = UPGRADE.format(path=path, port=port).encode()
        self._tally = tally
        self._rows = rows
        self._buffer = b""
        self._upgraded = False
        self._last = 0
        self.cursor = ""
        self.ready = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self._request)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_result(False)

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer + data if self._buffer else data
        if not self._upgraded:
            head, found, buffer = buffer.partition(b"\r\n\r\n")
            if not found:
                self._buffer = head
                return
            assert head.startswith(b"HTTP/1.1 101"), head[:200]
            self._upgraded = True
        while len(buffer) >= 2:
            size, begin = buffer[1], 2
            if size >= 126:
                begin = 4 if size == 126 else 10
                size = int.from_bytes(buffer[2:begin]) if len(buffer) >= begin else len(buffer)
            if len(buffer) < begin + size:
                break
            self._take(buffer[0] & 15, buffer[begin : begin + size])
            buffer = buffer[begin + size :]
        self._buffer = buffer

    def _take(self, opcode: int, payload: bytes) -> None:
        if opcode == 9:  # a ping asks for a masked pong; a mask of zeros changes nothing
            self.transport.write(bytes([0x8A, 0x80 | len(payload), 0, 0, 0, 0]) + payload)
        elif opcode == 1:
            cursor, seqs, at = _parse(payload)
            if seqs:
                if not self.ready.done():
                    self.ready.set_result(True)
                now = time.time()
                self._tally.latencies.extend(now - made for made in at)
                if self._last and seqs[0] != self._last + 1:
                    self._tally.broken.add(id(self))
                self._last, self.cursor = seqs[-1], cursor
                if self._rows is not None:
                    self._rows.extend(seqs)


@lru_cache(64)
def _parse(payload: bytes) -> tuple[str, list[int], list[float]]:
    """(cursor, seqs, times of making); all clients of a process get the same bytes, and read them once."""
    frame = orjson.loads(payload)
    assert frame["type"] not in ("gap", "error"), frame
    columns = frame.get("columns", {"seq": [], "at": []})
    return frame.get("cursor", ""), columns["seq"], columns["at"]


def crowd(pipe: Connection, port: int, clients: int) -> None:
    """A process of clients. Told anything, it answers with what it received since it was last asked."""
    asyncio.run(_crowd(pipe, port, clients))


async def _crowd(pipe: Connection, port: int, clients: int) -> None:
    loop, tally = asyncio.get_running_loop(), Tally()
    held = []
    for _ in range(clients):
        _, client = await loop.create_connection(lambda: Client(f"/v1/runs/{RUN}/stream", port, tally), "127.0.0.1", port)
        held.append(client)
        if len(held) % 50 == 0:
            assert all(await asyncio.gather(*(client.ready for client in held))), "the server hung up"
    assert all(await asyncio.gather(*(client.ready for client in held))), "the server hung up"
    pipe.send("ready")
    while await asyncio.to_thread(pipe.recv):
        pipe.send((tally.latencies, len(tally.broken) + sum(client.transport.is_closing() for client in held)))
        tally.latencies = array("d")


async def cut(port: int, times: int, hz: float) -> str:
    """A client that is cut at random, within frames too, and returns; a sentence on what it received."""
    draw = random.Random(1)  # noqa: S311 - the same cuts each time
    loop, cursor, rows = asyncio.get_running_loop(), "start", list[int]()
    for number in range(times + 1):
        path = f"/v1/runs/{RUN}/stream?after={cursor}"
        transport, client = await loop.create_connection(lambda path=path: Client(path, port, Tally(), rows), "127.0.0.1", port)
        await client.ready
        await asyncio.sleep(draw.expovariate(hz / 3))
        while number == times and len(rows) < HISTORY_ROWS + hz:
            await asyncio.sleep(0.1)
        transport.abort()
        cursor = client.cursor or cursor
    exact = rows == list(range(1, len(rows) + 1)) and len(rows) > HISTORY_ROWS
    return f"{times} cuts, {len(rows)} rows: {'each once and in order' if exact else f'BROKEN, {len(set(rows))} different ones'}"


def stall(port: int) -> socket.socket:
    """A client that asks for everything and never reads."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    held.connect(("127.0.0.1", port))
    held.sendall(UPGRADE.format(path=f"/v1/runs/{RUN}/stream?after=start", port=port).encode())
    return held


def unsent_bytes(port: int, peers: list[int]) -> int:
    """The most that the kernel holds for one of `peers`: tx_queue of /proc/net/tcp."""
    waiting = [0]
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        ours, theirs, _, queues = line.split()[1:5]
        if int(ours.split(":")[1], 16) == port and int(theirs.split(":")[1], 16) in peers:
            waiting.append(int(queues.split(":")[0], 16))
    return max(waiting)


class Bench:
    """The server, its clients, and what they are asked to do."""

    def __init__(self, options: argparse.Namespace, home: str, say: Callable[[str], None]) -> None:
        self.options, self.say = options, say
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        command = [sys.executable, "-m", "benchmarks.stream", "--serve", "--hz", str(options.hz)]
        environment = {**os.environ, "COGNATE_HOME": home, "COGNATE_PORT": str(self.port)}
        self.log = Path(home) / "server.log"
        with self.log.open("wb") as log:
            self.server = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        self.crowds: list[tuple[Any, Connection]] = []

    def connect(self) -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://127.0.0.1:{self.port}/v1/runs/{RUN}").status_code == 200:
                    break
            assert self.server.poll() is None, self.log.read_text()
            time.sleep(0.1)
        context = multiprocessing.get_context("spawn")
        for number in range(self.options.processes):
            ours, theirs = context.Pipe()
            share = len(range(number, self.options.clients, self.options.processes))
            process = context.Process(target=crowd, args=(theirs, self.port, share), daemon=True)
            process.start()
            self.crowds.append((psutil.Process(process.pid), ours))
        for _, pipe in self.crowds:
            assert pipe.recv() == "ready"
        time.sleep(2)  # what connecting cost is behind us
        self._collect()

    def measure(self, name: str) -> Phase:
        self.say(name)
        processes = [self.server, *(process for process, _ in self.crowds)]
        before = [_cpu_s(process) for process in processes]
        began = time.monotonic()
        time.sleep(self.options.seconds)
        took = time.monotonic() - began
        server, *clients = ((_cpu_s(process) - spent) / took for process, spent in zip(processes, before, strict=True))
        found, broken = self._collect()
        ordered = sorted(found)
        p50, p99, most = (1e3 * ordered[min(len(ordered) - 1, int(part * len(ordered)))] for part in (0.5, 0.99, 1))
        load = psutil.getloadavg()[0]
        return Phase(name, self.options.clients, len(found), p50, p99, most, broken, server, sum(clients), self.rss(), load)

    def rss(self) -> float:
        """MiB of memory the server has."""
        return float(self.server.memory_info().rss) / 2**20

    def close(self) -> None:
        for _, pipe in self.crowds:
            pipe.send(False)
        self.server.terminate()
        self.server.wait(30)

    def _collect(self) -> tuple[array[float], int]:
        latencies, broken = array("d"), 0
        for _, pipe in self.crowds:
            pipe.send(True)
        for _, pipe in self.crowds:
            more, wrong = pipe.recv()
            latencies.extend(more)
            broken += wrong
        return latencies, broken


def _cpu_s(process: psutil.Process) -> float:
    return float(sum(process.cpu_times()[:2]))


def run(options: argparse.Namespace, say: Callable[[str], None]) -> tuple[list[Phase], list[str]]:
    with tempfile.TemporaryDirectory() as home:
        bench = Bench(options, home, say)
        try:
            say(f"connecting {options.clients} clients")
            bench.connect()
            phases = [bench.measure("all read")]
            before = bench.rss()
            stalled = [stall(bench.port) for _ in range(options.stalled)]
            phases.append(bench.measure(f"{options.stalled} never read"))
            cost = (bench.rss() - before) / max(1, options.stalled)
            unsent = unsent_bytes(bench.port, [held.getsockname()[1] for held in stalled])
            notes = [f"a client that never reads: {cost:+.2f} MiB of the server's memory, {unsent / 2**20:.2f} MiB of data in the kernel"]
            for held in stalled:
                held.close()
            say("cutting a client")
            notes.append(asyncio.run(cut(bench.port, options.cuts, options.hz)))
        finally:
            bench.close()
    return phases, notes


def table(phases: list[Phase], options: argparse.Namespace) -> Table:
    what = f"{options.clients} websockets x {options.hz:g} rows/s of {len(KEYS)} metrics, {options.seconds:g} s a phase"
    shown = Table(title=f"{what}; cores used, server's memory")
    for name in ("phase", "rows", "p50 ms", "p99 ms", "max ms", "broken", "server", "clients", "MiB", "load"):
        shown.add_column(name, justify="left" if name == "phase" else "right")
    for each in phases:
        times = (f"{value:.1f}" for value in (each.p50_ms, each.p99_ms, each.max_ms))
        rest = (f"{each.server_cpu:.2f}", f"{each.clients_cpu:.2f}", f"{each.rss_mib:.0f}", f"{each.load:.1f}")
        shown.add_row(each.name, f"{each.rows:,}", *times, str(each.broken), *rest)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stream", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=1, help="of clients")
    parser.add_argument("--hz", type=float, default=20.0, help="rows a second")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each phase")
    parser.add_argument("--stalled", type=int, default=1, help="clients that never read, in the second phase")
    parser.add_argument("--cuts", type=int, default=100)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.hz)
        return
    phases, notes = run(options, lambda what: print(what, file=sys.stderr, flush=True))
    console = Console(width=120)
    console.print(table(phases, options))
    for note in notes:
        console.print(note)
    if options.json:
        options.json.write_text(json.dumps({"phases": [asdict(each) for each in phases], "notes": notes}))


if __name__ == "__main__":
    main()
