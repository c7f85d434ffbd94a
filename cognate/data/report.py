"""What the data folder holds, dataset by dataset: the numbers that `cognate data` prints. Nothing is tokenised."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from cognate.config import DatasetName
from cognate.data import files
from cognate.data.curriculum import STAGES
from cognate.data.sources import SOURCES, Category, HeldOut, Source, Stage


@dataclass(frozen=True)
class SourceRow:
    """One dataset. The counts are rows in the files that it is trained, validated and tested on; 0 when it has none."""

    name: DatasetName
    category: Category
    hub: str
    folder: str
    stage: Stage
    held_out: HeldOut
    missing_files: tuple[str, ...]
    train: int
    validation: int
    test: int
    samples: int  # rows selected for training, before held-out rows and duplicates are taken out

    @property
    def is_present(self) -> bool:
        return not self.missing_files


def describe_sources(data_dir: Path) -> list[SourceRow]:
    """All 14 datasets, those that are not there included. Raises DataUnreadable."""
    return [_describe(data_dir, source) for source in SOURCES.values()]


def stage_samples(rows: Sequence[SourceRow], datasets: Collection[DatasetName] | None = None) -> dict[Stage, int]:
    """Samples of each stage, over the datasets that are there (and chosen, when `datasets` names some)."""
    counted = [row for row in rows if row.is_present and (datasets is None or row.name in datasets)]
    return {stage: sum(row.samples for row in counted if row.stage <= stage) for stage in STAGES}


def _describe(data_dir: Path, source: Source) -> SourceRow:
    absent = files.missing_splits(data_dir, source)
    train, validation, test = (files.count_rows(data_dir, source, splits) for splits in (source.train, source.validation, source.test))
    samples = 0 if absent else sum(1 for _ in islice(files.read_usable(data_dir, source, source.train), source.limit))
    return SourceRow(
        source.name, source.category, source.hub, source.folder, source.stage, source.held_out,
        tuple(f"{split}.parquet" for split in absent), train, validation, test, samples,
    )  # fmt: skip
