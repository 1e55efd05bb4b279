"""How the supervisor confines itself: it parses hostile bytes and holds the worker's socket.

Two layers, because their order decides what they forbid. The first, before the zygote starts,
handles no file right: below it mounts stay possible and the zygote nests inside, so that the
supervisor can signal it and nobody else. The second, once the zygote runs, takes files, new
processes and capabilities away. Both are per thread, so the second refuses to be put on while a
second thread lives. A last filter, once the broker has spoken and before any plugin is heard, takes
every further connection away. Rules: every effect is tried afterwards. Source: landlock(7),
seccomp(2).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable

from sandbox_worker.jail import identity, landlock, linux, policy, seccomp
from sandbox_worker.jail.bpf import ALLOW
from sandbox_worker.jail.linux import SandboxUnavailable, expect
from schemas import remedies

_CAP_KILL = 5
_QUERY = 0xFFFFFFFF
# Made while importing: the table of numbers is a file, and the layer before the filter hides it.
_FILTER = policy.program(policy.supervisor_rules(), ALLOW)
_CONNECTED_FILTER = policy.program(policy.connected_rules(), ALLOW)


def close_outside() -> None:
    """First layer: no TCP, no signal and no abstract socket to anything outside this worker."""
    identity.no_new_privileges()
    _restrict(landlock.ruleset(files=False))
    with socket.socket() as listener:
        try:
            listener.bind(("127.0.0.1", 0))
        except PermissionError:
            return
    raise SandboxUnavailable("landlock", 0, remedies.LANDLOCK)


def close_files(folders: Iterable[int] = ()) -> None:
    """Second layer: read beneath /proc and the folders that grants open, nothing else; no exec,
    fork, ptrace or chmod.

    Args:
        folders: open directories; files beneath them may be read, but not listed.
    """
    expect("single thread", len(os.listdir("/proc/self/task")) == 1, remedies.DEFECT)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    rights = landlock.READ_FILE | landlock.READ_DIR
    # Without scopes: the zygote is outside this layer and must still be killed from inside.
    beneath = {**dict.fromkeys(folders, landlock.READ_FILE), proc: rights}
    _restrict(landlock.ruleset(files=True, scopes=False, beneath=beneath))
    os.close(proc)
    landlock.expect_no_files()
    # The zygote runs under another user when the worker was started as root.
    identity.set_capabilities(1 << _CAP_KILL if os.getuid() == 0 else 0)
    seccomp.install(_FILTER, seccomp.ALL_THREADS)
    try:
        # Asking for the execution domain changes nothing, and the filter refuses it.
        linux.call(linux.PERSONALITY, _QUERY)
    except PermissionError:
        return
    raise SandboxUnavailable("seccomp", 0, remedies.SECCOMP)


def close_connections() -> None:
    """Last: the one connection stands, and there will be no other, on no thread."""
    seccomp.install(_CONNECTED_FILTER, seccomp.ALL_THREADS)
    seccomp.expect_installed()


def _restrict(ruleset: int) -> None:
    landlock.restrict(ruleset)
    os.close(ruleset)
