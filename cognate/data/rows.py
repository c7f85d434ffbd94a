"""Where a run's rows come from: the data folder, or generated problems. plan() decides it, and nothing else does.

A plan says what is missing and what was done other than asked, before any row is read; read() then reads them.
A row whose text equals an evaluation item, of any dataset that is there, is never among the training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from cognate.config import DataConfig
from cognate.data import files, synthetic
from cognate.data.curriculum import Part, divide, select
from cognate.data.files import DataMissing
from cognate.data.formats import Example
from cognate.data.sources import SOURCES, Source

SYNTHETIC_SEED: Final = 0  # every run sees the same problems, so their losses can be compared


@dataclass(frozen=True)
class Rows:
    """What the documents are made of: examples by dataset, in the order of `parts`."""

    parts: tuple[Part, ...]
    training: Mapping[str, Sequence[Example]]
    validation: Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Plan:
    """What will be read. `ingredients`, plain JSON, decide the rows: equal ingredients, equal rows."""

    ingredients: Any
    read: Callable[[], Rows]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)  # sha-256 of every data file, by its path inside the folder


def plan(config: DataConfig, data_dir: Path | None) -> Plan:
    """Real data where there is a folder; generated problems when asked for, or when nothing at all was asked for.

    Datasets asked for by name are never replaced by generated problems. Raises DataMissing.
    """
    if config.source == "synthetic" or (config.source == "auto" and data_dir is None and config.datasets is None):
        return _plan_synthetic(config)
    if data_dir is None:
        raise DataMissing("no data folder is given; set COGNATE_DATA_DIR, or data.source to 'synthetic' for generated problems")
    if not data_dir.is_dir():
        raise DataMissing(f"the data folder {str(data_dir)!r} does not exist; correct COGNATE_DATA_DIR")
    return _plan_folder(config, data_dir)


# --- the data folder --------------------------------------------------------------------------------------


def _plan_folder(config: DataConfig, data_dir: Path) -> Plan:
    wanted = [source for name, source in SOURCES.items() if config.datasets is None or name in config.datasets]
    absent = {source: files.missing_splits(data_dir, source) for source in wanted}
    sources = [source for source in wanted if not absent[source]]
    missing = [source for source in wanted if absent[source]]
    if not sources:
        names = ", ".join(source.name for source in wanted)
        raise DataMissing(f"none of {names} is in the data folder {str(data_dir)!r}; `cognate data` shows what it should hold")
    digests = files.digests(data_dir)
    return Plan(
        ingredients={"datasets": [source.name for source in sources], "files": digests},
        read=partial(_read_folder, data_dir, sources),
        missing=tuple(source.name for source in missing),
        warnings=tuple(_say_missing(source, absent[source]) for source in missing),
        digests=digests,
    )


def _say_missing(source: Source, splits: Sequence[str]) -> str:
    if len(splits) == len(source.splits):
        return f"{source.name} is not in the data folder ({source.folder}) and is left out"
    return f"{source.name} is incomplete ({source.folder} has no {', '.join(f'{split}.parquet' for split in splits)}) and is left out"


def _read_folder(data_dir: Path, sources: Sequence[Source]) -> Rows:
    # Every dataset that is there is looked at, chosen or not: a model may be evaluated on what it was not trained on.
    present = [source for source in SOURCES.values() if not files.missing_splits(data_dir, source)]
    selected = {source.name: _select(data_dir, source) for source in present}
    evaluation_keys = {example.key for _, held_out in selected.values() for example in held_out}
    for source in SOURCES.values():
        evaluation_keys.update(example.key for example in files.read_every(data_dir, source, source.evaluation))
    parts: list[Part] = []
    training: dict[str, list[Example]] = {}
    validation: dict[str, list[Example]] = {}
    for source in sources:
        samples, held_out = selected[source.name]
        trained, n_held_out, n_duplicates = divide(samples, source.held_out, evaluation_keys)
        if source.held_out == "split":
            held_out = list(files.read_usable(data_dir, source, source.validation))
        training[source.name], validation[source.name] = trained, held_out
        parts.append(Part(source.name, source.category, source.stage, len(samples), n_held_out, n_duplicates, len(held_out)))
    return Rows(tuple(parts), training, validation)


def _select(data_dir: Path, source: Source) -> tuple[list[Example], list[Example]]:
    return select(files.read_usable(data_dir, source, source.train), source.limit, source.held_out)


# --- generated problems -----------------------------------------------------------------------------------


def _plan_synthetic(config: DataConfig) -> Plan:
    count = config.synthetic_problems
    warnings: tuple[str, ...] = ()
    if config.datasets is not None:
        warnings = (f"data.source is 'synthetic', so {', '.join(config.datasets)} are not used",)
    return Plan({"synthetic_problems": count, "seed": SYNTHETIC_SEED}, partial(_generate, count), warnings=warnings)


def _generate(count: int) -> Rows:
    problems: dict[synthetic.Kind, list[Example]] = {kind: [] for kind in synthetic.KINDS}
    for index in range(count):
        kind, example = synthetic.problem(SYNTHETIC_SEED, index)
        problems[kind].append(example)
    parts: list[Part] = []
    training: dict[str, list[Example]] = {}
    validation: dict[str, list[Example]] = {}
    for kind, samples in problems.items():
        _, held_out = select(samples, None, "hash")
        training[kind], n_held_out, n_duplicates = divide(samples, "hash", ())
        validation[kind] = held_out
        parts.append(Part(kind, synthetic.CATEGORY[kind], 1, len(samples), n_held_out, n_duplicates, len(held_out)))
    return Rows(tuple(parts), training, validation)
