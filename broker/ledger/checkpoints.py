"""Checkpoints: who signed which size and root, kept in three places.

`checkpoints.log` is the record: each entry is a line with its number, from 0, and a signed note of
five lines. `checkpoint` is the newest note for readers. `head` in the anchor directory, best on
another volume or of another user, is the newest note again: it tells a cut ledger from a whole one.

Rules this file keeps:
- An entry is durable in the log before the anchor moves; so the anchor is never ahead of the log.
- The anchor moves by compare-and-swap under its own lock: it must still hold what we put there.
- Reading changes nothing; a torn last entry is put aside by recovery before anything is added.
- An older entry is found by halving, since sizes rise: a few small reads, however long the log is.

It leaves comparing roots with the ledger's bytes to `broker.ledger.recovery` and `broker.evidence`.
"""

from __future__ import annotations

import os
import re
from typing import Final, NamedTuple

import nacl.signing

from broker.ledger.errors import LedgerDamaged, LedgerTruncated, PositionUnknown, SizeUnsigned
from broker.ledger.signature import check_signature
from broker.ledger.volume import Volume, replace_file, write_all
from broker.regular import regular
from schemas.proof import (
    Checkpoint,
    ProofError,
    VerifierKey,
    sign_note,
    verify_checkpoint,
)

_ENTRY: Final = re.compile(
    rb"^([0-9]{1,16})\n((?:[^\n]+\n){3}\n\xe2\x80\x94 [^\n]+\n)", re.MULTILINE
)
_SIZED: Final = re.compile(
    rb"^[0-9]{1,16}\n([^\n]+\n([0-9]{1,16})\n[^\n]+\n\n\xe2\x80\x94 [^\n]+\n)", re.MULTILINE
)
_TAIL_BYTES: Final = 64 * 1024
_ENTRY_BYTES_MAX: Final = 1024
"""Longest entry we write; what is left of a torn one is shorter."""


class Place(NamedTuple):
    """Where a ledger lies and who signs it: its folder, its anchor's, both halves of its key."""

    volume: Volume
    directory: str
    anchor_directory: str
    key: VerifierKey
    signing_key: nacl.signing.SigningKey


class Newest(NamedTuple):
    """The newest entry: its number, its note, what it says, and where the log's entries end."""

    number: int
    note: str
    checkpoint: Checkpoint
    end: int


class Signed(NamedTuple):
    """A note whose signature was checked, and what it says."""

    note: str
    checkpoint: Checkpoint


class Found(NamedTuple):
    """What reading the log and the anchor gave."""

    newest: Newest | None
    torn: bytes
    anchor_note: str | None
    anchor: Checkpoint | None


def read_log(path: str, key: VerifierKey) -> tuple[Newest | None, bytes]:
    """Give the newest whole entry of a checkpoints.log, and the bytes after it.

    Raises:
        LedgerDamaged: the newest entry does not verify, or what follows it is no torn entry.
    """
    try:
        with open(path, "rb", opener=regular) as file:
            begin = max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES)
            file.seek(begin)
            data = file.read()
    except FileNotFoundError:
        return None, b""
    match = None
    for found in _ENTRY.finditer(data):
        match = found
    torn = data[match.end() :] if match else data
    if len(torn) >= _ENTRY_BYTES_MAX or torn.count(b"\n") >= 6:
        raise LedgerDamaged(f"checkpoints.log, byte {begin + len(data) - len(torn)}: no checkpoint")
    if match is None:
        return None, torn
    note = match[2].decode("utf-8", "replace")
    checkpoint = _verified(note, key, "the newest checkpoint in checkpoints.log")
    return Newest(int(match[1]), note, checkpoint, begin + match.end()), torn


def find_size(descriptor: int, end: int, size: int, key: VerifierKey) -> Signed:
    """Find the entry over exactly `size` events in a checkpoints.log.

    Args:
        descriptor: the log, open for reading.
        end: where its entries end, in bytes.
        size: how many events.
        key: who must have signed.

    Raises:
        SizeUnsigned: there is none.
        LedgerDamaged: what lies where it would be is no entry, or does not verify.
        OSError: the log cannot be read.
    """
    # Every entry that begins before `low` is over fewer events, from `high` on over more.
    low, high = 0, end
    while low < high:
        middle = (low + high) // 2
        # Wherever this begins, the next entry lies in it whole, unless the log ends first.
        found = _SIZED.search(os.pread(descriptor, min(2 * _ENTRY_BYTES_MAX, end - middle), middle))
        if found is None or int(found[2]) > size:
            high = middle
        elif int(found[2]) < size:
            low = middle + found.end()
        else:
            note = found[1].decode("utf-8", "replace")
            return Signed(note, _verified(note, key, f"the checkpoint over {size} events"))
    if low < end and not _SIZED.match(os.pread(descriptor, _ENTRY_BYTES_MAX, low)):
        raise LedgerDamaged(f"checkpoints.log, byte {low}: no checkpoint")
    raise SizeUnsigned(f"no checkpoint was signed over exactly {size} events")


def _read_note(path: str) -> str | None:
    try:
        with open(path, "rb", opener=regular) as file:
            return file.read(_ENTRY_BYTES_MAX).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def _verified(note: str, key: VerifierKey, what: str) -> Checkpoint:
    try:
        return verify_checkpoint(note, key, check_signature)
    except ProofError as error:
        raise LedgerDamaged(f"{what} does not verify: {error}") from None


def find(place: Place) -> Found:
    """Read the newest checkpoints of log and anchor; which roots they have is not judged here.

    Raises:
        LedgerDamaged: one does not verify or is missing.
        LedgerTruncated: the anchor is ahead of the log.
    """
    newest, torn = read_log(f"{place.directory}/checkpoints.log", place.key)
    anchor_note = _read_note(f"{place.anchor_directory}/head")
    if anchor_note is None:
        # Only a ledger whose first checkpoint, over nothing, was just written may lack its anchor.
        if newest is not None and (newest.number or newest.checkpoint.size):
            raise LedgerDamaged("the anchor directory holds no head; checkpoints exist")
        return Found(newest, torn, None, None)
    anchor = _verified(anchor_note, place.key, "the anchor's head")
    if newest is None or anchor.size > newest.checkpoint.size:
        held = newest.checkpoint.size if newest else 0
        raise LedgerTruncated(
            f"the anchor holds a checkpoint over {anchor.size} events, checkpoints.log over {held}"
        )
    return Found(newest, torn, anchor_note, anchor)


class Checkpoints:
    """Signs tree heads and stores them."""

    def __init__(self, place: Place, found: Found) -> None:
        """Go on after what `find` found; torn bytes are already gone from the log."""
        self._volume = place.volume
        self._anchor_path = f"{place.anchor_directory}/head"
        self._reader_path = f"{place.directory}/checkpoint"
        self._key = place.key
        self._signing_key = place.signing_key
        newest = found.newest
        self._number = newest.number + 1 if newest else 0
        self._end = newest.end if newest else 0
        self._anchor_note = found.anchor_note
        self.head = newest.note if newest else ""
        self.newest = newest.checkpoint if newest else None
        self._older: Signed | None = None
        self._log = place.volume.open(
            f"{place.directory}/checkpoints.log", os.O_RDWR | os.O_CREAT | os.O_APPEND
        )

    def add(self, size: int, root: bytes) -> str:
        """Sign a tree head, make it durable, then tell readers and the anchor.

        Raises:
            OSError: a write failed, or a file is not as we left it.
        """
        checkpoint = Checkpoint(origin=self._key.name, size=size, root=root)
        note = sign_note(
            str(checkpoint), self._key, lambda text: self._signing_key.sign(text).signature
        )
        entry = f"{self._number}\n{note}".encode()
        if os.fstat(self._log).st_size != self._end:
            raise OSError("checkpoints.log is not as long as what was written to it")
        write_all(self._volume, self._log, entry)
        self._volume.fdatasync(self._log)
        self._end += len(entry)
        self._number += 1
        self.head, self.newest = note, checkpoint
        self.publish()
        return note

    def over(self, size: int | None) -> Signed:
        """Give the newest checkpoint, or the one over exactly `size` events.

        Raises:
            PositionUnknown: there is none yet.
            SizeUnsigned: none was signed over that size.
            LedgerDamaged, OSError: the log is not what was written, or cannot be read.
        """
        if self.newest is None:
            raise PositionUnknown("there is no checkpoint yet")
        if size is None or size == self.newest.size:
            return Signed(self.head, self.newest)
        # Whoever proves much against one checkpoint asks for the same one again and again.
        if self._older is None or self._older.checkpoint.size != size:
            self._older = find_size(self._log, self._end, size, self._key)
        return self._older

    def covering(self, seq: int, size: int | None = None) -> Checkpoint:
        """Give that checkpoint, see `over`, which must cover one event.

        Raises:
            PositionUnknown: it does not.
        """
        signed = self.over(size).checkpoint
        if not 0 <= seq < signed.size:
            raise PositionUnknown(f"the checkpoint over {signed.size} events lacks event {seq}")
        return signed

    def publish(self) -> None:
        """Bring the readers' file and the anchor up to the newest checkpoint."""
        if self._anchor_note != self.head:
            if _read_note(self._anchor_path) != self._anchor_note:
                raise OSError("the anchor's head is not what was put there")
            replace_file(self._volume, self._anchor_path, self.head.encode(), durable=True)
            self._anchor_note = self.head
        replace_file(self._volume, self._reader_path, self.head.encode(), durable=False)

    def close(self) -> None:
        """Close the log."""
        os.close(self._log)
