"""The data folder: which datasets are there, and their rows.

A data folder has one folder per dataset and one Parquet file per split, with the hub's column names (sources.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cognate.data.formats import FORMATS, Example, Row, is_usable
from cognate.data.sources import SOURCES, Source
from cognate.rundir import file_digest


class DataMissing(RuntimeError):
    """There is nothing to train on."""


class DataUnreadable(RuntimeError):
    """A data file is there but is not what its dataset should look like."""


def split_file(data_dir: Path, source: Source, split: str) -> Path:
    return data_dir / source.folder / f"{split}.parquet"


def missing_splits(data_dir: Path, source: Source) -> tuple[str, ...]:
    """The splits whose file is absent. A dataset is present only when none is: without its test rows
    nothing would keep them out of the training text."""
    return tuple(split for split in source.splits if not split_file(data_dir, source, split).is_file())


def digests(data_dir: Path) -> dict[str, str]:
    """sha-256 of every data file of every dataset, by its path inside the folder."""
    files = (split_file(data_dir, source, split) for source in SOURCES.values() for split in source.splits)
    return {str(file.relative_to(data_dir)): file_digest(file) for file in files if file.is_file()}


def read_usable(data_dir: Path, source: Source, splits: tuple[str, ...]) -> Iterator[Example]:
    """The rows of the splits that are samples, as text, in the order of the files."""
    return _examples(data_dir, source, splits, only_usable=True)


def read_every(data_dir: Path, source: Source, splits: tuple[str, ...]) -> Iterator[Example]:
    """All rows of those splits that are there, also the ones without an answer: what must not be trained on."""
    there = tuple(split for split in splits if split_file(data_dir, source, split).is_file())
    return _examples(data_dir, source, there, only_usable=False)


def _examples(data_dir: Path, source: Source, splits: tuple[str, ...], only_usable: bool) -> Iterator[Example]:
    formatter = FORMATS[source.name]
    for split in splits:
        for number, row in enumerate(map(_Row, _rows(data_dir, source, split))):
            try:
                if not only_usable or is_usable(source.name, row):
                    yield formatter(row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                where = f"row {number} of {source.folder}/{split}.parquet"
                raise DataUnreadable(f"{where} does not look like {source.hub}: {type(error).__name__} {error}") from error


class _Row(dict[str, Any]):
    """A row whose missing values cannot be used: f"{None}" and `if None` would make text and answers of them."""

    def __getitem__(self, column: str) -> Any:
        value = super().__getitem__(column)
        if value is None:
            raise ValueError(f"{column} is null")
        return value


def _rows(data_dir: Path, source: Source, split: str) -> Iterator[Row]:
    try:
        for batch in pq.ParquetFile(split_file(data_dir, source, split)).iter_batches(batch_size=2048):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise DataUnreadable(f"{source.folder}/{split}.parquet cannot be read: {error}") from error


def count_rows(data_dir: Path, source: Source, splits: tuple[str, ...]) -> int:
    """Rows of those splits that are there, from the files' own metadata."""
    files = (split_file(data_dir, source, split) for split in splits)
    try:
        return sum(pq.read_metadata(file).num_rows for file in files if file.is_file())
    except (pa.ArrowException, OSError) as error:
        raise DataUnreadable(f"a file of {source.folder} cannot be read: {error}") from error
