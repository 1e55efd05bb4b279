"""Verifying a proof bundle inside the gateway's own tools.

`scripts/verify_proof.py` does the same with code that it does not share; tests hold the two to one
verdict. Rules this file keeps: the key comes from whoever asks; the first thing that does not hold
is an exception; nothing is believed before the checkpoint's signature was checked.

It leaves making bundles to `broker.evidence.prove`, opening payloads to `broker.evidence.opening`.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from broker.ledger.merkle import EMPTY_ROOT, verify_consistency, verify_inclusion
from broker.ledger.signature import check_signature
from schemas.canonical import struct_bytes
from schemas.events import GENESIS_HASH, Event, InvalidEvent, decode_event
from schemas.proof import (
    Checkpoint,
    ConsistencyItem,
    ProofBundle,
    ProofError,
    ProofItem,
    VerifierKey,
    verify_checkpoint,
)


class Verified(NamedTuple):
    """What a bundle proves: the checkpoint, events by position (None: withheld), older sizes."""

    checkpoint: Checkpoint
    events: dict[int, Event | None]
    continues: tuple[int, ...]


def verify_bundle(data: bytes, key: VerifierKey) -> Verified:
    """Verify a bundle `omega-proof/v1`.

    Args:
        data: the bundle's bytes.
        key: who must have signed its checkpoints.

    Raises:
        ProofError: something in it does not hold, or it is not in its one spelling.
    """
    try:
        bundle = msgspec.json.decode(data, type=ProofBundle)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProofError(f"it is no proof bundle: {error}") from None
    if struct_bytes(bundle) + b"\n" != data:
        raise ProofError("the bundle is not in its only spelling")
    checkpoint = verify_checkpoint(bundle.checkpoint, key, check_signature)
    if bundle.origin != checkpoint.origin:
        raise ProofError("the bundle's origin is not that of its checkpoint")
    events: dict[int, Event | None] = {}
    last, last_hash = -1, GENESIS_HASH
    for item in bundle.items:
        if item.index <= last:
            raise ProofError("the indexes of the items do not ascend")
        event, event_hash = _verify_item(item, checkpoint)
        if event is not None and item.index == last + 1 and event.prev_hash != last_hash:
            raise ProofError(f"event {item.index} does not follow the event before it")
        events[item.index] = event
        last, last_hash = item.index, event_hash
    sizes = tuple(_verify_older(one, checkpoint, key) for one in bundle.consistency)
    return Verified(checkpoint, events, sizes)


def _verify_item(item: ProofItem, checkpoint: Checkpoint) -> tuple[Event | None, str]:
    event, event_hash = None, item.event_hash
    if item.line is not None:
        try:
            event = decode_event(item.line.encode())
        except InvalidEvent as error:
            raise ProofError(str(error)) from None
        if item.line.endswith("\n"):
            raise ProofError(f"event {item.index}: a line in a bundle has no newline")
        if (event.seq, event.log_id) != (item.index, checkpoint.origin):
            raise ProofError(f"event {item.index} is event {event.seq} of {event.log_id}")
    if (event is None) == (event_hash is None):
        raise ProofError(f"event {item.index} has not exactly one of line and event_hash")
    event_hash = event.event_hash if event is not None else str(event_hash)
    try:
        verify_inclusion(
            bytes.fromhex(event_hash), item.index, checkpoint.size,
            [bytes.fromhex(one) for one in item.proof], checkpoint.root,
        )
    except ProofError as error:
        raise ProofError(f"event {item.index}: {error}") from None
    return event, event_hash


def _verify_older(item: ConsistencyItem, checkpoint: Checkpoint, key: VerifierKey) -> int:
    old = verify_checkpoint(item.old_checkpoint, key, check_signature)
    path = [bytes.fromhex(one) for one in item.proof]
    if old.size:
        verify_consistency(old.size, checkpoint.size, old.root, checkpoint.root, path)
    elif path or old.root != EMPTY_ROOT:
        raise ProofError("an empty ledger has one root and needs no proof")
    return old.size
