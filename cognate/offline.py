"""The files that Weights & Biases has of a run in its folder: which there are, and whether they hold what the journals tell.

mirror.py makes them; wandbfile.py reads one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cognate import wandbfile
from cognate.metrics import KEYS
from cognate.rundir import RunDir, read_json
from cognate.story import chapters

_KEYS = frozenset(KEYS)


class NoFiles(LookupError):
    """A run that has nothing to read back."""


@dataclass(frozen=True)
class Comparison:
    """The offline files beside the journals. differing: steps with values that no attempt told; keys: how many steps have each metric.

    removed: how many files there were and are no more (`wandb clean`); their steps are missing
    """

    folders: list[Path]
    removed: int
    unfinished: list[Path]
    missing: list[int]
    doubled: list[int]
    differing: list[int]
    keys: dict[str, int]

    @property
    def is_complete(self) -> bool:
        return not (self.unfinished or self.missing or self.doubled or self.differing)


def compare(run: RunDir) -> Comparison:
    """Read the run's offline files back; raises NoFiles or wandbfile.DamagedFile."""
    folders = folders_of(run)
    if not folders:
        made = _made(run)
        raise NoFiles(
            f"{run.path} has no offline file" + (f" any more: there were {made}" if made else f"; `cognate mirror {run.path}` makes one")
        )
    told: dict[int, list[str]] = {}
    for chapter in chapters(run):
        for row in chapter.rows():
            told.setdefault(row.number, []).append(_spelled(row.values))
    found: dict[int, list[str]] = {}
    keys = dict.fromkeys(KEYS, 0)
    unfinished = []
    for folder in folders:
        is_finished = False
        for record in wandbfile.records(file_in(folder)):
            is_finished |= record.WhichOneof("record_type") == "exit"
            if (written := wandbfile.row(record)) is not None:
                values = {key: written[1][key] for key in written[1].keys() & _KEYS}
                found.setdefault(written[0], []).append(_spelled(values))
                for key in values:
                    keys[key] += 1
        if not is_finished:
            unfinished.append(folder)
    return Comparison(
        folders,
        removed=max(_made(run), number_of(folders[-1])) - len(folders),
        unfinished=unfinished,
        missing=sorted(told.keys() - found.keys()),
        doubled=sorted(step for step, rows in found.items() if len(rows) > 1),
        differing=sorted(step for step, rows in found.items() if not set(rows) <= set(told.get(step, []))),
        keys=keys,
    )


def folders_of(run: RunDir) -> list[Path]:
    """In the order they were made."""
    return sorted(run.mirror.parent.glob("offline-run-*"), key=number_of)


def number_of(folder: Path) -> int:
    """Its place among those of the run, counted from 1."""
    return int(folder.name.rpartition("-")[2])


def file_in(folder: Path) -> Path:
    """What `wandb sync` would send; raises wandbfile.DamagedFile when it is not there."""
    file = next(folder.glob("*.wandb"), None)
    if file is None:
        raise wandbfile.DamagedFile(f"{folder} has no file for W&B")
    return file


def _made(run: RunDir) -> int:
    """How many files the mirror has noted."""
    return int(read_json(run.mirror)["files"]) if run.mirror.exists() else 0


def _spelled(values: Mapping[str, float]) -> str:
    """Equal where the values are, NaN included."""
    return repr(sorted((key, float(value)) for key, value in values.items()))
