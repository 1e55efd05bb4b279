"""Moving whole old segments of a ledger into an archive, while no gateway runs.

Rules this file keeps:
- The archive is a folder that verifies by itself, with the key; it is durable and verified before
  the ledger says that it is there, and the ledger says so before anything is removed.
- What is removed leaves its hashes (`before.hashes`), the tree and the checkpoints, so that all
  that stays still proves; and the folded state, twice, because the events cannot be folded again.
- Interrupted anywhere, the ledger is whole, or says what was archived; the same command finishes.

It leaves writing the archive to `broker.evidence.export`, opening to `broker.ledger.recovery`.
Source: docs/LEDGER.md, section 3; docs/decisions/0025-archives-and-restored-ledgers.md.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import NamedTuple

import msgspec
from nacl.signing import SigningKey

from broker.answers import Answers
from broker.core import Core
from broker.evidence.export import export
from broker.evidence.verify import verify_directory
from broker.folded import Folded, Picture, picture, snapshot
from broker.home import Home
from broker.inventory import Inventory
from broker.kept import StateFolder, take_up_past
from broker.keys import make_private_directory, sync_directory
from broker.ledger.commit import Ledger
from broker.ledger.compressed import SUFFIX
from broker.ledger.errors import LedgerUnwritable
from broker.ledger.segments import BEFORE_FILE, scan, segment_path
from broker.ledger.volume import Volume, replace_file
from broker.serve import SystemClock, initial_state, opening
from broker.state import State
from schemas.events import Event, LedgerClose
from schemas.proof import HASH_BYTES, parse_verifier_key


class CannotArchive(Exception):
    """Nothing was moved; the sentence says why."""


class Archived(NamedTuple):
    """What was moved: events from `begins` to before `ends`, and where they lie now."""

    directory: str
    begins: int
    ends: int


class OfflinePast:
    """A ledger's past in the memory of a process that serves nobody."""

    def __init__(self, home: Home, ledger: Ledger, clock: SystemClock) -> None:
        """Remember nothing yet."""
        self.state: State = initial_state(home, clock)
        self._core = Core(self.state)
        self._answers = Answers(ledger, lambda: None)

    @property
    def inventory(self) -> Inventory:
        """The fold."""
        return self.state.inventory

    def take_up(self, folded: Folded) -> None:
        """Begin with a state instead of the events before it."""
        self._core.take_up(folded)
        self._answers.take_up(folded)

    def restore(self, event: Event) -> None:
        """Take in one event."""
        self._core.restore(event)
        self._answers.remember(event.fields, event.seq)

    def picture(self, ledger: Ledger) -> Picture:
        """Take a picture of the state after all events so far."""
        return picture(self.state, self._answers.stories(), ledger.log_id, ledger.size)


def open_ledger(home: Home, clock: SystemClock) -> Ledger:
    """Open a home's ledger for writing, under its locks.

    Raises:
        LedgerRefused: as `Ledger.open`.
    """
    return Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id,
        signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)), durability="power",
        now=clock.both,
    )


def archive(home: Home, before: int, target: str) -> Archived:
    """Move the segments that end before a position into a folder of their own in `target`.

    Args:
        home: the home; no gateway runs on it.
        before: a position; only segments of which every event lies before it are moved.
        target: the folder of archives, made if it is missing.

    Raises:
        CannotArchive: no whole segment lies before it, or invocations are open.
        LedgerRefused: the ledger or the archive is not what it must be, or a gateway runs.
        OSError: a file cannot be read or written.
    """
    clock = SystemClock()
    states = StateFolder(home.states, home.ledger)
    with contextlib.ExitStack() as stack:
        ledger = open_ledger(home, clock)
        stack.callback(ledger.close)
        past = OfflinePast(home, ledger, clock)
        take_up_past(past, past.inventory, ledger, states)
        if past.inventory.open_invocations:
            raise CannotArchive(
                f"{len(past.inventory.open_invocations)} invocations are open; start the gateway "
                "once and stop it, so that they end"
            )
        begins, ends = ledger.first_seq, past.inventory.archived_before
        if begins < ends:
            # An earlier run was interrupted while it removed what it had archived.
            folder = past.inventory.archived_to
        else:
            ends = _ends(ledger, before)
            folder = _copy(home, target, begins, ends)
        done = _check(home, Archived(folder, begins, ends))
        _tell(home, past, ledger, states, done)
        _remove(home.ledger, [one for one in ledger.first_seqs if one < ends])
    return done


def _ends(ledger: Ledger, before: int) -> int:
    """Give the begin of the last segment that begins at or before a position."""
    following = ledger.first_seqs[1:]
    if not following:
        raise CannotArchive("the ledger has one segment, which is being written")
    if before < following[0]:
        raise CannotArchive(
            f"no segment ends before event {before}; the first one ends before {following[0]}"
        )
    return max(one for one in following if one <= before)


def _copy(home: Home, target: str, begins: int, ends: int) -> str:
    """Write the archive, durable under its own name only when it is whole and verified."""
    make_private_directory(target)
    folder = os.path.join(os.path.realpath(target), f"{begins:012d}-{ends:012d}")
    if os.path.lexists(folder):
        return folder
    unfinished = f"{folder}.part"
    if os.path.lexists(unfinished):
        shutil.rmtree(unfinished)
    export(home.ledger, parse_verifier_key(home.verifier_key), unfinished, range(begins, ends))
    sync_directory(f"{unfinished}/segments")
    sync_directory(unfinished)
    os.rename(unfinished, folder)
    sync_directory(target)
    return folder


def _check(home: Home, done: Archived) -> Archived:
    """Verify an archive as anybody can, and give what it holds.

    Raises:
        CannotArchive: it is not what is to be removed.
    """
    report = verify_directory(done.directory, verifier_key=home.verifier_key)
    if report.problem is not None or report.begins > done.begins or report.events != done.ends:
        found = f"events {report.begins} to {report.events - 1}"
        if report.problem is not None:
            found = f"{report.problem.kind}: {report.problem.sentence}"
        raise CannotArchive(
            f"{done.directory} does not hold the events {done.begins} to {done.ends - 1}: {found}"
        )
    return done._replace(begins=report.begins)


def _tell(
    home: Home, past: OfflinePast, ledger: Ledger, states: StateFolder, done: Archived
) -> None:
    """Lay down what stays of the archived events, and let the ledger say where they are."""
    hashes = _hashes(home.ledger, ledger, done.ends)
    replace_file(Volume(), f"{home.ledger}/{BEFORE_FILE}", hashes, durable=True)
    sync_directory(home.ledger)
    inventory, state = past.inventory, past.state
    state.trust_sha256, state.policy_sha256 = inventory.trust_sha256, inventory.policy_sha256
    if ledger.recovered is not None:
        ledger.append(ledger.recovered)
    said = msgspec.structs.replace(
        opening(
            home.config, ledger.verifier_key, trust_sha256=inventory.trust_sha256,
            trust_version=inventory.trust_version, policy_sha256=inventory.policy_sha256,
        ),
        archived_before=done.ends, archived_to=done.directory,
    )
    inventory.apply(said, ledger.append(said).seq)
    seq, state_now = ledger.size, past.picture(ledger)
    digest = states.write(seq, state_now.written())
    if digest is None:
        raise LedgerUnwritable(f"{states.path(seq)} cannot be written")
    states.write_spare(seq, state_now.written())
    ledger.append(snapshot(state, digest))
    ledger.append(LedgerClose(reason="stopped"))
    ledger.commit()
    ledger.checkpoint()


def _hashes(directory: str, ledger: Ledger, ends: int) -> bytes:
    """Give the hashes of all events before a position, those archived earlier included."""
    hashes, previous = b"", "0" * 64
    if ledger.first_seq:
        with open(f"{directory}/{BEFORE_FILE}", "rb") as file:
            hashes = file.read(ledger.first_seq * HASH_BYTES)
        previous = hashes[-HASH_BYTES:].hex()
    found = bytearray(hashes)
    for first_seq in ledger.first_seqs:
        if first_seq < ends:
            scanned = scan(directory, first_seq, previous)
            found += scanned.hashes
            previous = scanned.last_hash
    return bytes(found)


def _remove(directory: str, first_seqs: list[int]) -> None:
    """Remove segments, the oldest first, so that what is left never has a gap."""
    for first_seq in first_seqs:
        path = segment_path(directory, first_seq)
        for form in (path, path + SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(form)
        sync_directory(os.path.dirname(path))
