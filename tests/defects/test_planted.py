"""Whether the tests of the model and the optimizer find what they are there to find: planted.py has the defects.

`make test-defects` sees every one found; `make test` a sample, and that none has outlived the line it changes.
"""

import ast
import os
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.defects.planted import DEFECTS, Defect

ROOT = Path(__file__).parents[2]
SAMPLE = ("others: documents see each other", "filter: the slow gradient is subtracted")
FAILED = 1  # pytest's exit code when tests ran and some failed; 2 to 5 are errors of its own

defects = pytest.mark.parametrize("defect", [pytest.param(defect, id=defect.name) for defect in DEFECTS])


@cache
def names_in(file: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / "tests" / file).read_text()).body if isinstance(node, ast.FunctionDef)}


@defects
def test_a_defect_is_about_what_is_there(defect: Defect) -> None:
    file, _, test = defect.test.partition("::")
    assert (ROOT / "cognate" / defect.file).read_text().count(defect.right) == 1
    assert test in names_in(file)


def test_no_two_defects_have_one_name() -> None:
    assert len({defect.name for defect in DEFECTS}) == len(DEFECTS)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree once more; what is imported there is imported from there."""
    tree = tmp_path_factory.mktemp("tree")
    for folder in ("app", "cognate", "tests"):
        shutil.copytree(ROOT / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def run(tree: Path, test: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", f"tests/{test}"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)


def plant_and_run(tree: Path, defect: Defect) -> subprocess.CompletedProcess[str]:
    file = tree / "cognate" / defect.file
    right = file.read_text()
    file.write_text(right.replace(defect.right, defect.wrong))
    try:
        return run(tree, defect.test)
    finally:
        file.write_text(right)


@pytest.mark.parametrize("defect", [pytest.param(defect, id=defect.name) for defect in DEFECTS if defect.name in SAMPLE])
def test_a_planted_defect_is_found(copy: Path, defect: Defect) -> None:
    sound, broken = run(copy, defect.test), plant_and_run(copy, defect)
    assert sound.returncode == 0, sound.stdout
    assert broken.returncode == FAILED, broken.stdout


@pytest.mark.defects
@pytest.mark.timeout(600)
@defects
def test_every_planted_defect_is_found(copy: Path, defect: Defect) -> None:
    told = plant_and_run(copy, defect)
    assert told.returncode == FAILED, told.stdout
