"""Segments: the files that hold the ledger's lines, one after the other.

`segments/000000000000.ndjson` is named by the position of its first event, twelve digits. Every
segment but the last ends with a `ledger.roll` event: a missing end is told from a missing file.

Rules this file keeps:
- A line ends with its newline. What follows the last newline was never acknowledged: no event.
- Scanning recomputes every hash from the bytes and checks the chain and the positions.
- After every write, before it counts, the file behind the name must be the one we opened, with one
  link and exactly the length we wrote: a removed, replaced, cut or foreign-grown file is a
  surprise, never mended.

It leaves what damage means to `broker.ledger.recovery`, strict decoding to `schemas.events`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from typing import BinaryIO, Final, NamedTuple

from broker.ledger.compressed import open_lines
from broker.ledger.errors import LedgerDamaged
from broker.ledger.volume import Volume, sync_directory, write_all
from broker.regular import regular
from schemas.events import GENESIS_HASH, LINE_BYTES_MAX, LedgerClose, LedgerRoll
from schemas.proof import HASH_BYTES

SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
"""Length from which a segment is full; about 125,000 events, scanned in well under a second."""

BEFORE_FILE: Final = "before.hashes"
"""Hashes of the events before the first one that is there."""

_NAME: Final = re.compile(r"([0-9]{12})\.ndjson(?:\.gz)?")
_SEQ: Final = re.compile(rb',"seq":([0-9]{1,16}),"ts_us":[0-9]{1,16},"v":1\}\n')
_ARCHIVED: Final = re.compile(
    rb'"event_type":"ledger\.open","f":\{"api_version":"[^"]*","archived_before":([0-9]{1,16}),'
)
_HASH: Final = slice(15, 79)
_BODY: Final = 81
_NEAR_BYTES: Final = 4096
_BLOCK_BYTES: Final = 16 * 1024
_GUESSES: Final = 4


def segment_path(directory: str, first_seq: int) -> str:
    """Give the path of the segment that begins with an event."""
    return f"{directory}/segments/{first_seq:012d}.ndjson"


def open_segment(directory: str, first_seq: int) -> BinaryIO:
    """Open a segment for reading its lines, compressed or not; see `open_lines`."""
    return os.fdopen(open_lines(segment_path(directory, first_seq)), "rb")


def list_segments(directory: str) -> list[int]:
    """Give the first positions of all segments, compressed or not, ascending.

    Raises:
        LedgerDamaged: a file in the folder is not a segment.
    """
    first_seqs: list[int] = []
    for name in sorted(os.listdir(f"{directory}/segments")):
        match = _NAME.fullmatch(name)
        if match is None:
            raise LedgerDamaged(f"segments/{name} is not a segment of this ledger")
        if int(match[1]) not in first_seqs[-1:]:
            first_seqs.append(int(match[1]))
    return first_seqs


class Scan(NamedTuple):
    """What a segment holds: the raw hashes of its events, where its lines end, and what follows."""

    hashes: bytearray
    end: int
    tail: bytes
    last_hash: str
    last_line: bytes

    @property
    def closed(self) -> bool:
        """Whether the last event says that the writer closed in order."""
        return event_type(self.last_line) == LedgerClose.EVENT_TYPE

    @property
    def rolled(self) -> bool:
        """Whether the segment was ended and the next event belongs into a new one."""
        return event_type(self.last_line) == LedgerRoll.EVENT_TYPE

    @property
    def log_id(self) -> str:
        """Whose events these are; empty when there are none."""
        return self.last_line.rpartition(b',"log_id":"')[2].partition(b'"')[0].decode()


def scan(directory: str, first_seq: int, prev_hash: str) -> Scan:
    """Read a whole segment and check its hashes, its chain and its positions.

    Args:
        directory: the ledger's folder.
        first_seq: the segment.
        prev_hash: the event_hash before its first event, in hex.

    Raises:
        LedgerDamaged: naming the segment, the byte and the event of the first wrong line.
    """
    hashes = bytearray()
    seq, offset, last = first_seq, 0, b""
    previous = prev_hash.encode()
    with open_segment(directory, first_seq) as file:
        # After a failed flush the cache may hold what the disk does not: read from the disk.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for line in file:
            if not line.endswith(b"\n"):
                return Scan(hashes, offset, line, previous.decode(), last)
            link = b',"prev_hash":"%b","seq":%d,"ts_us":' % (previous, seq)
            digest = hashlib.sha256(b"\x00{" + line[_BODY:-1])
            previous = digest.hexdigest().encode()
            if not line.startswith(b'{"event_hash":"%b",' % previous) or not line.startswith(
                link, line.rfind(b',"prev_hash":"')
            ):
                raise LedgerDamaged(
                    f"segments/{first_seq:012d}.ndjson, byte {offset}: not event {seq} as written"
                )
            hashes += digest.digest()
            offset += len(line)
            seq += 1
            last = line
    return Scan(hashes, offset, b"", previous.decode(), last)


def event_type(line: bytes) -> str:
    """Give the type of the event in a line, without decoding it."""
    prefix = b'"event_type":"'
    return line[_BODY + len(prefix) :].partition(b'"')[0].decode("ascii", "replace")


def check_end(directory: str, first_seq: int, next_seq: int) -> str:
    """Check that a segment ends right before `next_seq`, by its last line; gives that line's hash.

    Raises:
        LedgerDamaged: the segment ends elsewhere.
    """
    name = f"segments/{first_seq:012d}.ndjson"
    with open_segment(directory, first_seq) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LINE_BYTES_MAX))
        line = file.read().rpartition(b"\n")[0].rpartition(b"\n")[2] + b"\n"
    match = _SEQ.search(line)
    if match is None or event_type(line) != LedgerRoll.EVENT_TYPE:
        raise LedgerDamaged(f"{name} does not end with the event that ends a segment")
    if int(match[1]) + 1 != next_seq:
        raise LedgerDamaged(f"the segment that begins with event {int(match[1]) + 1} is missing")
    return line[_HASH].decode("ascii", "replace")


def hash_before(directory: str, first_seq: int) -> str:
    """Give the event_hash before the first event that is there, in hex.

    Where segments were archived, `before.hashes` holds the hashes of their events, end to end; it
    may reach further than the archived segments while they are being removed.

    Raises:
        LedgerDamaged: events are missing, and so are their hashes.
    """
    if first_seq == 0:
        return GENESIS_HASH
    try:
        with open(f"{directory}/{BEFORE_FILE}", "rb", opener=regular) as file:
            file.seek((first_seq - 1) * HASH_BYTES)
            found = file.read(HASH_BYTES)
    except FileNotFoundError:
        found = b""
    if len(found) != HASH_BYTES:
        raise LedgerDamaged("the segment that begins with event 0 is missing")
    return found.hex()


def archived_before(directory: str, first_seqs: list[int]) -> int:
    """Give the first event that was not archived, as the newest segment that tells of it says.

    It is not proven here that the line was signed.
    """
    for first_seq in reversed(first_seqs):
        with open_segment(directory, first_seq) as file:
            told = [int(match[1]) for line in file if (match := _ARCHIVED.match(line, _BODY))]
        if told:
            return told[-1]
    return 0


def scan_all(directory: str, first_seqs: list[int]) -> Iterator[Scan]:
    """Scan all segments in order, stitched by their hashes; see `scan`."""
    prev_hash = hash_before(directory, first_seqs[0])
    for first_seq in first_seqs:
        one = scan(directory, first_seq, prev_hash)
        prev_hash = one.last_hash
        yield one


def read_line(descriptor: int, offset: int) -> bytes:
    """Read the line that begins at a byte, with its newline."""
    data = os.pread(descriptor, _NEAR_BYTES, offset)
    if b"\n" not in data:
        data = os.pread(descriptor, LINE_BYTES_MAX, offset)
    line, newline, _ = data.partition(b"\n")
    if not newline:
        raise LedgerDamaged(f"no line ends after byte {offset}")
    return line + newline


def locate(descriptor: int, end: int, seq: int, *, first_seq: int, events: int) -> int:
    """Find the byte at which event `seq` begins; lines carry their own position.

    Lines are alike in length, so a guess or two lead there; where they do not, halving does.

    Args:
        descriptor: the open segment.
        end: how many of its bytes are lines.
        seq: an event of this segment.
        first_seq: the segment.
        events: about how many events those lines are.

    Raises:
        LedgerDamaged: the segment does not hold it where it must be.
    """
    length = end / max(1, events)
    guess = int((seq - first_seq) * length)
    wanted = b',"seq":%d,"ts_us":' % seq
    for _ in range(_GUESSES):
        place = max(0, min(guess, end) - _BLOCK_BYTES // 2)
        block = os.pread(descriptor, _BLOCK_BYTES, place)
        found = block.find(wanted)
        if found >= 0:
            before = block.rfind(b"\n", 0, found)
            if before >= 0 or place == 0:
                return place + before + 1
        near = _SEQ.search(block)
        if near is None:
            break
        guess = place + near.end() + int((seq - int(near[1]) - 1) * length)
    return _halve(descriptor, end, seq)


def _halve(descriptor: int, end: int, seq: int) -> int:
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        begin = middle
        if middle > low:
            begin = middle - 1 + len(read_line(descriptor, middle - 1))
        if begin >= high:
            high = middle
            continue
        match = _SEQ.search(read_line(descriptor, begin))
        if match is None:
            break
        found = int(match[1])
        if found == seq:
            return begin
        if found > seq:
            high = begin
        elif begin == low:
            break
        else:
            low = begin
    raise LedgerDamaged(f"event {seq} is not where it must be")


class OpenSegment:
    """The segment that is being written."""

    def __init__(
        self, volume: Volume, directory: str, first_seq: int, *, size: int, create: bool
    ) -> None:
        """Open a segment for appending after its first `size` bytes, or make it."""
        self.first_seq = first_seq
        self.size = size
        self._volume = volume
        self._path = segment_path(directory, first_seq)
        flags = os.O_RDWR | os.O_APPEND
        self.descriptor = volume.open(
            self._path, flags | os.O_CREAT | os.O_EXCL if create else flags
        )
        status = os.fstat(self.descriptor)
        self._identity = (status.st_dev, status.st_ino, 1)
        if create:
            volume.fsync(self.descriptor)
            sync_directory(volume, os.path.dirname(self._path))

    def check(self) -> None:
        """Raise OSError unless the file is the one we opened and holds exactly what we wrote."""
        status = os.lstat(self._path)
        if (status.st_dev, status.st_ino, status.st_nlink) != self._identity:
            raise OSError("the segment was removed, replaced or linked")
        if status.st_size != self.size:
            raise OSError(f"the segment has {status.st_size} bytes, {self.size} were written")

    def append(self, data: bytes) -> None:
        """Write whole lines at the end; they count once `check` has passed."""
        write_all(self._volume, self.descriptor, data)
        self.size += len(data)

    def flush(self) -> None:
        """Make everything written durable."""
        self._volume.fdatasync(self.descriptor)

    def close(self) -> None:
        """Close the file, once."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
