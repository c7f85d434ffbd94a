"""What the data folders hold, dataset by dataset: the numbers of `cognate data` and of the job `data_status`; and samples to look at.

Nothing is tokenised.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from cognate.config import SIX_DATASETS, DatasetName
from cognate.data import extra, files
from cognate.data.cache import key_of
from cognate.data.curriculum import STAGES, is_held_out
from cognate.data.files import DataUnreadable, Origin
from cognate.data.formats import Example
from cognate.data.hub import HUB, MANIFEST
from cognate.data.sources import SOURCES, Category, HeldOut, Source, Stage
from cognate.jobdir import JobContext
from cognate.rundir import read_json


@dataclass(frozen=True)
class Shortfall:
    """Fewer rows than the hub has, and than would be used."""

    split: str
    rows: int
    hub_rows: int


@dataclass(frozen=True)
class SourceRow:
    """One dataset. The counts are rows in the files that it is trained, validated and tested on; 0 when it has none."""

    name: DatasetName
    category: Category
    stage: Stage
    held_out: HeldOut
    folder: str
    hub: str
    revision: str | None
    licence: str
    origin: Origin | None = None  # of the data folder it is read from; None where it is whole in none
    missing_files: tuple[str, ...] = ()
    train: int = 0
    validation: int = 0
    test: int = 0
    samples: int = 0  # rows selected for training, before held-out rows and duplicates are taken out
    without_passage: int = 0  # of the samples, HotpotQA's that are a bare question
    partial: tuple[Shortfall, ...] = ()
    sha256: str | None = None  # over the digests of all its files
    commit: str | None = None  # of the hub, where it was fetched
    damage: str | None = None

    @property
    def is_present(self) -> bool:
        return self.origin is not None and self.damage is None


def describe_sources(data_dir: Path | None, cache_dir: Path | None = None) -> list[SourceRow]:
    """All 14 datasets, those that are not there or cannot be read included."""
    return [_describe(data_dir, cache_dir, source) for source in SOURCES.values()]


def stage_samples(rows: Sequence[SourceRow], datasets: Collection[DatasetName] | None = None) -> dict[Stage, int]:
    """Samples of each stage, over the datasets that are there (and chosen, when `datasets` names some)."""
    counted = [row for row in rows if row.is_present and (datasets is None or row.name in datasets)]
    return {stage: sum(row.samples for row in counted if row.stage <= stage) for stage in STAGES}


def status(data_dir: Path | None, cache_dir: Path | None) -> dict[str, Any]:
    """The whole table as plain JSON."""
    rows = describe_sources(data_dir, cache_dir)
    sums = {"all": stage_samples(rows), "six_datasets": stage_samples(rows, SIX_DATASETS)}
    return {
        "datasets": [asdict(row) | {"present": row.is_present} for row in rows],
        "stage_samples": {name: {str(stage): samples for stage, samples in each.items()} for name, each in sums.items()},
        "extra": [_describe_extra(each) for each in extra.list_all(files.folders(data_dir, cache_dir).values())],
    }


def perform_status(_: dict[str, Any], context: JobContext) -> dict[str, Any]:
    """The job `data_status`."""
    return status(context.places.data_dir, context.places.cache_dir)


def _describe(data_dir: Path | None, cache_dir: Path | None, source: Source) -> SourceRow:
    hub = HUB[source.name]
    row = SourceRow(source.name, source.category, source.stage, source.held_out, source.folder, source.hub, hub.revision, hub.licence)
    folders = files.folders(data_dir, cache_dir)
    origin = next((name for name, folder in folders.items() if not files.missing_splits(folder, source)), None)
    if origin is None:
        least = min((files.missing_splits(folder, source) for folder in folders.values()), key=len, default=source.splits)
        return replace(row, missing_files=tuple(f"{split}.parquet" for split in least))
    try:
        return _count(replace(row, origin=origin), source, folders[origin])
    except DataUnreadable as error:
        return replace(row, origin=origin, damage=str(error))


def _count(row: SourceRow, source: Source, folder: Path) -> SourceRow:
    samples = list(islice(files.read_usable(folder, source, source.train), source.limit))
    rows = {split: files.count_rows(folder, source, (split,)) for split in source.splits}
    needed = {split: min(count, source.limit or count) if split == "train" else count for split, count in HUB[source.name].rows.items()}
    return replace(
        row,
        train=sum(rows[split] for split in source.train),
        validation=sum(rows[split] for split in source.validation),
        test=sum(rows[split] for split in source.test),
        samples=len(samples),
        without_passage=sum(example.prompt.startswith("Question: ") for example in samples) if source.name == "hotpotqa" else 0,
        partial=tuple(
            Shortfall(split, rows.get(split, 0), HUB[source.name].rows[split]) for split in needed if rows.get(split, 0) < needed[split]
        ),
        sha256=key_of(files.copy_of(folder, source).files),
        commit=_commit(folder / source.folder / MANIFEST),
    )


def _commit(manifest: Path) -> str | None:
    try:
        return str(read_json(manifest)["commit"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _describe_extra(each: extra.Extra) -> dict[str, Any]:
    try:
        samples, malformed = extra.read(each)
    except DataUnreadable as error:
        return {"name": each.name, "samples": 0, "malformed": 0, "sha256": each.digest, "damage": str(error)}
    return {"name": each.name, "samples": len(samples), "malformed": malformed, "sha256": each.digest, "damage": None}


# --- samples ----------------------------------------------------------------------------------------------

Use = Literal["training", "held out", "test"]


def samples_of(data_dir: Path | None, cache_dir: Path | None, name: DatasetName, count: int) -> Iterator[tuple[Use, Example]]:
    """The first `count` rows that are trained on, held out, and tested on, each as the model sees it. Raises DataMissing, DataUnreadable.

    Rows that equal an evaluation item are shown with those trained on; finding them takes every dataset.
    """
    source = SOURCES[name]
    folder = files.home(data_dir, cache_dir, source)
    if folder is None:
        raise files.DataMissing(f"{name} is in no data folder; `cognate data` shows what is missing")
    rows = list(islice(files.read_usable(folder, source, source.train), None if source.held_out == "rest" else source.limit))
    shown: dict[Use, list[Example]] = {"training": [], "held out": [], "test": []}
    for number, example in enumerate(rows):
        shown["held out" if _is_kept(source, number, example) else "training"].append(example)
    shown["held out"] += islice(files.read_every(folder, source, source.validation), count)
    shown["test"] += islice(files.read_every(folder, source, source.test), count)
    for use, examples in shown.items():
        yield from ((use, example) for example in examples[:count])


def own_samples_of(data_dir: Path | None, cache_dir: Path | None, name: str, count: int) -> Iterator[tuple[Use, Example]]:
    """The same of the user's own data, extra/NAME."""
    named = {each.name: each for each in extra.list_all(files.folders(data_dir, cache_dir).values())}
    if name not in named:
        raise files.DataMissing(f"there is no {name}; have {', '.join(named) or 'none'}")
    examples, _ = extra.read(named[name])
    shown: dict[Use, list[Example]] = {"training": [], "held out": []}
    for example in examples:
        shown["held out" if is_held_out(example.key) else "training"].append(example)
    for use, chosen in shown.items():
        yield from ((use, example) for example in chosen[:count])


def _is_kept(source: Source, number: int, example: Example) -> bool:
    if source.held_out == "hash":
        return is_held_out(example.key)
    return source.held_out == "rest" and source.limit is not None and number >= source.limit
