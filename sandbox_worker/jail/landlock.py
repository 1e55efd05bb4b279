"""Landlock layers: all rights refused for the jail, chosen rights for the supervisor.

Rules: a fixed list of rights (those of ABI 6) is handled, never "whatever this kernel knows"; a
kernel below ABI 6 is refused; layers only add up. A layer without file rights is possible because a
layer that handles any file right forbids mounts to all descendants. See landlock(7).
"""

from __future__ import annotations

import os

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import (
    Memory,
    Prepared,
    SandboxUnavailable,
    expect,
    packed,
    require,
)
from schemas.remedies import LANDLOCK as _HINT

ABI_MIN = 6
READ_FILE = 1 << 2
READ_DIR = 1 << 3
FILE_RIGHTS = (1 << 16) - 1
"""Every file right up to ABI 5: execute, write, read, directories, make, remove, refer, ioctl."""
NETWORK_RIGHTS = 0b11
"""bind and connect over TCP."""
SCOPES = 0b11
"""Abstract unix sockets and signals stay inside the domain."""

_RULE_PATH_BENEATH = 1
_CREATE_VERSION = 1


def abi() -> int:
    """The kernel's Landlock version; refuses below `ABI_MIN`."""
    version = require("landlock", _HINT, linux.LANDLOCK_CREATE_RULESET, 0, 0, _CREATE_VERSION)
    expect("landlock ABI 6", version >= ABI_MIN, _HINT)
    return version


def ruleset(
    *, files: bool, scopes: bool = True, beneath: dict[int, int] | None = None
) -> int:
    """A new ruleset that refuses TCP.

    Args:
        files: whether all file rights are refused too.
        scopes: whether signals and abstract sockets to the outside of the domain are too.
        beneath: rights allowed again, by open directory descriptor.

    Returns:
        The descriptor of the ruleset; the caller closes it.
    """
    abi()
    rights = FILE_RIGHTS if files else 0
    attribute = Memory(packed(8, rights, NETWORK_RIGHTS, SCOPES if scopes else 0))
    descriptor = require("landlock", _HINT, linux.LANDLOCK_CREATE_RULESET, attribute, 24, 0)
    for directory, allowed in (beneath or {}).items():
        rule = Memory(packed(8, allowed) + packed(4, directory))
        require(
            "landlock", _HINT,
            linux.LANDLOCK_ADD_RULE, descriptor, _RULE_PATH_BENEATH, rule, 0,
        )  # fmt: skip
    return descriptor


def restrict(descriptor: int) -> None:
    """Put the layer on this thread. Needs no_new_privs."""
    require("landlock", _HINT, linux.LANDLOCK_RESTRICT_SELF, descriptor, 0)


def prepared_restrict(descriptor: int) -> Prepared:
    """The same for a call process, prepared."""
    return linux.prepared(linux.LANDLOCK_RESTRICT_SELF, descriptor, 0)


def expect_no_files() -> None:
    """After a layer without rules: even the empty root may not be read."""
    try:
        os.listdir("/")
    except PermissionError:
        return
    except OSError as error:
        raise SandboxUnavailable("landlock", error.errno or 0, _HINT) from None
    raise SandboxUnavailable("landlock", 0, _HINT)
