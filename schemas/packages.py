"""The lock of a packages folder: every file of third-party modules by its SHA-256.

An operator approves a folder by naming it in policy.toml together with the SHA-256 of its lock; the
lock lies in the folder and has one line for each other file there, as `sha256sum` writes it, so
that `sha256sum -c packages.lock` checks it too.

Rules this file keeps: one spelling, lines sorted by path, nothing beside them; a path is relative
and cannot climb. It leaves comparing with the folder to `sandbox_worker.packages`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.names import Sha256

LOCK_FILE: Final = "packages.lock"
LOCK_BYTES_MAX: Final = 4 * 1024 * 1024
FILES_MAX: Final = 20_000
FOLDER_BYTES_MAX: Final = 1 << 30
"""All files of a folder together, in bytes: what a worker hashes at each start."""

_LINE: Final = re.compile(r"([0-9a-f]{64})  ([^\x00-\x1f\x7f\\]{1,512})")
_CLIMBS: Final = re.compile(r"(^|/)\.{0,2}(/|$)")


class PackageFolder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A folder of approved packages.

    Attributes:
        folder: its absolute path.
        lock_sha256: the SHA-256 of its lock, in hex.
    """

    folder: Annotated[str, Meta(max_length=512, pattern=r"^/[^\x00-\x1f\x7f]*$(?!\n)")]
    lock_sha256: Sha256


def write_lock(files: Mapping[str, str]) -> bytes:
    """Give the bytes of a lock.

    Args:
        files: SHA-256 in hex by path relative to the folder.

    Raises:
        ValueError: a path that a lock cannot hold.
    """
    data = "".join(f"{files[path]}  {path}\n" for path in sorted(files)).encode()
    if read_lock(data) != files:
        raise ValueError("a path holds a line break")
    return data


def read_lock(data: bytes) -> dict[str, str]:
    """Read a lock.

    Args:
        data: the file's bytes.

    Returns:
        SHA-256 in hex by path.

    Raises:
        ValueError: it is not one, with the line.
    """
    if len(data) > LOCK_BYTES_MAX:
        raise ValueError(f"longer than {LOCK_BYTES_MAX} bytes")
    files: dict[str, str] = {}
    last = ""
    *lines, rest = data.decode().split("\n")
    for number, line in enumerate(lines, 1):
        found = _LINE.fullmatch(line)
        if found is None or _CLIMBS.search(found[2]) or found[2] == LOCK_FILE or found[2] <= last:
            raise ValueError(f"line {number} is not a digest and a relative path, in order")
        last = found[2]
        files[last] = found[1]
    if rest:
        raise ValueError("the last line has no end")
    if not 0 < len(files) <= FILES_MAX:
        raise ValueError(f"it names {len(files)} files, allowed are 1 to {FILES_MAX}")
    return files
