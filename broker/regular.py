"""Opening what must be a regular file, where somebody else may have put something else.

A pipe in a file's place holds up whoever opens it until somebody writes, a device gives bytes for
ever. Rules this file keeps: what is no regular file is never waited for and never read. A regular
one of which another process holds a lease (a file server for its client) is opened as ever, once
that gave it back. Source: open(2), fstat(2), F_SETLEASE of fcntl(2).
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
    try:
        return _checked(os.open(path, flags | os.O_CLOEXEC | os.O_NONBLOCK, mode), path)
    except BlockingIOError:
        seen = _checked(os.open(path, os.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW), path)
    try:
        # The very file that was looked at: it may wait for a lease, and for nothing else.
        opening = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW) | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{seen}", opening)
    finally:
        os.close(seen)


def _checked(descriptor: int, path: str) -> int:
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "not a regular file", path)
