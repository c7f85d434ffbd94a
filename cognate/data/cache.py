"""Work that is worth keeping: directories named by what went into them, and never trusted unread.

An entry is written beside its place and renamed into it, so it is whole or absent. Its manifest has the size and
sha-256 of every file; an entry that does not agree is thrown away and built anew, and a warning says so.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from cognate.rundir import MANIFEST, CorruptCheckpoint, file_digest, verify_checkpoint, write_json

T = TypeVar("T")


def key_of(ingredients: Any) -> str:
    """A name for everything that decides a result, given as plain JSON."""
    return hashlib.sha256(json.dumps(ingredients, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Cache:
    """`root` None keeps nothing. `warn` is told in a sentence when something could not be used or kept."""

    root: Path | None
    warn: Callable[[str], None]

    def get(self, name: str, key: str, build: Callable[[], T], write: Callable[[T, Path], None], read: Callable[[Path], T]) -> T:
        """What `read` finds in the entry, or what `build` makes, kept with `write` for the next time."""
        if self.root is None:
            return build()
        entry = self.root / f"{name}-{key[:32]}"
        if entry.is_dir():
            try:
                verify_checkpoint(entry)  # the manifest has the same form as a checkpoint's
                return read(entry)
            except (CorruptCheckpoint, OSError) as error:
                self.warn(f"the cached {name} is damaged and is built anew ({error})")
                _remove(entry)
        value = build()
        try:
            _store(entry, value, write)
        except OSError as error:
            self.warn(f"the {name} cannot be cached ({error.strerror}); the next run builds it again")
        return value


def _store(entry: Path, value: T, write: Callable[[T, Path], None]) -> None:
    fresh = entry.with_name(f".{entry.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        write(value, fresh)
        files = {file.name: {"bytes": file.stat().st_size, "sha256": file_digest(file)} for file in sorted(fresh.iterdir())}
        write_json(fresh / MANIFEST, {"files": files})
        fresh.rename(entry)
    except OSError:
        if not entry.is_dir():  # else another process was first, with the same contents
            raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _remove(entry: Path) -> None:
    """Out of its place first, so that nobody finds half of it."""
    spent = entry.with_name(f".{entry.name}.{os.getpid()}.spent")
    entry.rename(spent)
    shutil.rmtree(spent, ignore_errors=True)
