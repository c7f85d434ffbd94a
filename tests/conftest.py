"""Fixtures shared by all tests. Real data is used where COGNATE_DATA_DIR names it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("GOMP_SPINCOUNT", "0")  # before torch: see docs/decisions/0004; tests share the cores with workers


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets."""
    named = os.environ.get("COGNATE_DATA_DIR")
    if not named or not Path(named).is_dir():
        pytest.skip("COGNATE_DATA_DIR does not name a folder of datasets")
    return Path(named)
