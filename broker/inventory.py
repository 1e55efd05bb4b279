"""Layer 1: which plugins and versions there are and what state they are in: a fold of the ledger.

Rules this file keeps: the only way in is `apply`, one event at a time, whether the event is years
old or was appended a moment ago; so a restart sees exactly what was durable. Events that do not
concern the inventory change nothing. Versions only rise.

It leaves bundles' contents to `broker.trust` and decisions to `broker.core`.
Source: specification section 6, layer 1; docs/LEDGER.md.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from broker.lifecycle import VERSION, VersionEvent, VersionState
from broker.orchestrator.determinism import History
from broker.trust.versions import is_higher
from schemas.events import (
    Event,
    EventFields,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    KeyChange,
    LedgerOpen,
    PluginApprove,
    PluginDisable,
    PluginEnable,
    PluginQuarantine,
    PluginRegister,
    PolicyChange,
    Revoke,
    TrustChange,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
)
from schemas.names import Role
from schemas.witness import escaped

_ROLES: Final[dict[str, Role]] = {
    "omega": "omega", "operator": "operator", "auditor": "auditor",
}


@dataclass(slots=True)
class VersionRecord:
    """One registered version."""

    plugin: str
    version: str
    state: VersionState
    bundle_sha256: str
    manifest_sha256: str
    publisher: str
    signing_keys: tuple[str, ...]
    api_version: str
    registered_seq: int


@dataclass(slots=True)
class PluginRecord:
    """One plugin with all its versions; `highest` only rises.

    `last_enabled` is the version that was enabled last, whatever became of it. `approvals` holds,
    for a version and the digest of a difference, the keys that approved it. `spelled` and `written`
    are its part of the inventory's one spelling and of a state file, kept until it changes.
    """

    plugin: str
    versions: dict[str, VersionRecord] = field(default_factory=dict)
    highest: str = ""
    enabled: str | None = None
    grants: set[str] = field(default_factory=set)
    last_enabled: str | None = None
    approvals: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    spelled: bytes | None = field(default=None, compare=False)
    written: bytes | None = field(default=None, compare=False)


class _Grants(Mapping[str, Collection[str]]):
    """A view of each plugin's grants: making one costs nothing, however many plugins there are."""

    def __init__(self, plugins: dict[str, PluginRecord]) -> None:
        self._plugins = plugins

    def __getitem__(self, plugin: str) -> Collection[str]:
        return self._plugins[plugin].grants

    def __iter__(self) -> Iterator[str]:
        return iter(self._plugins)

    def __len__(self) -> int:
        return len(self._plugins)


class Inventory:
    """The fold. `apply` is its only way to change; `CONCERNS` are the events that change it."""

    CONCERNS: Final[frozenset[type[EventFields]]] = frozenset({
        PluginRegister, PluginEnable, PluginDisable, PluginQuarantine, PluginApprove, GrantChange,
        Revoke, KeyChange, TrustChange, PolicyChange, InvokeAccept, InvokeEnd, WorkerStart,
        WorkerProbe, WorkerExit, LedgerOpen,
    })

    def __init__(self) -> None:
        """Begin with nothing: the state before the first event."""
        self.plugins: dict[str, PluginRecord] = {}
        self.bundles: set[str] = set()
        self.revoked_keys: set[str] = set()
        self.revoked_publisher_keys: set[str] = set()
        self.known_keys: dict[str, Role] = {}
        self.server_keys: set[str] = set()
        self.open_invocations: dict[str, str] = {}
        self.history = History()
        self.escapes: set[tuple[str, str]] = set()
        self.workers: dict[str, tuple[str, str]] = {}
        self.trust_version = 0
        self.trust_sha256 = ""
        self.policy_sha256 = ""
        self.archived_before = 0
        self.archived_to = ""
        self._handlers: dict[type[EventFields], Callable[..., None]] = {
            PluginRegister: self._register,
            PluginEnable: self._enable,
            PluginDisable: self._disable,
            PluginQuarantine: self._quarantine,
            PluginApprove: self._approve,
            GrantChange: self._grant,
            Revoke: self._revoke,
            KeyChange: self._key,
            TrustChange: self._trust,
            PolicyChange: self._policy,
            InvokeAccept: self._accept,
            InvokeEnd: self._end,
            WorkerStart: self._started,
            WorkerProbe: self._probed,
            WorkerExit: self._exited,
            LedgerOpen: self._opened,
        }
        assert self._handlers.keys() == self.CONCERNS

    def apply(self, fields: EventFields, seq: int) -> None:
        """Take one event in.

        Args:
            fields: the event's variable part.
            seq: its position in the ledger.
        """
        handler = self._handlers.get(type(fields))
        if handler is not None:
            handler(fields, seq)

    @classmethod
    def fold(cls, events: Iterator[Event]) -> Inventory:
        """Build the inventory from a ledger's events, oldest first."""
        inventory = cls()
        for event in events:
            inventory.apply(event.fields, event.seq)
        return inventory

    def record(self, plugin: str, version: str) -> VersionRecord | None:
        """Find one version, or None."""
        record = self.plugins.get(plugin)
        return None if record is None else record.versions.get(version)

    @property
    def grants(self) -> Mapping[str, Collection[str]]:
        """What is granted by request, by plugin."""
        return _Grants(self.plugins)

    def enabled(self, plugin: str) -> VersionRecord | None:
        """Find the version that serves new calls, or None."""
        record = self.plugins.get(plugin)
        if record is None or record.enabled is None:
            return None
        return record.versions[record.enabled]

    def may(self, record: VersionRecord, event: VersionEvent) -> bool:
        """Say whether the table allows this change of a version."""
        return (record.state, event) in VERSION

    def digest(self) -> str:
        """Give the SHA-256 of the folded state in its one spelling, for `state.snapshot`."""
        text = b'{"plugins":{%b},"revoked_keys":%b,"revoked_publisher_keys":%b}' % (
            b",".join([_spelled(record) for _, record in sorted(self.plugins.items())]),
            msgspec.json.encode(sorted(self.revoked_keys)),
            msgspec.json.encode(sorted(self.revoked_publisher_keys)),
        )
        return hashlib.sha256(text).hexdigest()

    def _changing(self, plugin: str) -> PluginRecord:
        """Give a plugin's record to be changed; what was kept of it in writing is forgotten."""
        record = self.plugins[plugin]
        record.spelled = record.written = None
        return record

    # --- one method for each kind of event ---

    def _register(self, fields: PluginRegister, seq: int) -> None:
        self.plugins.setdefault(fields.plugin, PluginRecord(fields.plugin))
        record = self._changing(fields.plugin)
        record.versions[fields.version] = VersionRecord(
            plugin=fields.plugin,
            version=fields.version,
            state="registered",
            bundle_sha256=fields.bundle_sha256,
            manifest_sha256=fields.manifest_sha256,
            publisher=fields.publisher,
            signing_keys=fields.signing_keys,
            api_version=fields.api_version,
            registered_seq=seq,
        )
        self.bundles.add(fields.bundle_sha256)
        if not record.highest or is_higher(fields.version, record.highest):
            record.highest = fields.version

    def _change(self, plugin: str, version: str, event: VersionEvent) -> None:
        record = self._changing(plugin)
        entry = record.versions[version]
        entry.state = VERSION[entry.state, event]
        if entry.state == "enabled":
            record.enabled = version
        elif record.enabled == version:
            record.enabled = None

    def _enable(self, fields: PluginEnable, _seq: int) -> None:
        if fields.previous is not None:
            self._change(fields.plugin, fields.previous, "supersede")
        self._change(fields.plugin, fields.version, "enable")
        self._changing(fields.plugin).last_enabled = fields.version

    def _disable(self, fields: PluginDisable, _seq: int) -> None:
        if fields.version is not None:
            self._change(fields.plugin, fields.version, "disable")

    def _quarantine(self, fields: PluginQuarantine, _seq: int) -> None:
        self._change(fields.plugin, fields.version, "quarantine")

    def _approve(self, fields: PluginApprove, _seq: int) -> None:
        approvals = self._changing(fields.plugin).approvals
        approvals.setdefault((fields.version, fields.diff_sha256), set()).add(fields.actor)

    def _grant(self, fields: GrantChange, _seq: int) -> None:
        self.plugins.setdefault(fields.plugin, PluginRecord(fields.plugin))
        record = self._changing(fields.plugin)
        if fields.action == "granted":
            record.grants.add(fields.capability)
        else:
            record.grants.discard(fields.capability)

    def _revoke(self, fields: Revoke, _seq: int) -> None:
        if fields.kind == "plugin_version":
            plugin, _, version = fields.id.partition("@")
            self._change(plugin, version, "revoke")
        elif fields.kind == "grant":
            plugin, _, capability = fields.id.partition(" ")
            self._changing(plugin).grants.discard(capability)
        elif fields.kind == "publisher_key":
            self.revoked_publisher_keys.add(fields.id)
        else:
            self.revoked_keys.add(fields.id)

    def _key(self, fields: KeyChange, _seq: int) -> None:
        if fields.action == "revoked":
            self.revoked_keys.add(fields.key_id)
        elif fields.action == "removed":
            self.known_keys.pop(fields.key_id, None)
            self.server_keys.discard(fields.key_id)
        elif fields.role == "server":
            self.server_keys.add(fields.key_id)
        elif fields.role in _ROLES:
            self.known_keys[fields.key_id] = _ROLES[fields.role]

    def _trust(self, fields: TrustChange, _seq: int) -> None:
        self.trust_version, self.trust_sha256 = fields.version, fields.sha256

    def _opened(self, fields: LedgerOpen, _seq: int) -> None:
        if fields.archived_before is not None:
            self.archived_before = fields.archived_before
            self.archived_to = fields.archived_to or ""

    def _policy(self, fields: PolicyChange, _seq: int) -> None:
        self.policy_sha256 = fields.sha256

    def _accept(self, fields: InvokeAccept, _seq: int) -> None:
        self.open_invocations[fields.request_id] = fields.peer
        self.history.accepted(fields)

    def _end(self, fields: InvokeEnd, seq: int) -> None:
        self.open_invocations.pop(fields.request_id, None)
        self.history.ended(fields, seq)

    def _started(self, fields: WorkerStart, _seq: int) -> None:
        self.workers[fields.incarnation] = fields.plugin, fields.version

    def _probed(self, fields: WorkerProbe, _seq: int) -> None:
        """Remember a version whose jail did not hold: a crash may have lost its quarantine."""
        version = self.workers.get(fields.incarnation)
        if version is not None and escaped(fields.outcomes, fields.failed):
            self.escapes.add(version)

    def _exited(self, fields: WorkerExit, _seq: int) -> None:
        self.workers.pop(fields.incarnation, None)


def _spelled(record: PluginRecord) -> bytes:
    """Give a plugin's name and its part of the inventory's one spelling, made when it changed."""
    if record.spelled is None:
        record.spelled = msgspec.json.encode({record.plugin: {
            "enabled": record.enabled or "",
            "highest": record.highest,
            "grants": sorted(record.grants),
            "last_enabled": record.last_enabled or "",
            "approvals": {
                f"{version} {digest}": sorted(keys)
                for (version, digest), keys in record.approvals.items()
            },
            "versions": {
                version: [entry.state, entry.bundle_sha256, entry.manifest_sha256]
                for version, entry in record.versions.items()
            },
        }}, order="sorted")[1:-1]
    return record.spelled
