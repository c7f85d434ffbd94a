"""Which datasets an epoch uses, and which rows of a dataset may be trained on.

Curriculum answers the first, divide() the second. Pure: rows and names come in as arguments.

Source: docs/model.md, section 3: epochs 1-3 Foundation, 4-6 Reasoning, 7 and later Advanced; stages accumulate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from cognate.data.formats import Example
from cognate.data.sources import HeldOut, Stage

STAGES: Final[dict[Stage, str]] = {1: "Foundation", 2: "Reasoning", 3: "Advanced"}
LAST_EPOCHS: Final[dict[Stage, int | None]] = {1: 3, 2: 6, 3: None}
HELD_OUT_SHARE: Final = 0.05


def stage_for(epoch: int) -> Stage:
    """The stage of an epoch, counted from 1. A run with fewer than ten epochs stops early in the same plan."""
    assert epoch >= 1, f"epochs count from 1, not {epoch}"
    return next(stage for stage, last in LAST_EPOCHS.items() if last is None or epoch <= last)


@dataclass(frozen=True)
class Part:
    """One dataset's share of the plan, in rows. samples = trained + held_out + duplicates."""

    dataset: str
    category: str
    stage: Stage
    samples: int  # rows selected for training
    held_out: int  # of these, kept for validation by their hash
    duplicates: int  # of these, equal to an evaluation item of some dataset
    validation: int  # rows held out in all, an official split's included
    malformed: int = 0  # rows of the user's own data that are no samples
    augmented: int = 0  # samples that were made (augment.py), trained on beside the rows

    @property
    def trained(self) -> int:
        return self.samples - self.held_out - self.duplicates


@dataclass(frozen=True)
class Curriculum:
    """The plan over the datasets that are there."""

    parts: tuple[Part, ...]

    def parts_of(self, stage: Stage) -> tuple[Part, ...]:
        """The parts that `stage` trains on. A stage that would be empty borrows those of the first that is not."""
        reached = max(stage, self.first_stage)
        return tuple(part for part in self.parts if part.stage <= reached)

    def first_epoch(self, dataset: str) -> int:
        """The first epoch that trains on `dataset`; it is in every one after that."""
        epoch = 1
        while all(part.dataset != dataset for part in self.parts_of(stage_for(epoch))):
            epoch += 1
        return epoch

    @property
    def first_stage(self) -> Stage:
        """The first stage that has a dataset of its own."""
        return min(part.stage for part in self.parts)

    def samples(self, stage: Stage) -> int:
        return sum(part.samples for part in self.parts_of(stage))

    def describe(self) -> dict[str, Any]:
        """Plain JSON: every stage with its sums, every dataset with its counts."""
        return {
            "stages": [self._describe_stage(stage) for stage in STAGES],
            "datasets": [asdict(part) | {"trained": part.trained} for part in self.parts],
        }

    def _describe_stage(self, stage: Stage) -> dict[str, Any]:
        parts = self.parts_of(stage)
        sums = {name: sum(getattr(part, name) for part in parts) for name in ("samples", "held_out", "duplicates", "trained", "augmented")}
        first_epoch = (LAST_EPOCHS.get(stage - 1) or 0) + 1  # type: ignore[call-overload]
        epochs = {"first_epoch": first_epoch, "last_epoch": LAST_EPOCHS[stage]}
        return {"stage": stage, "name": STAGES[stage], **epochs, "datasets": [part.dataset for part in parts], **sums}


# --- which rows may be trained on -------------------------------------------------------------------------


def is_held_out(key: str) -> bool:
    """Whether a row of a dataset without an official validation split is kept for validation: a fixed 5 %, by its text."""
    return text_hash(key) < HELD_OUT_SHARE * 2**64


def text_hash(key: str) -> int:
    """64 bits that depend on the text alone: the same on every machine, in every run."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8])


def select(examples: Iterable[Example], limit: int | None, how: HeldOut) -> tuple[list[Example], list[Example]]:
    """(samples, held out): the rows selected for training, and those among or behind them that are held out."""
    rows = list(examples)
    samples = rows[:limit]
    if how == "hash":
        return samples, [example for example in samples if is_held_out(example.key)]
    return samples, rows[len(samples) :] if how == "rest" else []


def divide(samples: Sequence[Example], how: HeldOut, evaluation_keys: Collection[str]) -> tuple[list[Example], int, int]:
    """(trained, held_out, duplicates): what is trained on, and how many samples are not, and why."""
    kept = [example for example in samples if how != "hash" or not is_held_out(example.key)]
    trained = [example for example in kept if example.key not in evaluation_keys]
    return trained, len(samples) - len(kept), len(kept) - len(trained)
