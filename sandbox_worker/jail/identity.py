"""Who the jailed process is: user and group ids, capabilities, no_new_privs, dumpability.

Rules: host uid 0 never enters the jail; ids are dropped before the namespaces are made, because a
user namespace keeps its creator's uid; every effect is read back, since an outer filter may answer
"success" without doing anything. See credentials(7), capabilities(7), prctl(2).
"""

from __future__ import annotations

import os

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, expect, packed, prctl, require
from schemas.remedies import OUTER as _HINT

SANDBOX_ID = 65534
"""The uid and gid that the jail has outside when the worker was started as root."""

SECUREBITS_LOCKED = 0xEF
"""No root, no setuid fix-up, no ambient raise, each locked, and keep_caps locked off."""

_CAPABILITY_HEADER = packed(4, 0x20080522, 0)


def become_sandbox_user() -> None:
    """Give up uid 0; an ordinary user keeps its own ids, which nothing in the jail can use."""
    if os.getuid() == 0:
        try:
            os.setgroups([])
            os.setresgid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
            os.setresuid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
        except OSError as error:
            raise linux.SandboxUnavailable("identity", error.errno or 0, _HINT) from None
        everything = {*os.getresuid(), *os.getresgid(), *os.getgroups()}
        expect("identity", everything == {SANDBOX_ID}, _HINT)
    users, groups = os.getresuid(), os.getresgid()
    expect("identity", 0 not in users and len(set(users)) == len(set(groups)) == 1, _HINT)
    # setresuid made the process non-dumpable, and its uid_map would belong to root.
    _set("dumpable", linux.PR_SET_DUMPABLE, 1)
    expect("dumpable", prctl(linux.PR_GET_DUMPABLE) == 1, _HINT)


def hide() -> None:
    """Make the process non-dumpable: no ptrace, no reading of its /proc files by the same user."""
    _set("non-dumpable", linux.PR_SET_DUMPABLE, 0)
    expect("non-dumpable", prctl(linux.PR_GET_DUMPABLE) == 0, _HINT)


def die_with_parent(parent: int) -> None:
    """Be killed when the parent ends; refuse when it ended before this line.

    Args:
        parent: the expected parent's pid, as this process's pid namespace shows it (0: outside).
    """
    _set("parent death signal", linux.PR_SET_PDEATHSIG, 9)
    signal = Memory(4)
    linux.call(linux.PRCTL, linux.PR_GET_PDEATHSIG, signal, 0, 0, 0)
    expect("parent death signal", signal.read()[0] == 9, _HINT)
    expect("parent death signal", os.getppid() == parent, "The starting process ended early.")


def drop_capabilities() -> None:
    """Give up every capability for good and lock the way back."""
    last = -1
    while (present := _bounding(last + 1)) is not None:
        last += 1
        if present:
            _set("capabilities", linux.PR_CAPBSET_DROP, last)
            expect("capabilities", _bounding(last) == 0, _HINT)
    expect("capabilities", last >= 0, _HINT)
    _set("capabilities", linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    _set("capabilities", linux.PR_SET_SECUREBITS, SECUREBITS_LOCKED)
    expect("capabilities", prctl(linux.PR_GET_SECUREBITS) == SECUREBITS_LOCKED, _HINT)
    set_capabilities(0)


def set_capabilities(mask: int) -> None:
    """Keep exactly these capabilities, effective and permitted, none inheritable.

    Args:
        mask: one bit per capability number.
    """
    low, high = mask & 0xFFFFFFFF, mask >> 32
    wanted = packed(4, low, low, 0, high, high, 0)
    require("capabilities", _HINT, linux.CAPSET, Memory(_CAPABILITY_HEADER), Memory(wanted))
    found = Memory(24)
    require("capabilities", _HINT, linux.CAPGET, Memory(_CAPABILITY_HEADER), found)
    expect("capabilities", found.read() == wanted, _HINT)


def _bounding(number: int) -> int | None:
    """Whether a capability is in the bounding set; None where the kernel knows no such number."""
    try:
        return prctl(linux.PR_CAPBSET_READ, number)
    except OSError:
        return None


def no_new_privileges() -> None:
    """Set no_new_privs, which Landlock and seccomp require of an unprivileged process."""
    _set("no_new_privs", linux.PR_SET_NO_NEW_PRIVS, 1)
    expect("no_new_privs", prctl(linux.PR_GET_NO_NEW_PRIVS) == 1, _HINT)


def disable_speculation() -> None:
    """Ask for the slower, safer processor modes, which children inherit, where there are any."""
    for misfeature in (linux.PR_SPEC_STORE_BYPASS, linux.PR_SPEC_INDIRECT_BRANCH):
        # Processors without the flaw, or with it always off, answer with an error.
        try:
            prctl(linux.PR_SET_SPECULATION_CTRL, misfeature, linux.PR_SPEC_FORCE_DISABLE)
        except OSError:
            continue


def _set(feature: str, option: int, value: int) -> None:
    require(feature, _HINT, linux.PRCTL, option, value, 0, 0, 0)
