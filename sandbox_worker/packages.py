"""Approved packages: compare a folder with its lock before anything of it is loaded.

Rules: the lock's own digest is the one that the operator approved, and the folder holds exactly the
files that the lock names, each with its digest; a link, a special file, or anything that somebody
other than root and this worker's user could change is a refusal, because it could be exchanged
after it was compared. Every bound is checked before what it bounds is read.

It leaves importing to the zygote's first jail, and the lock's spelling to `schemas.packages`.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator

import msgspec

from sandbox_worker.bundle import LaunchRefusedError
from sandbox_worker.jail.first import LIBRARY
from schemas.packages import FOLDER_BYTES_MAX, LOCK_BYTES_MAX, LOCK_FILE, PackageFolder, read_lock

SYSTEM_LIBRARIES = (
    "libdl.so.2", "libexpat.so.1", "libgcc_s.so.1", "libm.so.6", "libpthread.so.0",
    "libresolv.so.2", "librt.so.1", "libstdc++.so.6", "libutil.so.1", "libz.so.1",
)  # fmt: skip
"""What a wheel may take from the system (PEP 600), without libc, nsl and the libraries of X11."""

DEPTH_MAX = 32


class PackagesChangedError(LaunchRefusedError):
    """The folder is not the one that the operator approved."""


class Packages(msgspec.Struct, frozen=True):
    """A folder that was compared: its path and inode, and the system libraries that it and the
    standard library name."""

    folder: str
    device: int
    inode: int
    libraries: list[str]


def compare(approved: PackageFolder) -> Packages:
    """Compare a folder with the lock that was approved.

    Raises:
        PackagesChangedError: they differ; the sentence names the file.
    """
    try:
        top = os.open(approved.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return _compare(top, approved)
        finally:
            os.close(top)
    except OSError as error:
        name = error.filename or approved.folder
        raise PackagesChangedError(f"packages: {name}: {error.strerror}") from None


def _compare(top: int, approved: PackageFolder) -> Packages:
    lock = _read(top, LOCK_FILE, LOCK_BYTES_MAX)
    if hashlib.sha256(lock).hexdigest() != approved.lock_sha256:
        raise PackagesChangedError(f"packages: {LOCK_FILE} is not the one that was approved")
    try:
        locked = read_lock(lock)
    except ValueError as error:
        raise PackagesChangedError(f"packages: {LOCK_FILE}: {error}") from None
    left, libraries, room = dict(locked), set[str](), FOLDER_BYTES_MAX
    _expect_ours(os.fstat(top), approved.folder)
    for directory, name, path in _files(top, "", DEPTH_MAX):
        if path == LOCK_FILE:
            continue
        wanted = left.pop(path, None)
        if wanted is None:
            raise PackagesChangedError(f"packages: {path} is not in {LOCK_FILE}")
        data = _read(directory, name, room)
        room -= len(data)
        if hashlib.sha256(data).hexdigest() != wanted:
            raise PackagesChangedError(f"packages: {path} is not the file that was approved")
        libraries |= _libraries(data)
    if left:
        raise PackagesChangedError(f"packages: {min(left)} is missing")
    with os.scandir(os.path.join(LIBRARY, "lib-dynload")) as entries:
        # What the standard library's own modules take from the system, packages may need too.
        for entry in entries:
            with open(entry.path, "rb") as file:
                libraries |= _libraries(file.read())
    found, path = os.fstat(top), os.path.realpath(approved.folder)
    return Packages(path, found.st_dev, found.st_ino, sorted(libraries))


def _libraries(data: bytes) -> set[str]:
    """The libraries of the list that a file names: a linked name lies in it as it is written."""
    if not data.startswith(b"\x7fELF"):
        return set()
    return {name for name in SYSTEM_LIBRARIES if name.encode() + b"\0" in data}


def _files(directory: int, prefix: str, depth: int) -> Iterator[tuple[int, str, str]]:
    """Every file below: its folder's descriptor, its name and its path. Links are refused."""
    with os.scandir(directory) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        path = prefix + entry.name
        facts = entry.stat(follow_symlinks=False)
        folder = stat.S_ISDIR(facts.st_mode) and depth > 0
        if not folder and not stat.S_ISREG(facts.st_mode):
            raise PackagesChangedError(f"packages: {path} is neither a file nor a folder")
        _expect_ours(facts, path)
        if folder:
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(entry.name, flags, dir_fd=directory)
            try:
                yield from _files(below, f"{path}/", depth - 1)
            finally:
                os.close(below)
        else:
            yield directory, entry.name, path


def _expect_ours(facts: os.stat_result, path: str) -> None:
    if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
        raise PackagesChangedError(f"packages: {path} can be changed by others; chown and chmod it")


def _read(directory: int, name: str, bytes_max: int) -> bytes:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with open(os.open(name, flags, dir_fd=directory), "rb") as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise PackagesChangedError(f"packages: {name} and the others are too large")
    return data
