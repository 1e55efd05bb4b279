"""When the folded state is written down, and when an event vouches for it.

Rules this file keeps:
- A start writes the state before it serves. At the end of a segment a picture of the state is
  taken, which changes no more; it is written while the loop goes on, and when it is durable the
  next `state.snapshot` vouches for it. That event is later than the picture: the file says of which
  events it is the fold, and a start takes in those from there on.
- One state is written at a time. A segment that ends meanwhile is not forgotten: its turn comes
  when the other is done, with a picture of that moment.
- A state that the volume does not take is told by a `state.snapshot` without a digest.

It leaves what a state is to `broker.folded` and files to `broker.kept`. Source: docs/LEDGER.md,
section 3; docs/decisions/0035-a-state-is-vouched-for-later.md.
"""

from __future__ import annotations

from collections.abc import Callable

from broker.answers import Answers
from broker.folded import Picture, picture, snapshot
from broker.ledger.commit import Appended, Ledger
from broker.shell import StateStore
from broker.state import State
from schemas.events import EventFields


class Keeper:
    """Writes down one gateway's state."""

    def __init__(
        self, state: State, answers: Answers, ledger: Ledger, states: StateStore,
        append: Callable[[EventFields], Appended],
    ) -> None:
        """Take the memory, in two halves, and where its events and files go."""
        self._state, self._answers, self._ledger = state, answers, ledger
        self._states = states
        self._append = append
        self._due = False

    def at_once(self) -> None:
        """Write the state down, unless room is short, and let the next event say so."""
        sha256 = None
        if not self._ledger.space_low():
            sha256 = self._states.write(self._ledger.size, self._picture().written())
        self._append(snapshot(self._state, sha256))

    def rolled(self) -> None:
        """Begin a segment with what is remembered; its file follows."""
        self._append(snapshot(self._state))
        self._due = True

    def go_on(self) -> None:
        """Vouch for a state that has become durable; begin one that is due."""
        if self._states.busy:
            written = self._states.written()
            if written is None:
                return
            self._append(snapshot(self._state, written.sha256))
        if self._due:
            self._due = False
            if not self._ledger.space_low():
                self._states.begin(self._ledger.size, self._picture().written())

    def _picture(self) -> Picture:
        return picture(
            self._state, self._answers.stories(), self._ledger.log_id, self._ledger.size
        )
