"""The database: migrations, one writer, what a commit tells."""

import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, create_engine
from sqlalchemy.exc import OperationalError
from sqlmodel import SQLModel

from app.store import metrics, runs
from app.store.engine import MIGRATIONS, DamagedDatabase, Message, NewerSchema, Store, backup, migrate
from app.store.tables import Meta, Run
from cognate.metrics import KEYS


@pytest.fixture
def path(tmp_path: Path) -> Path:
    migrate(tmp_path / "cognate.db")
    return tmp_path / "cognate.db"


def run_row(run_id: str = "run_1", state: str = "queued") -> Run:
    return Run(id=run_id, name="n", preset="quickstart", config={}, tags=[], created_at=0, updated_at=0, state=state)


def test_the_tables_are_what_the_migrations_make(path: Path) -> None:
    """A changed table without a migration would work here and fail on every database there is."""
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, SQLModel.metadata) == []
    engine.dispose()


def test_every_metric_has_a_column(path: Path) -> None:
    connection = sqlite3.connect(path)
    columns = {row[1]: row[2] for row in connection.execute("PRAGMA table_info(metric_row)")}
    connection.close()
    assert {key: columns.get(key) for key in KEYS} == dict.fromkeys(KEYS, "FLOAT")


def test_a_database_from_the_future_is_refused_in_words(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerSchema, match="has schema 9999"):
        migrate(path)
    assert path.read_bytes() == before


def _overwrite(path: Path, start: int, garbage: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(start)
        file.write(garbage)


def _page_of(path: Path, table: str) -> int:
    connection = sqlite3.connect(path)
    (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    return (int(page) - 1) * 4096


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        ("file", "file is not a database"),
        ("alembic_version", "database disk image is malformed"),
        ("event", "database disk image is malformed"),
        ("meta", "database disk image is malformed"),
        ("run", "database disk image is malformed"),
        ("ix_run_state", "table run is damaged"),
        ("ix_job_state", "table job is damaged"),
    ],
)
def test_a_damaged_database_is_refused_in_a_sentence(path: Path, where: str, fault: str) -> None:
    """Which file, what is wrong, what to do. Not a traceback, and not only once a run is touched."""
    _overwrite(path, 0 if where == "file" else _page_of(path, where), b"\xa5" * 4096)
    before = path.read_bytes()
    with pytest.raises(DamagedDatabase) as refused:
        migrate(path)
    said = str(refused.value)
    assert said.startswith(f"{path} cannot be read ({fault}): move it and cognate.db-wal away")
    assert "backup" not in said
    assert path.read_bytes() == before


def test_the_newest_backup_is_named_where_the_database_is_damaged(path: Path) -> None:
    for name in ("cognate-0003-1700000000.db", "cognate-0004-1800000000.db"):
        path.with_name(name).touch()
    _overwrite(path, 0, b"\xa5" * 4096)
    with pytest.raises(DamagedDatabase, match=r"the backup cognate-0004-1800000000\.db"):
        migrate(path)


def test_a_backup_that_failed_leaves_no_file(path: Path, tmp_path: Path) -> None:
    """It would be taken for one."""
    _overwrite(path, _page_of(path, "run"), b"\xa5" * 4096)
    with pytest.raises(sqlite3.DatabaseError):
        backup(path, tmp_path / "copy.db")
    assert not list(tmp_path.glob("*copy.db"))


def test_a_backup_takes_the_place_of_one_of_the_same_second_once_it_is_whole(path: Path, tmp_path: Path) -> None:
    (copy := tmp_path / "copy.db").write_bytes(b"older")
    (tmp_path / ".copy.db").write_bytes(b"of one that was killed")
    kept = path.read_bytes()
    _overwrite(path, _page_of(path, "run"), b"\xa5" * 4096)
    with pytest.raises(sqlite3.DatabaseError):
        backup(path, copy)
    assert copy.read_bytes() == b"older"
    path.write_bytes(kept)
    backup(path, copy)
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert not (tmp_path / ".copy.db").exists()


def test_migrating_twice_changes_nothing_and_makes_no_backup(path: Path) -> None:
    migrate(path)
    assert [file.name for file in path.parent.glob("*.db")] == ["cognate.db"]


@contextmanager
def older(path: Path) -> Iterator[Connection]:
    """A database as version 0003 had it, to be filled."""
    engine = create_engine(f"sqlite:///{path}")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0003")
        yield connection
    engine.dispose()


def add_older_run(connection: Connection, run_id: str, queued_at: float) -> None:
    values = f"VALUES ('{run_id}', 'n', 'p', '{{}}', '[]', 1, 1, {queued_at}, 'queued', 1, 1, 0, 0)"
    names = "id, name, preset, config, tags, created_at, updated_at, queued_at, state, version, attempt, control_serial"
    connection.exec_driver_sql(f"INSERT INTO run ({names}, kill_requested) {values}")


def dump(path: Path) -> list[str]:
    """Its tables and rows, as SQL."""
    connection = sqlite3.connect(path)
    lines = list(connection.iterdump())
    connection.close()
    return lines


def test_an_older_database_is_kept_beside_the_migrated_one(tmp_path: Path) -> None:
    with older(tmp_path / "cognate.db") as connection:
        add_older_run(connection, "run_a", 1.5)
    before = dump(tmp_path / "cognate.db")
    migrate(tmp_path / "cognate.db")
    (kept,) = tmp_path.glob("cognate-*.db")
    assert re.fullmatch(r"cognate-0003-\d{10}\.db", kept.name)
    assert dump(kept) == before != dump(tmp_path / "cognate.db")


def test_rows_and_queue_of_an_older_database_are_kept(tmp_path: Path) -> None:
    """Up to 0003 a row named its run by its id, and the queue went by the clock."""
    path = tmp_path / "cognate.db"
    with older(path) as connection:
        for run_id, at in (("run_b", 1.5), ("run_a", 9.5), ("run_c", 1.5)):
            add_older_run(connection, run_id, at)
        for seq, run_id, step, loss, odd in (
            (3, "run_a", 1, 0.5, None),
            (4, "run_b", 1, None, '{"loss": "NaN"}'),
            (7, "run_a", 2, 0.25, None),
        ):
            row = "INSERT INTO metric_row (seq, run_id, attempt, step, epoch, at, loss, nonfinite) VALUES (?, ?, 1, ?, 0.5, 2.5, ?, ?)"
            connection.exec_driver_sql(row, (seq, run_id, step, loss, odd))
    migrate(path)
    store = Store(path)
    with store.read() as session:
        rows = [
            (each.seq, each.run_id, each.body["step"], each.body["at"], each.body["values"])
            for each in metrics.after(session, None, 0, 9, 9)
        ]
        assert rows == [(3, "run_a", 1, 2.5, {"loss": 0.5}), (4, "run_b", 1, 2.5, {"loss": "NaN"}), (7, "run_a", 2, 2.5, {"loss": 0.25})]
        assert metrics.columns(session, "run_a", ["loss"])["loss"] == [0.5, 0.25]
        assert runs.queue(session) == ["run_b", "run_c", "run_a"]
    store.close()


def test_what_a_point_takes_on_disk_is_bounded(path: Path) -> None:
    """Eight bytes are the value itself; a fifth of what trackio takes is 12.7. Of run ids in every row and index it was 12.9."""
    store = Store(path)
    run_id = f"run_{'0' * 36}"
    with store.write() as write:
        write.session.add(run_row(run_id))
        write.session.flush()
        before = path.stat().st_size
        values = {key: 1 / (3 + number) for number, key in enumerate(KEYS)}
        metrics.add(write, run_id, 1, [metrics.Row(step, 1 / 3, 1.8e9, values) for step in range(1, 2001)])
    store.close()
    assert (path.stat().st_size - before) / (2000 * len(KEYS)) < 11.5


def test_each_database_has_cursors_of_its_own(tmp_path: Path) -> None:
    epochs = set()
    for name in ("a", "b"):
        migrate(tmp_path / name / "cognate.db")
        store = Store(tmp_path / name / "cognate.db")
        epochs.add(store.epoch)
        store.close()
    assert len(epochs) == 2


def test_a_commit_tells_in_the_order_of_its_numbers_and_a_rollback_tells_nothing(path: Path) -> None:
    told: list[Message] = []
    store = Store(path, told.extend)
    with store.write() as write:
        write.session.add(run_row())
        write.session.flush()
        runs.add_event(write, "run_1", 0, "note", 0.0, None, {})
        metrics.add(write, "run_1", 1, [metrics.Row(1, 0.1, 0.0, {"loss": 1.0})])
    with pytest.raises(KeyError), store.write() as write:
        runs.add_event(write, "run_1", 0, "lost", 0.0, None, {})
        raise KeyError
    with store.write() as write:
        runs.add_event(write, "run_1", 0, "kept", 0.0, None, {})
    assert [(message.seq, message.type) for message in told] == [(1, "event"), (2, "metrics"), (3, "event")]
    with store.read() as session:
        assert [event.kind for event in runs.events(session, "run_1", 0, 10)] == ["note", "kept"]
    assert store.head == 3
    store.close()
    reopened = Store(path)
    assert reopened.head == 3
    reopened.close()


def test_a_state_is_set_only_by_who_saw_the_state_before(path: Path) -> None:
    store = Store(path)
    with store.write() as write:
        write.session.add(run_row())
    with store.read() as session:
        stale = runs.get(session, "run_1")
        session.expunge(stale)
    with store.write() as write:
        runs.set_state(write, runs.get(write.session, "run_1"), "paused")
    with pytest.raises(runs.StateChanged), store.write() as write:
        runs.set_state(write, stale, "starting")
    store.close()


def test_many_threads_write_and_none_is_refused(path: Path) -> None:
    """ "database is locked" is what people know other trackers for."""
    store = Store(path)
    with store.write() as write:
        write.session.add(run_row())
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(20):
                with store.write(durable=False) as write:
                    runs.add_event(write, "run_1", 0, "note", 0.0, None, {})
                with store.read() as session:
                    runs.get(session, "run_1")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    with store.read() as session:
        assert [event.seq for event in runs.events(session, "run_1", 0, 500)] == list(range(1, 161))
    store.close()


def test_a_reader_cannot_write(path: Path) -> None:
    store = Store(path)
    with pytest.raises(Exception, match="readonly"), store.read() as session:
        session.add(run_row())
        session.commit()
    store.close()


def test_an_error_of_the_database_does_not_show_what_was_written(path: Path) -> None:
    """SQLAlchemy prints bound values in exceptions unless told otherwise."""
    store = Store(path)
    with pytest.raises(Exception, match="UNIQUE") as caught, store.write() as write:
        write.session.add(run_row("run_secret"))
        write.session.flush()
        write.session.expunge_all()
        write.session.add(run_row("run_secret"))
    assert "run_secret" not in str(caught.value)
    store.close()


def test_effective_rows_are_those_of_the_latest_attempt(path: Path) -> None:
    store = Store(path)
    with store.write() as write:
        write.session.add(run_row())
        for attempt, steps in ((1, range(1, 7)), (2, range(4, 9))):
            for step in steps:
                metrics.add(write, "run_1", attempt, [metrics.Row(step, 0.0, 0.0, {"loss": attempt + step / 100})])
    with store.read() as session:
        effective = metrics.columns(session, "run_1", ["loss"])
        everything = metrics.columns(session, "run_1", ["loss"], effective=False)
    assert effective["step"] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert effective["attempt"] == [1, 1, 1, 2, 2, 2, 2, 2]
    assert len(everything["step"]) == 11
    store.close()


def test_a_write_that_fails_at_its_commit_does_not_fail_the_next(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk refuses the COMMIT itself; tests/faults/test_disk_full.py has a real one."""
    migrate(path)
    store = Store(path)

    def refuse(_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store._writer.dialect, "do_commit", refuse)
        with pytest.raises(OperationalError, match="full"), store.write() as write:
            write.session.add(Meta(key="a", value="x"))
    with store.write() as write:
        write.session.add(Meta(key="b", value="x"))
    with store.read() as session:
        assert session.get(Meta, "a") is None
        assert session.get(Meta, "b") is not None
    store.close()
