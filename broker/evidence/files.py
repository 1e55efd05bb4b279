"""A ledger's segment files as lines, compressed or not, for those who judge and read evidence.

Rules this file keeps: it shares nothing with the writer, and only reads. A segment that lies there
in both forms, because its compression was cut short, is read from the plain one. A compressed
segment is exactly one whole gzip member (RFC 1952).

It leaves what the lines say to `broker.evidence.walk` and `broker.evidence.events`.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Final, cast

from broker.regular import regular

PLAIN: Final = ".ndjson"
COMPRESSED: Final = ".ndjson.gz"
_HEADER: Final = bytes.fromhex("1f8b08000000000000ff")
_CHUNK_BYTES: Final = 128 * 1024
"""Few enough bytes that what is made of them stays in a processor's cache."""


class CompressionDamaged(ValueError):
    """A compressed segment is not one whole gzip member."""


def segment_names(folder: str) -> list[str]:
    """Give the file names of all segments, oldest first, each once; other files are left out."""
    names = set(os.listdir(folder))
    return sorted(
        name for name in names if name.endswith(PLAIN)
        or (name.endswith(COMPRESSED) and name.removesuffix(".gz") not in names)
    )


def open_segment(path: str) -> BinaryIO:
    """Open a segment's lines; a plain one that was compressed meanwhile is found all the same.

    Reading a damaged compressed segment raises EOFError, OSError or zlib.error.
    """
    if path.endswith(PLAIN):
        try:
            return open(path, "rb", opener=regular)
        except FileNotFoundError:
            path += ".gz"
    descriptor = regular(path, os.O_RDONLY)
    try:
        # By its descriptor: at its path something else may lie by now.
        return cast("BinaryIO", gzip.open(f"/proc/self/fd/{descriptor}", "rb"))
    finally:
        os.close(descriptor)


def pieces(file: BinaryIO, *, compressed: bool) -> Iterator[tuple[bytes, int]]:
    """Give a file's lines in pieces of some bytes, and how many bytes of the file each took.

    Raises:
        CompressionDamaged: it is not one whole gzip member.
    """
    if not compressed:
        while data := file.read(_CHUNK_BYTES):
            yield data, len(data)
        return
    member = zlib.decompressobj(zlib.MAX_WBITS | 16)
    if file.read(len(_HEADER)) != _HEADER:
        raise CompressionDamaged("it does not begin as a compressed segment does")
    member.decompress(_HEADER)
    yield b"", len(_HEADER)
    try:
        while not member.eof:
            read = b"" if member.unconsumed_tail else file.read(_CHUNK_BYTES)
            if not read and not member.unconsumed_tail:
                raise CompressionDamaged("it is cut")
            yield member.decompress(member.unconsumed_tail or read, _CHUNK_BYTES), len(read)
    except zlib.error as error:
        raise CompressionDamaged(str(error)) from None
    if member.unused_data or file.read(1):
        raise CompressionDamaged("something follows what was compressed")
