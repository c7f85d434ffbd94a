"""Fixtures of the loop's tests."""

from pathlib import Path

import pytest


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where tokenizers and tokenised documents are kept between runs."""
    return tmp_path_factory.mktemp("cache")
