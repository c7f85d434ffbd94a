"""Checkpoints: everything a run needs to go on as if it had never stopped.

    model.safetensors      parameters and persistent buffers, fp32
    average.safetensors    the same with the running mean of the parameters, where the run keeps one: what is evaluated
    optimizer.safetensors  the optimizer's tensors
    state.json             position, counters, and the optimizer's numbers
    tokenizer.json, config.json
    manifest.json          sha-256 and size of each of the above

Copied first, then written while training goes on (Writer): beside its place, synced, then renamed, so that a directory named
step_NNNNNN is complete. Randomness needs no entry
here, because every step seeds its own from (seed, step). No pickle anywhere.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cognate import __version__
from cognate.config import parse
from cognate.data.tokenizer import Tokenizer
from cognate.model import Cognate
from cognate.rundir import CorruptCheckpoint, RunDir, file_digest, read_json, sync_directory, verify_checkpoint, write_json, write_manifest

AVERAGE = "average.safetensors"
SPACE_LEFT_BYTES = 64 << 20  # for the small files, and for everybody else


@dataclass
class Position:
    """Where training is. `step` updates are done, `epoch_step` of them in `epoch` (counted from 1)."""

    step: int = 0
    epoch: int = 1
    epoch_step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    val_loss: float | None = None  # as measured at this step


@dataclass(frozen=True)
class Saved:
    """A verified checkpoint, read back. config: of the run that wrote it, which a fork has changed"""

    path: Path
    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    tokenizer: Tokenizer
    config: dict[str, Any]
    environment: dict[str, Any]
    data: str
    data_files: dict[str, str] | None  # None in checkpoints that do not know
    files: dict[str, Any]
    average: dict[str, Tensor] | None


@dataclass(frozen=True)
class Snapshot:
    """All that goes into a checkpoint, copied to the host: training may go on while it is written."""

    position: Position
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    numbers: dict[str, Any]
    tokenizer: Tokenizer
    average: dict[str, Tensor] | None = None

    @property
    def bytes(self) -> int:
        tensors = (*self.model.values(), *self.optimizer.values(), *(self.average or {}).values())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def snapshot(
    position: Position,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    tokenizer: Tokenizer,
    environment: dict[str, Any],
    data: str,
    data_files: Mapping[str, str],
    average: dict[str, Tensor] | None = None,
) -> Snapshot:
    """environment: what a bit-exact resume depends on besides; data: the corpus's fingerprint; data_files: its files' digests

    average: WeightAverage.state()
    """
    numbers, tensors = _take_apart(optimizer.state_dict())
    state = {
        "position": asdict(position),
        "environment": dict(environment),
        "data": data,
        "data_files": dict(data_files),
        "optimizer": numbers,
    }
    return Snapshot(
        replace(position), _on_host(model.state_dict()), _on_host(tensors), state, tokenizer, _on_host(average) if average else None
    )


def write(run: RunDir, taken: Snapshot, keep: int) -> tuple[Path, dict[str, Any]]:
    """Write a checkpoint, then delete those that are no longer kept; its directory and files. Leaves nothing behind when it fails."""
    target = run.checkpoint(taken.position.step)
    temporary = target.with_name(f".{target.name}.tmp")
    discard_unfinished(run)
    _refuse_without_space(run, taken.bytes)
    temporary.mkdir()
    try:
        _write_tensors(taken.model, temporary / "model.safetensors")
        _write_tensors(taken.optimizer, temporary / "optimizer.safetensors")
        if taken.average is not None:
            _write_tensors(taken.average, temporary / AVERAGE)
        write_json(temporary / "state.json", taken.numbers)
        taken.tokenizer.save(temporary / "tokenizer.json")
        shutil.copyfile(run.config_file, temporary / "config.json")
        manifest = _write_manifest(temporary, taken.position.step)
        if target.exists():  # a step done twice after an older checkpoint was resumed; the newer writing is as good
            shutil.rmtree(target)
        temporary.rename(target)
        sync_directory(run.checkpoints)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if taken.position.val_loss is not None:
        run.note_best(taken.position.step, taken.position.val_loss)
    discard_older(run, keep)
    return target, manifest["files"]


class Writer:
    """Writes one checkpoint at a time, in a thread beside training. What goes wrong is raised by collect()."""

    def __init__(self, run: RunDir, keep: int) -> None:
        self._run, self._keep = run, keep
        self._open: Future[tuple[Path, dict[str, Any]]] | None = None

    def start(self, taken: Snapshot) -> None:
        """Begin to write; what was begun before must have been collected."""
        assert self._open is None, "the checkpoint before is still being written"
        self._open = Future()
        threading.Thread(target=self._work, args=(taken, self._open), name="checkpoint").start()

    def collect(self, *, wait: bool) -> tuple[Path, dict[str, Any]] | None:
        """Directory and files of a checkpoint that is complete now; once for each."""
        if self._open is None or not (wait or self._open.done()):
            return None
        written, self._open = self._open, None
        return written.result()

    def _work(self, taken: Snapshot, written: Future[tuple[Path, dict[str, Any]]]) -> None:
        try:
            written.set_result(write(self._run, taken, self._keep))
        except BaseException as error:
            written.set_exception(error)


def load(path: Path) -> Saved:
    """Read a checkpoint whose digests hold; raises CorruptCheckpoint."""
    manifest = verify_checkpoint(path)
    state = read_json(path / "state.json")
    return Saved(
        path,
        Position(**state["position"]),
        load_file(path / "model.safetensors"),
        _put_together(state["optimizer"], load_file(path / "optimizer.safetensors")),
        Tokenizer.load(path / "tokenizer.json"),
        read_json(path / "config.json"),
        state["environment"],
        state["data"],
        state.get("data_files"),
        manifest["files"],
        load_file(path / AVERAGE) if (path / AVERAGE).is_file() else None,
    )


def load_model(path: Path) -> tuple[Cognate, Tokenizer]:
    """The model of a checkpoint, in eval mode, and its tokenizer; raises CorruptCheckpoint. Where it has a mean of weights, with that."""
    verify_checkpoint(path)
    model = Cognate(parse(read_json(path / "config.json")).model)
    model.load_state_dict(load_weights(path))
    return model.eval(), Tokenizer.load(path / "tokenizer.json")


def weights_file(path: Path) -> Path:
    """What a checkpoint is evaluated with: the mean of weights where it has one."""
    return path / AVERAGE if (path / AVERAGE).is_file() else path / "model.safetensors"


def weights_digest(files: Mapping[str, Any]) -> str:
    """sha-256 of that file, from a manifest's `files`."""
    return str(files.get(AVERAGE, files["model.safetensors"])["sha256"])


def load_weights(path: Path) -> dict[str, Tensor]:
    return load_file(weights_file(path))


def write_weights(weights: dict[str, Tensor], directory: Path) -> None:
    """Into a directory that has everything else: it is a checkpoint then, though not one of a run."""
    _write_tensors(weights, directory / "model.safetensors")
    _write_manifest(directory, 0)


def newest(run: RunDir) -> tuple[Saved | None, list[str]]:
    """The newest checkpoint that verifies, and a sentence for each newer one that did not.

    Those are set aside under another name: kept for whoever wants to look, but counted no longer.
    """
    refused: list[str] = []
    for _, path in reversed(run.complete_checkpoints()):
        try:
            return load(path), refused
        except CorruptCheckpoint as error:
            aside = path.with_name(f"refused_{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            refused.append(f"{error}; it is set aside as {aside.name}")
    return None, refused


def discard_older(run: RunDir, keep: int) -> list[int]:
    """Delete all but the newest `keep` checkpoints, the best one and the pinned; the steps that are left."""
    complete = run.complete_checkpoints()
    best = run.best()
    kept = {*(step for step, _ in complete[-keep:]), *run.pinned(), *([best[0]] if best else [])}
    for step, path in complete:
        if step in kept:
            continue
        doomed = path.with_name(f".{path.name}.tmp")  # renamed first: half-deleted must not look complete
        path.rename(doomed)
        shutil.rmtree(doomed)
    return [step for step, _ in complete if step in kept]


def discard_unfinished(run: RunDir) -> None:
    """Remove what a killed worker was writing."""
    for path in run.checkpoints.glob(".step_*.tmp"):
        shutil.rmtree(path, ignore_errors=True)


def _on_host(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies. A GPU is waited for once, not for each: they go into pinned memory, which torch takes for what need not be waited for."""
    copies = {
        name: tensor.detach().to("cpu", copy=True, non_blocking=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
        torch.cuda.synchronize(device)
    return copies


def _refuse_without_space(run: RunDir, size: int) -> None:
    """Rather than fill the disk to its last byte, which would silence the journal and the database too."""
    needed = size + SPACE_LEFT_BYTES
    if shutil.disk_usage(run.path).free < needed:
        raise OSError(errno.ENOSPC, f"a checkpoint needs {needed / 2**20:.0f} MiB of free disk", str(run.checkpoints))


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path)
    except SafetensorError as error:  # wraps the system's error in words
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def _write_manifest(directory: Path, step: int) -> dict[str, Any]:
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _synced_digest(path)} for path in sorted(directory.iterdir())}
    versions = {"cognate": __version__, "torch": torch.__version__, "python": platform.python_version()}
    manifest = {"step": step, "created_at": time.time(), "versions": versions, "files": files}
    write_manifest(directory, manifest)
    return manifest


def _synced_digest(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_digest(path)


def _take_apart(tree: Any) -> tuple[Any, dict[str, Tensor]]:
    """A nested state as plain JSON, with every tensor replaced by its name in the returned dictionary."""
    tensors: dict[str, Tensor] = {}

    def walk(node: Any, path: str) -> Any:
        if isinstance(node, Tensor):
            tensors[path] = node
            return {"tensor": path}
        if isinstance(node, dict):
            return {"items": [[key, walk(value, f"{path}.{key}")] for key, value in node.items()]}  # JSON keys cannot be integers
        if isinstance(node, list | tuple):
            return [walk(value, f"{path}.{place}") for place, value in enumerate(node)]
        return node

    return walk(tree, "optimizer"), tensors


def _put_together(node: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if "tensor" in node:
            return tensors[node["tensor"]]
        return {key: _put_together(value, tensors) for key, value in node["items"]}
    if isinstance(node, list):
        return [_put_together(value, tensors) for value in node]
    return node
