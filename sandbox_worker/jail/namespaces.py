"""All seven namespaces in one call, and a second process that is pid 1 inside them.

Rules: one unshare(2) for user, mount, pid, network, ipc, uts and cgroup; one id is mapped and it is
never 0; no further namespace can be made inside. See user_namespaces(7), pid_namespaces(7).
"""

from __future__ import annotations

import os

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import SandboxUnavailable, expect, require
from schemas.remedies import USER_NAMESPACES as _HINT

INNER_ID = 1000
"""The uid and gid that the jailed process sees as its own."""

ALL = 0x10000000 | 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWNET, NEWIPC, NEWUTS and NEWCGROUP."""

KINDS = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
HOSTNAME = "sandbox"


def unshare_all() -> None:
    """Leave every namespace; the next fork is pid 1 of the new pid namespace."""
    before = _identities()
    user, group = os.geteuid(), os.getegid()
    require("user namespaces", _HINT, linux.UNSHARE, ALL)
    renewed = all(was != now for was, now in zip(before, _identities(), strict=True))
    expect("user namespaces", renewed, _HINT)
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/gid_map", f"{INNER_ID} {group} 1")
    _write("/proc/self/uid_map", f"{INNER_ID} {user} 1")
    expect("user namespaces", (os.geteuid(), os.getegid()) == (INNER_ID, INNER_ID), _HINT)


def close_inner() -> None:
    """As pid 1 inside: take the host's name away and forbid every further namespace."""
    expect("pid namespace", os.getpid() == 1, _HINT)
    name = linux.Memory(HOSTNAME.encode())
    require("uts namespace", _HINT, linux.SETHOSTNAME, name, len(HOSTNAME))
    expect("uts namespace", os.uname().nodename == HOSTNAME, _HINT)
    for kind in KINDS:
        path = f"/proc/sys/user/max_{kind}_namespaces"
        _write(path, "0")
        with open(path, encoding="utf-8") as limit:
            expect("namespace limits", limit.read().strip() == "0", _HINT)


# The pid namespace shows itself only after the first fork into it; `close_inner` checks it.
_NAMES = ("user", "mnt", "net", "ipc", "uts", "cgroup")


def _identities() -> list[str]:
    return [os.readlink(f"/proc/self/ns/{name}") for name in _NAMES]


def _write(path: str, text: str) -> None:
    try:
        # One write(2): the map files take their content in a single call.
        descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, text.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise SandboxUnavailable("user namespaces", error.errno or 0, _HINT) from None
