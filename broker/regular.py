"""Opening what must be a regular file, where somebody else may have put something else.

A pipe in a file's place holds up whoever opens it until somebody writes, a device gives bytes for
ever. Rules this file keeps: opening never waits, and what is no regular file is never read.
Source: open(2), fstat(2).
"""

from __future__ import annotations

import errno
import os
import stat


def regular(path: str, flags: int, mode: int = 0o600) -> int:
    """Open a regular file; also an opener for `open`.

    Args:
        path: where it lies.
        flags: as for open(2); the descriptor is closed on exec.
        mode: what a file that is made here may be used for.

    Raises:
        OSError: it cannot be opened, or is no regular file (EINVAL).
    """
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)
