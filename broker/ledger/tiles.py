"""Tiles: the hashes of the tree on disk, so that a proof reads a few kilobytes, not the ledger.

`tiles/L0` holds the 32-byte event hashes end to end; `tiles/L1` the root of each complete run of
256 hashes of L0, and so on (C2SP tlog-tiles, height 8: slicing a level gives its tiles).

Rules this file keeps:
- Tiles are derived. They are never flushed, never believed without the signed root, and made again
  from the segments when they are short or wrong.
- Reading uses only what `flush` wrote, which is what the newest checkpoint covers.

It leaves the shapes of proofs to `broker.ledger.merkle`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from broker.ledger.errors import TilesDamaged
from broker.ledger.merkle import EMPTY_ROOT, fold, node_hash, split
from broker.ledger.volume import Volume
from schemas.proof import HASH_BYTES

HEIGHT: Final = 8
TILE_BYTES: Final = HASH_BYTES << HEIGHT
LEVELS: Final = 5
"""Enough for a position of twelve digits. All are opened at the start: a commit opens nothing."""


ReadLevel = Callable[[int, int, int], bytes]
"""Gives a number of bytes from a place in a level."""


def subtree_hash(read: ReadLevel, begin: int, end: int) -> bytes:
    """Give the RFC 6962 hash over events `begin` to before `end`; see `Tiles.subtree`."""
    span = end - begin
    if span & (span - 1):
        middle = begin + split(span)
        left, right = subtree_hash(read, begin, middle), subtree_hash(read, middle, end)
        return node_hash(left, right)
    number, within = divmod(span.bit_length() - 1, HEIGHT)
    length = HASH_BYTES << within
    data = read(number, (begin >> (HEIGHT * number)) * HASH_BYTES, length)
    if len(data) != length:
        raise TilesDamaged(f"tiles/L{number} does not reach event {end - 1}")
    return fold(data)


class _Level:
    """One level: its file, the hashes after its last complete tile, and those not yet written."""

    def __init__(self, volume: Volume, path: str, count: int) -> None:
        self.path = path
        self.descriptor = volume.open(path, os.O_RDWR | os.O_CREAT)
        self.written = count * HASH_BYTES
        self.unwritten = bytearray()
        length = os.fstat(self.descriptor).st_size
        if length < self.written:
            os.close(self.descriptor)
            raise TilesDamaged(f"{path} has {length} bytes, {self.written} are needed")
        if length > self.written:
            volume.ftruncate(self.descriptor, self.written)
        begin = self.written - self.written % TILE_BYTES
        self.tail = bytearray(os.pread(self.descriptor, TILE_BYTES, begin))


class Tiles:
    """The stored tree over the ledger's events."""

    def __init__(self, volume: Volume, directory: str, size: int) -> None:
        """Open the tree over the first `size` events and forget what is stored beyond.

        Raises:
            TilesDamaged: a level is too short.
        """
        self.size = size
        self._volume = volume
        self._levels: list[_Level] = []
        try:
            for number in range(LEVELS):
                path = f"{directory}/tiles/L{number}"
                self._levels.append(_Level(volume, path, size >> HEIGHT * number))
        except TilesDamaged:
            self.close()
            raise

    def extend(self, hashes: bytes) -> None:
        """Append event hashes, 32 bytes each, end to end; nothing is written yet."""
        self.size += len(hashes) // HASH_BYTES
        for level in self._levels:
            level.unwritten += hashes
            level.tail += hashes
            full = len(level.tail) - len(level.tail) % TILE_BYTES
            if not full:
                break
            hashes = b"".join(
                fold(bytes(level.tail[at : at + TILE_BYTES])) for at in range(0, full, TILE_BYTES)
            )
            del level.tail[:full]

    def flush(self) -> None:
        """Write what was appended, so that it can be read; a short write is an OSError."""
        for level in self._levels:
            data = bytes(level.unwritten)
            if data and self._volume.pwrite(level.descriptor, data, level.written) != len(data):
                raise OSError(f"{level.path} took only a part of what was written")
            level.written += len(data)
            level.unwritten.clear()

    def subtree(self, begin: int, end: int) -> bytes:
        """Give the RFC 6962 hash over events `begin` to before `end`.

        Args:
            begin: a multiple of the largest power of two that fits into the range.
            end: at most the size at the last `flush`.

        Raises:
            TilesDamaged: a level is too short.
        """
        return subtree_hash(self._read, begin, end)

    def _read(self, number: int, place: int, length: int) -> bytes:
        return os.pread(self._levels[number].descriptor, length, place)

    def root(self, size: int) -> bytes:
        """Give the root over the first `size` events; see `subtree`."""
        return self.subtree(0, size) if size else EMPTY_ROOT

    def discard(self) -> None:
        """Take the files' names away: this process goes on with them, the next makes them again."""
        for level in self._levels:
            if os.path.lexists(level.path):
                os.unlink(level.path)

    def close(self) -> None:
        """Close the files."""
        for level in self._levels:
            os.close(level.descriptor)
        self._levels.clear()
