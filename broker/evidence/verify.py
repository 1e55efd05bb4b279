"""Verifying a ledger directory from its bytes: what is wrong with it, and where first.

Rules this file keeps:
- It reads the files by itself and shares no reading code with the writer. Only event structs, tree
  arithmetic and note format are common; `scripts/verify_ledger.py` shares not even those.
- Nothing is repaired, nothing is skipped, and the first damaged place ends the search.
- A verdict is one word of a closed list, so that two verifiers can be compared.

Order: the events, segment by segment; then every checkpoint against key and root; then whether the
events reach the newest checkpoint; then the anchor. docs/LEDGER.md defines each verdict.

It leaves what the events mean to the audit. Bytes after the last newline of the last segment are no
events and no damage; they are counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from broker.ledger.merkle import CompactRange
from broker.ledger.signature import check_signature
from schemas.events import (
    GENESIS_HASH,
    Event,
    InvalidEvent,
    LedgerOpen,
    LedgerRoll,
    decode_event,
    line_hash,
)
from schemas.proof import (
    Checkpoint,
    ProofError,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    verify_checkpoint,
)

ProblemKind = Literal[
    "flipped", "not_canonical", "deleted", "swapped", "inserted", "rewritten", "other_log",
    "truncated", "missing_segment", "foreign_file", "checkpoint_invalid", "missing_checkpoint",
    "anchor_invalid", "missing_anchor",
]
Progress = Callable[[int, int], None]
"""Told how many events and how many bytes are done."""

_SEGMENT: Final = re.compile(r"([0-9]{12})\.ndjson")
_ENTRY: Final = re.compile(rb"([0-9]{1,16})\n((?:[^\n]+\n){3}\n\xe2\x80\x94 [^\n]+\n)")
_ENVELOPE: Final = re.compile(
    rb',"log_id":"([ -!#-\[\]-~]+)","mono_us":[0-9]+,"prev_hash":"([0-9a-f]{64})"'
    rb',"seq":([0-9]+),"ts_us":[0-9]+,"v":1\}\n'
)
_HASH: Final = slice(15, 79)
_TORN_BYTES_MAX: Final = 1024
_PROGRESS_EVENTS: Final = 8192


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The first damaged place: a file, the byte in it, the event or checkpoint expected there."""

    kind: ProblemKind
    file: str
    offset: int | None
    number: int | None
    sentence: str


class VerificationReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was verified. `key_given` is false when the key is only the ledger's own claim."""

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
    problem: Problem | None


class _DamageError(Exception):
    """Carries the problem out of whatever depth found it."""

    def __init__(
        self, kind: ProblemKind, file: str, sentence: str, *,
        offset: int | None = None, number: int | None = None,
    ) -> None:
        super().__init__(sentence)
        self.problem = Problem(
            kind=kind, file=file, offset=offset, number=number, sentence=sentence
        )


class _Entry(NamedTuple):
    """One entry of checkpoints.log, or the anchor's head; nothing of it is verified."""

    file: str
    offset: int
    number: int
    note: str
    claimed: Checkpoint


def verify_directory(
    directory: str, *, verifier_key: str | None = None, anchor_directory: str | None = None,
    progress: Progress | None = None,
) -> VerificationReport:
    """Verify every byte, link, position, spelling, checkpoint and the anchor of a ledger.

    Args:
        directory: the ledger's folder, or a copy of it; it is only read.
        verifier_key: who must have signed the checkpoints. Without it the key that the first event
            claims is used, which proves that the ledger agrees with itself and nothing more.
        anchor_directory: where the newest checkpoint was kept a second time.
        progress: told now and then how far it is.

    Raises:
        OSError: a file could not be read.
        ProofError: `verifier_key` is not a verifier key.
    """
    key = parse_verifier_key(verifier_key) if verifier_key is not None else None
    log = _CheckpointLog(directory)
    anchor = _read_anchor(anchor_directory) if anchor_directory is not None else None
    sizes = {entry.claimed.size for entry in log.entries}
    if isinstance(anchor, _Entry):
        sizes.add(anchor.claimed.size)
    events = _Events(directory, sizes, progress)
    problem: Problem | None = None
    try:
        events.walk()
        log.check(events, key or _claimed_key(events))
        if anchor is not None:
            _check_anchor(anchor, log, events, key or _claimed_key(events))
    except _DamageError as damage:
        problem = damage.problem
    return VerificationReport(
        ok=problem is None, log_id=events.log_id, events=events.seq, segments=events.segments,
        checkpoints=len(log.entries), root=events.tree.root().hex(),
        head_size=log.entries[-1].claimed.size if log.entries else 0,
        torn_bytes=events.torn_bytes, key_given=key is not None,
        anchored=anchor_directory is not None, problem=problem,
    )


# --- Events ---------------------------------------------------------------------------------------


class _Events:
    """Walks all segments in order and keeps what the checkpoints need."""

    def __init__(self, directory: str, sizes: set[int], progress: Progress | None) -> None:
        self.seq = 0
        self.segments = 0
        self.torn_bytes = 0
        self.log_id = ""
        self.claimed_key: str | None = None
        self.tree = CompactRange()
        self.roots: dict[int, bytes] = {0: self.tree.root()}
        self.rolled = False
        self.file = "segments"
        self._directory = directory
        self._sizes = sizes
        self._progress = progress
        self._previous = GENESIS_HASH
        self._bytes_done = 0

    def walk(self) -> None:
        """Verify all segments."""
        try:
            names = sorted(os.listdir(f"{self._directory}/segments"))
        except FileNotFoundError:
            names = []
        for place, name in enumerate(names):
            match = _SEGMENT.fullmatch(name)
            if match is None:
                raise _DamageError("foreign_file", f"segments/{name}", "this is not a segment")
            self._check_begin(int(match[1]), name, first=place == 0)
            self.file = f"segments/{name}"
            self._walk_segment(last=place == len(names) - 1)
            self.segments += 1

    def _check_begin(self, first_seq: int, name: str, *, first: bool) -> None:
        if not first and not self.rolled:
            raise _DamageError(
                "truncated", self.file, "another segment follows, but no event ends this one",
                number=self.seq,
            )
        if first_seq > self.seq:
            raise self.missing_segment()
        if first_seq < self.seq:
            raise _DamageError(
                "inserted", f"segments/{name}", f"it begins before event {self.seq}",
                number=self.seq,
            )

    def missing_segment(self) -> _DamageError:
        """Say that the next segment is not there."""
        return _DamageError(
            "missing_segment", f"segments/{self.seq:012d}.ndjson",
            f"the segment that begins with event {self.seq} is missing", number=self.seq,
        )

    def _walk_segment(self, *, last: bool) -> None:
        offset = 0
        self.rolled = False
        with open(f"{self._directory}/{self.file}", "rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    self._check_tail(line, offset, last=last)
                    break
                self._check_line(line, offset)
                offset += len(line)
                if self._progress is not None and self.seq % _PROGRESS_EVENTS == 0:
                    self._progress(self.seq, self._bytes_done + offset)
        self._bytes_done += offset
        if self._progress is not None:
            self._progress(self.seq, self._bytes_done)

    def _check_tail(self, tail: bytes, offset: int, *, last: bool) -> None:
        if not last:
            raise _DamageError(
                "truncated", self.file, f"event {self.seq} ends before its newline",
                offset=offset, number=self.seq,
            )
        self.torn_bytes = len(tail)

    def _check_line(self, line: bytes, offset: int) -> None:
        try:
            event = decode_event(line)
        except InvalidEvent as error:
            self._check_bytes_and_position(line, offset)
            raise self._damage("not_canonical", offset, str(error)) from None
        if (event.seq, event.prev_hash) != (self.seq, self._previous):
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
        self._previous = event.event_hash
        self.tree.push(bytes.fromhex(event.event_hash))
        self.seq += 1
        if self.seq in self._sizes:
            self.roots[self.seq] = self.tree.root()

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
        if match[2].decode() != self._previous:
            raise self._damage("rewritten", offset, "it does not follow the event before it")

    def _comes_later(self, seq: int, offset: int) -> bool:
        wanted = b',"seq":%d,"ts_us":' % seq
        with open(f"{self._directory}/{self.file}", "rb") as file:
            file.seek(offset)
            return any(wanted in line for line in file)

    def _damage(self, kind: ProblemKind, offset: int, what: str) -> _DamageError:
        return _DamageError(
            kind, self.file, f"event {self.seq}: {what}", offset=offset, number=self.seq
        )


# --- Checkpoints ----------------------------------------------------------------------------------


def _claimed_key(events: _Events) -> VerifierKey:
    try:
        return parse_verifier_key(events.claimed_key or "")
    except ProofError:
        raise _DamageError(
            "checkpoint_invalid", "checkpoints.log",
            "no verifier key was given and the ledger's first event claims none",
        ) from None


class _CheckpointLog:
    """Reads checkpoints.log and the readers' copy of the newest note."""

    def __init__(self, directory: str) -> None:
        self.entries: list[_Entry] = []
        self._problem: _DamageError | None = None
        self._reader_path = f"{directory}/checkpoint"
        try:
            with open(f"{directory}/checkpoints.log", "rb") as file:
                self._read(file.read())
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
            offset = match.end()
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
        self._problem = _DamageError(
            kind, "checkpoints.log", f"checkpoint {number}: {what}", offset=offset, number=number
        )

    def check(self, events: _Events, key: VerifierKey) -> None:
        """Verify each signature and each root, and that the events reach the newest."""
        for entry in self.entries:
            _check_entry(entry, events, key, "checkpoint_invalid")
        if self._problem is not None:
            raise self._problem
        if not self.entries:
            raise _DamageError("missing_checkpoint", "checkpoints.log", "there is no checkpoint")
        self._check_reader_copy(key)

    def _check_reader_copy(self, key: VerifierKey) -> None:
        """A newer note in the readers' file than in the log says that the log lost its end."""
        try:
            with open(self._reader_path, "rb") as file:
                copy = verify_checkpoint(file.read().decode(), key, check_signature)
        except (FileNotFoundError, ProofError, UnicodeDecodeError):
            # It is a convenience that a power cut may damage; the log is the record.
            return
        if copy.size > self.entries[-1].claimed.size:
            raise _DamageError(
                "missing_checkpoint", "checkpoints.log",
                f"the one over {copy.size} events is missing", number=len(self.entries),
            )


def _check_entry(
    entry: _Entry, events: _Events, key: VerifierKey, invalid: ProblemKind
) -> None:
    try:
        checkpoint = verify_checkpoint(entry.note, key, check_signature)
    except ProofError as error:
        raise _DamageError(
            invalid, entry.file, f"checkpoint {entry.number}: {error}",
            offset=entry.offset, number=entry.number,
        ) from None
    if events.seq and checkpoint.origin != events.log_id:
        raise _DamageError(
            "other_log", entry.file, f"it is a checkpoint of {checkpoint.origin}",
            offset=entry.offset, number=entry.number,
        )
    if checkpoint.size > events.seq:
        if events.rolled or not events.segments:
            raise events.missing_segment()
        raise _DamageError(
            "truncated", events.file,
            f"{checkpoint.size} events were signed, {events.seq} are there", number=events.seq,
        )
    if events.roots[checkpoint.size] != checkpoint.root:
        raise _DamageError(
            "rewritten", entry.file,
            f"the first {checkpoint.size} events are not those that were signed",
            offset=entry.offset, number=entry.number,
        )


# --- Anchor ---------------------------------------------------------------------------------------


def _read_anchor(anchor_directory: str) -> _Entry | Problem:
    """Read the anchor's head; a problem is told only after the ledger itself was verified."""
    kind: ProblemKind = "anchor_invalid"
    try:
        with open(f"{anchor_directory}/head", "rb") as file:
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
        raise _DamageError(anchor.kind, anchor.file, anchor.sentence)
    _check_entry(anchor, events, key, "anchor_invalid")
    if anchor.claimed.size > log.entries[-1].claimed.size:
        raise _DamageError(
            "missing_checkpoint", "checkpoints.log",
            f"the one over {anchor.claimed.size} events, which the anchor holds, is missing",
            number=len(log.entries),
        )
