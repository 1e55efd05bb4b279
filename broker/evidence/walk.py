"""Walking one segment from its first byte to its last: every line, and what the tree needs of it.

Rules this file keeps:
- A segment is walked on its own, so that many can be walked at once, each in a process: it is told
  what must come before it and tells what comes after. Whether that fits together is judged by
  `broker.evidence.verify`, in order, so the first damage of a ledger stays the first.
- Lines are admitted by many (`broker.evidence.lines`); where that fails, one by one, which names
  the damage.
- Of the tree, a segment gives complete subtrees, as large as they can be between the sizes for
  which a root is wanted.

It leaves checkpoints, anchor and the order of segments to `broker.evidence.verify`.
"""

from __future__ import annotations

import contextlib
import gc
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, Final, NamedTuple

from broker.evidence.files import COMPRESSED, CompressionDamaged, open_segment, pieces
from broker.evidence.lines import admit
from broker.evidence.problems import DamageError, Problem, ProblemKind
from broker.ledger.merkle import fold
from broker.regular import regular
from schemas.events import (
    LINE_BYTES_MAX,
    Event,
    InvalidEvent,
    LedgerOpen,
    LedgerRoll,
    decode_event,
    line_hash,
)
from schemas.proof import HASH_BYTES

_ENVELOPE: Final = re.compile(
    rb',"log_id":"([ -!#-\[\]-~]+)","mono_us":[0-9]+,"prev_hash":"([0-9a-f]{64})"'
    rb',"seq":([0-9]+),"ts_us":[0-9]+,"v":1\}\n'
)
_HASH: Final = slice(15, 79)
_LEVEL_MAX: Final = 10


class SegmentTask(NamedTuple):
    """One segment to walk: where it lies, what must come before it, and which roots are wanted.

    `sizes` are the tree sizes of checkpoints, ascending; `last` says that no segment follows.
    """

    directory: str
    file: str
    first_seq: int
    previous: str
    log_id: str
    last: bool
    sizes: Sequence[int]


def last_hash(path: str) -> str:
    """Give the hash that the last whole line of a segment states, unverified; else nothing."""
    lines = b""
    with contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile), open_segment(path) as file:
        # The last bytes of a compressed segment are found by reading all of it; one that cannot be
        # read is blamed when it is walked.
        file.seek(max(0, file.seek(0, os.SEEK_END) - 2 * LINE_BYTES_MAX))
        lines = file.read().rpartition(b"\n")[0]
    return lines.rpartition(b"\n")[2][_HASH].decode("ascii", "replace")


def first_log_id(path: str) -> str:
    """Give the log_id that the first line of a segment states, unverified; else nothing."""
    match = None
    with contextlib.suppress(EOFError, zlib.error, gzip.BadGzipFile), open_segment(path) as file:
        match = _ENVELOPE.search(file.readline(LINE_BYTES_MAX))
    return match[1].decode() if match else ""


class Walked(NamedTuple):
    """What a segment holds, up to its end or its first damage.

    `identity` is that of its file before it was read: inode, length, times of change. `subtrees`
    are levels and roots to push, in order.
    """

    identity: tuple[int, ...]
    events: int
    previous: str
    log_id: str
    claimed_key: str | None
    rolled: bool
    torn_bytes: int
    subtrees: list[tuple[int, bytes]]
    problem: Problem | None


def walk_segment(task: SegmentTask, tell: Callable[[int], None]) -> Walked:
    """Verify every line of a segment.

    Args:
        task: the segment.
        tell: told how many more bytes are done, now and then.

    Raises:
        OSError: the file could not be read.
    """
    walk = _Walk(task)
    problem: Problem | None = None
    collecting = gc.isenabled()
    # What is made of a batch is freed with it; the collector would look at it in vain.
    gc.disable()
    try:
        walk.walk(tell)
    except DamageError as damage:
        problem = damage.problem
    finally:
        if collecting:
            gc.enable()
    return Walked(
        walk.identity, walk.seq - task.first_seq, walk.previous, walk.log_id, walk.claimed_key,
        walk.rolled, walk.torn_bytes, list(subtrees(task.first_seq, walk.hashes, task.sizes)),
        problem,
    )


def subtrees(
    first: int, hashes: bytes | bytearray, sizes: Sequence[int]
) -> Iterator[tuple[int, bytes]]:
    """Give complete subtrees over leaves, as large as they can be, none across a wanted size.

    Args:
        first: the position of the first leaf.
        hashes: the leaves' raw hashes, end to end.
        sizes: the sizes for which a root is wanted, ascending.
    """
    position, end = first, first + len(hashes) // HASH_BYTES
    for bound in [*(size for size in sizes if first < size < end), end]:
        while position < bound:
            level = min((bound - position).bit_length() - 1, _LEVEL_MAX)
            while position & ((1 << level) - 1):
                level -= 1
            begin = (position - first) * HASH_BYTES
            yield level, fold(bytes(hashes[begin : begin + (HASH_BYTES << level)]))
            position += 1 << level


class _Walk:
    """The walk of one segment; what it found so far stands also when damage ends it."""

    def __init__(self, task: SegmentTask) -> None:
        self.seq = task.first_seq
        self.previous = task.previous
        self.log_id = task.log_id
        self.claimed_key: str | None = None
        self.rolled = False
        self.torn_bytes = 0
        self.hashes = bytearray()
        self.identity: tuple[int, ...] = ()
        self._file = task.file
        self._path = f"{task.directory}/{task.file}"
        self._last = task.last

    def walk(self, tell: Callable[[int], None]) -> None:
        offset = 0
        with open(self._path, "rb", opener=regular) as file:
            self.identity = file_identity(file.fileno())
            rest = b""
            for chunk, length in self._pieces(file):
                data = rest + chunk
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                if end:
                    self._take(data[:end], offset)
                offset += end
                tell(length)
        if rest:
            self._check_tail(rest, offset)

    def _pieces(self, file: BinaryIO) -> Iterator[tuple[bytes, int]]:
        try:
            yield from pieces(file, compressed=self._file.endswith(COMPRESSED))
        except CompressionDamaged as error:
            raise DamageError(
                "flipped", self._file, f"event {self.seq}: {error}", number=self.seq
            ) from None

    def _take(self, data: bytes, offset: int) -> None:
        batch = admit(data, self.seq, self.previous, self.log_id)
        if batch is None:
            for line in data[:-1].split(b"\n"):
                self._check_line(line + b"\n", offset)
                offset += len(line) + 1
            return
        self.claimed_key = self.claimed_key or batch.claimed_key
        self.rolled = batch.last is LedgerRoll
        self.hashes += batch.hashes
        self.previous = batch.hashes[-HASH_BYTES:].hex()
        self.seq += batch.events

    def _check_tail(self, tail: bytes, offset: int) -> None:
        if not self._last:
            raise DamageError(
                "truncated", self._file, f"event {self.seq} ends before its newline",
                offset=offset, number=self.seq,
            )
        self.torn_bytes = len(tail)

    def _check_line(self, line: bytes, offset: int) -> None:
        try:
            event = decode_event(line)
        except InvalidEvent as error:
            self._check_bytes_and_position(line, offset)
            raise self._damage("not_canonical", offset, str(error)) from None
        if (event.seq, event.prev_hash) != (self.seq, self.previous):
            self._check_bytes_and_position(line, offset)
            raise self._damage("rewritten", offset, "it does not follow the event before it")
        if event.log_id != self.log_id:
            if self.seq:
                raise self._damage("other_log", offset, f"it is an event of {event.log_id}")
            self.log_id = event.log_id
        self._accept(event)

    def _accept(self, event: Event) -> None:
        if isinstance(event.fields, LedgerOpen) and self.claimed_key is None:
            self.claimed_key = event.fields.verifier_key
        self.rolled = isinstance(event.fields, LedgerRoll)
        self.previous = event.event_hash
        self.hashes += bytes.fromhex(event.event_hash)
        self.seq += 1

    def _check_bytes_and_position(self, line: bytes, offset: int) -> None:
        """Tell apart why a line is not the next event, as far as hash and position say."""
        claimed = line[_HASH].decode("ascii", "replace")
        if not line.startswith(b'{"event_hash":"') or line[79:81] != b'",':
            raise self._damage("flipped", offset, "the line is no event")
        if line_hash(line) != claimed:
            raise self._damage("flipped", offset, "its bytes do not have its hash")
        match = _ENVELOPE.search(line)
        if match is None:
            return
        found = int(match[3])
        if found < self.seq:
            raise self._damage("inserted", offset, f"event {found} stands here again")
        if found > self.seq:
            if self._comes_later(self.seq, offset):
                raise self._damage("swapped", offset, f"event {found} stands before it")
            raise self._damage("deleted", offset, f"event {found} stands in its place")
        if match[2].decode() != self.previous:
            raise self._damage("rewritten", offset, "it does not follow the event before it")

    def _comes_later(self, seq: int, offset: int) -> bool:
        wanted = b',"seq":%d,"ts_us":' % seq
        with open_segment(self._path) as file:
            file.seek(offset)
            return any(wanted in line for line in file)

    def _damage(self, kind: ProblemKind, offset: int, what: str) -> DamageError:
        return DamageError(
            kind, self._file, f"event {self.seq}: {what}", offset=offset, number=self.seq
        )


def file_identity(file: int | str) -> tuple[int, ...]:
    """Say which file this is and when it last changed: device, inode, length, two times."""
    status = os.stat(file)
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )
