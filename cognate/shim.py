"""Parent of one worker: starts it, waits, records how it ended, leaves nothing behind.

    python -I -S shim.py ATTEMPT_DIR LEASE_FD DEVICE -- COMMAND...

The server starts the shim in a session of its own, so that a worker outlives the server and its exit status is
still written down. If the shim itself is killed, the kernel kills the worker with it. Standard library only, and
nothing of cognate: it must start in milliseconds and never fail for a reason of ours.
"""

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def main(arguments: list[str]) -> int:
    attempt, lease, device = Path(arguments[0]), int(arguments[1]), arguments[2]
    command = arguments[arguments.index("--") + 1 :]
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # commands go through control.json; a shim has no reason to leave early
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    worker = _start(command, lease)
    _write(attempt / "started.json", {**identity(worker.pid), "shim_pid": os.getpid(), "device": device})
    code = worker.wait()
    _kill_leftovers(worker.pid)
    _write(attempt / "exit.json", {"code": code if code >= 0 else None, "signal": -code if code < 0 else None, "at": time.time()})
    return 0


def _start(command: list[str], lease: int) -> "subprocess.Popen[bytes]":
    shim = os.getpid()

    def die_with_shim() -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != shim:  # the shim died before the line above took effect
            os._exit(127)

    # Single-threaded here, so running Python between fork and exec is safe.
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, pass_fds=(lease,), preexec_fn=die_with_shim)


def identity(pid: int) -> dict[str, object]:
    """What names a process beyond reuse of its pid: pid, start time in clock ticks since boot, boot id."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return {"pid": pid, "create_time": int(stat.rpartition(")")[2].split()[19]), "boot_id": boot_id()}


def boot_id() -> str:
    """Different after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _kill_leftovers(session: int) -> None:
    """Kill what the worker left: its process group, then whatever was re-parented to this subreaper."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)
    while children := Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(-1, 0)


def _write(path: Path, value: object) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
