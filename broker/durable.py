"""Files that are whole or absent, and durable when they are said to be there.

Rules this file keeps: a file is written beside its place, flushed, and renamed over it; then its
folder is flushed. A crash leaves the old file or the new one. It leaves names to the callers.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from broker.keys import sync_directory
from broker.regular import regular

FLUSHED_TOGETHER_BYTES: Final = 1024 * 1024


def replace_file(path: str, data: bytes) -> None:
    """Write a file of mode 0600 in whole; durable when this returns.

    Raises:
        OSError: the volume refused; what was there before still is.
    """
    replace_file_by_parts(path, (data,))


def replace_file_by_parts(path: str, parts: Iterable[bytes]) -> None:
    """Write a file of mode 0600 part by part, as `replace_file` does.

    A large one is flushed as it grows: whoever else flushes a file of this volume at that time
    waits for what was written of this one too (ext4, `data=ordered`).

    Raises:
        OSError: as `replace_file`; so for whatever else making the parts raises.
    """
    unfinished = f"{path}.part"
    descriptor = regular(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW)
    try:
        with os.fdopen(descriptor, "wb") as file:
            waiting_bytes = 0
            for part in parts:
                waiting_bytes += file.write(part)
                if waiting_bytes >= FLUSHED_TOGETHER_BYTES:
                    file.flush()
                    os.fdatasync(descriptor)
                    waiting_bytes = 0
            file.flush()
            os.fsync(descriptor)
        os.rename(unfinished, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unfinished)
        raise
    sync_directory(os.path.dirname(os.path.abspath(path)))
