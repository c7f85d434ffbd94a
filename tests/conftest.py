"""Fixtures shared by all tests. Real data is used where COGNATE_DATA_DIR names it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("COGNATE_WANDB", "off")  # but where it is what is tested
os.environ.setdefault("GOMP_SPINCOUNT", "0")  # before torch: see docs/decisions/0004; tests share the cores with workers
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the worker does; else deterministic torch refuses every product on CUDA
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test needs the network
for name in ("COLUMNS", "LINES"):  # readline sets them, and a console believes them
    os.environ.pop(name, None)
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored under a shell that starts us in the background, and inherited
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # so under nohup


def pytest_sessionstart() -> None:
    import torch

    from cognate.precision import use_whole_vectors

    use_whole_vectors(torch.device("cpu"))  # as a worker: what is computed here and there must be the same


@pytest.fixture(autouse=True)
def _device() -> Iterator[None]:
    """COGNATE_TEST_DEVICE=cuda: what a test makes without naming a device is made there (benchmarks/gpu.py)."""
    named = os.environ.get("COGNATE_TEST_DEVICE")
    if named is None:
        yield
        return
    import torch
    from torch.utils._device import DeviceContext

    class Device(DeviceContext):
        """As torch.device(named), but what a generator of the CPU draws is drawn there, so that it is the same everywhere."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            generator = (kwargs or {}).get("generator")
            if generator is not None and generator.device.type == "cpu" and "device" not in kwargs:
                return func(*args, **{**kwargs, "device": "cpu"}).to(self.device)
            return super().__torch_function__(func, types, args, kwargs)

    with Device(torch.device(named)):
        yield


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real datasets."""
    named = os.environ.get("COGNATE_DATA_DIR")
    if not named or not Path(named).is_dir():
        pytest.skip("COGNATE_DATA_DIR does not name a folder of datasets")
    return Path(named)


@pytest.fixture(scope="session")
def real_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is worked out of the real datasets, for all tests of a session: half a minute of two cores each time."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "real_cache"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault rows counted, for the table of docs/reliability.md."""
    reports = [report for group in terminalreporter.stats.values() for report in group if isinstance(report, pytest.TestReport)]
    counted = sorted(line for report in reports for name, line in report.user_properties if name == "counted")
    if counted:
        terminalreporter.section("faults")
        for line in counted:
            terminalreporter.write_line(line)
