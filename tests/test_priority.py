"""What works beside a run gives way to it, also where the kernel weighs sessions against each other."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cognate.priority import AUTOGROUP, NICE

SAY = "import os; from cognate.priority import *; give_way(); print(os.nice(0), AUTOGROUP.read_text() if AUTOGROUP.exists() else '')"


def test_the_process_and_its_session_are_nice() -> None:
    said = subprocess.run([sys.executable, "-c", SAY], start_new_session=True, capture_output=True, text=True, check=True).stdout.split()
    assert said[0] == str(NICE)
    if AUTOGROUP.exists():
        assert said[-2:] == ["nice", str(NICE)]


@pytest.mark.skipif(not AUTOGROUP.exists(), reason="the kernel weighs no sessions")
def test_the_session_of_somebody_else_is_left_alone() -> None:
    """`cognate mirror` in a terminal slowed down everything that was started there, ever after."""
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SAY!r}]); print(open('{AUTOGROUP}').read())"
    done = subprocess.run([sys.executable, "-c", script], start_new_session=True, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["nice", "0"]
