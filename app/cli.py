"""The console command `cognate`: serve here, and hand everything about models to `python -m cognate`.

The hand-over is an exec, not an import: the server's process never loads torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from types import FrameType
from typing import Annotated, cast

import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from app.api.protocol import BoundedProtocol, RefusableWebsocket, raise_descriptor_limit
from app.main import AlreadyServing, UnusableHome, create_app, only_server_of
from app.services.hub import Hub
from app.settings import Settings
from app.store.engine import DamagedDatabase, NewerSchema, migrate
from app.tokens import BadToken

app = typer.Typer(help="Train Cognate models, from the command line or through the service.", no_args_is_help=True, add_completion=False)
UNACKNOWLEDGED_MS = 30_000  # after which the kernel drops a connection whose other side takes nothing
UNSENT_BYTES = 128 * 1024  # what the kernel keeps for a connection beyond what is on its way; without a bound, 2.4 MiB
ACCEPTED_AT_ONCE = 32  # each has a descriptor for some turns of the loop before the bound on connections is asked
BACKLOG = 2048  # in the kernel
GOODBYE_S = 0.2
HANDED_ON = {
    "train": "Train a preset here, in this process, without the service.",
    "data": "Show the datasets: what is present, and what the curriculum will be.",
    "generate": "Let a checkpoint continue prompts.",
    "average": "Average the weights of several checkpoints into one.",
    "evaluate": "Measure a checkpoint on held-out data of the 14 datasets.",
    "report": "Report on run directories: training, diversity, readiness, and the hand-off to Phase 2.",
    "mirror": "Bring a run's Weights & Biases files up to now and check them.",
}


@app.command()
def serve(
    quickstart: Annotated[bool, typer.Option(help="Launch a quickstart run if there has been none.")] = True,
) -> None:
    """Serve the API and the page (COGNATE_HOST, COGNATE_PORT, COGNATE_HOME, COGNATE_DATA_DIR, COGNATE_TOKEN)."""
    settings = _settings()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S", level=logging.WARNING)
    logging.getLogger("app").setLevel(logging.INFO)
    raise_descriptor_limit()
    try:
        with only_server_of(settings.home):
            migrate(settings.database)
        service = create_app(settings, quickstart=quickstart)
    except (AlreadyServing, BadToken, DamagedDatabase, NewerSchema, UnusableHome) as error:
        sys.exit(f"cognate: {error}")
    if settings.data_dir is not None and not settings.data_dir.is_dir():
        logging.getLogger(__name__).warning(
            "COGNATE_DATA_DIR is %s, where there is no folder: what needs its datasets will fail", settings.data_dir
        )
    config = uvicorn.Config(
        service,
        host=settings.host,
        port=settings.port,
        http=BoundedProtocol,
        ws=RefusableWebsocket,
        ws_per_message_deflate=False,
        ws_max_size=64 * 1024,
        access_log=False,
        server_header=False,
        log_config=None,
        timeout_graceful_shutdown=3,
        backlog=ACCEPTED_AT_ONCE,
    )
    try:
        listening = config.bind_socket()  # before any run is touched: a taken port ends it here
    except SystemExit:  # uvicorn has said why
        sys.exit(f"cognate: cannot listen on {settings.host}:{settings.port}; set COGNATE_PORT to a port that is free, or to 0 for any")
    # What is accepted inherits these. asyncio leaves Nagle's algorithm on for a socket it did not make: 40 ms an answer.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_MS)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
    address = f"http://{settings.host}:{listening.getsockname()[1]}"
    print(f"Cognate: {address}  (state in {settings.home.resolve()}; Ctrl-C saves and stops)", flush=True)
    server = _Server(config)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup leaves it
        signal.signal(signal.SIGHUP, lambda _, frame: server.handle_exit(signal.SIGTERM, frame))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # of a second Ctrl-C, which uvicorn raises again when all is done
        sys.exit(128 + signal.SIGINT)


def _settings() -> Settings:
    """Of the environment; a mistake ends it with the variable's name."""
    try:
        return Settings()
    except ValidationError as error:
        told = (f"COGNATE_{str(each['loc'][0]).upper()}: {each['msg']}" for each in error.errors())
        sys.exit("\n".join(f"cognate: {line}" for line in told))
    except SettingsError:  # of a variable that holds a list; there is one
        sys.exit('cognate: COGNATE_ALLOWED_HOSTS: it must be a list in JSON, such as ["example.org"]')


class _Server(uvicorn.Server):
    """Says what a Ctrl-C does, for it may take a step and a checkpoint to do it."""

    @property
    def _hub(self) -> Hub | None:
        served = cast(FastAPI, self.config.app)
        return served.state.parts.hub if hasattr(served.state, "parts") else None  # not yet, if the start was cut short

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(BACKLOG)  # asyncio knows one number for both

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if not self.should_exit:
            with contextlib.suppress(OSError, RuntimeError):  # of a terminal that was closed; of one that was just being written to
                print("Cognate: saving what is running, then stopping; Ctrl-C again leaves the workers to the next start", flush=True)
        else:
            logging.getLogger("uvicorn.error").disabled = True  # it would tell of what is now left undone in tracebacks
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._hub is not None:
            self._hub.close()  # followers would hold up the end for its grace
            await asyncio.sleep(GOODBYE_S)  # time to tell them, before uvicorn closes what they hear it by
        await super().shutdown(sockets)


def serve_main() -> None:
    typer.run(serve)


def main() -> None:
    """The console script."""
    if len(sys.argv) > 1 and sys.argv[1] in HANDED_ON:
        os.execv(sys.executable, [sys.executable, "-m", "cognate", *sys.argv[1:]])  # noqa: S606 - a fixed program
    from app.client import evaluations, together  # here: the server has no use for its client

    app.add_typer(evaluations.runs, name="runs")
    app.add_typer(together.groups, name="groups")
    app.add_typer(together.queue, name="queue")
    app()


def _show_in_help(name: str, text: str) -> None:
    app.command(name, help=text, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(lambda: None)


for _name, _text in HANDED_ON.items():
    _show_in_help(_name, _text)
