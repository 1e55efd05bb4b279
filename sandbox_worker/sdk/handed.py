"""An open file that a call was handed: an artifact's copy or a file of a named root.

Rules: it can be read and moved in, and nothing else; the kernel holds that, not this class. It
imports nothing that a call process does not have already.
"""

from __future__ import annotations

import os

FIRST_DESCRIPTOR = 4
"""Behind the job; the filter of a call process knows the same number."""


class HandedFile:
    """An open file; reading begins at its start.

    Attributes:
        size: how many bytes it had when it was opened.
    """

    __slots__ = ("_descriptor", "size")

    def __init__(self, descriptor: int, size: int) -> None:
        """Made by the call process."""
        self._descriptor = descriptor
        self.size = size

    def read(self, count: int = -1) -> bytes:
        """At most `count` bytes from here on; all that are left when it is negative."""
        left = self.size if count < 0 else min(count, self.size)
        parts = []
        while left > 0:
            part = os.read(self._descriptor, left)
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move to `offset` from the start, from here (1) or from the end (2); gives the position.

        Raises:
            OSError: a position before the start.
        """
        return os.lseek(self._descriptor, offset, whence)


class HandedFiles(dict[str, HandedFile]):
    """Handed files by the names that the manifest gives them."""

    def __missing__(self, name: str) -> HandedFile:
        """Say what would be needed, instead of a bare KeyError."""
        raise PermissionError(
            1, f"no file {name!r} was handed in; its method names it, and fs.read of its root"
            " must be granted"
        )
