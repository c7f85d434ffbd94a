"""A run is a directory: the names in it, and how each file is read and written.

    config.json                     what was asked for; never changes
    attempts/0001/                  one process life
        control.json                what the server wants now; replaced whole
        limits.json                 what this attempt must make do with, where there is such a thing; written before it starts
        events.jsonl                what happened; only ever appended to
        started.json, exit.json     who the process was, how it ended
        lease                       locked for as long as any process of the attempt lives
        worker.log                  what it printed
    afterwards.jsonl                what was measured of it once it was over, as a journal's lines
    checkpoints/step_000500/        complete once it has this name
    checkpoints/pinned.json         steps of those that are kept as long as the run
    checkpoints/best.json           step and held-out loss of the best one
    wandb/mirror.json               what the Weights & Biases mirror has taken up (mirror.py)

The worker writes facts here and the server intent; neither knows more of the other than this file. Imports no torch.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from cognate.config import RunConfig, parse
from cognate.events import Event, Kind, MalformedLine, decode, encode

Command = Literal["run", "pause", "stop", "checkpoint"]
PINNED, BEST = "pinned.json", "best.json"
_STEP_NAME = re.compile(r"step_(\d{6,})")


@dataclass(frozen=True)
class Control:
    """What the server wants of a worker. A new `serial` makes a command new; the worker names it in its answer.

    save: whether a pause or stop saves first; without, what came after the newest checkpoint is done again, or lost
    """

    command: Command = "run"
    serial: int = 0
    save: bool = True


@dataclass(frozen=True)
class Limits:
    """What an attempt must make do with, and its configuration did not know of. Changes neither batches nor steps.

    rows_at_most: of a batch, through the model at once; None: as many as fit
    """

    rows_at_most: int | None = None


@dataclass(frozen=True)
class Places:
    """Where work finds and keeps what is not the run's own."""

    data_dir: Path | None
    cache_dir: Path | None

    @property
    def fetched(self) -> Path | None:
        """The data folder that `cognate data fetch` writes."""
        return None if self.cache_dir is None else self.cache_dir / "datasets"


@dataclass(frozen=True)
class ProcessDir:
    """What a process under the shim and its server know of each other: an attempt's directory, or a job's."""

    path: Path

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def started(self) -> Path:
        return self.path / "started.json"

    @property
    def exit(self) -> Path:
        return self.path / "exit.json"

    @property
    def lease(self) -> Path:
        return self.path / "lease"


class AttemptDir(ProcessDir):
    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def run(self) -> RunDir:
        return RunDir(self.path.parent.parent)

    @property
    def control(self) -> Path:
        return self.path / "control.json"

    @property
    def limits(self) -> Path:
        return self.path / "limits.json"

    @property
    def journal(self) -> Path:
        return self.path / "events.jsonl"

    def create(self) -> None:
        """Make the directory; raises FileExistsError when some process has had this attempt already."""
        self.path.mkdir(parents=True)
        write_control(self, Control())


@dataclass(frozen=True)
class RunDir:
    path: Path

    @property
    def config_file(self) -> Path:
        return self.path / "config.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def attempt(self, number: int) -> AttemptDir:
        return AttemptDir(self.path / "attempts" / f"{number:04d}")

    def attempts(self) -> list[AttemptDir]:
        """Those made so far, oldest first."""
        return [AttemptDir(path) for path in sorted((self.path / "attempts").glob("[0-9]*"))]

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step_{step:06d}"

    def pin(self, steps: Iterable[int]) -> None:
        """Say which checkpoints are to be kept whatever comes."""
        write_json(self.checkpoints / PINNED, sorted(steps))

    def pinned(self) -> list[int]:
        try:
            return [int(step) for step in read_json(self.checkpoints / PINNED)]
        except FileNotFoundError:
            return []

    def note_best(self, step: int, val_loss: float) -> None:
        """Remember the checkpoint of `step` if none before had a smaller held-out loss."""
        before = self.best()
        if before is None or val_loss < before[1] or step == before[0]:
            write_json(self.checkpoints / BEST, {"step": step, "val_loss": val_loss})

    def best(self) -> tuple[int, float] | None:
        """Step and held-out loss of the best checkpoint."""
        try:
            noted = read_json(self.checkpoints / BEST)
        except FileNotFoundError:
            return None
        return int(noted["step"]), float(noted["val_loss"])

    def best_checkpoint(self) -> int | None:
        """The step of the best checkpoint, or of the newest where that one is not there; None without any."""
        complete, noted = [step for step, _ in self.complete_checkpoints()], self.best()
        if noted is not None and noted[0] in complete:
            return noted[0]
        return max(complete, default=None)

    @property
    def mirror(self) -> Path:
        return self.path / "wandb" / "mirror.json"

    @property
    def afterwards(self) -> Path:
        return self.path / "afterwards.jsonl"

    def journal_sizes(self) -> list[int]:
        """Bytes of each attempt's journal, oldest first, and of what came afterwards, if anything did."""
        journals = [*(attempt.journal for attempt in self.attempts()), *[self.afterwards] * self.afterwards.exists()]
        return [journal.stat().st_size if journal.exists() else 0 for journal in journals]

    def is_mirrored(self) -> bool:
        """Whether the mirror has taken up all that the journals say now."""
        try:
            return bool(read_json(self.mirror)["journal_sizes"] == self.journal_sizes())
        except FileNotFoundError:
            return False

    def create(self, config: RunConfig) -> None:
        """Make the directory and its immutable configuration; raises FileExistsError when there is one."""
        self.path.mkdir(parents=True)
        self.checkpoints.mkdir()
        write_json(self.config_file, config.model_dump(mode="json"))

    def config(self) -> RunConfig:
        return parse(read_json(self.config_file))

    def complete_checkpoints(self) -> list[tuple[int, Path]]:
        """(step, directory) of every checkpoint that reached its name, oldest first."""
        if not self.checkpoints.is_dir():
            return []
        found = ((_STEP_NAME.fullmatch(path.name), path) for path in self.checkpoints.iterdir())
        return sorted((int(match[1]), path) for match, path in found if match)


# --- small JSON files -------------------------------------------------------------------------------------


def read_json(path: Path) -> Any:
    return json.loads(path.read_bytes())


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, allow_nan=False, indent=1) + "\n")


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace `path` by `text`, whole or not at all, and on disk when this returns. mode: less the process's umask"""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:  # noqa: PTH123 - born with its mode
            file.write(text.encode())
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_control(attempt: AttemptDir, control: Control) -> None:
    write_json(attempt.control, asdict(control))


def read_control(attempt: AttemptDir) -> Control:
    """The command in force; none yet means run."""
    try:
        return Control(**read_json(attempt.control))
    except FileNotFoundError:
        return Control()


def write_limits(attempt: AttemptDir, limits: Limits) -> None:
    write_json(attempt.limits, asdict(limits))


def read_limits(attempt: AttemptDir) -> Limits:
    """Those of the attempt; no file means none."""
    try:
        return Limits(**read_json(attempt.limits))
    except FileNotFoundError:
        return Limits()


# --- the journal ------------------------------------------------------------------------------------------


class Journal:
    """Appends events to an attempt's journal, or to a file like one. One writer; a line is written whole or taken back."""

    def __init__(self, attempt: AttemptDir | Path) -> None:
        path = attempt.journal if isinstance(attempt, AttemptDir) else attempt
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        self._end = os.lseek(self._file, 0, os.SEEK_END)
        self._seq = 0

    def append(self, kind: Kind, **data: Any) -> Event:
        event = Event(self._seq + 1, time.time(), kind, data)
        line = encode(event)
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file, line[written:])
        except OSError:
            os.ftruncate(self._file, self._end)  # a full disk must not leave half a line before the next one
            raise
        self._end += len(line)
        self._seq += 1
        return event

    def sync(self) -> None:
        """On disk when this returns; used before a checkpoint that the lines lead up to."""
        os.fsync(self._file)

    def close(self) -> None:
        os.close(self._file)


def append_afterwards(run: RunDir, step: int, epoch: float, values: Mapping[str, float]) -> None:
    """What was measured of a run that is over: metrics of its last row."""
    journal = Journal(run.afterwards)
    try:
        journal.append(Kind.METRICS, step=step, epoch=epoch, values=dict(values), progress={})
        journal.sync()
    finally:
        journal.close()


def read_journal(path: Path, offset: int = 0, limit: int = 1 << 20) -> Iterator[tuple[Event | MalformedLine, int]]:
    """Events from `offset` on, each with the offset behind it; at most about `limit` bytes are read.

    Only whole lines: a torn last line waits for its end. A whole line that is no event is yielded as the error.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            block = file.read(limit)
            if block and b"\n" not in block:
                block += file.readline()
    except FileNotFoundError:
        return
    *lines, _torn = block.split(b"\n")
    for line in lines:
        offset += len(line) + 1
        try:
            yield decode(line), offset
        except MalformedLine as error:
            yield error, offset


def read_to_end(path: Path, offset: int = 0) -> Iterator[tuple[Event | MalformedLine, int]]:
    """read_journal(), block after block, until there is nothing more."""
    before = -1
    while before != offset:
        before = offset
        for entry, offset in read_journal(path, before):
            yield entry, offset


# --- the lease --------------------------------------------------------------------------------------------


def take_lease(directory: ProcessDir) -> int | None:
    """Lock the lease of an attempt or job; the file descriptor to hand on, or None while a process holds it.

    The lock belongs to the open file: it is inherited, and free once every process that inherited it is gone.
    """
    descriptor = os.open(directory.lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return None
        raise
    return descriptor


def lease_is_free(directory: ProcessDir) -> bool:
    """Whether no process of the attempt or job is left, however it ended."""
    descriptor = take_lease(directory)
    if descriptor is None:
        return False
    os.close(descriptor)
    return True


# --- checkpoints as files ---------------------------------------------------------------------------------

MANIFEST = "manifest.json"
_MANIFEST_KEYS = {"step", "created_at", "versions", "files", "sha256"}


class CorruptCheckpoint(RuntimeError):
    """A checkpoint whose files are not those its manifest describes."""


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a digest of its own, for one bit of it may flip too."""
    write_json(directory / MANIFEST, {**manifest, "sha256": digest_of_manifest(manifest)})


def verify_checkpoint(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file has the recorded size and sha-256; raises CorruptCheckpoint.

    Weight files load without complaint after a bit flip, so the digests are the only witness.
    """
    try:
        manifest: dict[str, Any] = read_json(path / MANIFEST)
        files = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in manifest["files"].items()}
        is_whole = manifest.get("sha256") in (None, digest_of_manifest(manifest)) and manifest.keys() <= _MANIFEST_KEYS
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CorruptCheckpoint(f"{path.name}: no readable manifest ({error})") from error
    if not is_whole:
        raise CorruptCheckpoint(f"{path.name}: {MANIFEST} does not have its own digest")
    for name, (size, digest) in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise CorruptCheckpoint(f"{path.name}: {name} is missing or not {size} bytes long")
        if file_digest(file) != digest:
            raise CorruptCheckpoint(f"{path.name}: {name} does not have the digest in its manifest")
    return manifest


def digest_of_manifest(manifest: dict[str, Any]) -> str:
    """sha-256 of what a manifest says, but for its own digest."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
