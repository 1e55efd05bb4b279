"""Opening a ledger: what must hold before a single event may follow.

Rules this file keeps:
- Reading comes first and changes no evidence: a ledger that is refused keeps all its bytes.
- Only bytes after the last newline may be set aside, and they are kept: under `quarantine/`, with
  a name made from their content, so that doing it again after another crash does nothing new.
- The ledger must reach its newest checkpoint and have that root there. A chain alone cannot see
  that its end was cut off; a signed size can.

Order: locks, checkpoints and anchor, segments stitched by name, last segment scanned, tree compared
with the signed roots; then torn bytes are put aside and writing may begin.

It leaves strict decoding to whoever folds the events, the whole ledger to `broker.evidence`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import os
from collections.abc import Iterable
from typing import Final, NamedTuple

from broker.ledger.checkpoints import Checkpoints, Found, Place, find
from broker.ledger.errors import LedgerDamaged, LedgerLocked, LedgerTruncated, TilesDamaged
from broker.ledger.segments import (
    BEFORE_FILE,
    OpenSegment,
    Scan,
    archived_before,
    check_end,
    hash_before,
    list_segments,
    scan,
    scan_all,
    segment_path,
)
from broker.ledger.space import prepare_ballast
from broker.ledger.tiles import Tiles
from broker.ledger.volume import Volume, make_directory, sync_directory, write_all
from broker.regular import regular
from schemas.events import LedgerRecovery
from schemas.proof import HASH_BYTES, Checkpoint

_FOLDERS: Final = ("segments", "quarantine", "tiles")


class Opened(NamedTuple):
    """A ledger that may be written: its files, its end, and what was found after a crash."""

    segment: OpenSegment
    tiles: Tiles
    checkpoints: Checkpoints
    size: int
    head_hash: str
    recovered: LedgerRecovery | None
    first_seqs: list[int]


def open_directory(place: Place, stack: contextlib.ExitStack) -> Opened:
    """Lock, check and mend a ledger directory, or begin a new one.

    Args:
        place: the folders, whose parents exist, and the key, whose name is the log_id.
        stack: closes locks and files when the ledger is closed or refused.

    Raises:
        LedgerRefused: the ledger may not be written; nothing was changed.
        OSError: the volume does not let us.
    """
    volume, directory = place.volume, place.directory
    for path in (directory, place.anchor_directory):
        make_directory(volume, path)
        lock(volume, f"{path}/LOCK", stack)
    prepare_ballast(volume, directory)
    for folder in _FOLDERS:
        make_directory(volume, f"{directory}/{folder}")
    found = find(place)
    first_seqs = list_segments(directory)
    if not first_seqs:
        if found.newest is not None:
            raise LedgerTruncated("there are checkpoints but no segment")
        OpenSegment(volume, directory, 0, size=0, create=True).close()
        first_seqs = [0]
    scanned = _scan_last(directory, first_seqs, place.key.name)
    size = first_seqs[-1] + len(scanned.hashes) // HASH_BYTES
    _check_reach(size, found)
    tiles = _open_tiles(volume, directory, first_seqs, scanned, found)
    stack.callback(tiles.close)
    segment = _mend(volume, directory, first_seqs[-1], scanned, found)
    stack.callback(segment.close)
    checkpoints = Checkpoints(place, found)
    stack.callback(checkpoints.close)
    facts = _facts(size, scanned, found)
    first_seqs = sorted({*first_seqs, segment.first_seq})
    return Opened(segment, tiles, checkpoints, size, scanned.last_hash, facts, first_seqs)


def lock(volume: Volume, path: str, stack: contextlib.ExitStack) -> None:
    """Take a lock that its writer holds for as long as it runs.

    Raises:
        LedgerLocked: another process has it.
    """
    descriptor = volume.open(path, os.O_RDWR | os.O_CREAT)
    stack.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LedgerLocked(f"another process holds {path}") from None


def _scan_last(directory: str, first_seqs: list[int], log_id: str) -> Scan:
    prev_hash = hash_before(directory, first_seqs[0])
    if first_seqs[0] and archived_before(directory, first_seqs) < first_seqs[0]:
        raise LedgerDamaged("the segment that begins with event 0 is missing")
    for first_seq, next_seq in itertools.pairwise(first_seqs):
        prev_hash = check_end(directory, first_seq, next_seq)
    scanned = scan(directory, first_seqs[-1], prev_hash)
    if scanned.log_id not in ("", log_id):
        raise LedgerDamaged(f"this is the ledger {scanned.log_id}, not {log_id}")
    return scanned


def _check_reach(size: int, found: Found) -> None:
    if found.newest is None:
        if size:
            raise LedgerDamaged(f"the ledger holds {size} events and no checkpoint")
    elif size < found.newest.checkpoint.size:
        raise LedgerTruncated(
            f"the ledger holds {size} events, but {found.newest.checkpoint.size} were signed"
        )


def _open_tiles(
    volume: Volume, directory: str, first_seqs: list[int], scanned: Scan, found: Found
) -> Tiles:
    """Bring the stored tree up to the last event and compare it with what was signed."""
    signed = [found.newest.checkpoint] if found.newest else []
    if found.anchor is not None:
        signed.append(found.anchor)
    with contextlib.suppress(TilesDamaged):
        stored = Tiles(volume, directory, first_seqs[-1])
        if _grow(stored, [scanned], signed) is None:
            return stored
        stored.close()
    made = Tiles(volume, directory, 0)
    if first_seqs[0]:
        with open(f"{directory}/{BEFORE_FILE}", "rb", opener=regular) as file:
            made.extend(file.read(first_seqs[0] * HASH_BYTES))
    wrong = _grow(made, scan_all(directory, first_seqs), signed)
    if wrong is not None:
        made.close()
        raise LedgerDamaged(f"the first {wrong.size} events are not those that were signed")
    return made


def _grow(tiles: Tiles, scans: Iterable[Scan], signed: list[Checkpoint]) -> Checkpoint | None:
    """Add events to the tree; gives a checkpoint whose root the tree does not have."""
    for one in scans:
        tiles.extend(bytes(one.hashes))
    tiles.flush()
    return next((one for one in signed if tiles.root(one.size) != one.root), None)


def _facts(size: int, scanned: Scan, found: Found) -> LedgerRecovery | None:
    if (scanned.closed or not size) and not scanned.tail:
        return None
    signed = found.newest.checkpoint.size if found.newest else 0
    return LedgerRecovery(
        torn_bytes=len(scanned.tail),
        torn_sha256=hashlib.sha256(scanned.tail).hexdigest() if scanned.tail else None,
        checkpoint_size=signed,
        events_after_checkpoint=size - signed,
    )


def _mend(
    volume: Volume, directory: str, first_seq: int, scanned: Scan, found: Found
) -> OpenSegment:
    """Put torn bytes aside and give the segment that is written next."""
    if found.torn:
        end = found.newest.end if found.newest else 0
        _quarantine(volume, directory, f"checkpoints.log.{end}", found.torn)
        _cut(volume, f"{directory}/checkpoints.log", end)
    size = first_seq + len(scanned.hashes) // HASH_BYTES
    if scanned.tail:
        _quarantine(volume, directory, f"{first_seq:012d}.{size}", scanned.tail)
        _cut(volume, segment_path(directory, first_seq), scanned.end)
    if scanned.rolled:
        return OpenSegment(volume, directory, size, size=0, create=True)
    return OpenSegment(volume, directory, first_seq, size=scanned.end, create=False)


def _quarantine(volume: Volume, directory: str, name: str, data: bytes) -> None:
    """Keep torn bytes for good under a name made from their content."""
    digest = hashlib.sha256(data).hexdigest()[:16]
    path = f"{directory}/quarantine/{name}.{digest}"
    descriptor = volume.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        write_all(volume, descriptor, data)
        volume.fsync(descriptor)
    finally:
        os.close(descriptor)
    sync_directory(volume, f"{directory}/quarantine")


def _cut(volume: Volume, path: str, length: int) -> None:
    descriptor = volume.open(path, os.O_RDWR)
    try:
        volume.ftruncate(descriptor, length)
        volume.fsync(descriptor)
    finally:
        os.close(descriptor)
