"""Proof bundles: which events they hold, and how they are made.

Rules this file keeps:
- A bundle is data only; everything in it is proven against one checkpoint.
- What is withheld stands in it by its hash, at its place, so that who reads it is told.
- Each format has one spelling: RFC 8785 and one newline, or the lines of c2sp.org/tlog-proof@v1.

A bundle proves what it holds. That it holds all events of a request or plugin is this file's care
and cannot be proven by it. It leaves files to `broker.evidence.reading`, the shapes to
`schemas.proof`. Source: docs/LEDGER.md, section 10.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final

import msgspec

from broker.evidence.reading import LedgerReader
from broker.ledger.errors import LedgerDamaged
from broker.ledger.signature import check_signature
from schemas.canonical import struct_bytes
from schemas.events import (
    Event,
    InvalidEvent,
    PluginRegister,
    Revoke,
    decode_event,
    event_record,
    line_hash,
)
from schemas.proof import (
    ConsistencyItem,
    ProofBundle,
    ProofError,
    ProofItem,
    parse_checkpoint,
    parse_note,
    verify_checkpoint,
)

if TYPE_CHECKING:
    from broker.client import AdminClient, OmegaClient

ITEMS_MAX: Final = 100_000
TLOG_PROOF: Final = "c2sp.org/tlog-proof@v1"
_NAMING: Final = ("incarnation", "successor", "request_id", "peer")
_NAMES: Final = re.compile(b'"(?:%b)":"([^"]*)"' % "|".join(_NAMING).encode())


# --- Choosing ---


def find_request(reader: LedgerReader, request_id: str) -> list[int]:
    """Give the positions of all events of a request, or of a pipeline with all its steps."""
    wanted = request_id.encode()
    steps = {request_id}
    for event in _decoded(line for _, line in reader.lines() if wanted in line):
        if getattr(event.fields, "pipeline", None) == request_id:
            steps.add(str(getattr(event.fields, "request_id", request_id)))
    needles = [f'"{one}"'.encode() for one in steps]
    return [
        event.seq
        for event in _decoded(
            line for _, line in reader.lines() if any(needle in line for needle in needles)
        )
        if getattr(event.fields, "request_id", None) in steps
        or getattr(event.fields, "pipeline", None) == request_id
    ]


def find_plugin(reader: LedgerReader, plugin: str) -> list[int]:
    """Give the positions of all events of a plugin's life.

    They are those that name it, its versions, the keys that signed them, its workers, and the
    requests that asked for it.
    """
    life = _Life(plugin)
    named = f'"plugin":"{plugin}"'.encode()
    for event in _decoded(line for _, line in reader.lines() if named in line):
        life.learn(event)
    candidates = (line for _, line in reader.lines() if named in line or life.may_have(line))
    return [event.seq for event in _decoded(candidates) if life.has(event)]


class _Life:
    """What belongs to a plugin: incarnations, requests, and keys that signed its versions."""

    def __init__(self, plugin: str) -> None:
        self._plugin = plugin
        self._names: set[str] = set()
        self._keys: set[str] = set()

    def learn(self, event: Event) -> None:
        """Take in an event that names the plugin."""
        fields = event.fields
        if getattr(fields, "plugin", None) != self._plugin:
            return
        self._names |= {getattr(fields, name, None) or "" for name in ("incarnation", "request_id")}
        if isinstance(fields, PluginRegister):
            self._keys.update(fields.signing_keys)

    def may_have(self, line: bytes) -> bool:
        """Say quickly whether a line that does not name the plugin must be decoded to know."""
        names = _NAMES.findall(line)
        return b'"event_type":"revoke"' in line or any(
            name.decode("ascii", "replace") in self._names for name in names
        )

    def has(self, event: Event) -> bool:
        """Say whether an event is of the plugin's life."""
        fields = event.fields
        if isinstance(fields, Revoke):
            if fields.kind == "publisher_key":
                return fields.id in self._keys
            whose = fields.id.replace("@", " ").partition(" ")[0]
            return fields.kind != "client_key" and whose == self._plugin
        named = {getattr(fields, name, None) for name in _NAMING} - {None, ""}
        return getattr(fields, "plugin", None) == self._plugin or not named.isdisjoint(self._names)


def _decoded(lines: Iterable[bytes]) -> Iterable[Event]:
    for line in lines:
        try:
            yield decode_event(line)
        except InvalidEvent as error:
            raise LedgerDamaged(str(error)) from None


# --- Making ---


def bundle_from_files(
    reader: LedgerReader, seqs: Iterable[int], older: Sequence[str] = ()
) -> ProofBundle:
    """Prove events from a ledger's files.

    Args:
        reader: the ledger.
        seqs: the events' positions.
        older: signed notes that the ledger continues.

    Raises:
        PositionUnknown: the newest checkpoint does not cover one.
        LedgerDamaged: the ledger is not what was signed.
        ProofError: an older note is not of this ledger, or the ledger does not continue it.
    """
    items = []
    for seq in sorted(set(seqs)):
        line = reader.line(seq)
        items.append(_item(seq, line.decode(), reader.inclusion(seq, line)))
    continued = []
    for note in older:
        old = verify_checkpoint(note, reader.key, check_signature)
        path = tuple(one.hex() for one in reader.consistency(old))
        continued.append(ConsistencyItem(old_checkpoint=note, proof=path))
    return _bundle(reader.note, items, continued)


def bundle_over_wire(
    client: OmegaClient | AdminClient, seqs: Iterable[int], older: Sequence[str] = ()
) -> ProofBundle:
    """Prove events by asking a gateway; see `bundle_from_files`.

    Raises:
        GatewayError: one of its kinds; the client checked every proof.
        ProofError: there is nothing to prove, or an older note is no checkpoint.
    """
    # The newest event comes first: its checkpoint covers the others too, and stays the one that is
    # asked for, whatever is signed meanwhile.
    wanted = sorted(set(seqs), reverse=True)
    if not wanted:
        raise ProofError("a proof holds at least one event")
    old_sizes = [parse_checkpoint(parse_note(note).text).size for note in older]
    first = client.prove(wanted[0])
    size = parse_checkpoint(parse_note(first.checkpoint).text).size
    proofs = [first, *(client.prove(seq, size=size) for seq in wanted[1:])]
    steps = [client.prove_consistency(old_size, size=size) for old_size in old_sizes]
    return _bundle(
        first.checkpoint,
        [ProofItem(index=proof.seq, proof=proof.hashes, line=proof.line)
         for proof in reversed(proofs)],
        [ConsistencyItem(old_checkpoint=note, proof=step.hashes)
         for note, step in zip(older, steps, strict=True)],
    )


def _item(seq: int, line: str, path: Iterable[bytes]) -> ProofItem:
    return ProofItem(index=seq, proof=tuple(one.hex() for one in path), line=line)


def _bundle(note: str, items: list[ProofItem], continued: list[ConsistencyItem]) -> ProofBundle:
    return ProofBundle(
        format="omega-proof/v1", origin=parse_checkpoint(parse_note(note).text).origin,
        checkpoint=note, items=tuple(items), consistency=tuple(continued),
    )


def withhold(bundle: ProofBundle, hidden: Callable[[Event], bool]) -> ProofBundle:
    """Put the hash in the place of every event that `hidden` names."""
    return msgspec.structs.replace(bundle, items=tuple(
        item if item.line is None or not hidden(decode_event(item.line.encode()))
        else ProofItem(index=item.index, proof=item.proof, event_hash=line_hash(item.line.encode()))
        for item in bundle.items
    ))


def encode_bundle(bundle: ProofBundle) -> bytes:
    """Write a bundle in its one spelling."""
    return struct_bytes(bundle) + b"\n"


def encode_tlog_proof(bundle: ProofBundle) -> bytes:
    """Write a bundle of one shown event as `c2sp.org/tlog-proof@v1`.

    Its record, the line without the event_hash, is the extra data.

    Raises:
        ProofError: the bundle has several events, withholds its one, or continues older notes.
    """
    item = bundle.items[0]
    if len(bundle.items) > 1 or item.line is None or bundle.consistency:
        raise ProofError(f"{TLOG_PROOF} holds one event, shown, and one checkpoint")
    record = event_record(item.line.encode())
    lines = [
        TLOG_PROOF, f"extra {base64.b64encode(record).decode()}", f"index {item.index}",
        *(base64.b64encode(bytes.fromhex(one)).decode() for one in item.proof),
    ]
    return ("\n".join(lines) + "\n\n" + bundle.checkpoint).encode()
