"""Every message on every socket, and for each direction the union that its one decoder accepts.

Rules this file keeps:
- The union of a direction is its permission list: what a socket may not say cannot be decoded
  there.
  A worker's decoder cannot express an invocation; the admin front's cannot express an invoke.
- What the broker or a worker receives refuses unknown fields. Replies are lenient when a client
  decodes
  them, so that a field may be added without breaking anyone.
- The tag is the field `type`, a word in snake_case that never changes its meaning.

It leaves bytes to `schemas.codec` and who may send what to `broker.lifecycle`.
Source: specification sections 4, 7 and 9; docs/WIRE.md.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta

from schemas.names import (
    CapabilityName,
    CommitmentKey,
    Count,
    Domain,
    KeyId,
    LogId,
    MethodName,
    Microseconds,
    Milliseconds,
    PluginId,
    PluginText,
    Purpose,
    RequestId,
    Sentence,
    Sha256,
    ShortText,
    StepName,
    TimeoutMs,
    TraceParent,
    VersionRequest,
    VersionText,
)
from schemas.payloads import Payload
from schemas.refusals import RefusalCode

CallId = Annotated[int, Meta(ge=1, le=2**53 - 1, description="A call's number at the broker.")]
Nonce = Annotated[bytes, Meta(min_length=16, max_length=16)]
Permille = Annotated[int, Meta(ge=0, le=1000)]
BundleBytes = Annotated[bytes, Meta(max_length=8 * 1024 * 1024)]
ConformanceBytes = Annotated[bytes, Meta(min_length=1, max_length=512 * 1024)]


class _Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
               omit_defaults=True, tag_field="type"):
    """What every request carries; `known_size` is the log size the client last accepted."""

    request_id: RequestId
    traceparent: TraceParent | None = None
    known_size: Count | None = None


# --- Requests of OMEGA only ---


class Invoke(_Request, tag="invoke", frozen=True, kw_only=True):
    """Run one method of one plugin. `timeout_ms` is relative to arrival.

    With `keep_alive` the gateway gives signs of life, and ends the call when the client is gone.
    """

    plugin: PluginId
    method: MethodName
    payload: Payload
    timeout_ms: TimeoutMs
    commitment_key: CommitmentKey
    version: VersionRequest | None = None
    keep_alive: bool = False


class StepOutput(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True,
                 tag_field="type", tag="step_output"):
    """An input taken from an earlier step: its whole output, or the part a JSON Pointer names."""

    step: StepName
    pointer: Annotated[str, Meta(max_length=1024)] = ""


class Step(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step of a pipeline."""

    name: StepName
    plugin: PluginId
    method: MethodName
    input: Payload | StepOutput
    version: VersionRequest | None = None
    timeout_ms: TimeoutMs | None = None


class Budget(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a whole pipeline may use."""

    calls: Annotated[int, Meta(ge=1, le=1024)]
    cpu_ms: Count
    output_bytes: Count


class InvokePipeline(_Request, tag="invoke_pipeline", frozen=True, kw_only=True):
    """Run a graph of steps under one deadline and one budget."""

    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=256)]
    timeout_ms: TimeoutMs
    budget: Budget
    commitment_key: CommitmentKey
    on_error: Literal["abort", "skip_dependents"] = "abort"
    keep_alive: bool = False


class Cancel(_Request, tag="cancel", frozen=True, kw_only=True):
    """End one call or pipeline of this key, wherever it is."""

    target: RequestId


# --- Reads, for every role ---


class ListPlugins(_Request, tag="list_plugins", frozen=True, kw_only=True):
    """List registered plugins, a page at a time, in order of their ids."""

    after: PluginId | None = None
    limit: Annotated[int, Meta(ge=1, le=1000)] = 200


class GetPlugin(_Request, tag="get_plugin", frozen=True, kw_only=True):
    """Show one plugin with its versions, methods, grants and pending difference.

    `version` says of which version manifest and difference are shown.
    """

    plugin: PluginId
    version: VersionText | None = None


class Status(_Request, tag="status", frozen=True, kw_only=True):
    """Ask how the gateway is."""


class LedgerHead(_Request, tag="ledger_head", frozen=True, kw_only=True):
    """Ask for the newest checkpoint."""


class Prove(_Request, tag="prove", frozen=True, kw_only=True):
    """Ask for an inclusion proof of one event.

    `size` names the checkpoint to prove against: it must have been signed over exactly so many
    events. Without it, that is the newest.
    """

    seq: Count
    size: Count | None = None


class ProveConsistency(_Request, tag="prove_consistency", frozen=True, kw_only=True):
    """Ask for a consistency proof from a past size to the newest checkpoint, or to that of `size`.
    """

    old_size: Count
    size: Count | None = None


class ShowRequest(_Request, tag="show_request", frozen=True, kw_only=True):
    """Ask for all events of one request, with their positions."""

    target: RequestId


# --- Requests of operators ---


class RegisterPlugin(_Request, tag="register_plugin", frozen=True, kw_only=True):
    """Register the version that a signed bundle holds.

    `conformance` is the envelope of a conformance report about these very bytes.
    """

    bundle: BundleBytes
    conformance: ConformanceBytes | None = None


class ValidateBundle(_Request, tag="validate_bundle", frozen=True, kw_only=True):
    """Say everything that would hinder a registration, and change nothing."""

    bundle: BundleBytes
    conformance: ConformanceBytes | None = None


class EnablePlugin(_Request, tag="enable_plugin", frozen=True, kw_only=True):
    """Let one registered version serve calls."""

    plugin: PluginId
    version: VersionText


class DisablePlugin(_Request, tag="disable_plugin", frozen=True, kw_only=True):
    """Let no version of this plugin serve new calls."""

    plugin: PluginId


class Approve(_Request, tag="approve", frozen=True, kw_only=True):
    """Approve exactly one difference between two versions."""

    plugin: PluginId
    version: VersionText
    diff_digest: Sha256


class Grant(_Request, tag="grant", frozen=True, kw_only=True):
    """Grant one capability to one plugin."""

    plugin: PluginId
    capability: CapabilityName


class Revoke(_Request, tag="revoke", frozen=True, kw_only=True):
    """Take back a version, a publisher's key, a client's key or a grant.

    `id` is `plugin@version`, a key id, or `plugin capability`, by `kind`. With `disconnect`, for a
    client's key, its open connections end too.
    """

    kind: Literal["plugin_version", "publisher_key", "client_key", "grant"]
    id: ShortText
    reason: Annotated[str, Meta(min_length=1, max_length=256)]
    disconnect: bool = False


class SetTrust(_Request, tag="set_trust", frozen=True, kw_only=True):
    """Replace the trust root by a newer one that the present one signed."""

    envelope: Annotated[bytes, Meta(max_length=1024 * 1024)]


Read = ListPlugins | GetPlugin | Status | LedgerHead | Prove | ProveConsistency | ShowRequest
FromOmega = (
    Invoke | InvokePipeline | Cancel
    | ListPlugins | GetPlugin | Status | LedgerHead | Prove | ProveConsistency | ShowRequest
)
FromAdmin = (
    ListPlugins | GetPlugin | Status | LedgerHead | Prove | ProveConsistency | ShowRequest
    | RegisterPlugin | ValidateBundle | EnablePlugin | DisablePlugin | Approve | Grant | Revoke
    | SetTrust
)


# --- Replies ---


class Receipt(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where the evidence of a reply lies; durable before the reply left.

    `checkpoint` is a C2SP signed note and `consistency` the RFC 6962 proof, in hex, from the
    client's `known_size` to it; both are present when the newest checkpoint has another size than
    `known_size`. A checkpoint smaller than `known_size` comes without a proof: it is a fork.
    """

    log_id: LogId
    seq: Count
    event_hash: Sha256
    checkpoint: str | None = None
    consistency: tuple[Sha256, ...] | None = None


class Usage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one call used. The memory figure includes what the zygote had touched before the
    fork."""

    cpu_ms: Count
    wall_ms: Count
    max_rss_kb_upper_bound: Count
    output_bytes: Count


class _Reply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What every reply carries. `receipt` is present on every reply about an invocation."""

    request_id: RequestId | None = None
    receipt: Receipt | None = None


class Result(_Reply, tag="result", frozen=True, kw_only=True):
    """The answer of one invocation. `output_sha256` is over the payload's preimage."""

    payload: Payload
    usage: Usage
    output_sha256: Sha256
    plugin: PluginId
    version: VersionText


class Refusal(_Reply, tag="refusal", frozen=True, kw_only=True):
    """The answer to anything not allowed: a code, a sentence, where, and what would make it
    allowed."""

    code: RefusalCode
    message: Sentence
    where: str = ""
    hint: str = ""
    retry_after_ms: Milliseconds | None = None
    plugin_message: PluginText | None = None
    usage: Usage | None = None


class StepResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one step; exactly one of `payload` and `refusal` is set unless it was
    skipped."""

    step: StepName
    outcome: Literal["result", "refused", "skipped"]
    payload: Payload | None = None
    refusal: Refusal | None = None
    usage: Usage | None = None
    output_sha256: Sha256 | None = None


class PipelineResult(_Reply, tag="pipeline_result", frozen=True, kw_only=True):
    """The answer of a pipeline, in declared order."""

    steps: tuple[StepResult, ...]
    usage: Usage


class Progress(_Reply, tag="progress", frozen=True, kw_only=True):
    """How far a call says it is; a claim of the plugin."""

    permille: Permille
    note: PluginText = ""
    step: StepName | None = None


class Cancelled(_Reply, tag="cancelled", frozen=True, kw_only=True):
    """What a cancel met. `too_late` means that an end was committed before it."""

    outcome: Literal["cancelled", "too_late"]
    reached: Literal["queued", "dispatched", "running", "answered"]


class KeepAlive(_Reply, tag="keep_alive", frozen=True, kw_only=True):
    """A sign of life to a client that asked for it."""


class VersionEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One registered version as a reader sees it."""

    version: VersionText
    state: Literal["registered", "enabled", "disabled", "quarantined", "revoked"]
    bundle_sha256: Sha256
    publisher: str
    api_version: VersionText
    registered_seq: Count


class PluginEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One plugin in a list."""

    plugin: PluginId
    description: str
    enabled_version: VersionText | None
    highest_version: VersionText
    versions: Count
    workers: Count


class Plugins(_Reply, tag="plugins", frozen=True, kw_only=True):
    """A page of plugins; `next_after` is set when there is another page."""

    plugins: tuple[PluginEntry, ...]
    next_after: PluginId | None = None


class Plugin(_Reply, tag="plugin", frozen=True, kw_only=True):
    """One plugin with everything an operator wants to see.

    `manifest` is the RFC 8785 bytes that were signed, of the version asked for or else the enabled
    or else the highest one; `grants` are what it is granted, by request or, of what it asks for, by
    policy. `pending_diff` is the document `omega-difference/1` from the version enabled last to the
    one asked for or else the highest; while it waits for approval, `pending_diff_digest` is its
    SHA-256 and `pending_approvals` names the operators' keys that approved it so far, of the
    `approvals_required` that policy asks for.
    """

    plugin: PluginId
    versions: tuple[VersionEntry, ...]
    manifest: bytes | None
    grants: tuple[CapabilityName, ...] = ()
    pending_diff: str | None = None
    pending_diff_digest: Sha256 | None = None
    pending_approvals: tuple[KeyId, ...] = ()
    approvals_required: Count = 1


class Problem(msgspec.Struct, frozen=True):
    """One thing that hinders a registration."""

    code: RefusalCode
    where: str
    found: str
    expected: str
    remedy: str


class Validation(_Reply, tag="validation", frozen=True, kw_only=True):
    """All problems of a bundle at once; none means that it would be registered."""

    problems: tuple[Problem, ...]
    plugin: PluginId | None = None
    version: VersionText | None = None


class Registered(_Reply, tag="registered", frozen=True, kw_only=True):
    """The version is in the inventory; it serves no call before it is enabled."""

    plugin: PluginId
    version: VersionText
    bundle_sha256: Sha256


class Enabled(_Reply, tag="enabled", frozen=True, kw_only=True):
    """New calls go to this version."""

    plugin: PluginId
    version: VersionText
    previous: VersionText | None = None


class Disabled(_Reply, tag="disabled", frozen=True, kw_only=True):
    """No version serves new calls."""

    plugin: PluginId
    previous: VersionText | None = None


class Approved(_Reply, tag="approved", frozen=True, kw_only=True):
    """The approval counts: `approvals` operators of `required` approved exactly this difference."""

    plugin: PluginId
    version: VersionText
    diff_digest: Sha256
    approvals: Count = 1
    required: Count = 1


class Granted(_Reply, tag="granted", frozen=True, kw_only=True):
    """The grant holds from now on."""

    plugin: PluginId
    capability: CapabilityName


class Revoked(_Reply, tag="revoked", frozen=True, kw_only=True):
    """The revocation holds from now on; `ended` calls were ended by it."""

    kind: str
    id: str
    ended: Count


class Trust(_Reply, tag="trust", frozen=True, kw_only=True):
    """The trust root in force."""

    version: Count
    sha256: Sha256
    publishers: tuple[str, ...]


class WorkerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One worker as a reader sees it; `role` says which of a call's runs it serves."""

    incarnation: str
    plugin: PluginId
    version: VersionText
    state: str
    in_flight: Count
    calls: Count
    pid: int | None = None
    role: Purpose | None = None


class BreakerEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """A circuit breaker that is not closed."""

    plugin: PluginId
    method: MethodName
    state: Literal["open", "half_open"]
    retry_after_ms: Milliseconds | None = None


class StatusReport(_Reply, tag="status_report", frozen=True, kw_only=True):
    """How the gateway is."""

    state: Literal["serving", "draining", "degraded"]
    domain: Domain
    gateway_version: str
    api_version: VersionText
    log_id: LogId
    ledger_size: Count
    uptime_us: Microseconds
    in_flight: Count
    in_flight_max: Count
    plugins: Count
    enabled: Count
    workers: tuple[WorkerEntry, ...]
    trust_version: Count
    policy_sha256: Sha256
    degraded: tuple[str, ...] = ()
    breakers: tuple[BreakerEntry, ...] = ()


class Head(_Reply, tag="head", frozen=True, kw_only=True):
    """The newest checkpoint, a C2SP signed note, and the key that signs it."""

    checkpoint: str
    verifier_key: str


class Proof(_Reply, tag="proof", frozen=True, kw_only=True):
    """An event's line and its RFC 6962 inclusion proof, in hex, against the checkpoint."""

    seq: Count
    line: str
    hashes: tuple[Sha256, ...]
    checkpoint: str


class Consistency(_Reply, tag="consistency", frozen=True, kw_only=True):
    """An RFC 6962 consistency proof, in hex, from `old_size` to the checkpoint."""

    old_size: Count
    hashes: tuple[Sha256, ...]
    checkpoint: str


class RequestStory(_Reply, tag="request_story", frozen=True, kw_only=True):
    """All events of one request, as ledger lines in order."""

    target: RequestId
    lines: tuple[str, ...]


ToAdmin = (
    Refusal | Plugins | Plugin | Validation | Registered | Enabled | Disabled | Approved | Granted
    | Revoked | Trust | StatusReport | Head | Proof | Consistency | RequestStory
)
ToOmega = (
    Result | PipelineResult | Progress | Cancelled | KeepAlive
    | Refusal | Plugins | Plugin | StatusReport | Head | Proof | Consistency | RequestStory
)
Reply = (
    Result | PipelineResult | Progress | Cancelled | KeepAlive
    | Refusal | Plugins | Plugin | Validation | Registered | Enabled | Disabled | Approved | Granted
    | Revoked | Trust | StatusReport | Head | Proof | Consistency | RequestStory
)


# --- The worker plane ---


class _Order(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
             omit_defaults=True, tag_field="type"):
    """What the broker tells a worker."""


class Run(_Order, tag="run", frozen=True, kw_only=True):
    """Run one method once. `replica` is the determinism oracle's second run of the same
    invocation."""

    call: CallId
    method: MethodName
    payload: Payload
    timeout_ms: TimeoutMs
    request_id: RequestId
    purpose: Purpose = "primary"
    cpu_ms_max: Count | None = None
    output_bytes_max: Count | None = None


class Abort(_Order, tag="abort", frozen=True, kw_only=True):
    """Kill the call process of one call; its result is no longer wanted."""

    call: CallId


class Drain(_Order, tag="drain", frozen=True, kw_only=True):
    """Take no new call, finish what runs, then say bye."""


class Probe(_Order, tag="probe", frozen=True, kw_only=True):
    """Run the witness probes through the production path; never plugin code."""

    probe: CallId
    nonce: Nonce


class Ping(_Order, tag="ping", frozen=True, kw_only=True):
    """Ask the worker's main loop for a sign of life."""

    nonce: Nonce


ToWorker = Run | Abort | Drain | Probe | Ping


class _Report(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
              omit_defaults=True, tag_field="type"):
    """What a worker tells the broker."""


class Attestation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the supervisor read from outside about its zygote and its self-test call process."""

    zygote_pid: Count
    uid: Count
    landlock_abi: Count
    no_new_privileges: Annotated[int, Meta(ge=0, le=1)]
    seccomp_mode: Annotated[int, Meta(ge=0, le=2)]
    seccomp_filters_zygote: Count
    seccomp_filters_call: Count
    capabilities_effective: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
    capabilities_bounding: Annotated[str, Meta(pattern=r"^[0-9a-f]{16}$(?!\n)")]
    threads: Count
    base_filter_sha256: Sha256
    strict_filter_sha256: Sha256
    namespaces: Annotated[dict[Literal["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"], Count],
                          Meta(max_length=7)]
    interpreter: ShortText


class Ready(_Report, tag="ready", frozen=True, kw_only=True):
    """The zygote is jailed and attested; the worker can take probes and then calls."""

    pid: Count
    attestation: Attestation
    concurrency: Annotated[int, Meta(ge=1, le=64)]


class CallProgress(_Report, tag="call_progress", frozen=True, kw_only=True):
    """A running call's own word on how far it is."""

    call: CallId
    permille: Permille
    note: PluginText = ""


Fault = Annotated[int, Meta(ge=1, le=64)]
"""The signal by which the kernel ended a call process for what its code did: the process of the
call that is told of, or of one that was told of before."""


class CallResult(_Report, tag="call_result", frozen=True, kw_only=True):
    """One call's output."""

    call: CallId
    payload: Payload
    usage: Usage
    fault: Fault | None = None


FailureCode = Literal[
    "plugin_error", "invalid_input", "cannot_answer", "plugin_crashed", "plugin_load_failed",
    "system_call_forbidden", "cpu_limit_exceeded", "wall_limit_exceeded", "memory_limit_exceeded",
    "output_limit_exceeded", "output_invalid", "output_kind_mismatch", "call_process_failed",
    "deadline_exceeded", "cancelled", "artifact_unavailable", "artifact_mismatch",
    "file_unavailable",
]


class CallFailure(_Report, tag="call_failure", frozen=True, kw_only=True):
    """Why one call has no output. `used` and `allowed` are in the unit of the limit that ended it.

    `denied` is the class of the last operation that the sandbox denied, as the plugin's process
    said it:
    a hint from hostile code.
    """

    call: CallId
    code: FailureCode
    plugin_message: PluginText | None = None
    denied: Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9_.]*$(?!\n)")] | None = None
    used: Count | None = None
    allowed: Count | None = None
    usage: Usage | None = None
    fault: Fault | None = None


class ProbeOutcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One probe: what was tried, and whether the jail held it. The control must be `allowed`."""

    name: Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_]{0,31}$(?!\n)")]
    outcome: Literal["denied", "killed", "allowed"]


class ProbeReport(_Report, tag="probe_report", frozen=True, kw_only=True):
    """What the witness saw."""

    probe: CallId
    nonce: Nonce
    outcomes: Annotated[tuple[ProbeOutcome, ...], Meta(max_length=64)]


class Pong(_Report, tag="pong", frozen=True, kw_only=True):
    """The answer to one ping."""

    nonce: Nonce


class Bye(_Report, tag="bye", frozen=True, kw_only=True):
    """The worker has nothing in flight and ends, or never could begin; `detail` is our own text."""

    reason: Literal[
        "drained", "recycle_calls", "recycle_minutes", "recycle_killed",
        "sandbox_unavailable", "plugin_load_failed", "packages_changed", "launch_refused",
    ] = "drained"
    detail: ShortText = ""


FromWorker = Ready | CallProgress | CallResult | CallFailure | ProbeReport | Pong | Bye

_NAMES: Final[dict[type, str]] = {
    kind: str(kind.__struct_config__.tag)
    for union in (FromOmega, FromAdmin, Reply, ToWorker, FromWorker)
    for kind in get_args(union)
}


def type_name(message: msgspec.Struct) -> str:
    """Give a message's `type`, as the wire and the ledger name it."""
    return _NAMES[type(message)]
