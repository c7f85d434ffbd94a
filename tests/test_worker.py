"""The device a worker is told, and how it computes there."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cognate import worker
from cognate.events import Kind
from cognate.rundir import Places
from tests.training.runs import new_run, tiny


def test_deterministic_memory_is_not_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read before it is written, which the tests of the model show: they run with memory full of NaN."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    before = torch.are_deterministic_algorithms_enabled(), torch.get_num_threads()
    try:
        worker.make_deterministic(torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.set_num_threads(before[1])


@pytest.mark.parametrize(("device", "expected"), [("cuda:1", ["cuda:1"]), ("cuda", []), ("cpu", [])])
def test_what_names_no_device_is_of_the_card_that_was_chosen(
    device: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event, recorded on another card's stream, would tell nothing of a loss on this one."""
    current: list[str] = []
    switched: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: current.append(str(device)))
    monkeypatch.setattr(worker, "make_deterministic", lambda _: None)
    monkeypatch.setattr(worker, "use_whole_vectors", switched.append)
    monkeypatch.setattr(worker, "train", lambda *_: Kind.FINISHED)
    attempt = new_run(tmp_path / "run", tiny()).attempt(1)
    attempt.create()
    assert worker.run_attempt(attempt, Places(None, None), device) is Kind.FINISHED
    assert current == expected
    assert switched == [torch.device(device)]


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_memory_that_a_step_frees_is_there_for_the_next_one() -> None:
    """128 MiB given back, 64 of them taken again: a worker asks the kernel for no page of them twice, another process for all.

    Half of what was free, since whatever is taken in between may come out of it: a block of just the same size found no room at times.
    """
    asked = []
    for keep in ("", "worker.keep_freed_memory()"):
        program = f"""
import resource, torch
from cognate import worker
{keep}
torch.empty(2**25).zero_()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.empty(2**24).zero_()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
        asked.append(int(subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout))
    assert 10 * asked[1] < asked[0]  # of 16,384 pages, or of 32 huge ones


def test_a_worker_keeps_what_is_freed_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(worker, "keep_freed_memory", lambda: calls.append("keeps"))
    monkeypatch.setattr(worker, "run_attempt", lambda *_: calls.append("trains") or Kind.FINISHED)
    assert worker.main(["nowhere"]) == 0
    assert calls == ["keeps", "trains"]
