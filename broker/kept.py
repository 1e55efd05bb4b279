"""`registry/state-SEQ.json`: the folded state as files, each vouched for by its event.

Rules this file keeps:
- A file is whole and durable before the event that vouches for it. One that cannot be written is
  not vouched for: its `state.snapshot` has no digest, and the next start folds from further back.
- A start takes the newest file whose event is in the signed tree and holds its digest. Whatever
  else lies there is told and passed over: it costs a longer fold, never an answer.
- The newest few are kept, so that a damaged one has one before it.

It leaves what a state is to `broker.folded`, and the events to `broker.ledger`. Source:
docs/LEDGER.md, section 3.
"""

from __future__ import annotations

import hashlib
import os
import re
from typing import Final, Protocol

from broker.durable import replace_file
from broker.folded import Folded, vouched
from broker.inventory import Inventory
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from schemas.events import Event

STATE_BYTES_MAX: Final = 512 * 1024 * 1024
"""More than any state we write: a million request ids are some 60 MB, 10,000 versions 5 MB."""
FILES_KEPT: Final = 3
_NAME: Final = re.compile(r"state-([0-9]{1,16})\.json")


class Remembers(Protocol):
    """Whatever folds a past: it begins with a state or with nothing, then takes each event."""

    def take_up(self, folded: Folded) -> None:
        """Begin with a state instead of the events before it."""

    def restore(self, event: Event) -> None:
        """Take in one event."""


class StateFolder:
    """The folder of state files of one home, and the ledger's, where an archive leaves its own."""

    def __init__(self, directory: str, spare: str) -> None:
        """Use existing folders."""
        self._directory, self._spare = directory, spare

    def path(self, seq: int) -> str:
        """Give the path of the state before one event."""
        return _path(self._directory, seq)

    def write(self, seq: int, data: bytes) -> str | None:
        """Keep a state; durable when this returns.

        Returns:
            Its SHA-256, for the event that vouches for it; None when the volume did not take it.
        """
        try:
            replace_file(self.path(seq), data)
            older = [one for one in _seqs(self._directory) if one < seq]
            for old in older[FILES_KEPT - 1 :]:
                os.unlink(self.path(old))
        except OSError:
            # The event without a digest says so in the ledger, and a longer fold is all it costs.
            return None
        return hashlib.sha256(data).hexdigest()

    def write_spare(self, seq: int, data: bytes) -> None:
        """Keep the state without which archived events would be needed a second time.

        Raises:
            OSError: the volume did not take it.
        """
        replace_file(_path(self._spare, seq), data)
        for old in _seqs(self._spare):
            if old != seq:
                os.unlink(_path(self._spare, old))

    def newest(self, ledger: Ledger) -> tuple[Folded | None, list[str]]:
        """Find the newest state that a ledger vouches for, and say of which files it does not."""
        passed_over: list[str] = []
        found = [(seq, folder) for folder in (self._directory, self._spare)
                 for seq in _seqs(folder)]
        for seq, folder in sorted(found, reverse=True):
            path = _path(folder, seq)
            folded = _read(path, seq, ledger)
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


def _read(path: str, seq: int, ledger: Ledger) -> Folded | None:
    try:
        event = ledger.proven(seq)
        with open(path, "rb") as file:
            data = file.read(STATE_BYTES_MAX + 1)
    except (PositionUnknown, LedgerDamaged, OSError):
        return None
    return vouched(event.fields, seq, ledger.log_id, data)


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
