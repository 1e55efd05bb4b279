"""Opening a commitment: showing that a payload is the one that an event commits to.

An event holds `HMAC-SHA256(key, label ‖ 0x00 ‖ preimage)`. Who has the call's key and the payload
computes it again and compares; who has only the event learns nothing.

Rules this file keeps:
- One event, one member, one label: the label says what the payload was, so that an input cannot be
  passed off as an output.
- The comparison is all there is; a wrong key and a wrong payload look the same.

The key of a call opens that call's commitments and no other call's; the steps of a pipeline share
one. Source: docs/LEDGER.md, section 11; docs/WIRE.md, Commitments.
"""

from __future__ import annotations

import hmac
from typing import Final, Literal, NamedTuple

from schemas.events import Event
from schemas.payloads import Payload, preimage
from schemas.proof import ProofError

Label = Literal["input", "output", "progress"]

LABELS: Final[dict[str, Label]] = {
    "input_commitment": "input",
    "output_commitment": "output",
    "message_commitment": "output",
    "note_commitment": "progress",
}
"""Each member of an event that commits to something, and its label."""


class Opened(NamedTuple):
    """Which commitment was opened: the event's member and its label."""

    member: str
    label: Label


def open_commitment(event: Event, key: bytes, payload: Payload | str) -> Opened:
    """Find the commitment of an event that a key and a payload give.

    Args:
        event: the event.
        key: the call's commitment key, 32 bytes.
        payload: a payload; a str is what a plugin said, a progress note or the words of a failure.

    Raises:
        ProofError: the event commits to nothing, or not to this under this key.
    """
    plain = payload.encode() if isinstance(payload, str) else preimage(payload)
    held = {
        member: value for member in LABELS
        if (value := getattr(event.fields, member, None)) is not None
    }
    for member, value in held.items():
        label = LABELS[member]
        computed = hmac.digest(key, label.encode() + b"\x00" + plain, "sha256").hex()
        if hmac.compare_digest(computed, value):
            return Opened(member, label)
    if not held:
        raise ProofError(f"event {event.seq}, {event.event_type}, commits to no payload")
    raise ProofError(
        f"event {event.seq}, {event.event_type}, does not commit to this payload under this key"
    )
