"""Auditing a ledger: whether the invariants of the specification hold in it, by its events alone.

`verify` says that the bytes are those that were signed; this says that what they tell was right.

Rules this file keeps:
- Each invariant is asked about every event that concerns it, up to the first that breaks it; then
  that event is told, with what was expected there, and the others go on.
- It needs nothing but the ledger: no home, no gateway, no table of the core's. Its own files import
  the structs of the events and each other; a test holds that.

It leaves reading and verifying bytes to `broker.evidence.verify`, which should come first.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Final

import msgspec

from broker.evidence import invariants_calls, invariants_workers
from broker.evidence.history import History
from broker.evidence.invariants import INVARIANTS, Check, Invariant
from schemas.events import Event, EventFields

__all__ = ["INVARIANTS", "PARTS", "Audit", "AuditReport", "Verdict"]

PARTS: Final = (invariants_calls, invariants_workers)
"""The files whose import fills the list of invariants."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """One invariant: how often it was asked, and the first event that breaks it."""

    name: str
    specification: str
    sentence: str
    asked: int
    seq: int | None = None
    event_type: str | None = None
    expected: str | None = None
    found: str | None = None

    @property
    def ok(self) -> bool:
        """Whether no event broke it."""
        return self.seq is None


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """The audit of the events so far; `open` are invocations that have not ended yet."""

    ok: bool
    events: int
    open: int
    verdicts: tuple[Verdict, ...]


class _Asked:
    """One invariant during an audit."""

    def __init__(self, invariant: Invariant) -> None:
        self.invariant = invariant
        self.times = 0
        self.broken: tuple[Event, str, str] | None = None

    def verdict(self) -> Verdict:
        """Say how it stands."""
        one = self.invariant
        facts = Verdict(
            name=one.name, specification=one.specification, sentence=one.sentence,
            asked=self.times,
        )
        if self.broken is None:
            return facts
        event, expected, found = self.broken
        return msgspec.structs.replace(
            facts, seq=event.seq, event_type=event.event_type, expected=expected, found=found
        )


class Audit:
    """One pass over a ledger, oldest event first."""

    def __init__(self) -> None:
        """Begin before the first event."""
        self.events = 0
        self._history = History()
        self._all = [_Asked(one) for one in sorted(INVARIANTS)]
        self._by_type: defaultdict[type[EventFields], list[tuple[Check, _Asked]]] = (
            defaultdict(list)
        )
        for asked in self._all:
            for kind in asked.invariant.concerns:
                self._by_type[kind].append((asked.invariant.check, asked))

    def take(self, event: Event) -> None:
        """Ask every invariant that the event concerns, then take it in."""
        history = self._history
        for check, asked in self._by_type[type(event.fields)]:
            if asked.broken is None:
                asked.times += 1
                finding = check(history, event)
                if finding is not None:
                    asked.broken = event, *finding
        history.take(event)
        self.events += 1

    def report(self) -> AuditReport:
        """Say how every invariant stands after the events so far."""
        verdicts = tuple(asked.verdict() for asked in self._all)
        return AuditReport(
            ok=all(verdict.ok for verdict in verdicts), events=self.events,
            open=len(self._history.calls), verdicts=verdicts,
        )
