"""The witness's attempts: our own code, run in a call process instead of plugin code.

Each probe tries one thing the jail must refuse and tells what became of it. `ptrace` must end the
process with SIGSYS, so it is asked for alone. `control` must succeed, or the rest proves nothing.
"""

from __future__ import annotations

import os
import time

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

_AF_UNIX, _AF_INET, _STREAM = 1, 2, 1
_MAP_SHARED_ANONYMOUS = 0x21
_SHARED = (0, 4096, 3, _MAP_SHARED_ANONYMOUS, -1, 0)
_EXECUTABLE = (0, 4096, 5, 0x22, -1, 0)
_PRIVATE = (0, 4096, 3, 0x22, -1, 0)
_ENTROPY = Memory(8)


def _raw(number: int, *arguments: int | Memory) -> Callable[[], object]:
    return lambda: linux.call(number, *arguments)


PROBES: dict[str, Callable[[], object]] = {
    "file_open": lambda: os.open("/etc/passwd", os.O_RDONLY),
    "file_write": lambda: os.open("/tmp/omega", os.O_WRONLY | os.O_CREAT),  # noqa: S108  It must fail.
    "directory_list": lambda: os.listdir("/"),
    "connect": _raw(linux.SOCKET, _AF_INET, _STREAM, 0),
    "abstract_socket": _raw(linux.SOCKET, _AF_UNIX, _STREAM, 0),
    "fork": os.fork,
    "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606  It must fail.
    "signal": lambda: os.kill(1, 0),
    "shared_memory": _raw(linux.MMAP, *_SHARED),
    "executable_memory": _raw(linux.MMAP, *_EXECUTABLE),
    "descriptor": lambda: os.dup(3),
    "clock": time.monotonic,
    "entropy": _raw(linux.GETRANDOM, _ENTROPY, 8, 0),
    "ptrace": _raw(linux.PTRACE, 0, 0, 0, 0),
    "control": _raw(linux.MMAP, *_PRIVATE),
}
"""Attempts by the name that a probe report carries; all but the last two fail softly."""


def run(names: list[str]) -> list[list[str]]:
    """Try each named probe and give pairs of name and outcome, "denied" or "allowed"."""
    outcomes = []
    for name in names:
        try:
            PROBES[name]()
        except OSError:
            outcomes.append([name, "denied"])
        else:
            outcomes.append([name, "allowed"])
    return outcomes
