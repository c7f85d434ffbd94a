"""How a worker sets torch up."""

from collections.abc import Iterator

import pytest
import torch

from cognate.worker import make_deterministic


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    threads, is_deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_num_threads(threads)
    torch.utils.deterministic.fill_uninitialized_memory = fills
    torch.use_deterministic_algorithms(is_deterministic)


def test_a_deterministic_worker_does_not_write_memory_twice() -> None:
    """torch's fill of what it hands out costs a hundredth of a step, and changes nothing but what was never written."""
    make_deterministic(torch.device("cpu"))
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory
