"""What an invariant of the audit is: a name, its INV, a sentence, and a question to each event.

An invariant is asked about an event before the history takes it in, and says what was expected and
what was found, or nothing. It judges by the ledger alone: that what the ledger says also happened
is shown elsewhere, by jails, seals and tests.

Rules this file and the invariants' files keep:
- They share no code with what they judge: event structs and the history are all they import. Who
  may ask, what a jail must show and which version is higher stand here once more, in other words.
- Every invariant looks only at what it is about, so one mistake is one finding.

It leaves the invariants to `broker.evidence.invariants_calls` and `invariants_workers`, and bytes,
hashes and signatures to `broker.evidence.verify`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from broker.evidence.history import History, Worker
from schemas.events import Event, EventFields, FrameIn

Finding = tuple[str, str]
"""What was expected, and what was found instead."""
Check = Callable[[History, Event], Finding | None]


class Invariant(NamedTuple):
    """One line of the audit: what must hold, for which events it is asked, and how."""

    name: str
    specification: str
    sentence: str
    concerns: tuple[type[EventFields], ...]
    check: Check


INVARIANTS: Final[list[Invariant]] = []


def invariant(
    name: str, specification: str, sentence: str, *concerns: type[EventFields]
) -> Callable[[Check], Check]:
    """Add a question to the audit.

    Args:
        name: `AUD-` and a number.
        specification: the invariant of the specification that it serves.
        sentence: what must hold.
        concerns: the types of event for which it is asked.
    """
    def add(check: Check) -> Check:
        INVARIANTS.append(Invariant(name, specification, sentence, concerns, check))
        return check

    return add


def key_words(history: History, key_id: str) -> str:
    """Say whose key this is."""
    role = history.roles.get(key_id, "unknown")
    return f"{key_id}, {role}{' and revoked' if key_id in history.revoked_keys else ''}"


def frame_words(frame: FrameIn | None) -> str:
    """Say what a client asked last."""
    return "nothing" if frame is None else f"{frame.type} {frame.request_id}"


def worker_words(worker: Worker | None) -> str:
    """Say whose worker this is."""
    return "none" if worker is None else f"one of {worker.start.plugin}@{worker.start.version}"


def words(value: object) -> str:
    """Say a value of an event."""
    return ", ".join(value) or "none" if isinstance(value, tuple) else str(value) or "none"
