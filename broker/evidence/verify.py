"""Verifying a ledger directory from its bytes: what is wrong with it, and where first.

Rules this file keeps:
- It reads the files by itself and shares no reading code with the writer. Only event structs, tree
  arithmetic and note format are common; `scripts/verify_ledger.py` shares not even those.
- Nothing is repaired, nothing is skipped, and the first damaged place ends the search.
- A verdict is one word of a closed list, so that two verifiers can be compared.

Order: the events, segment by segment; then every checkpoint against key and root; then whether the
events reach the newest checkpoint; then the anchor. docs/LEDGER.md defines each verdict.

It leaves the lines of a segment to `broker.evidence.walk`, which can be many processes, what was
verified before to `broker.evidence.memory`, and what the events mean to the audit. Bytes after the
last newline of the last segment are no events and no damage; they are counted.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import msgspec

from broker.evidence.crowd import walk_all
from broker.evidence.events import archived_before
from broker.evidence.memory import Memory, Sealed, recall, remember
from broker.evidence.problems import DamageError, Problem, ProblemKind
from broker.evidence.walk import SegmentTask, Walked, first_log_id, last_hash, subtrees
from broker.ledger.merkle import CompactRange
from broker.ledger.signature import check_signature
from broker.regular import regular
from schemas.events import GENESIS_HASH
from schemas.proof import (
    HASH_BYTES,
    Checkpoint,
    ProofError,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    verify_checkpoint,
)

__all__ = ["Problem", "ProblemKind", "Progress", "VerificationReport", "verify_directory"]

Progress = Callable[[int, int], None]
"""Told how many bytes of how many are done."""

_SEGMENT: Final = re.compile(r"([0-9]{12})\.ndjson(?:\.gz)?")
_ENTRY: Final = re.compile(rb"([0-9]{1,16})\n((?:[^\n]+\n){3}\n\xe2\x80\x94 [^\n]+\n)")
_TORN_BYTES_MAX: Final = 1024
BEFORE_FILE: Final = "before.hashes"
_MANY_BYTES: Final = 16 * 1024 * 1024
"""From this much on it pays to begin other processes."""


class VerificationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified. `key_given` is false when the key is only the ledger's own claim.

    `begins` is the first event that is there; of those before it there are hashes only, because
    this is an exported range or they were archived. A ledger with an anchor must say the latter.
    `known` is how many of the events were verified before and not read again; `remembered` is
    false when the memory could not be written for the next time.
    """

    ok: bool
    log_id: str
    events: int
    segments: int
    checkpoints: int
    head_size: int
    root: str
    torn_bytes: int
    key_given: bool
    anchored: bool
    begins: int
    known: int
    remembered: bool
    problem: Problem | None


class _Entry(NamedTuple):
    """One entry of checkpoints.log, or the anchor's head; nothing of it is verified."""

    file: str
    offset: int
    number: int
    note: str
    claimed: Checkpoint


def verify_directory(
    directory: str, *, verifier_key: str | None = None, anchor_directory: str | None = None,
    progress: Progress | None = None, processes: int = 1, memory: str | None = None,
    from_start: bool = False,
) -> VerificationReport:
    """Verify every byte, link, position, spelling, checkpoint and the anchor of a ledger.

    Args:
        directory: the ledger's folder, or a copy of it; it is only read.
        verifier_key: who must have signed the checkpoints. Without it the key that the first event
            claims is used, which proves that the ledger agrees with itself and nothing more.
        anchor_directory: where the newest checkpoint was kept a second time.
        progress: told now and then how far it is.
        processes: how many may verify segments at once; more than one are begun as new
            interpreters, so the caller's main module must be importable.
        memory: a file that remembers what was verified before; it is used and brought up to date.
        from_start: do not use the memory, only bring it up to date.

    Raises:
        OSError: a file of the ledger could not be read.
        ProofError: `verifier_key` is not a verifier key.
    """
    key = parse_verifier_key(verifier_key) if verifier_key is not None else None
    log = _CheckpointLog(directory)
    anchor = _read_anchor(anchor_directory) if anchor_directory is not None else None
    sizes = {entry.claimed.size for entry in log.entries}
    if isinstance(anchor, _Entry):
        sizes.add(anchor.claimed.size)
    segments = _Segments(directory)
    known = None
    if memory is not None and not from_start:
        known = recall(memory, directory, segments.first_seqs, verifier_key)
        if known is not None and isinstance(anchor, _Entry) and anchor.claimed.size < known.size:
            known = None
    events = _Events(segments, sorted(sizes), known)
    if known is None:
        events.begin_later()
    problem: Problem | None = None
    remembered = True
    try:
        events.walk(processes, progress)
        events.check_begin(anchored=anchor is not None)
        signer = key or _claimed_key(events)
        log.check(events, signer)
        if anchor is not None:
            _check_anchor(anchor, log, events, signer)
        covered = [one for one in events.sealed if one.size <= log.head_size]
        if memory is not None and covered:
            remembered = remember(memory, log.memory(covered[-1], str(signer), events.log_id))
    except DamageError as damage:
        problem = damage.problem
    return VerificationReport(
        ok=problem is None, log_id=events.log_id, events=events.seq, segments=events.segments,
        checkpoints=len(log.entries), root=events.tree.root().hex(), head_size=log.head_size,
        torn_bytes=events.torn_bytes, key_given=key is not None,
        anchored=anchor_directory is not None, begins=events.begins,
        known=known.size if known is not None else 0, remembered=remembered, problem=problem,
    )


# --- Events ---------------------------------------------------------------------------------------


class _Segments:
    """Which segments a ledger directory has, by the positions in their names."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        try:
            names = sorted(os.listdir(f"{directory}/segments"))
        except FileNotFoundError:
            names = []
        self.first_seqs: list[int] = []
        self.files: list[str] = []
        self.foreign: str | None = None
        for name in names:
            match = _SEGMENT.fullmatch(name)
            if match is None:
                self.foreign = f"segments/{name}"
                break
            # The plain form sorts first; the other is what a compression that was cut short left.
            if int(match[1]) not in self.first_seqs[-1:]:
                self.first_seqs.append(int(match[1]))
                self.files.append(f"segments/{name}")

    def tasks(self, events: _Events, sizes: list[int]) -> Iterator[SegmentTask]:
        """Say what is to walk after the segments that are known."""
        paths = [f"{self.directory}/{file}" for file in self.files]
        log_id = events.log_id or (first_log_id(paths[0]) if paths else "")
        for place in range(events.segments, len(paths)):
            yield SegmentTask(
                directory=self.directory, file=self.files[place],
                first_seq=self.first_seqs[place], log_id=log_id, sizes=sizes,
                previous=last_hash(paths[place - 1]) if place else events.previous,
                last=place == len(paths) - 1 and self.foreign is None,
            )


class _Events:
    """Walks all segments in order and keeps what the checkpoints need."""

    def __init__(self, segments: _Segments, sizes: list[int], known: Memory | None) -> None:
        self.seq = known.size if known else 0
        self.segments = len(known.segments) if known else 0
        self.torn_bytes = 0
        self.log_id = known.log_id if known else ""
        self.claimed_key = known.verifier_key if known else None
        self.tree = CompactRange(self.seq, known.hashes if known else ())
        self.roots: dict[int, bytes] = {self.seq: self.tree.root()}
        self.checked_entries = known.log_entries if known else 0
        self.sealed: list[Sealed] = []
        self.rolled = known is not None
        self.file = segments.files[self.segments - 1] if self.segments else "segments"
        self._segments = segments
        self._sizes = sizes
        self._wanted = frozenset(sizes)
        self._identities = list(known.segments) if known else []
        self._previous = known.previous if known else GENESIS_HASH
        self.begins = segments.first_seqs[0] if known else 0
        self._before = 0.0

    def begin_later(self) -> None:
        """Take the hashes of the events before the first one there, if there are as many.

        The signed roots hold them as well.
        """
        first = self._segments.first_seqs[0] if self._segments.first_seqs else 0
        try:
            with open(f"{self._segments.directory}/{BEFORE_FILE}", "rb", opener=regular) as file:
                hashes = file.read(first * HASH_BYTES)
                self._before = os.fstat(file.fileno()).st_size / HASH_BYTES
        except FileNotFoundError:
            return
        if not first or len(hashes) != first * HASH_BYTES:
            return
        for level, root in subtrees(0, hashes, self._sizes):
            self.tree.push(root, level)
            if self.tree.size in self._wanted:
                self.roots[self.tree.size] = self.tree.root()
        self.begins = self.seq = first
        self._previous = hashes[-HASH_BYTES:].hex()

    def check_begin(self, *, anchored: bool) -> None:
        """Check that what is not there was archived, if it must have been.

        A ledger with an anchor is whole, or says what was archived. While segments are being
        removed there may be the hashes of more than is gone, and of no more than it says.
        """
        if self.begins and (anchored or self._before > self.begins):
            archived = archived_before(self._segments.directory)
            if archived < self.begins or self._before not in (0, self.begins, archived):
                raise self.missing_segment(0)

    @property
    def previous(self) -> str:
        """The hash of the last event so far."""
        return self._previous

    def walk(self, processes: int, progress: Progress | None) -> None:
        """Verify all segments that are not known."""
        tasks = list(self._segments.tasks(self, self._sizes))
        total = sum(os.path.getsize(f"{task.directory}/{task.file}") for task in tasks)
        done = 0

        def tell(length: int) -> None:
            nonlocal done
            done += length
            if progress is not None:
                progress(done, total)

        walks = walk_all(tasks, processes if total >= _MANY_BYTES else 1, tell)
        with contextlib.closing(walks):
            for task in tasks:
                self._check_begin(task)
                self.file = task.file
                self._take(task, next(walks))
        if self._segments.foreign is not None:
            raise DamageError("foreign_file", self._segments.foreign, "this is not a segment")

    def _check_begin(self, task: SegmentTask) -> None:
        if self.segments and not self.rolled:
            raise DamageError(
                "truncated", self.file, "another segment follows, but no event ends this one",
                number=self.seq,
            )
        if task.first_seq > self.seq:
            raise self.missing_segment()
        if task.first_seq < self.seq:
            raise DamageError(
                "inserted", task.file, f"it begins before event {self.seq}", number=self.seq
            )
        if self.segments and task.previous != self._previous:
            # The file changed while it was read.
            raise DamageError(
                "rewritten", task.file, "it does not follow the segment before it",
                number=self.seq,
            )

    def missing_segment(self, seq: int | None = None) -> DamageError:
        """Say that the next segment is not there, or that of a position."""
        seq = self.seq if seq is None else seq
        return DamageError(
            "missing_segment", f"segments/{seq:012d}.ndjson",
            f"the segment that begins with event {seq} is missing", number=seq,
        )

    def _take(self, task: SegmentTask, walked: Walked) -> None:
        """Put what a segment holds behind what was there, and stop where it is damaged."""
        for level, root in walked.subtrees:
            self.tree.push(root, level)
            if self.tree.size in self._wanted:
                self.roots[self.tree.size] = self.tree.root()
        self.seq += walked.events
        if walked.events:
            self.log_id = walked.log_id
        self.claimed_key = self.claimed_key or walked.claimed_key
        self.rolled = walked.rolled
        self.torn_bytes = walked.torn_bytes
        self._previous = walked.previous
        if walked.problem is not None:
            raise DamageError.of(walked.problem)
        self.segments += 1
        self._identities.append((task.first_seq, walked.identity))
        if self.rolled:
            self.sealed.append(Sealed(
                self.seq, self._previous, tuple(self.tree.peaks), tuple(self._identities)
            ))

# --- Checkpoints ----------------------------------------------------------------------------------


def _claimed_key(events: _Events) -> VerifierKey:
    try:
        return parse_verifier_key(events.claimed_key or "")
    except ProofError:
        raise DamageError(
            "checkpoint_invalid", "checkpoints.log",
            "no verifier key was given and the ledger's first event claims none",
        ) from None


class _CheckpointLog:
    """Reads checkpoints.log and the readers' copy of the newest note."""

    def __init__(self, directory: str) -> None:
        self._data = b""
        self._end = 0
        self.entries: list[_Entry] = []
        self._problem: DamageError | None = None
        self._reader_path = f"{directory}/checkpoint"
        try:
            with open(f"{directory}/checkpoints.log", "rb", opener=regular) as file:
                self._data = file.read()
            self._read(self._data)
        except FileNotFoundError:
            pass

    def _read(self, data: bytes) -> None:
        offset = 0
        while match := _ENTRY.match(data, offset):
            try:
                self._add(int(match[1]), match[2].decode(), offset)
            except (ProofError, UnicodeDecodeError) as error:
                self._fail("checkpoint_invalid", offset, str(error))
            if self._problem is not None:
                return
            self._end = offset = match.end()
        rest = data[offset:]
        if len(rest) >= _TORN_BYTES_MAX or rest.count(b"\n") >= 6:
            self._fail("checkpoint_invalid", offset, "the bytes are no checkpoint")

    def _add(self, number: int, note: str, offset: int) -> None:
        expected = len(self.entries)
        claimed = parse_checkpoint(parse_note(note).text)
        if number > expected:
            self._fail("missing_checkpoint", offset, f"checkpoint {number} stands in its place")
        elif number < expected:
            self._fail("checkpoint_invalid", offset, f"it is numbered {number}")
        elif self.entries and claimed.size <= self.entries[-1].claimed.size:
            self._fail("checkpoint_invalid", offset, "it is not larger than the one before it")
        else:
            self.entries.append(_Entry("checkpoints.log", offset, number, note, claimed))

    def _fail(self, kind: ProblemKind, offset: int, what: str) -> None:
        number = len(self.entries)
        self._problem = DamageError(
            kind, "checkpoints.log", f"checkpoint {number}: {what}", offset=offset, number=number
        )

    @property
    def head_size(self) -> int:
        """How many events the newest entry covers."""
        return self.entries[-1].claimed.size if self.entries else 0

    def memory(self, sealed: Sealed, verifier_key: str, log_id: str) -> Memory:
        """Say what was verified: some segments, and the entries about them."""
        later = [entry for entry in self.entries if entry.claimed.size > sealed.size]
        length = later[0].offset if later else self._end
        return Memory(
            verifier_key=verifier_key, log_id=log_id, size=sealed.size, previous=sealed.previous,
            peaks=tuple(peak.hex() for peak in sealed.peaks), segments=sealed.segments,
            log_entries=len(self.entries) - len(later), log_bytes=length,
            log_sha256=hashlib.sha256(self._data[:length]).hexdigest(),
        )

    def check(self, events: _Events, key: VerifierKey) -> None:
        """Verify each signature and each root, and that the events reach the newest."""
        for entry in self.entries[events.checked_entries :]:
            _check_entry(entry, events, key, "checkpoint_invalid")
        if self._problem is not None:
            raise self._problem
        if not self.entries:
            raise DamageError("missing_checkpoint", "checkpoints.log", "there is no checkpoint")
        if events.begins and self.head_size <= events.begins:
            raise DamageError(
                "missing_checkpoint", "checkpoints.log", f"none reaches event {events.begins}",
                number=len(self.entries),
            )
        self._check_reader_copy(key)

    def _check_reader_copy(self, key: VerifierKey) -> None:
        """A newer note in the readers' file than in the log says that the log lost its end."""
        try:
            with open(self._reader_path, "rb", opener=regular) as file:
                copy = verify_checkpoint(file.read(_TORN_BYTES_MAX).decode(), key, check_signature)
        except (FileNotFoundError, ProofError, UnicodeDecodeError):
            # It is a convenience that a power cut may damage; the log is the record.
            return
        if copy.size > self.entries[-1].claimed.size:
            raise DamageError(
                "missing_checkpoint", "checkpoints.log",
                f"the one over {copy.size} events is missing", number=len(self.entries),
            )


def _check_entry(
    entry: _Entry, events: _Events, key: VerifierKey, invalid: ProblemKind
) -> None:
    try:
        checkpoint = verify_checkpoint(entry.note, key, check_signature)
    except ProofError as error:
        raise DamageError(
            invalid, entry.file, f"checkpoint {entry.number}: {error}",
            offset=entry.offset, number=entry.number,
        ) from None
    if events.seq and checkpoint.origin != events.log_id:
        raise DamageError(
            "other_log", entry.file, f"it is a checkpoint of {checkpoint.origin}",
            offset=entry.offset, number=entry.number,
        )
    if checkpoint.size > events.seq:
        if events.rolled or not events.segments:
            raise events.missing_segment()
        raise DamageError(
            "truncated", events.file,
            f"{checkpoint.size} events were signed, {events.seq} are there", number=events.seq,
        )
    if events.roots[checkpoint.size] != checkpoint.root:
        raise DamageError(
            "rewritten", entry.file,
            f"the first {checkpoint.size} events are not those that were signed",
            offset=entry.offset, number=entry.number,
        )


# --- Anchor ---------------------------------------------------------------------------------------


def _read_anchor(anchor_directory: str) -> _Entry | Problem:
    """Read the anchor's head; a problem is told only after the ledger itself was verified."""
    kind: ProblemKind = "anchor_invalid"
    try:
        with open(f"{anchor_directory}/head", "rb", opener=regular) as file:
            note = file.read(_TORN_BYTES_MAX).decode()
        return _Entry("anchor/head", 0, 0, note, parse_checkpoint(parse_note(note).text))
    except FileNotFoundError:
        kind, sentence = "missing_anchor", "the anchor directory holds no head"
    except (ProofError, UnicodeDecodeError) as error:
        sentence = str(error)
    return Problem(kind=kind, file="anchor/head", offset=None, number=None, sentence=sentence)


def _check_anchor(
    anchor: _Entry | Problem, log: _CheckpointLog, events: _Events, key: VerifierKey
) -> None:
    if isinstance(anchor, Problem):
        raise DamageError(anchor.kind, anchor.file, anchor.sentence)
    _check_entry(anchor, events, key, "anchor_invalid")
    if anchor.claimed.size > log.entries[-1].claimed.size:
        raise DamageError(
            "missing_checkpoint", "checkpoints.log",
            f"the one over {anchor.claimed.size} events, which the anchor holds, is missing",
            number=len(log.entries),
        )
