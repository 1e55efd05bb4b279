"""The invariants about workers, what they run and hold, and what may be said when.

Rules this file keeps: those of `broker.evidence.invariants`. It leaves invocations to
`broker.evidence.invariants_calls`.
"""

from __future__ import annotations

from typing import Final

from broker.evidence.history import History, Worker, answers_drop
from broker.evidence.invariants import Finding, invariant
from schemas.events import (
    Event,
    FrameIn,
    FrameOut,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    LedgerClose,
    LedgerOpen,
    PluginApprove,
    PluginEnable,
    PluginRegister,
    PolicyChange,
    Revoke,
    TrustChange,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
    ZygoteRecycle,
)

LANDLOCK_ABI_MIN: Final = 6
NAMESPACES: Final = 7
_NEVER: Final = ("net.", "process.")
_WORKERS_SAY: Final = {
    "ready", "call_progress", "call_result", "call_failure", "probe_report", "pong", "bye",
}
_WITH: Final = {"clock": "clock.read", "entropy": "random.read"}
"""Probes that a capability turns into one that must be allowed."""


def _missing_layer(one: WorkerAttest) -> str | None:
    """Name what an attestation does not show of a jail."""
    layers = {
        "no_new_privileges": one.no_new_privileges == 1,
        "seccomp_mode": one.seccomp_mode == 2,
        "seccomp_filters_zygote": one.seccomp_filters_zygote > 0,
        "seccomp_filters_call": one.seccomp_filters_call > one.seccomp_filters_zygote,
        "capabilities_effective": not one.capabilities_effective.strip("0"),
        "capabilities_bounding": not one.capabilities_bounding.strip("0"),
        "threads": one.threads == 1,
        "uid": one.uid > 0,
        "landlock_abi": one.landlock_abi >= LANDLOCK_ABI_MIN,
        "namespaces": len(one.namespaces) == NAMESPACES,
    }
    return next((layer for layer, shown in layers.items() if not shown), None)


@invariant(
    "AUD-07", "INV-PNP-05",
    "A worker is given calls only when every layer of its jail was attested, its last witness "
    "passed, and it neither drains nor ended",
    FrameOut, WorkerAttest, WorkerProbe,
)
def _jailed(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, WorkerAttest):
        layer = _missing_layer(fields) if fields.accepted else None
        if layer is not None:
            return f"{layer} as a jail has it", f"{getattr(fields, layer)} was accepted"
        return None
    worker = history.workers.get(fields.incarnation if isinstance(fields, WorkerProbe)
                                 else str(getattr(fields, "peer", "")))
    if isinstance(fields, WorkerProbe):
        grants = worker.start.grants if worker is not None else ()
        free = {name for name, outcome in fields.outcomes.items() if outcome == "allowed"}
        must = {"control"} | {name for name, needed in _WITH.items() if needed in grants}
        if fields.passed and (fields.failed or free != must or len(fields.outcomes) <= len(must)):
            return f"only {sorted(must)} to be allowed", f"{sorted(free)} passed"
        return None
    assert isinstance(fields, FrameOut)
    if fields.plane != "worker" or fields.type != "run" or worker is None:
        return None
    for state, holds in (
        ("is attested", worker.attested), ("is witnessed", worker.witnessed),
        ("does not drain", not worker.draining),
    ):
        if not holds:
            return f"a worker that {state}", f"a run for {fields.peer}"
    return None


@invariant(
    "AUD-08", "INV-PNP-01",
    "What is enabled, started or called was registered and signed, and is neither revoked nor "
    "quarantined; what is accepted is enabled",
    PluginEnable, WorkerStart, InvokeAccept, FrameOut,
)
def _registered(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, FrameOut):
        worker = history.workers.get(fields.peer)
        if fields.type != "run" or worker is None:
            return None
        plugin, version = worker.start.plugin, worker.start.version
    else:
        assert isinstance(fields, PluginEnable | WorkerStart | InvokeAccept)
        plugin, version = fields.plugin, fields.version
    fault = history.untrusted(plugin, version)
    if fault is not None:
        return f"{plugin}@{version} to be registered, signed and in force", fault
    if isinstance(fields, InvokeAccept) and history.enabled.get(plugin) != version:
        return f"{plugin}@{version} to be enabled", f"{history.enabled.get(plugin)} is"
    if isinstance(fields, WorkerStart | InvokeAccept):
        bundle = history.versions[plugin, version].bundle_sha256
        if fields.bundle_sha256 != bundle:
            return f"the registered bundle {bundle}", fields.bundle_sha256
    return None


@invariant(
    "AUD-09", "INV-PNP-09",
    "Versions of plugins and of the trust root only rise, and what is registered, enabled or "
    "called speaks this API in this domain",
    PluginRegister, PluginEnable, InvokeAccept, TrustChange, PolicyChange, LedgerOpen,
)
def _versions(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, LedgerOpen):
        if fields.trust_version < history.trust[0]:
            return f"trust root {history.trust[0]} or newer", f"{fields.trust_version}"
        return None
    if isinstance(fields, PluginRegister):
        return _register_fault(history, fields)
    if isinstance(fields, PluginEnable | InvokeAccept):
        register, opened = history.versions.get((fields.plugin, fields.version)), history.opened
        if register is None or opened is None or _speaks(opened.api_version, register.api_version):
            return None
        return f"an API that {opened.api_version} serves", register.api_version
    assert isinstance(fields, TrustChange | PolicyChange)
    before = history.trust[1] if isinstance(fields, TrustChange) else history.policy
    if (fields.previous_sha256 or "") != before:
        return f"to follow {before or 'nothing'}", fields.previous_sha256 or "nothing"
    if isinstance(fields, TrustChange) and fields.version <= history.trust[0]:
        return f"a version above {history.trust[0]}", f"{fields.version}"
    return None


def _register_fault(history: History, fields: PluginRegister) -> Finding | None:
    newest, opened = history.newest.get(fields.plugin), history.opened
    if newest is not None and _rank(fields.version) <= _rank(newest):
        return f"a version above {newest}", fields.version
    if opened is None:
        return None
    if fields.domain != opened.domain:
        return f"the domain {opened.domain}", fields.domain
    speaks = _speaks(opened.api_version, fields.api_version)
    return None if speaks else (f"an API that {opened.api_version} serves", fields.api_version)


def _speaks(gateway: str, plugin: str) -> bool:
    """Say whether a gateway of one plugin API serves what was built for another."""
    if gateway == plugin:
        return True
    if "-" in gateway + plugin:
        return False
    ours, theirs = _rank(gateway), _rank(plugin)
    return ours[0] == theirs[0] and (ours[1] == theirs[1] or (ours[0] > 0 and ours[1] > theirs[1]))


@invariant(
    "AUD-12", "INV-PNP-06",
    "A worker has only capabilities that its manifest asks for and that are in force",
    WorkerStart, FrameOut, GrantChange,
)
def _capabilities(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, GrantChange):
        if fields.action == "granted" and fields.capability.startswith(_NEVER):
            return "a capability that can be granted", fields.capability
        return None
    if isinstance(fields, FrameOut):
        worker = history.workers.get(fields.peer)
        if fields.type != "run" or worker is None:
            return None
        plugin, grants = worker.start.plugin, worker.start.grants
    else:
        assert isinstance(fields, WorkerStart)
        plugin, grants = fields.plugin, fields.grants
        register = history.versions.get((plugin, fields.version))
        asked = register.capabilities if register is not None else ()
        for capability in grants:
            if capability not in asked or capability.startswith(_NEVER):
                return f"capabilities of {list(asked)}", capability
    for capability in grants:
        if (plugin, capability) in history.taken_back:
            return f"{plugin} without {capability}, which was taken back", "a worker that has it"
    return None


@invariant(
    "AUD-13", "INV-PNP-08",
    "A worker only answers what it was given; one that says anything else ends before anything "
    "else happens with it",
    FrameIn, FrameOut, InvokeEnd, WorkerProbe, WorkerAttest,
)
def _answers(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, FrameIn | FrameOut):
        if fields.plane != "worker":
            return None
        incarnation: str | None = fields.peer
        if isinstance(fields, FrameIn) and fields.type not in _WORKERS_SAY:
            return "an answer of a worker's", fields.type
    elif isinstance(fields, InvokeEnd):
        incarnation = fields.incarnation if fields.outcome == "result" else None
    else:
        assert isinstance(fields, WorkerProbe | WorkerAttest)
        incarnation = fields.incarnation
    worker = history.workers.get(incarnation or "")
    if worker is not None and worker.guilty_of:
        return f"worker.exit after {worker.guilty_of}", fields.EVENT_TYPE
    return None


@invariant(
    "AUD-14", "INV-PNP-07",
    "Nothing comes from or goes to anybody before the event that allows it: replies follow their "
    "request, workers their start",
    FrameIn, FrameOut, WorkerStart, WorkerAttest, WorkerExit,
)
def _order(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, WorkerStart):
        fresh = fields.incarnation not in history.incarnations
        return None if fresh else ("a fresh incarnation", fields.incarnation)
    if isinstance(fields, WorkerAttest | WorkerExit):
        alive = fields.incarnation in history.workers
        return None if alive else ("a worker that was started", fields.incarnation)
    assert isinstance(fields, FrameIn | FrameOut)
    if fields.plane == "worker":
        alive = fields.peer in history.workers
        return None if alive else ("a worker that was started and lives", fields.peer)
    if isinstance(fields, FrameIn):
        return None
    asked = fields.request_id is not None and (fields.peer, fields.request_id) in history.pending
    if asked or answers_drop(fields, history.dropped.get(fields.peer)):
        return None
    return f"a request of {fields.peer} that waits for its reply", f"{fields.type} to it"


@invariant(
    "AUD-15", "INV-PNP-10",
    "What is revoked bites at once: every call that loses its right ends as revoked, or with its "
    "pipeline, before anything else, and no other does but at once after another trust root or "
    "policy, which the ledger holds as digests",
    Revoke, InvokeEnd, FrameIn, WorkerStart, InvokeAccept, LedgerClose,
)
def _revoked(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, Revoke):
        expected = len(history.concerned(fields))
        return None if expected == fields.ended else (f"{expected} ended calls", f"{fields.ended}")
    if isinstance(fields, InvokeEnd):
        must = fields.request_id in history.condemned
        call = history.calls.get(fields.request_id)
        if must and fields.outcome == "cancelled" and call and call.accept.pipeline is not None:
            # Another step lost its right first, and the pipeline ended with it.
            return None
        if not must and fields.request_id in history.doubted:
            return None
        if must != (fields.outcome == "revoked"):
            return f"{'' if must else 'not '}revoked", fields.outcome
        return None
    if history.condemned:
        return f"the end of {min(history.condemned)}, which was revoked", fields.EVENT_TYPE
    return None


@invariant(
    "AUD-18", "INV-PNP-06",
    "A version that may more than the one enabled before it is enabled only after exactly that "
    "difference was approved",
    PluginEnable, PluginApprove,
)
def _approved(history: History, event: Event) -> Finding | None:
    fields = event.fields
    assert isinstance(fields, PluginEnable | PluginApprove)
    plugin, version = fields.plugin, fields.version
    register = history.versions.get((plugin, version))
    if isinstance(fields, PluginApprove):
        return None if register is not None else ("a registered version", f"{plugin}@{version}")
    if fields.diff_sha256 is not None:
        keys = history.approved.get((plugin, version, fields.diff_sha256), set())
        if any(history.holds_role(key, "operator") for key in keys):
            return None
        return f"plugin.approve of {fields.diff_sha256} before, by a key that holds", "none"
    # Limits and schemas are in the manifest; what a ledger shows of it are the capabilities.
    before = history.versions.get((plugin, history.last_enabled.get(plugin, "")))
    if register is None or before is None:
        return None
    more = sorted(set(register.capabilities) - set(before.capabilities))
    return (f"an approval of {', '.join(more)}", "none") if more else None


@invariant(
    "AUD-19", "INV-PNP-09",
    "Another version takes over from the one that serves only when a worker of its own is attested "
    "and witnessed and does not drain, and that worker is named as who follows",
    PluginEnable, ZygoteRecycle,
)
def _switched(history: History, event: Event) -> Finding | None:
    fields = event.fields
    if isinstance(fields, PluginEnable):
        before, own = history.enabled.get(fields.plugin), (fields.plugin, fields.version)
        if before in (None, fields.version):
            return None
        if fields.previous != before:
            return f"to follow {before}, which serves", fields.previous or "nothing"
        if any(_may_serve(worker, *own) for worker in history.workers.values()):
            return None
        return f"a witnessed worker of {'@'.join(own)}", "none"
    assert isinstance(fields, ZygoteRecycle)
    old, follows = history.workers.get(fields.incarnation), fields.successor or "nobody"
    if fields.reason != "upgrade" or old is None:
        return None
    plugin, serves = old.start.plugin, history.enabled.get(old.start.plugin, "")
    if old.start.version == serves:
        return f"a worker of a version before {serves}", "one of the version that serves"
    if _may_serve(history.workers.get(follows), plugin, serves):
        return None
    return f"a witnessed worker of {plugin}@{serves} to follow", follows


def _may_serve(worker: Worker | None, plugin: str, version: str) -> bool:
    """Say whether a worker may be given first runs of a version."""
    if worker is None or (worker.start.plugin, worker.start.version) != (plugin, version):
        return False
    fit = worker.attested and worker.witnessed and not worker.draining
    return fit and worker.purpose != "replica"


def _rank(version: str) -> tuple[int, int, int, bool, tuple[tuple[bool, int, str], ...]]:
    """Give a semantic version a place in their order (Semantic Versioning 2.0.0, section 11)."""
    release, _, early = version.partition("-")
    major, minor, patch = (int(part) for part in release.split("."))
    parts = tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in early.split(".")
    )
    return major, minor, patch, not early, parts if early else ()
