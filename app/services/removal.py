"""Directories that are deleted: moved aside while the database is told, then removed; moved back where it could not be told."""

from __future__ import annotations

import shutil
from pathlib import Path

from sqlmodel import Session

from app.store import runs
from app.store.tables import Run
from cognate.rundir import RunDir


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
