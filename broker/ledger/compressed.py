"""Segments that do not change any more, compressed: `NAME.ndjson.gz` in place of `NAME.ndjson`.

One gzip member (RFC 1952) with neither name nor time, so the same lines and the same zlib give the
same file. The evidence is the lines: what a compressed segment holds is hashed, not how.

Rules this file keeps:
- The last segment is never compressed. A segment is removed only after its compressed form was
  flushed and read back equal; while both are there, the lines are read from the plain one.
- What is not exactly one member, whole and right, is damage.

It leaves the lines to `broker.ledger.segments`.
"""

from __future__ import annotations

import contextlib
import os
import zlib
from collections.abc import Iterable, Iterator
from typing import BinaryIO, Final

from broker.ledger.errors import LedgerDamaged
from broker.ledger.volume import Volume, sync_directory, write_all
from broker.regular import regular

SUFFIX: Final = ".gz"
PLAIN_BYTES_MAX: Final = 256 * 1024 * 1024
"""More than a segment ever holds; what claims to be more is no segment."""

_HEADER: Final = bytes.fromhex("1f8b08000000000000ff")
_LEVEL: Final = 6
_CHUNK_BYTES: Final = 1024 * 1024
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW


def open_lines(path: str) -> int:
    """Open a segment for reading; a compressed one as its lines, in memory.

    Args:
        path: where the plain segment lies or would lie.

    Raises:
        LedgerDamaged: its compressed form is not what was written.
        OSError: it cannot be read.
    """
    try:
        return regular(path, _READ)
    except FileNotFoundError:
        source = regular(path + SUFFIX, _READ)
    memory = os.memfd_create("segment", os.MFD_CLOEXEC)
    try:
        for data in _plain(source, path + SUFFIX):
            write_all(Volume(), memory, data)
        os.lseek(memory, 0, os.SEEK_SET)
    except BaseException:
        os.close(memory)
        raise
    finally:
        os.close(source)
    return memory


def compress(volume: Volume, path: str) -> tuple[int, int]:
    """Put a sealed segment's compressed form in its place; readers find one or the other.

    Args:
        volume: the system calls.
        path: the plain segment; another segment follows it.

    Returns:
        How many bytes it had and has. Both are 0 when it was compressed before.

    Raises:
        LedgerDamaged: what was read back is not what was compressed; nothing was removed.
        OSError: the volume does not let us; nothing was removed.
    """
    try:
        source = regular(path, _READ)
    except FileNotFoundError:
        return 0, 0
    folder = os.path.dirname(os.path.dirname(path))
    temporary = f"{folder}/{os.path.basename(path)}{SUFFIX}.{os.getpid()}"
    with os.fdopen(source, "rb") as lines:
        target = volume.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        try:
            for data in _member(lines):
                write_all(volume, target, data)
            volume.fsync(target)
            _compare(lines, target, temporary)
            sizes = os.fstat(lines.fileno()).st_size, os.fstat(target).st_size
            volume.rename(temporary, path + SUFFIX)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise
        finally:
            os.close(target)
    sync_directory(volume, os.path.dirname(path))
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    sync_directory(volume, os.path.dirname(path))
    return sizes


def _member(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Give the one gzip member over some lines."""
    squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    yield _HEADER
    digest = length = 0
    for line in lines:
        digest, length = zlib.crc32(line, digest), length + len(line)
        data = squeeze.compress(line)
        if data:
            yield data
    yield squeeze.flush()
    yield digest.to_bytes(4, "little") + (length & 0xFFFFFFFF).to_bytes(4, "little")


def _plain(source: int, name: str) -> Iterator[bytes]:
    """Give what a compressed segment holds, a bounded piece at a time."""
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    offset = length = 0
    if os.pread(source, len(_HEADER), 0) != _HEADER:
        raise LedgerDamaged(f"{name} does not begin as a compressed segment does")
    try:
        while not member.eof:
            data = member.unconsumed_tail
            if not data:
                data = os.pread(source, _CHUNK_BYTES, offset)
                offset += len(data)
            if not data:
                raise LedgerDamaged(f"{name} is cut")
            plain = member.decompress(data, _CHUNK_BYTES)
            length += len(plain)
            if length > PLAIN_BYTES_MAX:
                raise LedgerDamaged(f"{name} holds more than a segment can")
            yield plain
    except zlib.error as error:
        raise LedgerDamaged(f"{name} is not what was written: {error}") from None
    if member.unused_data or os.pread(source, 1, offset):
        raise LedgerDamaged(f"{name} holds more than one compressed segment")


def _compare(lines: BinaryIO, target: int, name: str) -> None:
    """Hold what was written against the plain segment, read again from its begin."""
    lines.seek(0)
    for data in _plain(target, name):
        if lines.read(len(data)) != data:
            raise LedgerDamaged(f"{name} was not written as it was compressed")
    if lines.read(1):
        raise LedgerDamaged(f"{name} was not written whole")
