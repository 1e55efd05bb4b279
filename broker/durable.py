"""Files that are whole or absent, and durable when they are said to be there.

Rules this file keeps: a file is written beside its place, flushed, and renamed over it; then its
folder is flushed. A crash leaves the old file or the new one. It leaves names to the callers.
"""

from __future__ import annotations

import contextlib
import os

from broker.keys import sync_directory


def replace_file(path: str, data: bytes) -> None:
    """Write a file of mode 0600 in whole; durable when this returns.

    Raises:
        OSError: the volume refused; what was there before still is.
    """
    unfinished = f"{path}.part"
    descriptor = os.open(
        unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
    )
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(unfinished, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
    sync_directory(os.path.dirname(os.path.abspath(path)))
