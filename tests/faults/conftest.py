"""What the rows share; and what they counted is in their reports (printed by tests/conftest.py)."""

from collections.abc import Generator
from pathlib import Path

import pytest

from cognate.rundir import RunDir
from tests.faults.processes import COUNTED, end, start, train_once
from tests.training.runs import new_run, tiny


@pytest.fixture(scope="package")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, cache: Path) -> RunDir:
    """A run of the module's STEPS that nothing interrupts, with a checkpoint at every second."""
    config = tiny(training={"max_steps": request.module.STEPS, "checkpoint_every_steps": 2})
    run = new_run(tmp_path_factory.mktemp("whole") / "run", config)
    assert end(start(train_once, run.path, cache)) == 0
    return run


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    report.user_properties += [("counted", line) for line in COUNTED]
    COUNTED.clear()
    return report
