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

import contextlib
import hashlib
import os
import re
from typing import TYPE_CHECKING, Final

from broker.folded import Folded, vouched
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from broker.ledger.volume import Volume, replace_file, sync_directory

if TYPE_CHECKING:
    from broker.gateway import Gateway

STATE_BYTES_MAX: Final = 512 * 1024 * 1024
"""More than any state we write: a million request ids are some 60 MB, 10,000 versions 5 MB."""
FILES_KEPT: Final = 3
_NAME: Final = re.compile(r"state-([0-9]{1,16})\.json")


class StateFolder:
    """The folder of state files of one home."""

    def __init__(self, directory: str) -> None:
        """Use an existing folder."""
        self._directory = directory

    def path(self, seq: int) -> str:
        """Give the path of the state before one event."""
        return os.path.join(self._directory, f"state-{seq}.json")

    def seqs(self) -> list[int]:
        """Give the positions for which there is a file, newest first."""
        found = map(_NAME.fullmatch, os.listdir(self._directory))
        return sorted((int(match[1]) for match in found if match is not None), reverse=True)

    def write(self, seq: int, data: bytes) -> str | None:
        """Keep a state; durable when this returns.

        Returns:
            Its SHA-256, for the event that vouches for it; None when the volume did not take it.
        """
        path = self.path(seq)
        try:
            replace_file(Volume(), path, data, durable=True)
            sync_directory(Volume(), self._directory)
            for old in self.seqs()[FILES_KEPT:]:
                os.unlink(self.path(old))
        except OSError:
            # The event without a digest says so in the ledger, and a longer fold is all it costs.
            with contextlib.suppress(OSError):
                os.unlink(f"{path}.new")
            return None
        return hashlib.sha256(data).hexdigest()

    def newest(self, ledger: Ledger) -> tuple[Folded | None, list[str]]:
        """Find the newest state that a ledger vouches for, and say of which files it does not."""
        passed_over: list[str] = []
        for seq in self.seqs():
            folded = self._read(seq, ledger)
            if folded is not None:
                return folded, passed_over
            passed_over.append(self.path(seq))
        return None, passed_over

    def _read(self, seq: int, ledger: Ledger) -> Folded | None:
        try:
            event = ledger.proven(seq)
            with open(self.path(seq), "rb") as file:
                data = file.read(STATE_BYTES_MAX + 1)
        except (PositionUnknown, LedgerDamaged, OSError):
            return None
        return vouched(event.fields, seq, ledger.log_id, data)


def take_up_past(gateway: Gateway, ledger: Ledger, states: StateFolder) -> list[str]:
    """Give a gateway that remembers nothing its ledger's past: the newest state, what came since.

    Returns:
        The files that the ledger does not vouch for, newer than the one taken.

    Raises:
        LedgerDamaged: an event that must be folded is not what was written.
    """
    folded, passed_over = states.newest(ledger)
    if folded is not None:
        gateway.take_up(folded)
    for event in ledger.events(folded.seq if folded is not None else 0):
        gateway.restore(event)
    return passed_over
