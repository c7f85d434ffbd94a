"""Where a run's rows come from: data folders, or generated problems. plan() decides it, and nothing else does.

A plan says what is missing and what was done other than asked, before any row is read; read() then reads them.
A row whose text equals an evaluation item, of any dataset that is there, is never among the training rows, nor is anything
made from it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from cognate.config import AugmentConfig, DataConfig
from cognate.data import augment, extra, files, synthetic
from cognate.data.cache import Cache
from cognate.data.curriculum import Part, divide, select
from cognate.data.extra import Extra
from cognate.data.files import Copy, DataMissing
from cognate.data.formats import Example
from cognate.data.sources import SOURCES, HeldOut, Source, Stage

NOTHING_KEPT: Final = Cache(None, lambda _: None)
SYNTHETIC_SEED: Final = 0  # every run sees the same problems, so their losses can be compared


@dataclass(frozen=True)
class Rows:
    """What the documents are made of: examples by dataset, in the order of `parts`. augmented: made ones, trained on as well"""

    parts: tuple[Part, ...]
    training: Mapping[str, Sequence[Example]]
    validation: Mapping[str, Sequence[Example]]
    augmented: Mapping[str, Sequence[Example]] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What will be read. `ingredients`, plain JSON, decide the rows: equal ingredients, equal rows.

    augmentation: the same for the augmented samples; None when there are none
    """

    ingredients: Any
    read: Callable[[], Rows]
    missing: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    digests: Mapping[str, str] = field(default_factory=dict)  # sha-256 of every file that is looked at, by its path in its data folder
    augmentation: Any = None


def plan(
    config: DataConfig,
    data_dir: Path | None,
    cache_dir: Path | None = None,
    known: Mapping[str, str] | None = None,
    kept: Cache = NOTHING_KEPT,
) -> Plan:
    """Real data where there is some; generated problems when asked for, or when nothing at all was asked for.

    Datasets asked for by name, and the user's own, are never replaced by generated problems. Nothing is ever downloaded.
    known: the digests of a run that goes on; as long as all its files are there, no others are looked at
    kept: for what takes long to make
    Raises DataMissing.
    """
    if config.source == "synthetic" or _has_nothing_real(config, data_dir, cache_dir, known):
        return _plan_synthetic(config, kept)
    if data_dir is not None and not data_dir.is_dir():
        raise DataMissing(f"the data folder {str(data_dir)!r} does not exist; correct COGNATE_DATA_DIR, or --data")
    folders = list(files.folders(data_dir, cache_dir).values())
    if known is not None and (before := _look(config, folders, known)).digests == known:
        return _plan_real(config, folders, before, kept)
    return _plan_real(config, folders, _look(config, folders), kept)


def _has_nothing_real(config: DataConfig, data_dir: Path | None, cache_dir: Path | None, known: Mapping[str, str] | None) -> bool:
    """Whether `auto` means generated problems. A run that goes on keeps to what it began with."""
    if config.source == "real" or config.datasets is not None or config.extra:
        return False
    if known is not None:
        return not known
    return data_dir is None and not files.has_any(None, cache_dir)


# --- the data folders -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Found:
    """copies: of all datasets, chosen or not, for a model may be evaluated on what it was not trained on."""

    copies: Mapping[Source, Copy]
    extras: Mapping[str, Extra | None]  # by entry

    @property
    def digests(self) -> dict[str, str]:
        own = {each.path: each.digest for each in self.extras.values() if each is not None}
        return dict(chain.from_iterable(copy.files.items() for copy in self.copies.values())) | own


def _look(config: DataConfig, folders: Sequence[Path], known: Mapping[str, str] | None = None) -> _Found:
    return _Found(files.find_copies(folders, known), {entry: extra.find(entry, folders) for entry in config.extra})


def _plan_real(config: DataConfig, folders: Sequence[Path], found: _Found, kept: Cache) -> Plan:
    wanted = [source for name, source in SOURCES.items() if config.datasets is None or name in config.datasets]
    sources = [source for source in wanted if source in found.copies and found.copies[source].is_whole]
    own = [each for each in found.extras.values() if each is not None]
    missing: dict[str, str] = {}
    for source in wanted:
        if source not in sources:
            missing[source.name] = _say_missing(source, found.copies.get(source), folders)
    for entry, each in found.extras.items():
        if each is None:
            missing[extra.part_name(entry)] = f"{extra.part_name(entry)} has no .jsonl or .parquet file in the data folder and is left out"
    if not sources and not own:
        raise DataMissing(
            f"none of {', '.join(missing)} is in the data folder: set COGNATE_DATA_DIR to one, or run `cognate data fetch`, "
            "or set data.source to 'synthetic' for generated problems"
        )
    digests = found.digests
    return Plan(
        ingredients={
            "datasets": [source.name for source in sources],
            "extra": [[each.name, each.stage] for each in own],
            "files": digests,
        },
        read=partial(_read_real, found.copies, sources, own, config.augment, kept),
        missing=tuple(missing),
        warnings=tuple(missing.values()),
        digests=digests,
        augmentation=augment.ingredients(config.augment),
    )


def _say_missing(source: Source, copy: Copy | None, folders: Sequence[Path]) -> str:
    if not all(files.missing_splits(folder, source) for folder in folders):
        return f"{source.name} came after this run began and is left out"
    if copy is None:
        return f"{source.name} is not in the data folder ({source.folder}) and is left out"
    absent = ", ".join(f"{split}.parquet" for split in source.splits if split not in copy.digests)
    return f"{source.name} is incomplete ({source.folder} has no {absent}) and is left out"


def _read_real(
    copies: Mapping[Source, Copy], sources: Sequence[Source], own: Sequence[Extra], augmentation: AugmentConfig, kept: Cache
) -> Rows:
    selected = {source: _select(copy) for source, copy in copies.items() if copy.is_whole}
    read = {each: extra.read(each) for each in own}
    items = list(chain.from_iterable(held_out for _, held_out in selected.values()))
    for source, copy in copies.items():
        items += files.read_every(copy.folder, source, [split for split in source.evaluation if split in copy.digests])
    for samples, _ in read.values():
        items += select(samples, None, "hash")[1]
    keys = {example.key for example in items}
    shares = []
    for source in sources:
        samples, held_out = selected[source]
        if source.held_out == "split":
            held_out = list(files.read_usable(copies[source].folder, source, source.validation))
        shares.append(_share(source.name, source.category, source.stage, samples, held_out, source.held_out, keys))
    equals = keys.union(extra.texts_of(items)) if own else set()
    for each, (samples, malformed) in read.items():
        _, held_out = select(samples, None, "hash")
        equal = {example.key for example in samples if extra.equals_one(example, equals)}
        shares.append(_share(each.name, extra.FOLDER, each.stage, samples, held_out, "hash", keys | equal, malformed))
    return _with_augmented(_rows(shares), augmentation, keys, kept)


def _with_augmented(rows: Rows, config: AugmentConfig, evaluation_keys: Collection[str], kept: Cache) -> Rows:
    """Made from what is trained on only; what equals an evaluation item all the same is left out like any row."""
    made = augment.samples(config, rows.training, evaluation_keys, kept)
    parts = [replace(part, augmented=len(made.get(part.dataset, ()))) for part in rows.parts]
    training, validation = dict(rows.training), dict(rows.validation)
    if augment.GRAPHS in made:
        first_stage = min(part.stage for part in parts)
        parts.append(Part(augment.GRAPHS, "math", first_stage, 0, 0, 0, 0, augmented=len(made[augment.GRAPHS])))
        training[augment.GRAPHS] = validation[augment.GRAPHS] = []
    return Rows(tuple(parts), training, validation, made)


def _select(copy: Copy) -> tuple[list[Example], list[Example]]:
    source = copy.source
    return select(files.read_usable(copy.folder, source, source.train), source.limit, source.held_out)


_Share = tuple[Part, Sequence[Example], Sequence[Example]]  # with the rows to train on, and those held out


def _share(
    name: str, category: str, stage: Stage, samples: Sequence[Example], held_out: Sequence[Example], how: HeldOut,
    evaluation_keys: Collection[str], malformed: int = 0,
) -> _Share:  # fmt: skip
    trained, n_held_out, n_duplicates = divide(samples, how, evaluation_keys)
    return Part(name, category, stage, len(samples), n_held_out, n_duplicates, len(held_out), malformed), trained, held_out


def _rows(shares: Sequence[_Share]) -> Rows:
    return Rows(
        tuple(part for part, _, _ in shares),
        {part.dataset: trained for part, trained, _ in shares},
        {part.dataset: held_out for part, _, held_out in shares},
    )


# --- generated problems -----------------------------------------------------------------------------------


def _plan_synthetic(config: DataConfig, kept: Cache) -> Plan:
    count = config.synthetic_problems
    warnings: tuple[str, ...] = ()
    if unused := [*(config.datasets or ()), *map(extra.part_name, config.extra)]:
        warnings = (f"data.source is 'synthetic', so {', '.join(unused)} are not used",)
    return Plan(
        ingredients={"synthetic_problems": count, "seed": SYNTHETIC_SEED},
        read=partial(_generate, count, config.augment, kept),
        warnings=warnings,
        augmentation=augment.ingredients(config.augment),
    )


def _generate(count: int, augmentation: AugmentConfig, kept: Cache) -> Rows:
    problems: dict[synthetic.Kind, list[Example]] = {kind: [] for kind in synthetic.KINDS}
    for index in range(count):
        kind, example = synthetic.problem(SYNTHETIC_SEED, index)
        problems[kind].append(example)
    rows = _rows(
        [
            _share(kind, synthetic.CATEGORY[kind], 1, samples, select(samples, None, "hash")[1], "hash", ())
            for kind, samples in problems.items()
        ]
    )
    evaluation_keys = {example.key for held_out in rows.validation.values() for example in held_out}
    return _with_augmented(rows, augmentation, evaluation_keys, kept)
