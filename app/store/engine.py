"""The database file: one writer, many readers, migrations before the first of them.

A write is a transaction that also hands out sequence numbers and collects what to tell subscribers; they are told
after the commit, in the order of the numbers. Readers see committed rows only and never wait for the writer (WAL).
"""

from __future__ import annotations

import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DatabaseError
from sqlalchemy.pool import StaticPool
from sqlmodel import Session

log = logging.getLogger(__name__)

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"
BUSY_MS = 2000
_DAMAGES = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_HEAD = """SELECT max(
    coalesce((SELECT max(seq) FROM event), 0),
    coalesce((SELECT max(seq) FROM metric_row), 0),
    coalesce((SELECT CAST(value AS INTEGER) FROM meta WHERE key = 'head'), 0)
)"""


class NewerSchema(RuntimeError):
    """The database was written by a newer Cognate."""


class DamagedDatabase(RuntimeError):
    """The database file is not one, or not whole."""


@dataclass(frozen=True)
class Message:
    """Something that was committed, for those who follow along. `seq` 0: it is not kept. `run_id` "": it is of no run."""

    seq: int
    run_id: str
    type: str
    body: dict[str, Any]


@dataclass
class Write:
    """An open write transaction."""

    session: Session
    _next: int
    messages: list[Message] = field(default_factory=list)
    log_lines: list[str] = field(default_factory=list)  # of what is so only once it is committed

    @property
    def newest_seq(self) -> int:
        return self._next

    def next_seq(self) -> int:
        self._next += 1
        return self._next

    def note_head(self) -> None:
        """Keep the newest number apart from the rows that are about to go, so that after a restart none is given twice."""
        self.session.execute(text("INSERT OR REPLACE INTO meta (key, value) VALUES ('head', :head)"), {"head": str(self._next)})

    def tell(self, message: Message) -> None:
        self.messages.append(message)


class Store:
    def __init__(self, path: Path, on_commit: Callable[[list[Message]], None] = lambda messages: None) -> None:
        self.path = path
        self._on_commit = on_commit
        self._lock = threading.Lock()
        self._checked_at = -1.0
        self._writer = _writer_engine(path)
        self._readers = _reader_engine(path)
        self._glances = _glancing_connection(path)
        self._glancing = threading.Lock()
        self._connection = self._writer.connect()
        self._raw = cast(sqlite3.Connection, self._connection.connection.dbapi_connection)
        with self.read() as session:
            self.epoch = str(session.execute(text("SELECT value FROM meta WHERE key = 'epoch'")).scalar_one())
            self._head = int(session.execute(text(_HEAD)).scalar_one())

    @property
    def head(self) -> int:
        """The newest committed sequence number."""
        return self._head

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Write]:
        """A transaction. Durable ones survive a power cut; journal rows need not, the journal is there to read again."""
        with self._lock:
            self._raw.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            try:
                with Session(self._connection, expire_on_commit=False) as session:
                    write = Write(session, self._head)
                    yield write
                    session.commit()
            except BaseException:
                self._connection.rollback()
                if self._raw.in_transaction:  # a full disk may refuse the COMMIT itself; left open, it fails every later write
                    self._raw.rollback()
                raise
            self._head = write._next
            for line in write.log_lines:
                log.info("%s", line)
            if write.messages:
                self._on_commit(write.messages)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with Session(self._readers) as session:
            yield session

    def glance(self, query: str, parameters: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """The one row of a read that takes microseconds, so that the event loop need not leave it to a thread."""
        with self._glancing:
            rows = self._glances.execute(query, parameters).fetchall()  # all: a statement left open would hold up checkpoints
        return rows[0] if rows else None

    def check(self) -> None:
        """Raise unless the database could be written within the last second; probes are many, the writer is one."""
        if time.monotonic() - self._checked_at > 1:
            with self.write(durable=False) as write:
                write.session.execute(text("UPDATE meta SET value = value WHERE key = 'epoch'"))
            self._checked_at = time.monotonic()

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            self._glances.close()
            self._writer.dispose()
            self._readers.dispose()


def migrate(path: Path) -> None:
    """Bring the database at `path` to this version's schema, after a backup beside it; raises NewerSchema, DamagedDatabase."""
    try:
        _migrate(path)
        _glance_over(path)
    except (DatabaseError, sqlite3.DatabaseError) as error:
        cause = error.orig if isinstance(error, DatabaseError) else error
        if not isinstance(cause, sqlite3.Error) or (getattr(cause, "sqlite_errorcode", 0) & 0xFF) not in _DAMAGES:
            raise
        raise DamagedDatabase(_way_out(path, str(cause))) from error


def _migrate(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Altering a table in SQLite drops the old one: with foreign keys on, that would delete what refers to it.
    engine = _writer_engine(path, foreign_keys=False)
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    script = ScriptDirectory.from_config(config)
    try:
        with engine.connect() as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current is not None and current not in {revision.revision for revision in script.walk_revisions()}:
                raise NewerSchema(f"{path} has schema {current}, which this version does not know; install the Cognate that wrote it")
            connection.rollback()
            if current == script.get_current_head():
                return
            if current is not None:
                backup(path, path.with_name(f"{path.stem}-{current}-{int(time.time())}.db"))
            with connection.begin():
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
                _draw_epoch(connection)
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                assert not broken, f"the migration left references to nothing: {broken[:3]}"
    finally:
        engine.dispose()


def _glance_over(path: Path) -> None:
    """Read what the service cannot do without: damage there is found before any run is touched."""
    connection = sqlite3.connect(path)
    try:
        connection.execute(_HEAD).fetchall()
        for table in ("meta", "run", "attempt", "job"):
            if connection.execute(f"PRAGMA quick_check({table})").fetchall() != [("ok",)]:
                raise DamagedDatabase(_way_out(path, f"table {table} is damaged"))
    finally:
        connection.close()


def _way_out(path: Path, fault: str) -> str:
    backups = sorted(path.parent.glob(f"{path.stem}-*.db"), key=lambda file: file.stem.rpartition("-")[2])
    copies = [f"the backup {backups[-1].name}, which a migration made first"] if backups else []
    copies.append(f"what `sqlite3 {path.name} .recover` still reads")
    return (
        f"{path} cannot be read ({fault}): move it and {path.name}-wal away, and start with an empty database or with a copy in its place "
        f"({' or '.join(copies)}); run directories stay as they are"
    )


def backup(source: Path, target: Path) -> None:
    """A consistent copy of a live database, in place of an older one of the same name; whole, or not there."""
    unfinished = target.with_name(f".{target.name}")
    unfinished.unlink(missing_ok=True)  # of a copy that was killed
    connection = sqlite3.connect(source)
    try:
        connection.execute("VACUUM INTO ?", (str(unfinished),))
        with unfinished.open("rb") as file:
            os.fsync(file.fileno())
        unfinished.replace(target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    finally:
        connection.close()


def _draw_epoch(connection: Connection) -> None:
    connection.execute(text("INSERT OR IGNORE INTO meta (key, value) VALUES ('epoch', :epoch)"), {"epoch": secrets.token_hex(4)})


def _writer_engine(path: Path, *, foreign_keys: bool = True) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        poolclass=StaticPool,  # one connection, handed from thread to thread under the store's lock
        connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000},
        hide_parameters=True,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA foreign_keys = {'ON' if foreign_keys else 'OFF'}")
        connection.execute("PRAGMA wal_autocheckpoint = 1000")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def _glancing_connection(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=0.05)
    connection.execute("PRAGMA query_only = ON")
    return connection


def _reader_engine(path: Path) -> Engine:
    engine = create_engine(
        f"sqlite:///{path}",
        pool_size=8,
        max_overflow=8,
        connect_args={"check_same_thread": False, "timeout": BUSY_MS / 1000},
        hide_parameters=True,
        json_deserializer=orjson.loads,
    )

    @event.listens_for(engine, "connect")
    def connect(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA query_only = ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine
