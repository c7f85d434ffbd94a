"""Giving way: work beside a training run takes what the run leaves."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

NICE: Final = 15
AUTOGROUP: Final = Path("/proc/self/autogroup")


def give_way() -> None:
    """Let whoever trains go first.

    Linux may weigh whole sessions against each other (autogroup), and then a process's niceness counts within its session alone:
    beside a niced evaluation, a step on two cores took three times as long. So the session is niced, too (sched(7)), if it is this
    process's own: the one of a terminal has other work to do, and would stay as slow when this process is gone.
    """
    os.nice(NICE - os.nice(0))
    if os.getsid(0) != os.getpid():
        return
    with contextlib.suppress(OSError):  # a kernel without autogroups
        AUTOGROUP.write_text(str(NICE))
