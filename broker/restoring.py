"""A new ledger in the place of one that was lost, damaged or put back from a backup.

A restored copy is a fork: whoever saw more of the old ledger would be shown another history. So the
new ledger has a new log_id, says from which ledger and why, and begins with what was taken back.

Rules this file keeps:
- What is taken over comes from a ledger that verifies. Of the ledger that lies in the home, however
  damaged, each line that is whole by its hash counts too, where it takes something away.
- Revocations, quarantines, the trust root's version, registered versions and the roles of keys are
  taken over. What was enabled or granted is not: it may have been taken back since the backup.
- The new ledger is whole and durable before the old one is moved aside, and nothing is removed.
  Interrupted anywhere, the home does not start, and the same command finishes.

It leaves verifying to `broker.evidence` and keys, trust root and policy to the home. Source:
docs/LEDGER.md, section 7; docs/decisions/0025-archives-and-restored-ledgers.md.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import zlib
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from nacl.signing import SigningKey

from broker.configured import config_with_origins
from broker.durable import replace_file
from broker.evidence.events import UnreadableLedger, read_events
from broker.evidence.files import open_segment, segment_names
from broker.evidence.verify import verify_directory
from broker.folded import picture, snapshot
from broker.home import CONFIG_FILE, RESTORED, Home
from broker.inventory import Inventory
from broker.kept import StateFolder
from broker.keys import make_private_directory, sync_directory
from broker.ledger.commit import Ledger
from broker.ledger.recovery import lock
from broker.ledger.volume import Volume
from broker.lifecycle import VersionEvent
from broker.policy import policy_digest
from broker.serve import SystemClock, initial_state, opening
from broker.trust.versions import is_higher
from schemas.events import (
    Event,
    EventFields,
    InvalidEvent,
    KeyChange,
    LedgerClose,
    PluginQuarantine,
    PluginRegister,
    PolicyChange,
    Revoke,
    TrustChange,
    decode_event,
)
from schemas.proof import VerifierKey

FORKS: Final = "forks"
_UNFINISHED: Final = "restoring"
_LOG_ID: Final = re.compile(r'^log_id[ \t]*=[ \t]*"[^"\n]*"', re.MULTILINE)


class CannotRestore(Exception):
    """Nothing was changed; the sentence says why."""


class Restored(NamedTuple):
    """The new ledger, the one before it, and where that lies now; what an operator may enable."""

    log_id: str
    restored_from: str
    forks: str
    verifier_key: str
    enabled_before: tuple[str, ...]


class _Past:
    """What is known of the old ledger: its fold, and what each version was registered as."""

    def __init__(self) -> None:
        self.inventory = Inventory()
        self.registered: dict[tuple[str, str], PluginRegister] = {}

    def take(self, fields: EventFields, seq: int) -> None:
        """Take in an event of the ledger that verified."""
        self.inventory.apply(fields, seq)
        if isinstance(fields, PluginRegister):
            self.registered[fields.plugin, fields.version] = fields

    def take_away(self, fields: EventFields, seq: int) -> None:
        """Take in an event of a ledger that need not verify, if it takes something away."""
        inventory = self.inventory
        if isinstance(fields, PluginRegister):
            record = inventory.plugins.get(fields.plugin)
            if record is None or is_higher(fields.version, record.highest):
                self.take(fields, seq)
        elif isinstance(fields, Revoke) and fields.kind == "plugin_version":
            plugin, _, version = fields.id.partition("@")
            self._end(plugin, version, fields, seq)
        elif isinstance(fields, PluginQuarantine):
            self._end(fields.plugin, fields.version, fields, seq)
        elif isinstance(fields, TrustChange):
            if fields.version > inventory.trust_version:
                inventory.apply(fields, seq)
        elif isinstance(fields, KeyChange):
            if fields.action == "revoked":
                inventory.apply(fields, seq)
        elif isinstance(fields, Revoke) and fields.kind in ("publisher_key", "client_key"):
            inventory.apply(fields, seq)

    def _end(self, plugin: str, version: str, fields: EventFields, seq: int) -> None:
        record = self.inventory.record(plugin, version)
        change: VersionEvent = "revoke" if isinstance(fields, Revoke) else "quarantine"
        if record is not None and self.inventory.may(record, change):
            self.inventory.apply(fields, seq)


def restore(
    home: Home, reason: str, source: str | None = None, archives: tuple[str, ...] = ()
) -> Restored:
    """Begin a new ledger that takes over what was taken back, and move the old one aside.

    Args:
        home: the home; no gateway runs on it.
        reason: why, in printable ASCII; the new ledger says it.
        source: a copy of the home's ledger that verifies; None means the one in the home.
        archives: folders with segments that were archived from it.

    Raises:
        CannotRestore: the source does not verify, or its first events are not there.
        LedgerRefused: a gateway runs.
        OSError: a file cannot be read or written.
    """
    with contextlib.ExitStack() as stack:
        for path in (home.ledger, home.anchor):
            lock(Volume(), f"{path}/LOCK", stack)
        past = _past(home, source or home.ledger, archives)
        enabled = tuple(
            f"{record.plugin}@{record.enabled}" for record in past.inventory.plugins.values()
            if record.enabled is not None
        )
        log_id = f"omega-gateway/{home.config.domain}/{secrets.token_hex(8)}"
        unfinished = os.path.join(home.path, _UNFINISHED)
        if os.path.lexists(unfinished):
            shutil.rmtree(unfinished)
        make_private_directory(unfinished)
        key = _write(home, past, log_id, reason, unfinished)
        os.rename(unfinished, os.path.join(home.path, RESTORED))
        sync_directory(home.path)
    finish(home.path, home.anchor)
    return Restored(log_id, home.config.log_id, _forks(home.path, log_id), key, enabled)


def _past(home: Home, source: str, archives: tuple[str, ...]) -> _Past:
    """Fold a ledger that verifies, and what the home's own takes away."""
    for directory in (*archives, source):
        report = verify_directory(directory, verifier_key=home.verifier_key)
        if report.problem is not None:
            raise CannotRestore(
                f"{directory}/{report.problem.file}: {report.problem.kind}: "
                f"{report.problem.sentence}; name a copy that verifies with --from DIR"
            )
    past = _Past()
    try:
        for event in read_events(source, None, archives):
            past.take(event.fields, event.seq)
    except UnreadableLedger as error:
        raise CannotRestore(str(error)) from None
    if os.path.realpath(source) != os.path.realpath(home.ledger):
        for event in _whole_lines(home.ledger, home.config.log_id):
            past.take_away(event.fields, event.seq)
    return past


def _whole_lines(directory: str, log_id: str) -> Iterator[Event]:
    """Give each event of a ledger that is whole by its hash, whatever lies around it."""
    folder = os.path.join(directory, "segments")
    for name in segment_names(folder) if os.path.isdir(folder) else []:
        try:
            with open_segment(os.path.join(folder, name)) as file:
                for line in file:
                    with contextlib.suppress(InvalidEvent):
                        event = decode_event(line)
                        if event.log_id == log_id:
                            yield event
        except (EOFError, OSError, zlib.error):
            # What cannot be read takes nothing away; the operator is told where it lies.
            continue


def _carried(home: Home, past: _Past) -> Iterator[EventFields]:
    """Say what a new ledger begins with."""
    inventory = past.inventory
    yield TrustChange(version=inventory.trust_version, sha256=inventory.trust_sha256,
                      actor="gateway")
    yield PolicyChange(sha256=policy_digest(home.policy), actor="home")
    for key_id, role in sorted(inventory.known_keys.items()):
        yield KeyChange(action="added", role=role, key_id=key_id, actor="gateway")
    for key_id in sorted(inventory.server_keys):
        yield KeyChange(action="added", role="server", key_id=key_id, actor="gateway")
    for key_id in sorted(inventory.revoked_keys):
        role = inventory.known_keys.get(key_id, "auditor")
        yield KeyChange(action="revoked", role=role, key_id=key_id, actor="gateway")
    for fields in past.registered.values():
        yield msgspec.structs.replace(fields, actor="gateway")
        entry = inventory.record(fields.plugin, fields.version)
        if entry is not None and entry.state == "quarantined":
            yield PluginQuarantine(plugin=fields.plugin, version=fields.version,
                                   reason="bundle_damaged", detail="quarantined before")
        elif entry is not None and entry.state == "revoked":
            yield Revoke(kind="plugin_version", id=f"{fields.plugin}@{fields.version}",
                         reason="revoked before", actor="gateway")
    for key_id in sorted(inventory.revoked_publisher_keys):
        yield Revoke(kind="publisher_key", id=key_id, reason="revoked before", actor="gateway")


def _write(home: Home, past: _Past, log_id: str, reason: str, folder: str) -> str:
    """Write ledger, anchor and configuration of the restored home; gives the verifier key."""
    clock = SystemClock()
    signing_key = SigningKey(bytes.fromhex(home.keys.ledger.secret))
    key = str(VerifierKey(log_id, bytes(signing_key.verify_key)))
    config_path = os.path.join(home.path, CONFIG_FILE)
    with open(config_path, encoding="utf-8") as file:
        text, lines = _LOG_ID.subn(f'log_id = "{log_id}"', file.read())
    if lines != 1:
        raise CannotRestore(f"{config_path}: has {lines} lines that name log_id, expected one")
    for name in ("ledger", "anchor", "registry"):
        make_private_directory(os.path.join(folder, name))
    ledger = Ledger.open(
        f"{folder}/ledger", f"{folder}/anchor", log_id=log_id, signing_key=signing_key,
        durability="power", now=clock.both,
    )
    state = initial_state(home, clock)
    inventory = state.inventory = Inventory()
    state.trust_sha256 = past.inventory.trust_sha256
    said = opening(
        home.config, key, trust_sha256=state.trust_sha256,
        trust_version=past.inventory.trust_version, policy_sha256=state.policy_sha256,
    )
    said = msgspec.structs.replace(
        said, restored_from=home.config.log_id, restore_reason=reason
    )
    for fields in (said, *_carried(home, past)):
        inventory.apply(fields, ledger.append(fields).seq)
    parts = picture(state, [], log_id, ledger.size).written()
    digest = StateFolder(f"{folder}/registry", f"{folder}/ledger").write(ledger.size, parts)
    ledger.append(snapshot(state, digest))
    ledger.append(LedgerClose(reason="stopped"))
    ledger.close()
    replace_file(os.path.join(folder, CONFIG_FILE), text.encode())
    return key


def _forks(home: str, log_id: str) -> str:
    return os.path.join(home, FORKS, f"before-{log_id.rpartition('/')[2]}")


def finish_interrupted(home: str) -> bool:
    """Go on with a restore that was interrupted after its new ledger was whole; see `finish`.

    Raises:
        HomeRefused: the home's configuration cannot be read.
    """
    if not os.path.lexists(os.path.join(home, RESTORED)):
        return False
    config = config_with_origins(
        os.path.join(home, CONFIG_FILE), environment={}, overrides={}
    ).config
    return finish(home, config.ledger.anchor or os.path.join(home, "anchor"))


def finish(home: str, anchor: str) -> bool:
    """Put a restored ledger in its place, from wherever an interrupted run left it.

    Args:
        home: the home's folder.
        anchor: the anchor's folder, which may lie on another volume.

    Returns:
        Whether there was one.

    Raises:
        OSError: a file cannot be moved; the same call goes on.
    """
    restored = os.path.join(home, RESTORED)
    if not os.path.lexists(restored):
        return False
    with open(os.path.join(restored, CONFIG_FILE), encoding="utf-8") as file:
        found = _LOG_ID.search(file.read())
    log_id = found[0].split('"')[1] if found is not None else ""
    forks = _forks(home, log_id)
    for folder in (os.path.dirname(forks), forks, f"{forks}/registry", f"{forks}/anchor"):
        make_private_directory(folder)
    if os.path.lexists(f"{restored}/ledger"):
        if os.path.lexists(f"{home}/ledger"):
            os.rename(f"{home}/ledger", f"{forks}/ledger")
        new_states = os.listdir(f"{restored}/registry")
        for name in os.listdir(f"{home}/registry") if new_states else []:
            if name.startswith("state-"):
                os.rename(f"{home}/registry/{name}", f"{forks}/registry/{name}")
        for name in new_states:
            os.rename(f"{restored}/registry/{name}", f"{home}/registry/{name}")
        if not os.path.lexists(f"{forks}/anchor/head") and os.path.lexists(f"{anchor}/head"):
            shutil.copyfile(f"{anchor}/head", f"{forks}/anchor/head")
        with open(f"{restored}/anchor/head", "rb") as file:
            replace_file(f"{anchor}/head", file.read())
        os.rename(f"{restored}/ledger", f"{home}/ledger")
    shutil.copyfile(f"{home}/{CONFIG_FILE}", f"{forks}/{CONFIG_FILE}")
    with open(f"{restored}/{CONFIG_FILE}", "rb") as file:
        replace_file(f"{home}/{CONFIG_FILE}", file.read())
    unfinished = os.path.join(home, _UNFINISHED)
    os.rename(restored, unfinished)
    shutil.rmtree(unfinished)
    sync_directory(home)
    return True
