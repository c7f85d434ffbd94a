"""The data files: where each dataset lies, and its rows.

A data folder has one folder per dataset and one Parquet file per split, with the hub's column names (sources.py). There
are two: the user's own (COGNATE_DATA_DIR), and what `cognate data fetch` wrote into the cache folder (hub.py). A dataset
is read from the first of them in which it is whole; one dataset is never put together from both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from cognate.data.formats import FORMATS, Example, Row, is_usable
from cognate.data.sources import SOURCES, Source
from cognate.rundir import Places, file_digest

Origin = Literal["local", "fetched"]
T = TypeVar("T")


class DataMissing(RuntimeError):
    """There is nothing to train on."""


class DataUnreadable(RuntimeError):
    """A data file is there but is not what its dataset should look like."""


# --- where ------------------------------------------------------------------------------------------------


def folders(data_dir: Path | None, cache_dir: Path | None) -> dict[Origin, Path]:
    """The data folders, in the order in which they are asked."""
    named: dict[Origin, Path | None] = {"local": data_dir, "fetched": Places(data_dir, cache_dir).fetched}
    return {origin: folder for origin, folder in named.items() if folder is not None}


def home(data_dir: Path | None, cache_dir: Path | None, source: Source, known: Mapping[str, str] | None = None) -> Path | None:
    """The data folder that the dataset is read from; None where it is whole in none.

    known: the digests of a run, by path; of a dataset that it had whole, no other copy will do
    """
    candidates: Iterable[Path] = folders(data_dir, cache_dir).values()
    if known is not None and all(_path(source, split) in known for split in source.splits):
        candidates = [folder for folder in candidates if copy_of(folder, source).among(known).is_whole]
    return next((folder for folder in candidates if not missing_splits(folder, source)), None)


def has_any(data_dir: Path | None, cache_dir: Path | None) -> bool:
    return any(home(data_dir, cache_dir, source) is not None for source in SOURCES.values())


@dataclass(frozen=True)
class Copy:
    """What a data folder holds of one dataset."""

    source: Source
    folder: Path
    digests: Mapping[str, str]  # sha-256 of the files that are there, by split

    @property
    def is_whole(self) -> bool:
        return len(self.digests) == len(self.source.splits)

    @property
    def files(self) -> dict[str, str]:
        """The digests by path inside the data folder."""
        return {_path(self.source, split): digest for split, digest in self.digests.items()}

    def among(self, known: Mapping[str, str]) -> Copy:
        """The copy without the files that are not known, or are no longer what they were."""
        unchanged = {split: digest for split, digest in self.digests.items() if known.get(_path(self.source, split)) == digest}
        return replace(self, digests=unchanged)


def find_copies(candidates: Sequence[Path], known: Mapping[str, str] | None = None) -> dict[Source, Copy]:
    """Of each dataset the first copy that is whole, else the first of which anything is there.

    known: digests by path; nothing else is looked at
    """
    found: dict[Source, Copy] = {}
    for source in SOURCES.values():
        copies = [copy_of(folder, source) for folder in candidates]
        if known is not None:
            copies = [copy.among(known) for copy in copies]
        copies = [copy for copy in copies if copy.digests]
        if copies:
            found[source] = next((copy for copy in copies if copy.is_whole), copies[0])
    return found


def copy_of(folder: Path, source: Source) -> Copy:
    there = (split for split in source.splits if split_file(folder, source, split).is_file())
    return Copy(source, folder, {split: file_digest(split_file(folder, source, split)) for split in there})


def split_file(data_dir: Path, source: Source, split: str) -> Path:
    return data_dir / _path(source, split)


def _path(source: Source, split: str) -> str:
    return f"{source.folder}/{split}.parquet"


def missing_splits(data_dir: Path, source: Source) -> tuple[str, ...]:
    """The splits whose file is absent. A dataset is present only when none is: without its test rows
    nothing would keep them out of the training text."""
    return tuple(split for split in source.splits if not split_file(data_dir, source, split).is_file())


# --- rows -------------------------------------------------------------------------------------------------


def read_usable(data_dir: Path, source: Source, splits: tuple[str, ...]) -> Iterator[Example]:
    """The rows of the splits that are samples, as text, in the order of the files."""
    return read_rows(data_dir, source, splits, lambda row: FORMATS[source.name](row) if is_usable(source.name, row) else None)


def read_every(data_dir: Path, source: Source, splits: Sequence[str]) -> Iterator[Example]:
    """All rows of those splits that are there, also the ones without an answer: what must not be trained on."""
    there = [split for split in splits if split_file(data_dir, source, split).is_file()]
    return read_rows(data_dir, source, there, FORMATS[source.name])


def read_rows(data_dir: Path, source: Source, splits: Sequence[str], make: Callable[[Row], T | None]) -> Iterator[T]:
    """What `make` makes of the rows, but for None. Raises DataUnreadable, also where a row is not one of the dataset."""
    for split in splits:
        for number, row in enumerate(map(_Row, _rows(data_dir, source, split))):
            try:
                made = make(row)
            except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
                where = f"row {number} of {source.folder}/{split}.parquet"
                raise DataUnreadable(f"{where} does not look like {source.hub}: {type(error).__name__} {error}") from error
            if made is not None:
                yield made


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
