"""Room on the ledger's volume: how much is left, and eight megabytes kept back for the worst.

`ballast` is a file of allocated bytes that mean nothing. When the volume is full it is removed, so
that a start has room for its own events, and the gateway can say what it refuses.

Rules this file keeps:
- The ballast is removed when a write failed for want of room, or when a start finds less room than
  it holds; it is made by a start only, and only where at least as much stays free beside it.
- Low is entered below a mark and left an eighth above it, so that it does not flutter.

It leaves refusing requests to `broker.core`. Source: statvfs(3), posix_fallocate(3).
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Final

from broker.ledger.segments import SEGMENT_BYTES_MAX
from broker.ledger.volume import Volume, sync_directory

BALLAST_BYTES: Final = 8 * 1024 * 1024
LOOK_US: Final = 100_000
"""How often the volume is asked at most; a look costs about as much as writing an event."""

_NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


def free_bytes(directory: str) -> int:
    """Say how many bytes of a volume an ordinary user may still take."""
    volume = os.statvfs(directory)
    return volume.f_bavail * volume.f_frsize


def low_mark_bytes(directory: str) -> int:
    """Give the mark that applies where none is configured: two segments, or 5 % of the volume."""
    volume = os.statvfs(directory)
    return max(2 * SEGMENT_BYTES_MAX, volume.f_blocks * volume.f_frsize // 20)


def prepare_ballast(volume: Volume, directory: str) -> None:
    """At a start, under the lock: have the ballast, or give its room free where it is needed.

    Raises:
        OSError: the volume failed otherwise than for want of room.
    """
    path = _path(directory)
    free = free_bytes(directory)
    held = _held_bytes(path)
    if free < BALLAST_BYTES:
        _remove(path)
    elif held < BALLAST_BYTES <= (free + held) // 2:
        try:
            _make(volume, path)
        except OSError as error:
            if not release_ballast(directory, error):
                raise
        sync_directory(volume, directory)


def release_ballast(directory: str, error: OSError) -> bool:
    """Remove the ballast if something failed for want of room; gives whether that was why."""
    if error.errno not in _NO_ROOM:
        return False
    _remove(_path(directory))
    return True


def _path(directory: str) -> str:
    return f"{directory}/ballast"


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _held_bytes(path: str) -> int:
    """Say how many bytes are allocated: a hole, or a start that was killed, holds nothing back."""
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0


def _make(volume: Volume, path: str) -> None:
    descriptor = volume.open(path, os.O_WRONLY | os.O_CREAT)
    try:
        volume.fallocate(descriptor, BALLAST_BYTES)
        volume.fsync(descriptor)
    finally:
        os.close(descriptor)


class Space:
    """Whether the volume is low, asked again and again."""

    def __init__(self, directory: str, mark_bytes: int) -> None:
        """Watch the volume of a directory.

        Args:
            directory: the ledger's folder.
            mark_bytes: below it the volume is low; 0 means `low_mark_bytes`.
        """
        self._directory = directory
        self._mark_bytes = mark_bytes or low_mark_bytes(directory)
        self._looked_us: int | None = None
        self._low = False

    def low(self, now_us: int) -> bool:
        """Say whether the volume is low.

        Raises:
            OSError: the volume cannot be asked.
        """
        if self._looked_us is None or now_us - self._looked_us >= LOOK_US:
            self._looked_us = now_us
            mark = self._mark_bytes + (self._mark_bytes // 8 if self._low else 0)
            # Room that the ballast gave free is for what has to be said, not for new calls.
            missing = max(0, BALLAST_BYTES - _held_bytes(_path(self._directory)))
            self._low = free_bytes(self._directory) - missing < mark
        return self._low
