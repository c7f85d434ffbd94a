"""Augmented samples: what the settings of data.augment add to the training rows. Off, nothing is read, made or changed.

samples() is a function of the settings and the training rows: neither the run's seed nor a row that is held out has a part in it.
No sample equals an evaluation item, a training row or another sample. How each kind is made: renumber.py, graphs.py, mutate.py.

Source: docs/levers.md, which has what each is worth.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final

from cognate.config import AugmentConfig, DatasetName
from cognate.data import graphs
from cognate.data.cache import Cache, key_of
from cognate.data.formats import Example
from cognate.data.mutate import mutated
from cognate.data.renumber import NotRenumberable, renumbered
from cognate.rundir import read_json, write_json

SEED: Final = 0  # every run sees the same samples, so their losses can be compared
GRAPHS: Final = "graphs"  # a dataset of its own, that has augmented samples only
RENUMBERED: Final[tuple[DatasetName, ...]] = ("gsm8k", "svamp", "asdiv")


def samples(
    config: AugmentConfig, training: Mapping[str, Sequence[Example]], evaluation_keys: Collection[str], kept: Cache
) -> dict[str, list[Example]]:
    """By dataset; of those that get any. Mutated programs, which take minutes to run, are kept."""
    made: dict[str, list[Example]] = {}
    if config.renumber:
        made |= {name: list(_renumber(training[name], config.renumber)) for name in RENUMBERED if name in training}
    if config.mbpp_mutations and "mbpp" in training:
        made["mbpp"] = _mutations(training["mbpp"], config.mbpp_mutations, kept)
    if config.graphs:
        made[GRAPHS] = [graphs.problem(SEED, index) for index in range(config.graphs)]
    taken = {example.key for examples in training.values() for example in examples}.union(evaluation_keys)
    return {name: _new(examples, taken) for name, examples in made.items()}


def ingredients(config: AugmentConfig) -> Any:
    """All that decides samples() besides the rows, as plain JSON; None when every setting is off."""
    if config == AugmentConfig():
        return None
    return {"settings": config.model_dump(mode="json"), "seed": SEED, "code": _CODE}


def _renumber(examples: Sequence[Example], count: int) -> Iterator[Example]:
    for example in examples:
        try:
            yield from renumbered(example, count, SEED)
        except NotRenumberable:
            continue


def _mutations(examples: Sequence[Example], count: int, kept: Cache) -> list[Example]:
    def run_all() -> list[Example]:
        workers = min(8, os.cpu_count() or 1)
        with warnings.catch_warnings(), ThreadPoolExecutor(workers) as pool:  # whose threads wait for the sandbox's processes
            warnings.simplefilter("ignore")  # of escapes in other people's programs
            return list(chain.from_iterable(pool.map(partial(mutated, count=count, seed=SEED), examples)))

    key = key_of([[asdict(example) for example in examples], count, SEED, _CODE])
    return kept.get("mutations", key, run_all, _write_examples, _read_examples)


def _write_examples(examples: Sequence[Example], entry: Path) -> None:
    write_json(entry / "examples.json", [asdict(example) for example in examples])


def _read_examples(entry: Path) -> list[Example]:
    return [Example(**example) for example in read_json(entry / "examples.json")]


def _new(examples: Sequence[Example], taken: set[str]) -> list[Example]:
    """Those whose key is not taken yet; afterwards it is."""
    new = []
    for example in examples:
        if example.key not in taken:
            taken.add(example.key)
            new.append(example)
    return new


def _digest_code() -> str:
    here = Path(__file__).parent
    texts = [here / f"{name}.py" for name in ("augment", "arithmetic", "renumber", "graphs", "mutate")]
    return hashlib.sha256(b"\0".join(text.read_bytes() for text in texts)).hexdigest()


_CODE: Final = _digest_code()
