"""The far side of sandbox.py: runs one program with next to no rights, and tells what its calls returned. Standard library only.

    python -I -S -B jail.py RESULTS_FD < job.json

The job has the code, the calls, the limits and the layers to put on. Lines of JSON go to RESULTS_FD: the layers that are in
force, written before the code begins, then a value or an error for each call. What the calls should return is not known here,
so nothing the code does to this process can make a wrong answer right.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import resource
import struct
import sys
from collections.abc import Callable
from typing import Any

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEW_USER, _NEW_NET, _NEW_IPC = 0x10000000, 0x40000000, 0x08000000
_SET_SECCOMP, _SET_NO_NEW_PRIVILEGES = 22, 38


def main() -> None:
    results = int(sys.argv[1])
    job = json.loads(sys.stdin.buffer.read())
    folder = os.path.realpath(os.getcwd())  # noqa: PTH109  without pathlib it starts in half the time

    write, dumps = os.write, json.dumps  # as they are now: the code may put others in their places

    def tell(line: dict[str, Any]) -> None:
        write(results, dumps(line).encode() + b"\n")

    tell({"isolation": confine(job["limits"], job["layers"], folder)})
    namespace: dict[str, Any] = {"__name__": "__main__"}
    if not _attempt(lambda: exec(job["code"], namespace), tell):  # noqa: S102  this is what the jail is for
        return
    for call in job["calls"]:
        if not _attempt(lambda: tell({"value": encode(eval(call, namespace))}), tell):  # noqa: B023, S307
            return


def _attempt(step: Callable[[], None], tell: Callable[[dict[str, Any]], None]) -> bool:
    try:
        step()
    except BaseException as error:  # SystemExit too: whatever it was, the answer did not come
        tell({"error": type(error).__name__, "detail": str(error)[:200]})
        return False
    return True


def encode(value: Any) -> Any:
    """A built-in value as JSON; of a subclass only the built-in part, read past whatever it redefines. Others by their type's name."""
    for kind, written in _WRITTEN.items():
        if isinstance(value, kind):
            return [kind.__name__, written(value)]
    return ["none" if value is None else "other", type(value).__name__]


_WRITTEN: dict[type, Callable[[Any], Any]] = {
    bool: lambda value: value is True,
    int: lambda value: int.__format__(value, "x"),  # no limit on the digits
    float: lambda value: float.hex(value),
    complex: lambda value: [float.hex(complex.__add__(value, 0).real), float.hex(complex.__add__(value, 0).imag)],
    str: lambda value: str.__str__(value),
    bytes: lambda value: bytes.hex(value),
    list: lambda value: [encode(each) for each in list.__iter__(value)],
    tuple: lambda value: [encode(each) for each in tuple.__iter__(value)],
    set: lambda value: [encode(each) for each in set.__iter__(value)],
    frozenset: lambda value: [encode(each) for each in frozenset.__iter__(value)],
    dict: lambda value: [[encode(key), encode(each)] for key, each in dict.items(value)],
}


# --- the layers -------------------------------------------------------------------------------------------


def confine(limits: dict[str, int], layers: list[str], folder: str) -> list[str]:
    """Put on the limits, and each layer that this machine permits; the names of those in force."""
    for name, most in limits.items():
        if name != "NPROC":
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))
    _LIBC.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    put_on: dict[str, Callable[[], bool]] = {
        "namespaces": _namespaces,
        "landlock": lambda: _landlock(folder),
        "seccomp": _seccomp,
        "hook": lambda: _hook(folder),
    }
    in_force = [name for name, put in put_on.items() if name in layers and put()]
    if "seccomp" not in in_force:  # else threads would be refused as well: it counts all that the user runs
        resource.setrlimit(resource.RLIMIT_NPROC, (limits["NPROC"], limits["NPROC"]))
    return in_force


def _namespaces() -> bool:
    """A user with no rights outside, a network without devices, no shared memory of others."""
    return bool(_LIBC.unshare(_NEW_USER | _NEW_NET | _NEW_IPC) == 0)


def _landlock(folder: str) -> bool:
    """Reads only where Python lives, writes only in the folder, no TCP, no signals to others (Linux 5.13, 6.7 and 6.12)."""
    version = _LIBC.syscall(444, None, 0, 1)
    if version < 1:
        return False
    everything = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    rules = struct.pack("QQQ", everything, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    rules = rules[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _LIBC.syscall(444, rules, len(rules), 0)
    read = (1 << 2) | (1 << 3)
    for path, allowed in [(folder, everything), *((path, read) for path in (sys.base_prefix, "/usr/lib", "/lib", "/lib64", "/usr/share"))]:
        try:
            opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        _LIBC.syscall(445, ruleset, 1, struct.pack("=Qi", allowed, opened), 0)
        os.close(opened)
    done = bool(_LIBC.syscall(446, ruleset, 0) == 0)
    os.close(ruleset)
    return done


# Number of each system call that is refused: new processes, other programs, sockets, and reaching into other processes.
_REFUSED = {
    "x86_64": (
        0xC000003E, 56,
        (41, 42, 53, 57, 58, 59, 62, 101, 129, 165, 200, 234, 250, 272, 297, 298, 302, 308, 310, 311, 321, 322, 424, 425, 434),
    ),
    "aarch64": (
        0xC00000B7, 220, (40, 97, 117, 129, 130, 131, 138, 198, 199, 203, 219, 221, 240, 241, 261, 268, 270, 271, 280, 281, 424, 425, 434),
    ),
}  # fmt: skip


def _seccomp() -> bool:
    """The kernel refuses those calls; threads stay allowed."""
    if platform.machine() not in _REFUSED:
        return False
    architecture, clone, refused = _REFUSED[platform.machine()]
    refuse, no_such, allow = 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS, 0x7FFF0000
    load, equal, at_least, has_bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, refuse), (load, 0, 0, 0)]
    program += [(at_least, 0, 1, 0x40000000), (give, 0, 0, refuse)]  # the x32 twins of all calls
    for number in refused:
        program += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    program += [(equal, 0, 1, 435), (give, 0, 0, no_such)]  # clone3 hides its flags; libc then falls back to clone
    program += [(equal, 0, 3, clone), (load, 0, 0, 16), (has_bits, 1, 0, 0x00010000), (give, 0, 0, refuse), (give, 0, 0, allow)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in program))
    header = ctypes.create_string_buffer(struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code)))
    return bool(_LIBC.prctl(_SET_SECCOMP, 2, header, 0, 0) == 0)


_REFUSED_EVENTS = (
    "socket.",
    "subprocess.",
    "ctypes.",
    "os.exec",
    "os.fork",
    "os.posix_spawn",
    "os.system",
    "os.kill",
    "pty.",
    "signal.pthread",
)
_CHANGING_EVENTS = (
    "os.remove",
    "os.rename",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "os.symlink",
    "os.truncate",
    "os.chmod",
    "os.chown",
    "shutil.",
)
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def _hook(folder: str) -> bool:
    """Python itself refuses: no boundary against code that means harm, and all there is where the kernel offers none of the above."""

    def is_inside(path: Any) -> bool:
        path = os.path.realpath(os.fsdecode(path))
        return bool(path == folder or path.startswith(folder + "/"))

    def look(event: str, arguments: tuple[Any, ...]) -> None:
        changes = event.startswith(_CHANGING_EVENTS) or (event == "open" and (arguments[2] or 0) & _WRITING)
        outside = changes and not isinstance(arguments[0], int) and not is_inside(arguments[0])
        if outside or event.startswith(_REFUSED_EVENTS):
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(look)
    return True


if __name__ == "__main__":
    main()
