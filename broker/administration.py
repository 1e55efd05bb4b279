"""Operators' requests and everybody's reads.

Rules this file keeps: every accept and every refusal of a bundle is an event, durable before
anything of it could run; a change that the inventory's table does not know is refused; reads change
nothing.

It leaves roles to `broker.core`, the checks of a bundle to `broker.trust`, and reads of the ledger
to the shell by the effect `Evidence`. Source: specification section 6, layers 1 and 2.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Literal

from broker.client_keys import admitted, front_of
from broker.effects import Evidence, Origin, SetKeys, StoreBundle
from broker.inventory import PluginRecord
from broker.orchestrator.calls import Call, LoadedPlugin
from broker.orchestrator.forgetting import forget_unserved
from broker.orchestrator.upgrades import (
    Upgrades,
    approvers,
    is_approved,
    present_difference,
    registered_version,
)
from broker.policy import effective, grant_denied
from broker.registration import Registrations
from broker.state import State
from broker.supervision import Supervision
from broker.trust.bundles import Bundle
from broker.trust.json_schemas import compile_schema, weigh
from broker.trust.manifests import contrast
from broker.trust.roots import publisher_key_known
from broker.trust.signatures import decode_base64, read_envelope
from broker.trust.validation import Validated, ValidationContext, validate_bundle
from schemas.codec import printable
from schemas.events import (
    GrantChange,
    PluginRegister,
    PluginReject,
)
from schemas.events import Revoke as RevokeEvent
from schemas.manifest import PluginManifest
from schemas.messages import (
    Approve,
    BreakerEntry,
    DisablePlugin,
    EnablePlugin,
    FromAdmin,
    FromOmega,
    GetPlugin,
    Grant,
    Granted,
    LedgerHead,
    ListPlugins,
    Plugin,
    PluginEntry,
    Plugins,
    Problem,
    Prove,
    ProveConsistency,
    Registered,
    RegisterPlugin,
    Revoke,
    Revoked,
    ShowRequest,
    Status,
    StatusReport,
    ValidateBundle,
    Validation,
    VersionEntry,
    WorkerEntry,
)
from schemas.names import API_VERSION
from schemas.refusals import RefusalCode


class Administration:
    """Decides about everything that is not an invocation."""

    def __init__(
        self, state: State, workers: Supervision, upgrades: Upgrades,
        end_revoked: Callable[[Call], None],
    ) -> None:
        """Share the core's memory and its way to end a call whose right was taken back."""
        self._state = state
        self._workers = workers
        self._end_revoked = end_revoked
        self._upgrades = upgrades
        self.registrations = Registrations(state, self._validate, self._conclude)

    def handle(self, origin: Origin, request: FromOmega | FromAdmin) -> None:
        """Answer one request whose sender's role has been checked.

        Where room is short, only what adds something is refused: taking away goes on.
        """
        adds = isinstance(request, RegisterPlugin | EnablePlugin | Approve | Grant)
        if adds:
            forget_unserved(self._state)
        if adds and RefusalCode.LOW_SPACE in self._state.degraded:
            self._state.refuse(origin, request.request_id, RefusalCode.LOW_SPACE)
        elif isinstance(request, RegisterPlugin | ValidateBundle):
            self.registrations.ask(origin, request)
        elif isinstance(request, EnablePlugin):
            self._upgrades.enable(origin, request)
        elif isinstance(request, DisablePlugin):
            self._upgrades.disable(origin, request)
        elif isinstance(request, Approve):
            self._upgrades.approve(origin, request)
        elif isinstance(request, Grant):
            self._grant(origin, request)
        elif isinstance(request, Revoke):
            self._revoke(origin, request)
        else:
            self._read(origin, request)

    def _read(self, origin: Origin, request: FromOmega | FromAdmin) -> None:
        state = self._state
        ask = request.request_id
        if isinstance(request, ListPlugins):
            self._list(origin, request)
        elif isinstance(request, GetPlugin):
            self._get(origin, request)
        elif isinstance(request, Status):
            self._status(origin, request)
        elif isinstance(request, LedgerHead):
            state.do(Evidence(origin, ask, "head"))
        elif isinstance(request, Prove):
            state.do(Evidence(origin, ask, "prove", number=request.seq, size=request.size))
        elif isinstance(request, ProveConsistency):
            state.do(Evidence(
                origin, ask, "prove_consistency", number=request.old_size, size=request.size
            ))
        elif isinstance(request, ShowRequest):
            state.do(Evidence(origin, ask, "show_request", target=request.target))
        else:
            state.refuse(origin, ask, RefusalCode.ROLE_NOT_ALLOWED)

    # --- bundles ---

    def _validate(self, request: RegisterPlugin | ValidateBundle) -> Validated:
        state = self._state
        inventory = state.inventory
        return validate_bundle(
            request.bundle,
            ValidationContext(
                domain=state.config.domain,
                trust=state.trust,
                policy=state.policy,
                granted=inventory.grants,
                highest_version=self._highest,
                known_bundles=inventory.bundles,
                now_s=state.wall_us // 1_000_000,
                revoked_keys=inventory.revoked_publisher_keys,
                # What building a schema costs is found out elsewhere, before it is built here.
                admit=weigh,
            ),
            request.conformance,
        )

    def _highest(self, plugin: str) -> str | None:
        record = self._state.inventory.plugins.get(plugin)
        return record.highest or None if record is not None else None

    def _conclude(
        self, origin: Origin, request: RegisterPlugin | ValidateBundle, validated: Validated
    ) -> None:
        """Answer a request with a bundle, once its schemas were tried."""
        if isinstance(request, RegisterPlugin):
            self._register(origin, request, validated)
            return
        manifest = validated.manifest
        self._state.send(origin, Validation(
            request_id=request.request_id, problems=tuple(validated.problems),
            plugin=manifest.id if manifest else None,
            version=manifest.version if manifest else None,
        ), receipt=True, known_size=request.known_size)

    def _register(self, origin: Origin, request: RegisterPlugin, validated: Validated) -> None:
        state = self._state
        manifest = validated.manifest
        if validated.problems or manifest is None or validated.bundle is None:
            self._reject(origin, request, validated)
            return
        state.do(StoreBundle(validated.bundle_sha256, request.bundle))
        state.plugins[manifest.id, manifest.version] = loaded_plugin(manifest, validated.bundle)
        state.append(PluginRegister(
            plugin=manifest.id, version=manifest.version, bundle_sha256=validated.bundle_sha256,
            manifest_sha256=validated.manifest_sha256, publisher=manifest.publisher,
            signing_keys=tuple(validated.signing_keys), api_version=manifest.api_version,
            domain=manifest.domain, capabilities=manifest.capabilities,
            deterministic=tuple(
                name for name, method in sorted(manifest.methods.items()) if method.deterministic
            ),
            conformance_sha256=validated.conformed.sha256 if validated.conformed else None,
            conformance_keys=validated.conformed.keys if validated.conformed else (),
            actor=origin.key_id,
        ))
        state.send(
            origin,
            Registered(request_id=request.request_id, plugin=manifest.id,
                       version=manifest.version, bundle_sha256=validated.bundle_sha256),
            receipt=True, known_size=request.known_size,
        )

    def _reject(self, origin: Origin, request: RegisterPlugin, validated: Validated) -> None:
        first: Problem = validated.problems[0]
        manifest = validated.manifest
        self._state.append(PluginReject(
            bundle_sha256=hashlib.sha256(request.bundle).hexdigest(), code=first.code,
            where=printable(first.where, 1024), plugin=manifest.id if manifest else None,
            version=manifest.version if manifest else None, actor=origin.key_id,
        ))
        more = len(validated.problems) - 1
        self._state.refuse(
            origin, request.request_id, first.code,
            contrast(first.found, first.expected)
            + (f" (and {more} more: see plugins validate)" if more else ""),
            where=first.where, hint=first.remedy, receipt=True, known_size=request.known_size,
        )

    # --- grants and revocations ---

    def _grant(self, origin: Origin, request: Grant) -> None:
        state = self._state
        denied = grant_denied(request.plugin, request.capability, state.policy)
        if denied is not None:
            state.refuse(origin, request.request_id, denied.code, denied.sentence,
                         where="$.capability",
                         hint=f"Add to policy.toml: {denied.line}" if denied.line else "")
            return
        state.append(GrantChange(action="granted", plugin=request.plugin,
                                 capability=request.capability, actor=origin.key_id))
        state.send(
            origin,
            Granted(request_id=request.request_id, plugin=request.plugin,
                    capability=request.capability),
            receipt=True, known_size=request.known_size,
        )
        self._workers.regrant(request.plugin, request.capability)

    def _revoke(self, origin: Origin, request: Revoke) -> None:
        """Take something back: the event first, then what runs under it ends."""
        state = self._state
        if request.disconnect and request.kind != "client_key":
            state.refuse(origin, request.request_id, RefusalCode.MESSAGE_INVALID,
                         "only a client's key has connections", where="$.disconnect")
            return
        victims = self._victims(origin, request)
        if victims is None:
            return
        subject = request.id
        ended = [
            call for call in state.calls.values()
            if (call.plugin, call.version) in victims
            or (request.kind == "client_key" and call.origin.key_id == subject)
        ]
        reason = printable(request.reason, 1024)
        state.append(RevokeEvent(kind=request.kind, id=subject, reason=reason,
                                 actor=origin.key_id, ended=len(ended),
                                 disconnect=request.disconnect))
        state.send(
            origin,
            Revoked(request_id=request.request_id, kind=request.kind, id=subject,
                    ended=len(ended)),
            receipt=True, known_size=request.known_size,
        )
        for call in ended:
            self._end_revoked(call)
        for victim in victims:
            for pool in state.fleet.pools_of(*victim):
                for worker in list(pool.workers.values()):
                    self._workers.kill(worker, "revoked", failed=False)
        if request.kind == "client_key":
            # The fold takes the event in later, so the key is named here too.
            front = front_of(state.keys[subject].role)
            state.do(SetKeys(front, admitted(state, front, without=subject),
                             subject if request.disconnect else ""))

    def _victims(self, origin: Origin, request: Revoke) -> list[tuple[str, str]] | None:
        """Name the versions that lose their right by a revocation; None when it was refused."""
        state = self._state
        subject = request.id
        if request.kind == "plugin_version":
            plugin, _, version = subject.partition("@")
            entry = registered_version(state, origin, request.request_id, plugin, version)
            if entry is None:
                return None
            if not state.inventory.may(entry, "revoke"):
                state.refuse(origin, request.request_id, RefusalCode.REVOKED, where="$.id")
                return None
            return [(plugin, version)]
        if request.kind == "grant":
            plugin, _, capability = subject.partition(" ")
            record = state.inventory.plugins.get(plugin)
            ruled = effective(plugin, (capability,), state.policy, ()).granted
            if record is None or capability not in record.grants or ruled:
                state.refuse(origin, request.request_id, RefusalCode.CAPABILITY_NOT_GRANTED,
                             "policy.toml grants it, no request does" if ruled else "",
                             where="$.id",
                             hint="Take it out of policy.toml and start again." if ruled else "")
                return None
            # Only what has workers or calls can lose them; to read all the others would take long.
            serving = {pool.version for pool in state.fleet.pools_of(plugin)}
            return [
                (plugin, version) for version in record.versions if version in serving
                if (loaded := state.plugins.get((plugin, version))) is not None
                and capability in loaded.manifest.capabilities
            ]
        if request.kind == "publisher_key":
            if not publisher_key_known(subject, state.trust):
                state.refuse(origin, request.request_id, RefusalCode.KEY_UNKNOWN, where="$.id")
                return None
            return [
                (record.plugin, entry.version)
                for record in state.inventory.plugins.values()
                for entry in record.versions.values() if subject in entry.signing_keys
            ]
        if subject not in state.keys:
            state.refuse(origin, request.request_id, RefusalCode.KEY_UNKNOWN, where="$.id")
            return None
        return []

    # --- reads ---

    def _list(self, origin: Origin, request: ListPlugins) -> None:
        state = self._state
        names = sorted(
            name for name, record in state.inventory.plugins.items()
            if record.versions and (request.after is None or name > request.after)
        )
        page = names[: request.limit]
        workers = Counter(worker.plugin for worker in state.fleet.by_incarnation.values())
        state.send(origin, Plugins(
            request_id=request.request_id,
            plugins=tuple(self._entry(state.inventory.plugins[name], workers) for name in page),
            next_after=page[-1] if len(names) > len(page) else None,
        ))

    def _entry(self, record: PluginRecord, workers: Counter[str]) -> PluginEntry:
        state = self._state
        shown = record.enabled or record.highest
        return PluginEntry(
            plugin=record.plugin,
            description=state.description(record.plugin, shown),
            enabled_version=record.enabled,
            highest_version=record.highest,
            versions=len(record.versions),
            workers=workers[record.plugin],
        )

    def _get(self, origin: Origin, request: GetPlugin) -> None:
        state = self._state
        record = state.inventory.plugins.get(request.plugin)
        if record is None or not record.versions:
            state.refuse(origin, request.request_id, RefusalCode.UNKNOWN_PLUGIN, where="$.plugin")
            return
        if request.version is not None and request.version not in record.versions:
            state.refuse(origin, request.request_id, RefusalCode.UNKNOWN_VERSION,
                         where="$.version")
            return
        shown = request.version or record.enabled or record.highest
        loaded = state.plugins.get((record.plugin, shown))
        pending = present_difference(state, record, request.version or record.highest)
        waits = pending is not None and pending.widens and not is_approved(state, record, pending)
        state.send(origin, Plugin(
            request_id=request.request_id,
            plugin=record.plugin,
            versions=tuple(
                VersionEntry(version=entry.version, state=entry.state,
                             bundle_sha256=entry.bundle_sha256, publisher=entry.publisher,
                             api_version=entry.api_version, registered_seq=entry.registered_seq)
                for entry in record.versions.values()
            ),
            manifest=loaded.manifest_bytes if loaded else None,
            grants=tuple(sorted(record.grants | self._ruled(record, loaded))),
            pending_diff=pending.document().decode() if pending else None,
            pending_diff_digest=pending.digest() if pending and waits else None,
            pending_approvals=tuple(sorted(approvers(state, record, pending)))
            if pending and waits else (),
            approvals_required=state.policy.operators_required,
        ))

    def _ruled(self, record: PluginRecord, loaded: LoadedPlugin | None) -> set[str]:
        """Name what policy itself grants of what a plugin asks for."""
        asked = loaded.manifest.capabilities if loaded else ()
        return set(effective(record.plugin, asked, self._state.policy, ()).granted)

    def _status(self, origin: Origin, request: Status) -> None:
        state = self._state
        records = state.inventory.plugins.values()
        shown: Literal["serving", "draining", "degraded"] = (
            "degraded" if state.degraded else "serving"
        )
        if state.gateway != "serving":
            shown = "draining"
        state.send(origin, StatusReport(
            request_id=request.request_id,
            state=shown,
            domain=state.config.domain,
            gateway_version=state.edge.gateway_version,
            api_version=API_VERSION,
            log_id=state.edge.log_id,
            ledger_size=state.ledger_size,
            uptime_us=max(0, state.now - state.began_us),
            in_flight=len(state.calls),
            in_flight_max=state.config.limits.in_flight_max,
            plugins=sum(1 for record in records if record.versions),
            enabled=sum(1 for record in records if record.enabled is not None),
            workers=tuple(
                WorkerEntry(incarnation=worker.incarnation, plugin=worker.plugin,
                            version=worker.version, state=worker.state,
                            in_flight=len(worker.calls), calls=worker.served, pid=worker.pid,
                            role=worker.role)
                for worker in state.fleet.by_incarnation.values()
            ),
            trust_version=state.trust.version,
            policy_sha256=state.policy_sha256,
            degraded=tuple(sorted(state.degraded)),
            breakers=tuple(
                BreakerEntry(plugin=plugin, method=method,
                             state="open" if breaker.state == "open" else "half_open",
                             retry_after_ms=state.breakers.retry_after_ms(
                                 (plugin, method), breaker.version, state.now))
                for (plugin, method), breaker in state.breakers.not_closed()
            ),
        ))


def loaded_plugin(manifest: PluginManifest, bundle: Bundle) -> LoadedPlugin:
    """Make a registered version ready to be called: compile its schemas, keep its signed bytes."""
    return LoadedPlugin(
        manifest=manifest,
        manifest_bytes=decode_base64(read_envelope(bundle.envelope).payload, "payload"),
        bundle_sha256=bundle.sha256,
        validators={
            schema_id: compile_schema(bytes(schema))
            for schema_id, schema in manifest.schemas.items()
        },
    )
