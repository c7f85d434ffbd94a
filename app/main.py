"""Wiring and lifespan only: create_app(settings) puts the parts together, and takes them apart in order."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from app.api import (
    catalog,
    checkpoints,
    datasets,
    document,
    errors,
    evaluations,
    groups,
    jobs,
    metrics,
    prometheus,
    readiness,
    reports,
    runs,
    stream,
    system,
)
from app.api.deps import Parts
from app.api.security import Gate, GateMiddleware, sha256, with_headers
from app.executors.base import Executor
from app.executors.local import LocalExecutor
from app.services.datasets import DatasetService
from app.services.evaluations import EvaluationService, note_evaluation
from app.services.hub import Hub
from app.services.jobs import JobService
from app.services.mirrors import Mirrors
from app.services.readiness import ReadinessService
from app.services.reports import DIVERSITY, HANDOFF, REPORT, ReportService, facts_for_report, note_diversity, results_for_handoff
from app.services.runs import Request, RunService
from app.services.supervisor import Supervisor
from app.settings import Settings
from app.store import runs as run_rows
from app.store.engine import Store, migrate
from app.tokens import BadToken, token_in
from cognate import __version__
from cognate.config import ConfigError
from cognate.rundir import write_text

log = logging.getLogger(__name__)

SHORTEST_TOKEN = 16  # characters
STATIC = Path(__file__).resolve().parents[1] / "static"


class Application(FastAPI):
    """Every answer has its headers, also that to an error which nobody caught: it is made outside of all middleware."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await super().__call__(scope, receive, with_headers(send))


class AlreadyServing(RuntimeError):
    """Another server has this state folder: the database has one writer."""


class UnusableHome(RuntimeError):
    """The state folder cannot be made or written."""


def create_app(settings: Settings | None = None, executor: Executor | None = None, *, quickstart: bool = False) -> FastAPI:
    """The application; raises BadToken. `executor` replaces the local one; `quickstart` launches that preset if it never ran."""
    settings = settings or Settings()
    gate = Gate(_token_sha256(settings))

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with only_server_of(settings.home):
            migrate(settings.database)
            hub = Hub()
            hub.attach(asyncio.get_running_loop())
            parts = assemble(settings, executor, hub, gate)
            app.state.parts = parts
            parts.runs.settle()
            parts.supervisor.start()
            parts.mirrors.start()
            if quickstart:
                _launch_quickstart(parts)
            try:
                yield
            finally:
                await asyncio.to_thread(parts.supervisor.stop, settings.shutdown_grace_s)
                await asyncio.to_thread(parts.mirrors.stop)
                hub.attach(None)
                parts.store.close()

    app = Application(
        title="Cognate",
        version=__version__,
        summary="Launch, pause, resume, stop and inspect training runs",
        description=document.DESCRIPTION,
        generate_unique_id_function=document.operation_id,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    for module in (
        runs,
        groups,
        checkpoints,
        evaluations,
        datasets,
        reports,
        jobs,
        metrics,
        catalog,
        system,
        readiness,
        prometheus,
        stream,
    ):
        app.include_router(module.router)
    errors.install(app)
    document.describe(app, requires_token=gate.requires_token)
    app.add_middleware(GateMiddleware, gate=gate, hosts=(settings.host, *settings.allowed_hosts))
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_api_route("/", lambda: FileResponse(STATIC / "index.html"), include_in_schema=False)
    return app


def assemble(settings: Settings, executor: Executor | None, hub: Hub, gate: Gate) -> Parts:
    """The parts of the service, none of them at work yet."""
    store = Store(settings.database, hub.publish)
    executor = executor or LocalExecutor(settings.data_dir, settings.cache, settings.cpu_slots, spare=settings.spare_worker)
    work = JobService(
        store,
        executor,
        settings,
        on_completed={"evaluation": note_evaluation, DIVERSITY: partial(note_diversity, settings.runs)},
        at_launch={HANDOFF: results_for_handoff, REPORT: partial(facts_for_report, settings.runs)},
    )
    evaluating, reporting = EvaluationService(store, work, settings), ReportService(store, work, settings)
    supervisor = Supervisor(store, executor, settings, work, (evaluating.evaluate_completed, reporting.group_completed))
    mirrors = Mirrors(store, settings)
    return Parts(
        settings=settings,
        store=store,
        hub=hub,
        supervisor=supervisor,
        mirrors=mirrors,
        runs=RunService(store, supervisor, mirrors, settings),
        jobs=work,
        evaluations=evaluating,
        reports=reporting,
        readiness=ReadinessService(store, work, supervisor, settings),
        datasets=DatasetService(store, work, settings),
        gate=gate,
    )


@contextmanager
def only_server_of(home: Path) -> Iterator[None]:
    """Hold the state folder's lock; raises AlreadyServing, UnusableHome. The lock goes with the process, however it ends."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        lock = os.open(home / "server.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise UnusableHome(f"the state folder {home} cannot be used: {error.strerror}; set COGNATE_HOME to another one") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise AlreadyServing(f"another server is using {home}; stop it, or set COGNATE_HOME to another folder") from error
    try:
        yield
    finally:
        os.close(lock)


def _token_sha256(settings: Settings) -> str | None:
    """The digest of the token in force; made, kept hashed and shown once when the service is reachable without one."""
    token = _given_token(settings)
    if token is not None:
        return sha256(token)
    if settings.is_loopback:
        return None
    kept = settings.home / "token.sha256"
    if kept.exists() and re.fullmatch("[0-9a-f]{64}", known := kept.read_text().strip()):
        return known
    token = secrets.token_urlsafe(32)
    kept.parent.mkdir(parents=True, exist_ok=True)
    write_text(kept, sha256(token), mode=0o600)
    print(f"The token of this service, shown this once (delete {kept} for a new one):\n\n    {token}\n", flush=True)
    return sha256(token)


def _given_token(settings: Settings) -> str | None:
    """The one of COGNATE_TOKEN or COGNATE_TOKEN_FILE; raises BadToken."""
    file = settings.token_file
    if file is None:
        token = settings.token.get_secret_value() if settings.token is not None else None
    elif settings.token is not None:
        raise BadToken("COGNATE_TOKEN and COGNATE_TOKEN_FILE are both set; leave one of them out")
    else:
        token = token_in(file)
    if token is not None and len(token) < SHORTEST_TOKEN and not settings.is_loopback:
        raise BadToken(
            f"COGNATE_TOKEN has {len(token)} characters; where others can reach the service it needs {SHORTEST_TOKEN} or more, "
            "such as `openssl rand -hex 24` makes"
        )
    return token


def _launch_quickstart(parts: Parts) -> None:
    with parts.store.read() as session:
        if run_rows.page(session, 1, preset="quickstart"):
            return
    try:
        parts.runs.create(Request("quickstart", {}, name="quickstart"))
    except ConfigError as error:  # no device at all: serve, and say why nothing trains
        log.warning("no quickstart run: %s", error)
