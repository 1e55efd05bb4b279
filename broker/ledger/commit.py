"""The ledger as the gateway holds it: append, commit, checkpoint, prove.

Rules this file keeps:
- What is appended is chained at once and is nothing until `commit` returns; then it is durable
  (`power`: flushed) or survives the process (`process`: written). Nothing is buffered in between.
- A commit is one write and one flush of everything appended, however much that is.
- Checkpoints cover flushed events only, in both modes.
- It fails for ever: an error, a short write or a file that is not as we left it latches the ledger.
  The latch is set before the first system call and taken off after the last, so no way out of the
  code between them, an exception of ours included, leaves a ledger that accepts more.

It leaves opening to `broker.ledger.recovery`, and to the gateway which events are appended: also
`ledger.open`, `ledger.recovery` and, at the begin of each segment, `state.snapshot`.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Final

import msgspec
import nacl.signing

from broker.ledger.checkpoints import Place
from broker.ledger.compressed import open_lines
from broker.ledger.errors import (
    LedgerDamaged,
    LedgerFailure,
    LedgerUnwritable,
    PositionArchived,
    PositionUnknown,
    TilesDamaged,
    told,
)
from broker.ledger.merkle import (
    ProofError,
    consistency_path,
    inclusion_path,
    verify_consistency,
    verify_inclusion,
)
from broker.ledger.recovery import Opened, open_directory
from broker.ledger.segments import (
    SEGMENT_BYTES_MAX,
    OpenSegment,
    locate,
    open_segment,
    read_line,
    segment_path,
)
from broker.ledger.space import Space, release_ballast
from broker.ledger.volume import Volume
from schemas.events import (
    LINE_BYTES_MAX,
    Event,
    EventFields,
    InvalidEvent,
    LedgerRecovery,
    LedgerRoll,
    decode_event,
    encode_event,
    line_hash,
)
from schemas.names import Durability
from schemas.proof import Checkpoint, VerifierKey

CHECKPOINT_EVENTS: Final = 4096
CHECKPOINT_US: Final = 1_000_000

Now = Callable[[], tuple[int, int]]
"""Gives wall time and monotonic time, both in microseconds."""


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Appended(msgspec.Struct, frozen=True, gc=False):
    """Where an event is in the ledger."""

    seq: int
    event_hash: str


class Ledger:
    """One writer of one ledger directory. Made by `open`."""

    def __init__(
        self, place: Place, opened: Opened, durability: Durability, now: Now,
        monotonic_us: Callable[[], int], space: Space, stack: contextlib.ExitStack,
    ) -> None:
        """Go on where the opened files end; `open` is what to call."""
        self.log_id = place.key.name
        self.verifier_key = str(place.key)
        self.recovered: LedgerRecovery | None = opened.recovered
        self.flush_started_mono_us: int | None = None
        self._volume = place.volume
        self._directory = place.directory
        self._durability = durability
        self._now = now
        self._monotonic_us = monotonic_us
        self._space = space
        self._stack = stack
        self._failure: str | None = None
        self._lines: list[bytes] = []
        self._hashes: list[str] = []
        self._flushed = False
        self._segment = opened.segment
        self._first_seqs = opened.first_seqs
        self._older: tuple[int, int] | None = None
        stack.callback(self._forget_older)
        self._tiles = opened.tiles
        self._checkpoints = opened.checkpoints
        self._next_seq = self._committed = opened.size
        self._head_hash = opened.head_hash
        self._checkpoint_mono_us = now()[1]

    @classmethod
    def open(
        cls, directory: str, anchor_directory: str, *, log_id: str,
        signing_key: nacl.signing.SigningKey, durability: Durability, now: Now,
        volume: Volume | None = None, monotonic_us: Callable[[], int] = _monotonic_us,
        low_space_bytes: int = 0,
    ) -> Ledger:
        """Lock, check and open a ledger directory, or begin one where there is none.

        Args:
            directory: the ledger's folder.
            anchor_directory: where the newest checkpoint is kept a second time.
            log_id: the ledger's identity; also the origin of its checkpoints.
            signing_key: signs checkpoints.
            durability: what a commit promises.
            now: the clock of the events' times.
            volume: the system calls; the kernel's unless a test says otherwise.
            monotonic_us: read as each flush begins, for the watchdog; `now` may be read seldom.
            low_space_bytes: from how little room on `space_low` says so; 0 means two segments or
                5 % of the volume, whichever is more.

        Raises:
            LedgerRefused: one of its kinds; the evidence is as it was found.
        """
        key = VerifierKey(name=log_id, public_key=bytes(signing_key.verify_key))
        place = Place(volume or Volume(), directory, anchor_directory, key, signing_key)
        files = contextlib.ExitStack()
        try:
            opened = open_directory(place, files)
            space = Space(directory, low_space_bytes)
            ledger = cls(place, opened, durability, now, monotonic_us, space, files)
            ledger.checkpoint()
        except (OSError, LedgerFailure) as error:
            files.close()
            if isinstance(error, OSError):
                release_ballast(directory, error)
            raise LedgerUnwritable(told(error, directory)) from error
        except BaseException:
            files.close()
            raise
        return ledger

    # --- Writing ---

    @property
    def pending(self) -> bool:
        """Whether something was appended and not committed."""
        return bool(self._lines)

    @property
    def size(self) -> int:
        """How many events there are, those not yet committed included."""
        return self._next_seq

    @property
    def first_seqs(self) -> list[int]:
        """The first event of each segment, ascending."""
        return [*self._first_seqs]

    @property
    def first_seq(self) -> int:
        """The first event that is there; those before it were archived."""
        return self._first_seqs[0]

    @property
    def committed(self) -> int:
        """How many events there are for good."""
        return self._committed

    def append(self, fields: EventFields) -> Appended:
        """Chain one event. It is nothing until `commit` returns.

        Raises:
            LedgerFailure: the ledger failed before.
        """
        if self._failure is not None:
            raise LedgerFailure(self._failure)
        seq = self._next_seq
        ts_us, mono_us = self._now()
        line, event_hash = encode_event(
            fields, log_id=self.log_id, seq=seq, ts_us=ts_us, mono_us=mono_us,
            prev_hash=self._head_hash,
        )
        assert len(line) <= LINE_BYTES_MAX, "every field of an event is bounded"
        self._lines.append(line)
        self._hashes.append(event_hash)
        self._head_hash = event_hash
        self._next_seq = seq + 1
        return Appended(seq, event_hash)

    def commit(self) -> None:
        """Write everything appended and, in mode `power`, flush it.

        Raises:
            LedgerFailure: it is not known to be durable; the ledger is latched.
        """
        if self._lines or self._failure is not None:
            with self._latch("commit"):
                self._write_pending()

    def _write_pending(self) -> None:
        segment = self._segment
        segment.append(b"".join(self._lines))
        self._flushed = self._durability == "power"
        if self._flushed:
            segment.flush()
        segment.check()
        self._tiles.extend(bytes.fromhex("".join(self._hashes)))
        self._committed = self._next_seq
        self._lines.clear()
        self._hashes.clear()

    @contextlib.contextmanager
    def _latch(self, what: str) -> Iterator[None]:
        """Refuse everything from here on unless the block ends in order."""
        if self._failure is not None:
            raise LedgerFailure(self._failure)
        self._failure = f"the {what} did not end"
        self.flush_started_mono_us = self._monotonic_us()
        try:
            yield
        except OSError as error:
            self._failure = f"the {what} failed: {error}"
            # The next start needs room for its own events.
            release_ballast(self._directory, error)
            raise LedgerFailure(self._failure) from error
        finally:
            self.flush_started_mono_us = None
        self._failure = None

    def space_low(self) -> bool:
        """Say whether so little room is left that nothing new should be begun.

        Raises:
            LedgerFailure: the volume cannot be asked; the ledger is latched.
        """
        with self._latch("look at the volume"):
            return self._space.low(self._now()[1])

    @property
    def roll_due(self) -> bool:
        """Whether the segment is full; then the gateway rolls and appends a `state.snapshot`."""
        return self._segment.size >= SEGMENT_BYTES_MAX

    def roll(self) -> None:
        """End the segment with a `ledger.roll` event, make it durable, begin the next, checkpoint.

        Raises:
            LedgerFailure: as `commit`.
        """
        self.append(LedgerRoll(segment=self._next_seq + 1))
        self.commit()
        with self._latch("roll"):
            self._segment.flush()
            following = OpenSegment(
                self._volume, self._directory, self._next_seq, size=0, create=True
            )
            self._stack.callback(following.close)
            self._segment.close()
            self._segment = following
            self._first_seqs.append(following.first_seq)
        self.checkpoint()

    # --- Checkpoints ---

    @property
    def head(self) -> str:
        """The newest checkpoint, a signed note."""
        return self._checkpoints.head

    def note(self, size: int | None) -> str:
        """Give the newest checkpoint, or the one over exactly `size` events.

        Raises:
            SizeUnsigned: none was signed over that size.
            LedgerDamaged, OSError: the log of checkpoints cannot be read.
        """
        return self._checkpoints.over(size).note

    @property
    def head_size(self) -> int:
        """How many events the newest checkpoint covers."""
        newest = self._checkpoints.newest
        return newest.size if newest else 0

    def checkpoint_due(self) -> bool:
        """Say whether committed events wait for a checkpoint since a second, or 4096 of them."""
        waiting = self._committed - self.head_size
        return waiting > 0 and (
            waiting >= CHECKPOINT_EVENTS
            or self._now()[1] - self._checkpoint_mono_us >= CHECKPOINT_US
        )

    def checkpoint(self) -> str:
        """Sign the tree over all committed events, unless the newest checkpoint covers them.

        Returns:
            The newest checkpoint, a signed note.

        Raises:
            LedgerFailure: it could not be made durable; the ledger is latched.
        """
        with self._latch("checkpoint"):
            newest = self._checkpoints.newest
            if newest is not None and newest.size == self._committed:
                self._checkpoints.publish()
            else:
                # In mode `process`, and after a crash in either, events may not be flushed yet.
                if not self._flushed:
                    self._segment.flush()
                    self._flushed = True
                self._segment.check()
                self._tiles.flush()
                self._checkpoints.add(self._committed, self._tiles.root(self._committed))
            self._checkpoint_mono_us = self._now()[1]
        return self._checkpoints.head

    def close(self) -> None:
        """Commit, checkpoint, and give the ledger free; after a failure only give it free.

        Raises:
            LedgerFailure: the last commit or checkpoint failed; the files are closed all the same.
        """
        with self._stack:
            if self._failure is None:
                self.commit()
                self.checkpoint()
            self._failure = self._failure or "the ledger is closed"

    # --- Reading ---

    def line(self, seq: int) -> bytes:
        """Give the line of one committed event, with its newline.

        Raises:
            PositionUnknown: there is no such committed event.
            LedgerDamaged, OSError: the segment does not hold it or cannot be read.
        """
        if not 0 <= seq < self._committed:
            raise PositionUnknown(f"the ledger has {self._committed} events, {seq} is none of them")
        if seq < self.first_seq:
            raise PositionArchived(f"event {seq} was archived; {self.first_seq} is the first here")
        place = bisect.bisect_right(self._first_seqs, seq)
        first_seq = self._first_seqs[place - 1]
        following = [*self._first_seqs[place : place + 1], self._committed][0]
        descriptor = self._descriptor(first_seq)
        return read_line(descriptor, locate(
            descriptor, os.fstat(descriptor).st_size, seq,
            first_seq=first_seq, events=following - first_seq,
        ))

    def _descriptor(self, first_seq: int) -> int:
        """Give a segment for reading: the one being written, or the older one that was read last.

        Nothing is looked up by name again, and a reader of many segments holds one descriptor.
        """
        if first_seq == self._segment.first_seq:
            return self._segment.descriptor
        if self._older is None or self._older[0] != first_seq:
            opened = open_lines(segment_path(self._directory, first_seq))
            self._forget_older()
            self._older = first_seq, opened
        return self._older[1]

    def _forget_older(self) -> None:
        if self._older is not None:
            os.close(self._older[1])
            self._older = None

    def events(self, start: int = 0) -> Iterator[Event]:
        """Give all committed events from a position on, strictly decoded, their chain checked.

        Raises:
            LedgerDamaged: a line is not what was written.
        """
        previous = None
        for seq, line in self._lines_from(start):
            event = _decode(line, seq)
            if previous not in (None, event.prev_hash):
                raise LedgerDamaged(f"event {seq} does not follow the one before it")
            yield event
            previous = event.event_hash

    def find(self, part: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        """Give the committed events from one position to before another whose lines hold a part.

        Raises:
            LedgerDamaged: a segment is not what was written.
        """
        return (found for found in self._lines_from(start, end) if part in found[1])

    def _lines_from(self, start: int, end: int | None = None) -> Iterator[tuple[int, bytes]]:
        seq, committed = max(start, self.first_seq), self._committed
        end = committed if end is None else end
        for first_seq, following in _spans(self._first_seqs, committed):
            if min(following, end) <= seq:
                continue
            with open_segment(self._directory, first_seq) as file:
                if seq > first_seq:
                    file.seek(locate(
                        file.fileno(), file.seek(0, 2), seq,
                        first_seq=first_seq, events=following - first_seq,
                    ))
                while seq < min(following, end):
                    yield seq, file.readline()
                    seq += 1

    def prove(self, seq: int, size: int | None = None) -> list[bytes]:
        """Make the inclusion proof of one event against a checkpoint; see `note`.

        Raises:
            PositionUnknown: the checkpoint does not cover it, or there is none.
            TilesDamaged: the stored tree is wrong.
            LedgerDamaged, OSError: as `line`.
        """
        signed = self._checkpoints.covering(seq, size)
        with self._checked_tree():
            return self._path(seq, signed, self.line(seq))

    def _path(self, seq: int, signed: Checkpoint, line: bytes) -> list[bytes]:
        path = inclusion_path(seq, signed.size, self._tiles.subtree)
        verify_inclusion(bytes.fromhex(line_hash(line)), seq, signed.size, path, signed.root)
        return path

    def proven(self, seq: int) -> Event:
        """Give one event that the newest checkpoint's tree holds at its position.

        Raises:
            PositionUnknown: the newest checkpoint does not cover it.
            LedgerDamaged, OSError: it is not what was signed, or cannot be read.
        """
        line = self.line(seq)
        try:
            self._path(seq, self._checkpoints.covering(seq), line)
        except (ProofError, TilesDamaged) as error:
            raise LedgerDamaged(f"event {seq} is not what was signed: {error}") from None
        return _decode(line, seq)

    def prove_consistency(self, old_size: int, size: int | None = None) -> list[bytes]:
        """Make the proof that a checkpoint, see `note`, continues an older size; 0 needs none.

        Raises:
            PositionUnknown: the checkpoint is not that large, or there is none.
            TilesDamaged: the stored tree is wrong.
        """
        signed = self._checkpoints.over(size).checkpoint
        if not 0 <= old_size <= signed.size:
            raise PositionUnknown(f"the checkpoint has {signed.size} events, fewer than {old_size}")
        if old_size == 0:
            return []
        with self._checked_tree():
            path = consistency_path(old_size, signed.size, self._tiles.subtree)
            old_root = self._tiles.root(old_size)
            verify_consistency(old_size, signed.size, old_root, signed.root, path)
        return path

    @contextlib.contextmanager
    def _checked_tree(self) -> Iterator[None]:
        """Never hand out a proof that does not hold; forget a stored tree that gave one."""
        try:
            yield
        except (ProofError, TilesDamaged) as error:
            self._tiles.discard()
            raise TilesDamaged(f"the stored tree does not lead to the root: {error}") from error


def _spans(first_seqs: list[int], size: int) -> Iterator[tuple[int, int]]:
    """Give begin and end of each segment."""
    return zip(first_seqs, [*first_seqs[1:], size], strict=True)


def _decode(line: bytes, seq: int) -> Event:
    try:
        event = decode_event(line)
    except InvalidEvent as error:
        raise LedgerDamaged(f"event {seq}: {error}") from None
    if event.seq != seq:
        raise LedgerDamaged(f"event {event.seq} stands where event {seq} must be")
    return event
