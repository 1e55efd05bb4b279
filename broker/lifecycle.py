"""Legality as tables: what may follow what, and who may ask for what. Absent means refused.

Rules this file keeps: a transition is looked up, never computed; a missing entry changes nothing
and is the refusal; every cell is reached by the simulation. The architecture page draws its
diagrams from here.

It leaves what a transition does to `broker.core`. Source: specification sections 4 and 7; the race
table of docs/WIRE.md.
"""

from __future__ import annotations

from typing import Final, Literal

from schemas.names import Role

# --- One invocation ---

CallState = Literal["queued", "dispatched", "running", "ended"]
CallEvent = Literal[
    "dispatch", "requeue", "progress", "result", "failure", "cancel", "deadline", "revoke",
    "worker_lost", "abandon",
]

CALL: Final[dict[tuple[CallState, CallEvent], CallState]] = {
    ("queued", "dispatch"): "dispatched",
    ("queued", "cancel"): "ended",
    ("queued", "deadline"): "ended",
    ("queued", "revoke"): "ended",
    ("queued", "worker_lost"): "ended",
    ("queued", "abandon"): "ended",
    ("dispatched", "requeue"): "queued",
    ("dispatched", "progress"): "running",
    ("dispatched", "result"): "ended",
    ("dispatched", "failure"): "ended",
    ("dispatched", "cancel"): "ended",
    ("dispatched", "deadline"): "ended",
    ("dispatched", "revoke"): "ended",
    ("dispatched", "worker_lost"): "ended",
    ("dispatched", "abandon"): "ended",
    ("running", "requeue"): "queued",
    ("running", "progress"): "running",
    ("running", "result"): "ended",
    ("running", "failure"): "ended",
    ("running", "cancel"): "ended",
    ("running", "deadline"): "ended",
    ("running", "revoke"): "ended",
    ("running", "worker_lost"): "ended",
    ("running", "abandon"): "ended",
}
"""The first end that is committed wins: nothing leaves `ended`."""

# --- One pipeline, and each of its steps ---

PipelineState = Literal["running", "ended"]
PipelineEvent = Literal["complete", "step_failed", "cancel", "deadline", "revoke", "abandon"]

PIPELINE: Final[dict[tuple[PipelineState, PipelineEvent], PipelineState]] = {
    ("running", "complete"): "ended",
    ("running", "step_failed"): "ended",
    ("running", "cancel"): "ended",
    ("running", "deadline"): "ended",
    ("running", "revoke"): "ended",
    ("running", "abandon"): "ended",
}
"""A pipeline is answered once, by whichever of these comes first."""

StepState = Literal["waiting", "running", "ended"]
StepEvent = Literal["start", "result", "fail", "skip"]

STEP: Final[dict[tuple[StepState, StepEvent], StepState]] = {
    ("waiting", "start"): "running",
    ("waiting", "fail"): "ended",
    ("waiting", "skip"): "ended",
    ("running", "result"): "ended",
    ("running", "fail"): "ended",
}
"""A step waits for the one it takes its input from; a running step is an open invocation."""

# --- One method's circuit breaker ---

BreakerState = Literal["closed", "open", "half_open"]
BreakerEvent = Literal["trip", "rested", "well", "failed"]

BREAKER: Final[dict[tuple[BreakerState, BreakerEvent], BreakerState]] = {
    ("closed", "trip"): "open",
    ("open", "rested"): "half_open",
    ("half_open", "well"): "closed",
    ("half_open", "failed"): "open",
}
"""Only failures that the plugin caused are counted."""

# --- One incarnation of a worker ---

WorkerState = Literal["starting", "probing", "ready", "draining", "gone"]
WorkerEvent = Literal[
    "attested", "witnessed", "run", "drain", "recycle", "bye", "exit", "kill", "start_failed",
]

WORKER: Final[dict[tuple[WorkerState, WorkerEvent], WorkerState]] = {
    ("starting", "attested"): "probing",
    ("starting", "bye"): "gone",
    ("starting", "exit"): "gone",
    ("starting", "kill"): "gone",
    ("starting", "start_failed"): "gone",
    ("probing", "witnessed"): "ready",
    ("probing", "bye"): "gone",
    ("probing", "exit"): "gone",
    ("probing", "kill"): "gone",
    ("ready", "run"): "ready",
    ("ready", "witnessed"): "ready",
    ("ready", "drain"): "draining",
    ("ready", "recycle"): "draining",
    ("ready", "bye"): "gone",
    ("ready", "exit"): "gone",
    ("ready", "kill"): "gone",
    ("draining", "witnessed"): "draining",
    ("draining", "bye"): "gone",
    ("draining", "exit"): "gone",
    ("draining", "kill"): "gone",
}
"""A worker is given calls only while `ready`; nobody comes back from `gone`."""

# --- One registered version of a plugin ---

VersionState = Literal["registered", "enabled", "disabled", "quarantined", "revoked"]
VersionEvent = Literal["enable", "disable", "supersede", "quarantine", "revoke"]

VERSION: Final[dict[tuple[VersionState, VersionEvent], VersionState]] = {
    ("registered", "enable"): "enabled",
    ("registered", "quarantine"): "quarantined",
    ("registered", "revoke"): "revoked",
    ("enabled", "disable"): "disabled",
    ("enabled", "supersede"): "disabled",
    ("enabled", "quarantine"): "quarantined",
    ("enabled", "revoke"): "revoked",
    ("disabled", "enable"): "enabled",
    ("disabled", "quarantine"): "quarantined",
    ("disabled", "revoke"): "revoked",
    ("quarantined", "revoke"): "revoked",
}
"""What was quarantined or revoked never serves again."""

# --- One upgrade: from the request to the switch ---

UpgradeState = Literal["warming", "ended"]
UpgradeEvent = Literal[
    "enable", "witnessed", "hindered", "worker_lost", "revoke", "disable", "supersede", "cancel",
    "stop",
]

UPGRADE: Final[dict[tuple[UpgradeState, UpgradeEvent], UpgradeState]] = {
    ("warming", "enable"): "warming",
    ("warming", "witnessed"): "ended",
    ("warming", "hindered"): "ended",
    ("warming", "worker_lost"): "ended",
    ("warming", "revoke"): "ended",
    ("warming", "disable"): "ended",
    ("warming", "supersede"): "ended",
    ("warming", "cancel"): "ended",
    ("warming", "stop"): "ended",
}
"""Only `witnessed` switches; after every other end the version before serves on."""

# --- The gateway ---

GatewayState = Literal["serving", "draining", "stopped"]
GatewayEvent = Literal["accept", "drain", "stop"]

GATEWAY: Final[dict[tuple[GatewayState, GatewayEvent], GatewayState]] = {
    ("serving", "accept"): "serving",
    ("serving", "drain"): "draining",
    ("draining", "stop"): "stopped",
}
"""New invocations are accepted only while `serving`."""

# --- Who may ask ---

_READS: Final = (
    "list_plugins", "get_plugin", "status", "ledger_head", "prove", "prove_consistency",
    "show_request",
)
_CHANGES: Final = (
    "register_plugin", "validate_bundle", "enable_plugin", "disable_plugin", "approve", "grant",
    "revoke", "set_trust",
)

_REQUESTS: Final[dict[Role, tuple[str, ...]]] = {
    "omega": ("invoke", "invoke_pipeline", "cancel", *_READS),
    "operator": (*_READS, *_CHANGES),
    "auditor": _READS,
}

MAY_SEND: Final[frozenset[tuple[Role, str]]] = frozenset(
    (role, request) for role, requests in _REQUESTS.items() for request in requests
)
"""Which role may send which request. An operator manages and reads and may not invoke."""

TRANSITIONS: Final = {
    "call": CALL, "pipeline": PIPELINE, "step": STEP, "breaker": BREAKER, "worker": WORKER,
    "version": VERSION, "upgrade": UPGRADE, "gateway": GATEWAY,
}
"""All tables by name, for the documentation and the simulation."""
