"""Parent of one worker: starts it, waits, records how it ended, leaves nothing behind.

    python -I -S shim.py ATTEMPT_DIR LEASE_FD DEVICE -- COMMAND...
    python -I -S shim.py --spare SOCKET_FD -- COMMAND... --spare

As a spare it starts a worker ahead of time, which loads what takes long and then waits (await_assignment); the attempt comes
through the socket, with the lease and the log as open files. A spare whose server or worker goes away ends.

The server starts the shim in a session of its own, so that a worker outlives the server and its exit status is
still written down. If the shim itself is killed, the kernel kills the worker with it. Standard library only, and
nothing of cognate: it must start in milliseconds and never fail for a reason of ours.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
LEASE, LOG = 0, 1  # the open files that come with an assignment
MESSAGE_BYTES = 1 << 16
_prctl = ctypes.CDLL(None, use_errno=True).prctl


def main(arguments: list[str]) -> int:
    command = arguments[arguments.index("--") + 1 :]
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # commands go through control.json; a shim has no reason to leave early
    _prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if arguments[0] == "--spare":
        ours, theirs = socket.socketpair()
        worker = _start(command, stdin=theirs)
        theirs.close()
        server = socket.socket(fileno=int(arguments[1]))
        ready, _, _ = select.select([server, ours], [], [])  # the worker says nothing: it is ours when it has died
        if (assignment := _receive(server) if server in ready else None) is None:
            _kill_leftovers(worker.pid)
            return 0
        message, files = assignment
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # a worker that died meanwhile is seen below
            socket.send_fds(ours, [json.dumps(message).encode()], files)
        ours.close()
        os.dup2(files[LOG], 1)
        os.dup2(files[LOG], 2)
        attempt, device = Path(message["attempt"]), message["device"]
    else:
        attempt, device = Path(arguments[0]), arguments[2]
        worker = _start(command, lease=int(arguments[1]))
    before = _oom_kills()
    _write(attempt / "started.json", {**identity(worker.pid), "shim_pid": os.getpid(), "device": device})
    code = worker.wait()
    left = {"code": code if code >= 0 else None, "signal": -code if code < 0 else None, "oom_kills": _oom_kills() - before}
    _kill_leftovers(worker.pid)
    _write(attempt / "exit.json", {**left, "at": time.time()})
    return 0


def await_assignment() -> str:
    """Called by a spare worker once it is ready: its attempt's directory, when there is one. Takes up its environment and log."""
    assignment = _receive(socket.socket(fileno=os.dup(0)))
    if assignment is None:
        sys.exit(0)
    message, files = assignment
    os.set_inheritable(files[LEASE], True)  # held by whatever processes the worker starts, too
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(files[LOG], 1)
    os.dup2(files[LOG], 2)
    os.environ.update(message["environment"])
    return str(message["attempt"])


def assign(channel: socket.socket, attempt: str, device: str, environment: dict[str, str], lease: int, log: int) -> None:
    """Called by the server: give a spare its attempt; raises OSError when it is gone."""
    message = json.dumps({"attempt": attempt, "device": device, "environment": environment}).encode()
    socket.send_fds(channel, [message], [lease, log])


def _receive(channel: socket.socket) -> "tuple[dict[str, Any], list[int]] | None":
    """The message and the open files that assign() sent; None when the other side is gone."""
    with channel:
        message, files, _, _ = socket.recv_fds(channel, MESSAGE_BYTES, 2)
    return (json.loads(message), files) if message else None


def _start(command: list[str], lease: "int | None" = None, stdin: "socket.socket | None" = None) -> "subprocess.Popen[bytes]":
    shim = os.getpid()

    def die_with_shim() -> None:
        for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(name, signal.SIG_DFL)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != shim:  # the shim died before the line above took effect
            os._exit(127)

    # Single-threaded here, so running Python between fork and exec is safe.
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL if stdin is None else stdin.fileno(),
        start_new_session=True,
        pass_fds=() if lease is None else (lease,),
        preexec_fn=die_with_shim,
    )


def identity(pid: int) -> dict[str, object]:
    """What names a process beyond reuse of its pid: pid, start time in clock ticks since boot, boot id."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return {"pid": pid, "create_time": int(stat.rpartition(")")[2].split()[19]), "boot_id": boot_id()}


def boot_id() -> str:
    """Different after every start of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _oom_kills() -> int:
    """Processes that the kernel has killed for want of memory since the machine started; 0 where it does not count them."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


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
