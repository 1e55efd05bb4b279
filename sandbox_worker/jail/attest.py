"""Look at a jailed process from outside: what /proc/PID/status says about it.

The zygote cannot talk its way past this: the kernel writes the file. It is readable although the
process is non-dumpable and belongs to another user. See proc_pid_status(5).
"""

from __future__ import annotations

import os

from sandbox_worker.jail.linux import SandboxUnavailable, expect
from schemas.remedies import OUTER as _HINT

_NO_CAPABILITIES = "0000000000000000"


def status(pid: int | str) -> dict[str, str]:
    """The fields of one process's status by name; `pid` may be "self"."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            pairs = (line.split(":", 1) for line in file)
            return {name: value.strip() for name, value in pairs}
    except OSError as error:
        raise SandboxUnavailable("attestation", error.errno or 0, _HINT) from None


def attest(pid: int, *, uid: int, filters: int) -> dict[str, str]:
    """Check everything about a zygote or call process that shows from outside.

    Args:
        pid: the process, in the observer's pid namespace.
        uid: the id it must have outside.
        filters: how many seccomp filters it must have beyond the observer's own.

    Returns:
        Its status fields.

    Raises:
        SandboxUnavailable: one of them is not as it must be.
    """
    observer, found = status("self"), status(pid)
    inherited = int(observer.get("Seccomp_filters", "0"))
    wanted = {
        "NoNewPrivs": "1",
        "Seccomp": "2",
        "Seccomp_filters": str(inherited + filters),
        "Uid": "\t".join([str(uid)] * 4),
        "Threads": "1",
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), _NO_CAPABILITIES),
    }
    if os.getuid() == 0:
        wanted["Groups"] = ""
    for name, value in wanted.items():
        expect(f"attestation of {name}", found.get(name) == value, _HINT)
    depth = len(observer["NSpid"].split()) + 1
    expect("attestation of NSpid", len(found["NSpid"].split()) == depth, _HINT)
    return found
