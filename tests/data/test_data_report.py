"""report.py: the numbers of `cognate data`."""

from __future__ import annotations

from pathlib import Path

from data_folders import write_folder

from cognate.config import SIX_DATASETS
from cognate.data.report import describe_sources, stage_samples
from cognate.data.sources import SOURCES


def test_every_dataset_has_a_row_also_when_it_is_missing(tmp_path: Path) -> None:
    write_folder(tmp_path, ["boolq", "gsm8k"])
    (tmp_path / "gsm8k" / "test.parquet").unlink()
    rows = {row.name: row for row in describe_sources(tmp_path)}
    assert list(rows) == list(SOURCES)
    assert (rows["boolq"].origin, rows["boolq"].missing_files) == ("local", ())
    assert (rows["boolq"].train, rows["boolq"].validation, rows["boolq"].test, rows["boolq"].samples) == (30, 4, 0, 30)
    assert (rows["gsm8k"].origin, rows["gsm8k"].missing_files, rows["gsm8k"].samples) == (None, ("test.parquet",), 0)
    assert rows["drop"].missing_files == ("train.parquet", "validation.parquet", "validation_rest.parquet")
    assert [row.name for row in rows.values() if row.is_present] == ["boolq"]


def test_the_sums_count_what_is_there(tmp_path: Path) -> None:
    rows = describe_sources(write_folder(tmp_path, ["boolq", "gsm8k", "drop"]))
    assert stage_samples(rows) == {1: 30, 2: 60, 3: 90}
    assert stage_samples(rows, SIX_DATASETS) == {1: 30, 2: 30, 3: 30}
    assert stage_samples(rows, ["drop"]) == {1: 0, 2: 0, 3: 30}


def test_a_limit_bounds_the_samples(tmp_path: Path) -> None:
    rows = describe_sources(write_folder(tmp_path, ["wikitext"], n_train=5003))
    assert next(row.samples for row in rows if row.name == "wikitext") == 5000
