"""A group of processes that has only so much memory: whoever takes more is killed by the kernel, as on a machine that has no more."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

# The folder of memory groups and the file of their limit, by version of control groups.
VERSIONS = ((Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"), (Path("/sys/fs/cgroup"), "memory.max"))


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """The group's folder; a process enters by writing 0 into its `cgroup.procs`. Skips the test where there can be none."""
    for root, limit in VERSIONS:
        group = root / f"cognate-test-{uuid4().hex}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if (group / limit).exists():
                (group / limit).write_text(str(limit_bytes))
                yield group
                return
        finally:
            _remove(group)
    pytest.skip("no memory group can be made here: it takes root and a writable /sys/fs/cgroup")


def _remove(group: Path) -> None:
    for _ in range(100):  # processes that have just ended still count
        try:
            return group.rmdir()
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"{group} still has processes: {(group / 'cgroup.procs').read_text()}")
