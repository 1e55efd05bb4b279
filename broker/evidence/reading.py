"""Reading a ledger's folder while a gateway may be writing it: lines, proofs, nothing else.

Rules this file keeps:
- It only reads, takes no lock, and goes no further than the newest checkpoint: what that covers is
  flushed and does not change any more.
- Tiles are believed only as far as they lead to the signed root; when they do not, the tree is made
  from the segments, in memory.
- No proof is given that was not verified first.

It leaves what is chosen and how it is written down to `broker.evidence.prove`.
"""

from __future__ import annotations

import bisect
import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Final, Self, TypeVar

from broker.ledger.checkpoints import read_log
from broker.ledger.compressed import open_lines
from broker.ledger.errors import LedgerDamaged, PositionArchived, PositionUnknown, TilesDamaged
from broker.ledger.merkle import (
    Subtree,
    consistency_path,
    fold,
    inclusion_path,
    verify_consistency,
    verify_inclusion,
)
from broker.ledger.segments import (
    list_segments,
    locate,
    open_segment,
    read_line,
    segment_path,
)
from broker.ledger.tiles import TILE_BYTES, subtree_hash
from broker.regular import regular
from schemas.events import LINE_BYTES_MAX, InvalidEvent, decode_event, line_hash
from schemas.proof import HASH_BYTES, Checkpoint, ProofError, VerifierKey

TILES_KEPT: Final = 256
_BLOCK_BYTES: Final = 64 * 1024
_READ: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW

PathT = TypeVar("PathT")


class LedgerReader:
    """One ledger as its newest checkpoint has it; a context manager that closes what it opened."""

    def __init__(self, directory: str, key: VerifierKey) -> None:
        """Read the newest checkpoint, whose signature must hold.

        Args:
            directory: the ledger's folder, or a copy of it.
            key: who must have signed.

        Raises:
            LedgerDamaged: there is no checkpoint, or it does not verify.
            OSError: a file cannot be read.
        """
        newest, _ = read_log(f"{directory}/checkpoints.log", key)
        if newest is None:
            raise LedgerDamaged(f"{directory} holds no checkpoint")
        self.key, self.note, self.checkpoint = key, newest.note, newest.checkpoint
        self._directory = directory
        # What the checkpoint covers lies in segments that are there by now.
        self._first_seqs = list_segments(directory)
        self.before = _before(directory, self._first_seqs)
        self.begins = len(self.before) // HASH_BYTES
        self._files = contextlib.ExitStack()
        self._segment: tuple[int, int, int] | None = None
        self._levels: dict[int, int | None] = {}
        self._tile = functools.lru_cache(TILES_KEPT)(self._read_tile)
        self._subtree: Subtree = functools.partial(subtree_hash, self._read_level)

    def __enter__(self) -> Self:
        """Give itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the files."""
        self._files.close()

    # --- Lines ---

    def line(self, seq: int) -> bytes:
        """Give the line of one event, without its newline.

        Raises:
            PositionUnknown: the newest checkpoint does not cover it.
            LedgerDamaged: the segments do not hold it.
        """
        self._check_covered(seq, self.begins)
        place = max(1, bisect.bisect_right(self._first_seqs, seq))
        first_seq = self._first_seqs[place - 1]
        following = [*self._first_seqs[place : place + 1], self.checkpoint.size][0]
        if self._segment is None or self._segment[0] != first_seq:
            descriptor = open_lines(segment_path(self._directory, first_seq))
            self._files.callback(os.close, descriptor)
            self._segment = first_seq, descriptor, _end_of_lines(descriptor)
        _, descriptor, end = self._segment
        return read_line(descriptor, locate(
            descriptor, end, seq, first_seq=first_seq, events=following - first_seq
        )).removesuffix(b"\n")

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Give position and line of every event that the checkpoint covers, in order, unverified.

        Raises:
            LedgerDamaged: the segments end before the checkpoint does, or one is missing.
        """
        seq = self.begins
        for first_seq in self._first_seqs:
            if first_seq != seq:
                raise LedgerDamaged(f"the segment that begins with event {seq} is missing")
            with open_segment(self._directory, first_seq) as file:
                for line in file:
                    if seq == self.checkpoint.size:
                        return
                    yield seq, line.removesuffix(b"\n")
                    seq += 1
        if seq < self.checkpoint.size:
            raise LedgerDamaged(f"{self.checkpoint.size} events were signed, {seq} are there")

    def _check_covered(self, seq: int, begins: int = 0) -> None:
        if 0 <= seq < begins:
            raise PositionArchived(f"event {seq} is not in this folder, which begins with event "
                                   f"{self.begins}: it was archived, or is no part of this range")
        if not 0 <= seq < self.checkpoint.size:
            raise PositionUnknown(
                f"the newest checkpoint covers {self.checkpoint.size} events, not event {seq}"
            )

    def _open(self, path: str) -> int:
        descriptor = regular(path, _READ)
        self._files.callback(os.close, descriptor)
        return descriptor

    # --- Proofs ---

    def inclusion(self, seq: int, line: bytes) -> list[bytes]:
        """Make the proof that a line is the event of its position.

        Raises:
            PositionUnknown: the newest checkpoint does not cover it.
            LedgerDamaged: it is not what was signed.
        """
        self._check_covered(seq)
        leaf, signed = bytes.fromhex(line_hash(line)), self.checkpoint

        def make() -> list[bytes]:
            path = inclusion_path(seq, signed.size, self._subtree)
            verify_inclusion(leaf, seq, signed.size, path, signed.root)
            return path

        try:
            return self._with_tree(make)
        except ProofError as error:
            raise LedgerDamaged(f"event {seq} is not what was signed: {error}") from None

    def consistency(self, old: Checkpoint) -> list[bytes]:
        """Make the proof that this ledger continues an older checkpoint.

        Raises:
            ProofError: it does not.
        """
        new = self.checkpoint
        if old.size > new.size or old.origin != new.origin:
            raise ProofError(
                f"the checkpoint of {new.origin} over {new.size} events is not newer than the one "
                f"of {old.origin} over {old.size}"
            )
        if old.size == 0:
            return []

        def make() -> list[bytes]:
            path = consistency_path(old.size, new.size, self._subtree)
            verify_consistency(old.size, new.size, old.root, new.root, path)
            return path

        return self._with_tree(make)

    def _with_tree(self, make: Callable[[], PathT]) -> PathT:
        """Make a proof from the tiles, or else from a tree made of the segments."""
        try:
            return make()
        except (ProofError, TilesDamaged):
            self._subtree = functools.partial(subtree_hash, self._levels_in_memory())
            return make()

    def _read_level(self, number: int, place: int, length: int) -> bytes:
        tile, within = divmod(place, TILE_BYTES)
        return self._tile(number, tile)[within : within + length]

    def _read_tile(self, number: int, tile: int) -> bytes:
        if number not in self._levels:
            path = f"{self._directory}/tiles/L{number}"
            self._levels[number] = self._open(path) if os.path.isfile(path) else None
        descriptor = self._levels[number]
        return b"" if descriptor is None else os.pread(descriptor, TILE_BYTES, tile * TILE_BYTES)

    def _levels_in_memory(self) -> Callable[[int, int, int], bytes]:
        hashes = self.before + b"".join(
            bytes.fromhex(line_hash(line)) for _, line in self.lines()
        )
        levels = [hashes]
        while len(hashes) >= TILE_BYTES:
            complete = len(hashes) - len(hashes) % TILE_BYTES
            hashes = b"".join(
                fold(hashes[at : at + TILE_BYTES]) for at in range(0, complete, TILE_BYTES)
            )
            levels.append(hashes)
        return lambda number, place, length: levels[number][place : place + length]


def _before(directory: str, first_seqs: list[int]) -> bytes:
    """Give the hashes of the events before the first one there; nothing where it is event 0."""
    length = first_seqs[0] * HASH_BYTES if first_seqs else 0
    path = f"{directory}/before.hashes"
    if not length or not os.path.isfile(path) or os.path.getsize(path) < length:
        return b""
    with open(path, "rb", opener=regular) as file:
        return file.read(length)


def written_events(directory: str) -> int:
    """Say how many whole events the last segment reaches to, covered by a checkpoint or not.

    Raises:
        LedgerDamaged: its last line is no event.
    """
    first_seqs = list_segments(directory)
    if not first_seqs:
        return 0
    with open_segment(directory, first_seqs[-1]) as file:
        end = _end_of_lines(file.fileno())
        begin = max(0, end - LINE_BYTES_MAX)
        last = os.pread(file.fileno(), end - begin, begin)[:-1].rpartition(b"\n")[2]
    if not last:
        return first_seqs[-1]
    try:
        return decode_event(last).seq + 1
    except InvalidEvent as error:
        raise LedgerDamaged(f"the ledger's last line is no event: {error}") from None


def _end_of_lines(descriptor: int) -> int:
    """Give the byte after the last newline; a writer may be in the middle of a line."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        begin = max(0, end - _BLOCK_BYTES)
        newline = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        end = begin
    return 0
