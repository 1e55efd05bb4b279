"""The system calls that change bytes on the ledger's volume, in one place, so tests can fail each.

Rules this file keeps: files are private to their owner, closed on exec, and never opened through a
link at their last name. No call is tried again after an error: after a failed flush the kernel may
have dropped the pages and a second flush would lie (PostgreSQL's fsync finding of 2018).

It leaves what an error means to its callers.
"""

from __future__ import annotations

import os
from typing import Final

from broker.regular import regular

_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW


class Volume:
    """The calls as the kernel has them; a test overrides one to make it fail."""

    def open(self, path: str, flags: int) -> int:
        """Open or create a regular file with mode 0600, or open a folder; see open(2)."""
        opened = os.open if flags & os.O_DIRECTORY else regular
        return opened(path, flags | _FLAGS, 0o600)

    def mkdir(self, path: str) -> None:
        """Make a directory with mode 0700; see mkdir(2)."""
        os.mkdir(path, 0o700)

    def write(self, descriptor: int, data: memoryview) -> int:
        """Write at the end of an O_APPEND file; gives how many bytes went; see write(2)."""
        return os.write(descriptor, data)

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        """Write at a place; see pwrite(2)."""
        return os.pwrite(descriptor, data, offset)

    def fdatasync(self, descriptor: int) -> None:
        """Make a file's bytes and length durable; see fdatasync(2)."""
        os.fdatasync(descriptor)

    def fsync(self, descriptor: int) -> None:
        """Make a file or directory durable; see fsync(2)."""
        os.fsync(descriptor)

    def fallocate(self, descriptor: int, length: int) -> None:
        """Take a file's bytes from the volume now; see posix_fallocate(3)."""
        os.posix_fallocate(descriptor, 0, length)

    def ftruncate(self, descriptor: int, length: int) -> None:
        """Cut a file; see ftruncate(2)."""
        os.ftruncate(descriptor, length)

    def rename(self, source: str, target: str) -> None:
        """Put a file in another's place at once; see rename(2)."""
        os.rename(source, target)


def write_all(volume: Volume, descriptor: int, data: bytes) -> None:
    """Write every byte or raise.

    Raises:
        OSError: the volume refused, or took nothing of what was left.
    """
    view = memoryview(data)
    while view:
        written = volume.write(descriptor, view)
        if written <= 0:
            raise OSError(f"write took {written} of {len(view)} bytes")
        view = view[written:]


def make_directory(volume: Volume, path: str) -> None:
    """Make a directory if it is not there yet, and its name durable."""
    try:
        volume.mkdir(path)
    except FileExistsError:
        return
    sync_directory(volume, os.path.dirname(path) or ".")


def sync_directory(volume: Volume, path: str) -> None:
    """Make the names in a directory durable."""
    descriptor = volume.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        volume.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(volume: Volume, path: str, data: bytes, *, durable: bool) -> None:
    """Put new bytes in a file's place at once; readers see the old or the new ones, whole.

    Args:
        path: the file.
        data: its new content.
        durable: flush the bytes before they take the name, so that a power cut cannot leave an
            empty file. The name itself is not flushed: the old content may come back.
    """
    temporary = path + ".new"
    descriptor = volume.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(volume, descriptor, data)
        if durable:
            volume.fsync(descriptor)
    finally:
        os.close(descriptor)
    volume.rename(temporary, path)
