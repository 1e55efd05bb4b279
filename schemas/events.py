"""The ledger's events: one strict struct per type, the canonical line, and the chain step.

The format. A ledger is NDJSON; each line is one event in its RFC 8785 form:

    {"event_hash":"9f…","event_type":"frame.in","f":{"bytes":212,"peer":"5e…","plane":"front.omega",
     "request_id":"…","type":"invoke"},"log_id":"omega-gateway/development/0123456789abcdef",
     "mono_us":51,"prev_hash":"00…","seq":7,"ts_us":1790000000000000,"v":1}

`event_hash = SHA-256(0x00 ‖ the line without its event_hash member and newline)`: the chain link
and the RFC 6962 leaf hash in one. `event_hash` sorts first, so that body is `{` plus the line from
byte 81 on.
`prev_hash` is the event_hash before it, 64 zeros for the first.

Rules this file keeps:
- The list of types is closed and each has its own struct, so a secret has no field to hide in.
- Keys are ASCII, numbers are integers within 53 bits, times are microseconds: the fast encoder is
  exact.
- A line is decoded strictly: unknown fields, another spelling or a wrong hash is an error.

It leaves writing to `broker.ledger`, meaning to `broker.inventory` and `broker.evidence`.
Source: specification INV-PNP-07 and section 10; RFC 6962 section 2.1; RFC 8785.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, ClassVar, Final, Literal

import msgspec
from msgspec import Meta

from schemas.names import (
    CapabilityName,
    Commitment,
    Count,
    Domain,
    Durability,
    Incarnation,
    KeyId,
    LogId,
    MethodName,
    Microseconds,
    Milliseconds,
    PluginId,
    RequestId,
    Sha256,
    ShortText,
    StepName,
    VersionText,
)
from schemas.refusals import RefusalCode

EVENT_VERSION: Final = 1
GENESIS_HASH: Final = "0" * 64
LINE_BYTES_MAX: Final = 64 * 1024
"""Largest line, in bytes with its newline; recovery reads no longer ones."""
_BODY_OFFSET: Final = len('{"event_hash":"",') + 64

Plane = Literal["front.omega", "front.admin", "worker"]
Peer = Annotated[
    str,
    Meta(
        pattern=r"^([0-9a-f]{16}|[0-9a-f]{32}|unknown)$(?!\n)",
        description="A client key id, a worker's incarnation, or unknown before authentication.",
    ),
]
MessageType = Annotated[str, Meta(pattern=r"^[a-z_]{1,32}$(?!\n)")]
Actor = Annotated[
    str,
    Meta(
        pattern=r"^([0-9a-f]{16}|gateway|home)$(?!\n)",
        description="The key that asked, the gateway itself, or the home's own files.",
    ),
]


class EventFields(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
                  omit_defaults=True):
    """The variable part of an event; `EVENT_TYPE` is its name in the ledger."""

    EVENT_TYPE: ClassVar[str] = ""


# --- The ledger itself ---


class LedgerOpen(EventFields, frozen=True, kw_only=True):
    """A process opened the ledger for writing; pins what it runs under."""

    EVENT_TYPE: ClassVar[str] = "ledger.open"
    gateway_version: ShortText
    api_version: VersionText
    domain: Domain
    durability: Durability
    python_version: ShortText
    zmq_version: ShortText
    kernel: ShortText
    verifier_key: ShortText
    trust_sha256: Sha256
    trust_version: Count
    policy_sha256: Sha256
    request_window: Count | None = None
    request_window_ms: Milliseconds | None = None
    restored_from: LogId | None = None
    restore_reason: ShortText | None = None
    archived_before: Count | None = None
    archived_to: ShortText | None = None


class LedgerClose(EventFields, frozen=True, kw_only=True):
    """The process closed the ledger in order."""

    EVENT_TYPE: ClassVar[str] = "ledger.close"
    reason: Literal["drained", "stopped", "failed"]


class LedgerRecovery(EventFields, frozen=True, kw_only=True):
    """What was found and set aside when the ledger was opened after a crash."""

    EVENT_TYPE: ClassVar[str] = "ledger.recovery"
    torn_bytes: Count
    torn_sha256: Sha256 | None = None
    checkpoint_size: Count
    events_after_checkpoint: Count


class LedgerRoll(EventFields, frozen=True, kw_only=True):
    """The last event of a segment; the next event begins the next one."""

    EVENT_TYPE: ClassVar[str] = "ledger.roll"
    segment: Count


class StateSnapshot(EventFields, frozen=True, kw_only=True):
    """Digests of the folded state at this position; `state_sha256` vouches for the state file of
    this position or an earlier one."""

    EVENT_TYPE: ClassVar[str] = "state.snapshot"
    inventory_sha256: Sha256
    trust_sha256: Sha256
    policy_sha256: Sha256
    open_invocations: Annotated[tuple[RequestId, ...], Meta(max_length=1024)] = ()
    state_sha256: Sha256 | None = None


# --- Keys, trust, policy ---


class KeyChange(EventFields, frozen=True, kw_only=True):
    """A client, server or checkpoint key was added, rotated or taken away."""

    EVENT_TYPE: ClassVar[str] = "key.change"
    action: Literal["added", "rotated", "removed", "revoked"]
    role: Literal["omega", "operator", "auditor", "server", "ledger", "determinism"]
    key_id: KeyId
    actor: Actor


class TrustChange(EventFields, frozen=True, kw_only=True):
    """Another trust root is in force."""

    EVENT_TYPE: ClassVar[str] = "trust.change"
    version: Count
    sha256: Sha256
    previous_sha256: Sha256 | None = None
    actor: Actor


class PolicyChange(EventFields, frozen=True, kw_only=True):
    """Another policy is in force."""

    EVENT_TYPE: ClassVar[str] = "policy.change"
    sha256: Sha256
    previous_sha256: Sha256 | None = None
    actor: Actor


class GrantChange(EventFields, frozen=True, kw_only=True):
    """A capability was granted to a plugin or taken back."""

    EVENT_TYPE: ClassVar[str] = "grant.change"
    action: Literal["granted", "revoked"]
    plugin: PluginId
    capability: CapabilityName
    actor: Actor


# --- Plugins ---


class PluginRegister(EventFields, frozen=True, kw_only=True):
    """A version entered the inventory.

    `conformance_sha256` is over the signed bytes of the conformance report it came with.
    """

    EVENT_TYPE: ClassVar[str] = "plugin.register"
    plugin: PluginId
    version: VersionText
    bundle_sha256: Sha256
    manifest_sha256: Sha256
    publisher: ShortText
    signing_keys: Annotated[tuple[KeyId, ...], Meta(max_length=32)]
    api_version: VersionText
    domain: Domain
    capabilities: Annotated[tuple[CapabilityName, ...], Meta(max_length=32)] = ()
    deterministic: Annotated[tuple[MethodName, ...], Meta(max_length=64)] = ()
    conformance_sha256: Sha256 | None = None
    conformance_keys: Annotated[tuple[KeyId, ...], Meta(max_length=16)] = ()
    actor: Actor


class PluginReject(EventFields, frozen=True, kw_only=True):
    """A bundle was refused."""

    EVENT_TYPE: ClassVar[str] = "plugin.reject"
    bundle_sha256: Sha256
    code: RefusalCode
    where: ShortText = ""
    plugin: PluginId | None = None
    version: VersionText | None = None
    actor: Actor


class PluginEnable(EventFields, frozen=True, kw_only=True):
    """New calls go to this version from here on; `diff_sha256` is the widening it was approved
    for."""

    EVENT_TYPE: ClassVar[str] = "plugin.enable"
    plugin: PluginId
    version: VersionText
    previous: VersionText | None = None
    diff_sha256: Sha256 | None = None
    actor: Actor


class PluginDisable(EventFields, frozen=True, kw_only=True):
    """No version of the plugin serves new calls from here on."""

    EVENT_TYPE: ClassVar[str] = "plugin.disable"
    plugin: PluginId
    version: VersionText | None = None
    actor: Actor


class PluginQuarantine(EventFields, frozen=True, kw_only=True):
    """A version may not run any more: its bundle is damaged or its sandbox did not hold."""

    EVENT_TYPE: ClassVar[str] = "plugin.quarantine"
    plugin: PluginId
    version: VersionText
    reason: Literal["bundle_damaged", "probe_succeeded", "attestation_failed"]
    detail: ShortText = ""


class PluginApprove(EventFields, frozen=True, kw_only=True):
    """A widening difference was approved."""

    EVENT_TYPE: ClassVar[str] = "plugin.approve"
    plugin: PluginId
    version: VersionText
    diff_sha256: Sha256
    actor: Actor


class Revoke(EventFields, frozen=True, kw_only=True):
    """Something was taken back; `ended` open calls end by it, with `disconnect` connections too."""

    EVENT_TYPE: ClassVar[str] = "revoke"
    kind: Literal["plugin_version", "publisher_key", "client_key", "grant"]
    id: ShortText
    reason: ShortText
    actor: Actor
    ended: Count = 0
    disconnect: bool = False


# --- Workers ---


class WorkerStart(EventFields, frozen=True, kw_only=True):
    """A worker is being started, or waited for when an operator starts it."""

    EVENT_TYPE: ClassVar[str] = "worker.start"
    incarnation: Incarnation
    plugin: PluginId
    version: VersionText
    bundle_sha256: Sha256
    launcher: Literal["local", "external"]
    grants: Annotated[tuple[CapabilityName, ...], Meta(max_length=32)] = ()


class WorkerAttest(EventFields, frozen=True, kw_only=True):
    """What the worker's supervisor read from outside about its jail, and whether it is enough."""

    EVENT_TYPE: ClassVar[str] = "worker.attest"
    incarnation: Incarnation
    accepted: bool
    pid: Count
    uid: Count
    landlock_abi: Count
    no_new_privileges: Count
    seccomp_mode: Count
    seccomp_filters_zygote: Count
    seccomp_filters_call: Count
    capabilities_effective: ShortText
    capabilities_bounding: ShortText
    threads: Count
    base_filter_sha256: Sha256
    strict_filter_sha256: Sha256
    namespaces: Annotated[dict[Literal["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"], Count],
                          Meta(max_length=7)]
    interpreter: ShortText


class WorkerProbe(EventFields, frozen=True, kw_only=True):
    """What the witness saw; `failed` names probes that did not come out as they must."""

    EVENT_TYPE: ClassVar[str] = "worker.probe"
    incarnation: Incarnation
    probe: Count
    passed: bool
    outcomes: Annotated[
        dict[ShortText, Literal["denied", "killed", "allowed"]], Meta(max_length=64)
    ]
    failed: Annotated[tuple[ShortText, ...], Meta(max_length=64)] = ()


class WorkerExit(EventFields, frozen=True, kw_only=True):
    """A worker is gone. `status` is its exit status, `signal` what ended it."""

    EVENT_TYPE: ClassVar[str] = "worker.exit"
    incarnation: Incarnation
    reason: ShortText
    status: Count | None = None
    signal: Count | None = None
    calls: Count = 0
    detail: ShortText = ""


class ZygoteRecycle(EventFields, frozen=True, kw_only=True):
    """An incarnation is being replaced by a fresh one beside it."""

    EVENT_TYPE: ClassVar[str] = "zygote.recycle"
    incarnation: Incarnation
    successor: Incarnation | None = None
    reason: Literal["calls", "minutes", "killed", "upgrade", "operator"]


# --- Frames ---


class FrameIn(EventFields, frozen=True, kw_only=True):
    """A frame that decoded. `call` is set on the worker plane, `note_commitment` where a plugin's
    progress note came with it."""

    EVENT_TYPE: ClassVar[str] = "frame.in"
    plane: Plane
    peer: Peer
    type: MessageType
    bytes: Count
    request_id: RequestId | None = None
    call: Count | None = None
    note_commitment: Commitment | None = None


class FrameOut(EventFields, frozen=True, kw_only=True):
    """A frame that was authorised to leave: durable before it is sent."""

    EVENT_TYPE: ClassVar[str] = "frame.out"
    plane: Plane
    peer: Peer
    type: MessageType
    bytes: Count
    request_id: RequestId | None = None
    call: Count | None = None
    purpose: Literal["primary", "replica"] | None = None
    code: RefusalCode | None = None


class FrameDrop(EventFields, frozen=True, kw_only=True):
    """Frames or connections that were not let in: length and reason only.

    `count` is above 1 when drops beyond the rate bound were counted instead of told one by one.
    """

    EVENT_TYPE: ClassVar[str] = "frame.drop"
    plane: Plane
    peer: Peer
    code: RefusalCode
    bytes: Count = 0
    count: Count = 1
    where: ShortText = ""


# --- Invocations ---


class InvokeAccept(EventFields, frozen=True, kw_only=True):
    """An invocation of OMEGA's was accepted; it will end exactly once."""

    EVENT_TYPE: ClassVar[str] = "invoke.accept"
    request_id: RequestId
    peer: Peer
    plugin: PluginId
    version: VersionText
    bundle_sha256: Sha256
    method: MethodName
    input_kind: Literal["text", "json", "binary_ref", "dataset_slice"]
    input_bytes: Count
    input_commitment: Commitment
    timeout_ms: Milliseconds
    input_fingerprint: Sha256 | None = None
    pipeline: RequestId | None = None
    step: StepName | None = None


class InvokeRefuse(EventFields, frozen=True, kw_only=True):
    """An invocation was not accepted."""

    EVENT_TYPE: ClassVar[str] = "invoke.refuse"
    request_id: RequestId
    peer: Peer
    code: RefusalCode
    where: ShortText = ""
    plugin: PluginId | None = None
    method: MethodName | None = None
    retry_after_ms: Milliseconds | None = None
    first_end_seq: Count | None = None
    pipeline: RequestId | None = None
    step: StepName | None = None


class InvokeEnd(EventFields, frozen=True, kw_only=True):
    """An accepted invocation ended; the first committed end is the only one."""

    EVENT_TYPE: ClassVar[str] = "invoke.end"
    request_id: RequestId
    outcome: Literal["result", "refused", "cancelled", "revoked", "deadline", "lost", "abandoned"]
    reached: Literal["queued", "dispatched", "running", "answered"]
    code: RefusalCode | None = None
    incarnation: Incarnation | None = None
    output_kind: Literal["text", "json", "binary_ref", "dataset_slice"] | None = None
    output_bytes: Count | None = None
    output_commitment: Commitment | None = None
    output_fingerprint: Sha256 | None = None
    message_commitment: Commitment | None = None
    cpu_ms: Count | None = None
    wall_ms: Count | None = None
    max_rss_kb_upper_bound: Count | None = None
    used: Count | None = None
    allowed: Count | None = None
    duration_us: Microseconds = 0
    replica: Literal["agreed", "differed", "unverified"] | None = None


class ReplyUndeliverable(EventFields, frozen=True, kw_only=True):
    """A reply was authorised but its receiver is gone or not reading."""

    EVENT_TYPE: ClassVar[str] = "reply.undeliverable"
    plane: Plane
    peer: Peer
    type: MessageType
    reason: Literal["gone", "full"]
    request_id: RequestId | None = None
    call: Count | None = None


class DeterminismMismatch(EventFields, frozen=True, kw_only=True):
    """A deterministic method gave two outputs for one input; both are withheld."""

    EVENT_TYPE: ClassVar[str] = "determinism.mismatch"
    request_id: RequestId
    plugin: PluginId
    version: VersionText
    method: MethodName
    against: Literal["replica", "history"]
    input_fingerprint: Sha256
    output_fingerprint: Sha256
    other_output_fingerprint: Sha256
    other_seq: Count | None = None


class BreakerChange(EventFields, frozen=True, kw_only=True):
    """A soft circuit breaker changed its state."""

    EVENT_TYPE: ClassVar[str] = "breaker.change"
    plugin: PluginId
    method: MethodName
    before: Literal["closed", "open", "half_open"]
    after: Literal["closed", "open", "half_open"]
    reason: ShortText
    retry_after_ms: Milliseconds | None = None


class QuotaRefuse(EventFields, frozen=True, kw_only=True):
    """A quota refused something; window bounds make usage provable from the ledger."""

    EVENT_TYPE: ClassVar[str] = "quota.refuse"
    peer: Peer
    quota: ShortText
    used: Count
    allowed: Count
    window_begin_us: Microseconds
    window_end_us: Microseconds
    plugin: PluginId | None = None
    count: Count = 1


class GatewayDegraded(EventFields, frozen=True, kw_only=True):
    """The gateway cannot keep all its promises, or can again."""

    EVENT_TYPE: ClassVar[str] = "gateway.degraded"
    reason: ShortText
    degraded: bool = True


EVENT_TYPES: Final[dict[str, type[EventFields]]] = {
    kind.EVENT_TYPE: kind
    for kind in (
        LedgerOpen, LedgerClose, LedgerRecovery, LedgerRoll, StateSnapshot, KeyChange, TrustChange,
        PolicyChange, GrantChange, PluginRegister, PluginReject, PluginEnable, PluginDisable,
        PluginQuarantine, PluginApprove, Revoke, WorkerStart, WorkerAttest, WorkerProbe, WorkerExit,
        ZygoteRecycle, FrameIn, FrameOut, FrameDrop, InvokeAccept, InvokeRefuse, InvokeEnd,
        ReplyUndeliverable, DeterminismMismatch, BreakerChange, QuotaRefuse, GatewayDegraded,
    )
}
"""The closed list: every name a line may carry, with its struct."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One decoded event."""

    seq: int
    ts_us: int
    mono_us: int
    log_id: str
    prev_hash: str
    event_hash: str
    fields: EventFields

    @property
    def event_type(self) -> str:
        """The event's name in the ledger."""
        return self.fields.EVENT_TYPE


class InvalidEvent(ValueError):
    """A line is not one event in its only spelling; the sentence says what was found."""


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    event_hash: Sha256
    event_type: str
    f: msgspec.Raw
    log_id: LogId
    mono_us: Microseconds
    prev_hash: Sha256
    seq: Count
    ts_us: Microseconds
    v: Literal[1]


_encoder: Final = msgspec.json.Encoder(order="sorted")
_line_decoder: Final = msgspec.json.Decoder(_Line)
_fields_decoders: Final = {
    name: msgspec.json.Decoder(kind) for name, kind in EVENT_TYPES.items()
}


_HEADS: Final = {
    kind: b'"event_type":"%b","f":' % name.encode() for name, kind in EVENT_TYPES.items()
}
_LEAF: Final = hashlib.sha256(b"\x00{")
"""The hash state after the leaf prefix and the brace that every body begins with."""


def encode_event(
    fields: EventFields, *, log_id: str, seq: int, ts_us: int, mono_us: int, prev_hash: str
) -> tuple[bytes, str]:
    """Write one event and take the chain one step further.

    Args:
        fields: the variable part.
        log_id: the ledger's identity.
        seq: position from 0.
        ts_us: wall time in microseconds since 1970.
        mono_us: monotonic time in microseconds.
        prev_hash: event_hash of the event before, or `GENESIS_HASH`.

    Returns:
        The line with its newline, and its event_hash in hex.
    """
    body = b'%b%b,"log_id":"%b","mono_us":%d,"prev_hash":"%b","seq":%d,"ts_us":%d,"v":1}' % (
        _HEADS[type(fields)], _encoder.encode(fields), log_id.encode(), mono_us,
        prev_hash.encode(), seq, ts_us,
    )
    chain = _LEAF.copy()
    chain.update(body)
    event_hash = chain.hexdigest()
    return b'{"event_hash":"%b",%b\n' % (event_hash.encode(), body), event_hash


def line_hash(line: bytes) -> str:
    """Recompute the event_hash of a line, with or without its newline, from its bytes alone."""
    return hashlib.sha256(b"\x00" + event_record(line)).hexdigest()


def event_record(line: bytes) -> bytes:
    """Give the bytes that are hashed: a line without its event_hash member and its newline."""
    return b"{" + line[_BODY_OFFSET:].removesuffix(b"\n")


def decode_event(line: bytes) -> Event:
    """Read one line strictly: schema, spelling and hash.

    Args:
        line: one line, with or without its newline.

    Raises:
        InvalidEvent: the line is not one event in its only spelling, or its hash is wrong.
    """
    line = line.removesuffix(b"\n")
    try:
        envelope = _line_decoder.decode(line)
        decoder = _fields_decoders.get(envelope.event_type)
        if decoder is None:
            raise InvalidEvent(f"unknown event type {envelope.event_type!r}")
        fields = decoder.decode(envelope.f)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidEvent(f"not an event: {error}") from None
    again, event_hash = encode_event(
        fields, log_id=envelope.log_id, seq=envelope.seq, ts_us=envelope.ts_us,
        mono_us=envelope.mono_us, prev_hash=envelope.prev_hash,
    )
    if event_hash != envelope.event_hash or again[:-1] != line:
        reason = "not canonical" if line_hash(line) == envelope.event_hash else "its hash is wrong"
        raise InvalidEvent(f"event {envelope.seq}: {reason}")
    return Event(
        seq=envelope.seq, ts_us=envelope.ts_us, mono_us=envelope.mono_us, log_id=envelope.log_id,
        prev_hash=envelope.prev_hash, event_hash=envelope.event_hash, fields=fields,
    )
