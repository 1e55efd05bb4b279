"""The folded state in a form that can be written down: what a start needs of the ledger's past.

Rules this file keeps:
- What is written is the fold of the events before a position and nothing else, so beginning with it
  and beginning with the first event come to the same.
- It counts only with an event at or after that position, a `state.snapshot` that holds the digest
  of these very bytes. Anything else is no state at all; then the fold is longer, never wrong.
- Taking a picture of the state costs the loop next to nothing and writing it down can be done by
  another thread, a little at a time: nothing of a picture changes.

It leaves files to `broker.kept`, proving the event to `broker.ledger`. Source: docs/LEDGER.md,
section 3.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import msgspec

from broker.inventory import Inventory, PluginRecord, VersionRecord
from broker.orchestrator import determinism, windows
from broker.orchestrator.windows import KeptRequests
from schemas.events import EventFields, StateSnapshot
from schemas.names import Role

if TYPE_CHECKING:
    from broker.state import State

OPEN_TOLD_MAX: Final = 1024
"""How many open invocations a snapshot names."""
PLUGINS_TOGETHER: Final = 64
BYTES_TOGETHER: Final = 256 * 1024


class Story(msgspec.Struct, array_like=True, gc=False):
    """A request, and where its events lie: how it began and ended, and a bounded number more.

    It is written down as it is kept. Rows of numbers, made anew, and not lists: there are thousands
    of them, and the collector would follow each.
    """

    request_id: str
    always: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


class FoldedPlugin(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One plugin; versions in the order of their registration."""

    plugin: str
    highest: str
    enabled: str | None
    grants: list[str]
    last_enabled: str | None
    approvals: list[tuple[str, str, list[str]]]
    versions: list[VersionRecord]


class Folded(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The state after the events before `seq`, as `registry/state-SEQ.json` holds it."""

    format: Literal["omega-state/1"]
    log_id: str
    seq: int
    plugins: list[FoldedPlugin]
    known_keys: dict[str, Role]
    server_keys: list[str]
    revoked_keys: list[str]
    revoked_publisher_keys: list[str]
    trust_version: int
    trust_sha256: str
    policy_sha256: str
    archived_before: int
    archived_to: str
    open_invocations: dict[str, str]
    escapes: list[tuple[str, str]]
    workers: dict[str, tuple[str, str]]
    answers_seen: list[tuple[str, str, str, int]]
    answers_open: dict[str, tuple[str, str]]
    answers_compared: dict[str, int]
    requests: dict[str, KeptRequests]
    stories: list[Story]


_decoder: Final = msgspec.json.Decoder(Folded)


class Picture(NamedTuple):
    """The state after the events before a position, whatever became of it since."""

    seq: int
    small: bytes
    plugins: list[bytes]
    answers: list[determinism.Shard]
    requests: list[tuple[str, windows.Picture]]
    stories: bytes

    def written(self) -> Iterator[bytes]:
        """Give a `Folded` as JSON, in parts that each take less than a millisecond to make.

        The interpreter runs one thread at a time and does not leave a part in its middle.
        """
        yield self.small[:-1] + b',"plugins":['
        for begin in range(0, len(self.plugins), PLUGINS_TOGETHER):
            together = self.plugins[begin : begin + PLUGINS_TOGETHER]
            yield b"," * bool(begin) + b",".join(together)
        yield b'],"answers_seen":['
        comma = b""
        for shard in filter(None, self.answers):
            rows = [(*key, seen.output_fingerprint, seen.seq) for key, seen in shard.items()]
            yield comma + msgspec.json.encode(rows)[1:-1]
            comma = b","
        yield b'],"requests":{'
        for place, (key_id, window) in enumerate(self.requests):
            yield b"," * bool(place) + msgspec.json.encode(key_id) + b":"
            yield from window.written()
        yield b'},"stories":'
        for begin in range(0, len(self.stories), BYTES_TOGETHER):
            yield self.stories[begin : begin + BYTES_TOGETHER]
        yield b"}"


def picture(state: State, stories: list[Story], log_id: str, seq: int) -> Picture:
    """Take a picture of the state after the events before a position.

    Args:
        state: the core's memory.
        stories: where the events of recent requests lie.
        log_id: whose state it is.
        seq: how many events it is the fold of.
    """
    inventory = state.inventory
    small = {
        "format": "omega-state/1",
        "log_id": log_id,
        "seq": seq,
        "known_keys": inventory.known_keys,
        "server_keys": sorted(inventory.server_keys),
        "revoked_keys": sorted(inventory.revoked_keys),
        "revoked_publisher_keys": sorted(inventory.revoked_publisher_keys),
        "trust_version": inventory.trust_version,
        "trust_sha256": inventory.trust_sha256,
        "policy_sha256": inventory.policy_sha256,
        "archived_before": inventory.archived_before,
        "archived_to": inventory.archived_to,
        "open_invocations": inventory.open_invocations,
        "escapes": sorted(inventory.escapes),
        "workers": inventory.workers,
        "answers_open": inventory.history.open,
        "answers_compared": inventory.history.compared,
    }
    return Picture(
        seq,
        msgspec.json.encode(small),
        [record.written or _written(record) for record in inventory.plugins.values()],
        inventory.history.picture(),
        [(key_id, window.picture()) for key_id, window in sorted(state.windows.items()) if window],
        msgspec.json.encode(stories),
    )


def _written(record: PluginRecord) -> bytes:
    """Write one plugin down; it is kept with the record until that changes."""
    record.written = msgspec.json.encode(FoldedPlugin(
        plugin=record.plugin, highest=record.highest, enabled=record.enabled,
        grants=sorted(record.grants), last_enabled=record.last_enabled,
        approvals=[(*what, sorted(keys)) for what, keys in record.approvals.items()],
        versions=[*record.versions.values()],
    ))
    return record.written


def snapshot(state: State, state_sha256: str | None = None) -> StateSnapshot:
    """Give the digests of what is remembered now; with one, the event vouches for those bytes.

    They are the state now, or what it was at an earlier event, whose position is in them.
    """
    return StateSnapshot(
        inventory_sha256=state.inventory.digest(),
        trust_sha256=state.trust_sha256,
        policy_sha256=state.policy_sha256,
        open_invocations=tuple(sorted(state.inventory.open_invocations)[:OPEN_TOLD_MAX]),
        state_sha256=state_sha256,
    )


def vouched(
    fields: EventFields, seq: int, log_id: str, data: bytes, sha256: str
) -> Folded | None:
    """Read a state that was written down, or give None if an event does not vouch for it.

    Args:
        fields: an event at that position or a later one.
        seq: the position.
        log_id: whose ledger the event is in.
        data: what was found.
        sha256: its digest.
    """
    if not isinstance(fields, StateSnapshot) or fields.state_sha256 != sha256:
        return None
    try:
        folded = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        # Written by a gateway of another version.
        return None
    if (folded.seq, folded.log_id) != (seq, log_id):
        return None
    return folded


def restore(state: State, folded: Folded) -> None:
    """Fill a memory that holds nothing yet with what was written down."""
    restore_inventory(state.inventory, folded)
    horizon_us = state.wall_us - state.config.limits.request_window_ms * 1000
    for key_id, kept in folded.requests.items():
        state.window(key_id).take_up(kept, horizon_us)


def restore_inventory(inventory: Inventory, folded: Folded) -> None:
    """Fill an empty inventory."""
    for one in folded.plugins:
        inventory.plugins[one.plugin] = PluginRecord(
            one.plugin, {entry.version: entry for entry in one.versions}, one.highest, one.enabled,
            set(one.grants), one.last_enabled,
            {(version, digest): set(keys) for version, digest, keys in one.approvals},
        )
        inventory.bundles.update(entry.bundle_sha256 for entry in one.versions)
    inventory.known_keys.update(folded.known_keys)
    inventory.server_keys.update(folded.server_keys)
    inventory.revoked_keys.update(folded.revoked_keys)
    inventory.revoked_publisher_keys.update(folded.revoked_publisher_keys)
    inventory.trust_version = folded.trust_version
    inventory.trust_sha256 = folded.trust_sha256
    inventory.policy_sha256 = folded.policy_sha256
    inventory.archived_before = folded.archived_before
    inventory.archived_to = folded.archived_to
    inventory.open_invocations.update(folded.open_invocations)
    inventory.escapes.update(folded.escapes)
    inventory.workers.update(folded.workers)
    inventory.history.take_up(folded.answers_seen)
    inventory.history.open.update(folded.answers_open)
    inventory.history.compared.update(folded.answers_compared)
