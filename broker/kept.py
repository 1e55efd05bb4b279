"""`registry/state-SEQ.json`: the folded state as files, each vouched for by an event.

Rules this file keeps:
- A file is whole and durable before the event that vouches for it. One that cannot be written is
  not vouched for: its `state.snapshot` has no digest, and the next start folds from further back.
- While the gateway serves, a thread writes it: the loop never waits for a file. There is one such
  thread at a time; it is sealed like the loop, because it begins later.
- A start takes the newest file whose event is in the signed tree and holds its digest. Whatever
  else lies there is told and passed over: it costs a longer fold, never an answer.
- The newest few are kept, so that a damaged one has one before it.

It leaves what a state is to `broker.folded`, when to write one to `broker.keeping`, and the events
to `broker.ledger`. Source: docs/LEDGER.md, section 3.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, NamedTuple, Protocol

from broker.durable import replace_file_by_parts
from broker.folded import Folded, vouched
from broker.inventory import Inventory
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from broker.regular import regular
from broker.shell import Written
from schemas.events import Event

STATE_BYTES_MAX: Final = 512 * 1024 * 1024
"""More than any state we write: a million request ids are some 60 MB, 10,000 versions 5 MB."""
FILES_KEPT: Final = 3
_NAME: Final = re.compile(r"state-([0-9]{1,16})\.json")
_VOUCHES: Final = b'"state_sha256":"'
_UNFINISHED: Final = re.compile(rf"{_NAME.pattern}\.part")


class Remembers(Protocol):
    """Whatever folds a past: it begins with a state or with nothing, then takes each event."""

    def take_up(self, folded: Folded) -> None:
        """Begin with a state instead of the events before it."""

    def restore(self, event: Event) -> None:
        """Take in one event."""


class _GivenUp(Exception):
    """The process ends: nobody will vouch for what is being written."""


class _Writing(NamedTuple):
    """A state that a thread writes, and its digest once it is durable."""

    seq: int
    thread: ThreadPoolExecutor
    sha256: Future[str | None]


class StateFolder:
    """The folder of state files of one home, and the ledger's, where an archive leaves its own."""

    def __init__(self, directory: str, spare: str) -> None:
        """Use existing folders."""
        self._directory, self._spare = directory, spare
        self._writing: _Writing | None = None
        self._given_up = threading.Event()

    def path(self, seq: int) -> str:
        """Give the path of the state before one event."""
        return _path(self._directory, seq)

    def write(self, seq: int, parts: Iterable[bytes]) -> str | None:
        """Keep a state; durable when this returns.

        Returns:
            Its SHA-256, for the event that vouches for it; None when the volume did not take it,
            or when it is more than a start would read.
        """
        digest = hashlib.sha256()

        def hashed() -> Iterator[bytes]:
            left_bytes = STATE_BYTES_MAX
            for part in parts:
                left_bytes -= len(part)
                if left_bytes < 0:
                    raise OSError(errno.EFBIG, "more than a state may have", self.path(seq))
                digest.update(part)
                yield part

        try:
            replace_file_by_parts(self.path(seq), hashed())
        except OSError:
            # The event without a digest says so in the ledger, and a longer fold is all it costs.
            return None
        # What cannot be removed of the older ones takes nothing from this one.
        with contextlib.suppress(OSError):
            older = [one for one in _seqs(self._directory) if one < seq]
            for old in older[FILES_KEPT - 1 :]:
                if not os.path.isdir(self.path(old)):
                    os.unlink(self.path(old))
        return digest.hexdigest()

    # --- while somebody else goes on ---

    @property
    def busy(self) -> bool:
        """Whether a state is being written, or was and `written` did not say so yet."""
        return self._writing is not None

    def begin(self, seq: int, parts: Iterable[bytes]) -> None:
        """Begin to keep a state in a thread; not while it is `busy`.

        Args:
            seq: how many events it is the fold of.
            parts: its bytes, made there one by one; whatever they are made from must not change.
        """
        assert self._writing is None
        thread = ThreadPoolExecutor(1, "state-writer")
        try:
            sha256 = thread.submit(self.write, seq, self._wanted(parts))
        except RuntimeError:
            # The machine gives us no thread now: as where it has no room, the state is not written.
            sha256 = Future[str | None]()
            sha256.set_result(None)
        self._writing = _Writing(seq, thread, sha256)

    def _wanted(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            if self._given_up.is_set():
                raise _GivenUp
            yield part

    def written(self) -> Written | None:
        """Say once what became of the state that was begun; None while that is not known."""
        writing = self._writing
        if writing is None or not writing.sha256.done():
            return None
        self._writing = None
        writing.thread.shutdown(wait=False)
        return Written(writing.seq, writing.sha256.result())

    def close(self) -> None:
        """Give up what is being written, and leave nothing that nobody vouches for."""
        self._given_up.set()
        if self._writing is not None:
            self._writing.thread.shutdown()
            # On a volume that takes no change any more it stays; the end has its own reason, and a
            # start passes over what nobody vouches for.
            with contextlib.suppress(OSError):
                os.unlink(self.path(self._writing.seq))

    def sweep(self) -> None:
        """Remove what a killed process left unfinished; nobody may be writing."""
        for folder in (self._directory, self._spare):
            for entry in os.scandir(folder):
                if _UNFINISHED.fullmatch(entry.name) and not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)

    # --- archives and starts ---

    def write_spare(self, seq: int, parts: Iterable[bytes]) -> None:
        """Keep the state without which archived events would be needed a second time.

        Raises:
            OSError: the volume did not take it.
        """
        replace_file_by_parts(_path(self._spare, seq), parts)
        for old in _seqs(self._spare):
            if old != seq:
                os.unlink(_path(self._spare, old))

    def newest(self, ledger: Ledger) -> tuple[Folded | None, list[str]]:
        """Find the newest state that a ledger vouches for, and say of which files it does not."""
        passed_over: list[str] = []
        snapshots = _Snapshots(ledger)
        found = [(seq, folder) for folder in (self._directory, self._spare)
                 for seq in _seqs(folder)]
        for seq, folder in sorted(found, reverse=True):
            path = _path(folder, seq)
            folded = _read(path, seq, ledger, snapshots)
            if folded is not None:
                return folded, passed_over
            passed_over.append(path)
        return None, passed_over


def _path(folder: str, seq: int) -> str:
    return os.path.join(folder, f"state-{seq}.json")


def _seqs(folder: str) -> list[int]:
    """Give the positions for which a folder has a file, newest first."""
    found = map(_NAME.fullmatch, os.listdir(folder))
    return sorted((int(match[1]) for match in found if match is not None), reverse=True)


class _Snapshots:
    """The events that vouch for a state, looked for once, however many files there are."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._begin = ledger.committed
        self._found: list[tuple[int, bytes]] = []

    def holding(self, sha256: str, seq: int) -> list[int]:
        """Give those from a position on that hold a digest; each position is below the last."""
        nearer = [*self._ledger.find(_VOUCHES, seq, self._begin)]
        self._found = nearer + self._found
        self._begin = min(seq, self._begin)
        return [place for place, line in self._found if sha256.encode() in line]


def _read(path: str, seq: int, ledger: Ledger, snapshots: _Snapshots) -> Folded | None:
    """Read a state of which some event from its position on holds the digest.

    One whose position was archived is none: the events from there on are not all here, wherever
    the event lies that vouched for it.
    """
    if seq < ledger.first_seq:
        return None
    try:
        with open(path, "rb", opener=regular) as file:
            data = file.read(STATE_BYTES_MAX + 1)
        sha256 = hashlib.sha256(data).hexdigest()
        for found in snapshots.holding(sha256, seq):
            folded = vouched(ledger.proven(found).fields, seq, ledger.log_id, data, sha256)
            if folded is not None:
                return folded
    except (PositionUnknown, LedgerDamaged, OSError):
        return None
    return None


def take_up_past(
    past: Remembers, inventory: Inventory, ledger: Ledger, states: StateFolder
) -> list[str]:
    """Let somebody who remembers nothing take in a ledger's past: a state, then what came since.

    Args:
        past: takes it in.
        inventory: the fold in it.
        ledger: whose past.
        states: where its states lie.

    Returns:
        The files that the ledger does not vouch for, newer than the one taken.

    Raises:
        LedgerDamaged: an event that must be folded is not what was written, or not there.
    """
    folded, passed_over = states.newest(ledger)
    if folded is not None:
        past.take_up(folded)
    elif ledger.first_seq:
        raise LedgerDamaged(
            f"the events before {ledger.first_seq} are not here, and no state-*.json of registry/ "
            "or ledger/ says what they came to; lay one, or the archived segments, back"
        )
    for event in ledger.events(folded.seq if folded is not None else 0):
        past.restore(event)
    if ledger.first_seq > inventory.archived_before:
        raise LedgerDamaged("the segment that begins with event 0 is missing")
    return passed_over
