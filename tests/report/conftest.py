"""Three tiny specialists, trained for two epochs on generated problems; made once, never written to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cognate.config import SPECIALISTS, resolve
from cognate.rundir import RunDir
from tests.training.runs import TINY, attempt_at, new_run

SECTIONS: dict[str, dict[str, Any]] = {
    "model": TINY["model"],
    "data": {"source": "synthetic", "synthetic_problems": 100, "validation_batches": 1},
    "training": {
        "batch_size": 8,
        "sequence_length": 128,
        "epochs": 2,
        "log_every_steps": 1,
        "checkpoint_every_steps": 5,
        "precision": "fp32",
    },
}


@pytest.fixture(scope="package")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    for preset in SPECIALISTS:
        averaged = {"weight_ema": 0.5 if preset == "memory" else 0.0}  # one is what it is by the mean of its weights
        config = resolve(preset, {**SECTIONS, "training": {**SECTIONS["training"], **averaged}})
        attempt_at(new_run(folder / f"run_{preset}", config), cache=folder / ".cache")
    return folder


@pytest.fixture
def runs_dir(made_once: Path, tmp_path: Path) -> Path:
    """A copy to do anything to."""
    return Path(shutil.copytree(made_once, tmp_path / "runs"))


@pytest.fixture
def trio(runs_dir: Path) -> list[RunDir]:
    return [RunDir(runs_dir / f"run_{preset}") for preset in SPECIALISTS]
