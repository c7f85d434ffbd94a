"""Directories that are deleted: moved aside while the database is told, then removed; moved back where it could not be told."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

from sqlalchemy.exc import OperationalError
from sqlmodel import Session

from app.store import runs
from app.store.tables import Run
from cognate.rundir import RunDir

RESERVE_BYTES = 16 << 20


class Aside:
    """Around a transaction: what is taken within goes when it is committed, and is back in its place when it is not."""

    def __init__(self) -> None:
        self._taken: list[tuple[Path, Path]] = []

    def take(self, path: Path) -> None:
        if path.exists():
            doomed = path.with_name(f".{path.name}.deleted")
            shutil.rmtree(doomed, ignore_errors=True)
            path.rename(doomed)
            self._taken.append((path, doomed))

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for path, doomed in self._taken:
            if kind is None:
                shutil.rmtree(doomed, ignore_errors=True)
            else:
                doomed.rename(path)


class Reserve:
    """Space kept back, so that a full disk does not keep a person from making room on it: a deletion is written down, too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def keep(self) -> None:
        """Have it again, where there is space for it and as much more."""
        if self._path.exists() or shutil.disk_usage(self._path.parent).free < 2 * RESERVE_BYTES:
            return
        try:
            with self._path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)
        except OSError:
            self._path.unlink(missing_ok=True)

    def around(self, delete: Callable[[], None]) -> None:
        """Delete, on a full disk with the reserve's space."""
        try:
            delete()
        except OperationalError as error:
            if "full" not in str(error.orig):
                raise
            with self._lock:
                self._path.unlink(missing_ok=True)  # another deletion may have spent it just now, and made room
                delete()
        self.keep()


def settle(session: Session, runs_dir: Path) -> None:
    """At start: what a killed server had moved aside goes, or where the database still has it, goes back."""
    for doomed in runs_dir.glob(".*.deleted"):
        path = _place_of(doomed)
        _settle(doomed, is_kept=session.get(Run, path.name) is not None)
    for doomed in runs_dir.glob("*/checkpoints/.*.deleted"):
        run = RunDir(doomed.parents[1])
        rows = runs.checkpoints(session, run.path.name)
        _settle(doomed, is_kept=_place_of(doomed) in [run.checkpoint(row.step) for row in rows if row.removed_at is None])


def _place_of(doomed: Path) -> Path:
    return doomed.with_name(doomed.name.removeprefix(".").removesuffix(".deleted"))


def _settle(doomed: Path, *, is_kept: bool) -> None:
    if is_kept and not _place_of(doomed).exists():
        doomed.rename(_place_of(doomed))
    else:
        shutil.rmtree(doomed, ignore_errors=True)
