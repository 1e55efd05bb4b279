"""Put a system call filter on this process. The filters themselves come from `policy.py`.

Rules: filters are installed last and only add up (the most severe action of all filters wins);
installing is checked by a call that the filter must refuse, made by whoever installed it. The
zygote receives programs as bytes and never imports the table. See seccomp(2).
"""

from __future__ import annotations

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, Prepared, SandboxUnavailable, packed, require
from schemas.remedies import SECCOMP as _HINT

ALL_THREADS = 1
"""SECCOMP_FILTER_FLAG_TSYNC: the filter reaches every thread of the process."""

_SET_MODE_FILTER = 1


def install(program: bytes, flags: int = 0) -> None:
    """Install a program of whole 8-byte instructions. Needs no_new_privs."""
    require("seccomp", _HINT, linux.SECCOMP, _SET_MODE_FILTER, flags, _sock_fprog(program))


def prepared_install(program: bytes) -> Prepared:
    """The same for a call process, prepared."""
    return linux.prepared(linux.SECCOMP, _SET_MODE_FILTER, 0, _sock_fprog(program))


def expect_installed() -> None:
    """A harmless call that every filter of ours refuses softly must be refused now."""
    try:
        linux.call(linux.SOCKET, 1, 1, 0)
    except PermissionError:
        return
    except OSError as error:
        raise SandboxUnavailable("seccomp", error.errno or 0, _HINT) from None
    raise SandboxUnavailable("seccomp", 0, _HINT)


def _sock_fprog(program: bytes) -> Memory:
    code = Memory(program)
    return Memory(packed(8, len(program) // 8, code.address), keep=code)
