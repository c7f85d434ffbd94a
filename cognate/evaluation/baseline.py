"""What an untrained model reaches on the same items: measured by the same code, and kept, since it never changes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Final

import torch

from cognate.config import RunConfig
from cognate.data.cache import Cache, key_of
from cognate.data.tokenizer import Tokenizer
from cognate.evaluation.items import Items
from cognate.evaluation.scoring import Batching
from cognate.evaluation.tasks import Figure, Model, Outcome, measure
from cognate.model import Cognate
from cognate.rundir import read_json, write_json


def untrained(
    config: RunConfig, tokenizer: Tokenizer, device: torch.device, cache: Cache, batching: Batching
) -> Callable[[Items], Outcome]:
    """Measures the model that a run of `config` begins with. Its figures are kept by what decides them: configuration, seed,
    tokenizer, items, and the code of the model, this package and the sandbox."""
    made: list[Model] = []

    def of(chosen: Items) -> Outcome:
        def build() -> Outcome:
            if not made:
                made.append(Model(fresh(config).to(device), tokenizer, batching))
            return measure(made[0], chosen)

        items = hashlib.sha256(repr(chosen.items).encode()).hexdigest()
        key = key_of([config.model.model_dump(mode="json"), config.seed, tokenizer.digest, chosen.name, items, _CODE])
        return cache.get("untrained", key, build, _write, _read)

    return of


def fresh(config: RunConfig) -> Cognate:
    """The weights that training starts from; the random numbers of everybody else are as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return Cognate(config.model).eval()


def _write(outcome: Outcome, entry: Path) -> None:
    write_json(entry / "figures.json", {name: asdict(figure) for name, figure in outcome.figures.items()})


def _read(entry: Path) -> Outcome:
    return Outcome({name: Figure(**figure) for name, figure in read_json(entry / "figures.json").items()})


def _digest_code() -> str:
    package = Path(__file__).parents[1]
    texts = sorted(file for part in ("model/*.py", "evaluation/*.py", "sandbox.py", "jail.py") for file in package.glob(part))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in texts)).hexdigest()


_CODE: Final = _digest_code()
