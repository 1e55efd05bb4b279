"""One full example of every message, payload and event: every optional field is set.

The golden files, the documentation's examples and several tests are made from these. Keys and
digests are made of repeated bytes, so that a reader sees at once which field is which.
"""

from __future__ import annotations

import msgspec

from schemas import events, messages, payloads
from schemas.refusals import RefusalCode

REQUEST = "6f1c2d3e-4b5a-4c7d-8e9f-0a1b2c3d4e5f"
TARGET = "0d9c8b7a-6f5e-4d3c-9b2a-1f0e9d8c7b6a"
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
LOG_ID = "omega-gateway/development/0123456789abcdef"
KEY_ID = "5e5e5e5e5e5e5e5e"
INCARNATION = "ab" * 16
DIGEST_A = "a1" * 32
DIGEST_B = "b2" * 32
DIGEST_C = "c3" * 32
COMMITMENT_KEY = bytes(range(32))
NONCE = bytes(range(16))
CHECKPOINT = (
    f"{LOG_ID}\n8\nw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8PDw8M=\n\n\u2014 {LOG_ID} AAAAAA==\n"
)
VERIFIER_KEY = f"{LOG_ID}+00000000+AQAA"

TEXT = payloads.TextPayload("Δx = 3", "text/plain")
JSON = payloads.JSONPayload(b'{"a":[1,2],"b":"\xc3\xa9"}', "sha256:" + DIGEST_A)
BINARY = payloads.BinaryRefPayload("scan-17", DIGEST_A, 4096, "image/png")
DATASET = payloads.DatasetSlicePayload("telemetry", ("k1", "k2"))
PAYLOADS: tuple[payloads.Payload, ...] = (TEXT, JSON, BINARY, DATASET)

RECEIPT = messages.Receipt(
    log_id=LOG_ID, seq=7, event_hash=DIGEST_C, checkpoint=CHECKPOINT, consistency=(DIGEST_B,)
)
USAGE = messages.Usage(cpu_ms=12, wall_ms=15, max_rss_kb_upper_bound=20480, output_bytes=27)
REFUSAL = messages.Refusal(
    request_id=REQUEST,
    receipt=RECEIPT,
    code=RefusalCode.INPUT_SCHEMA_VIOLATION,
    message="The input does not fit the method's JSON Schema",
    where="$.payload.data.a",
    hint="expected an integer",
    retry_after_ms=250,
    plugin_message="a is wrong",
    usage=USAGE,
)
ATTESTATION = messages.Attestation(
    zygote_pid=4243,
    uid=65534,
    landlock_abi=6,
    no_new_privileges=1,
    seccomp_mode=2,
    seccomp_filters_zygote=1,
    seccomp_filters_call=2,
    capabilities_effective="0" * 16,
    capabilities_bounding="0" * 16,
    threads=1,
    base_filter_sha256=DIGEST_A,
    strict_filter_sha256=DIGEST_B,
    namespaces={"cgroup": 1, "ipc": 2, "mnt": 3, "net": 4, "pid": 5, "user": 6, "uts": 7},
    interpreter="cpython-3.11.2",
)

_R = {"request_id": REQUEST, "traceparent": TRACE, "known_size": 5}
_A = {"request_id": REQUEST, "receipt": RECEIPT}

READS: tuple[messages.Read, ...] = (
    messages.ListPlugins(**_R, after="abc", limit=50),
    messages.GetPlugin(**_R, plugin="word-count", version="1.2.0"),
    messages.Status(**_R),
    messages.LedgerHead(**_R),
    messages.Prove(**_R, seq=7, size=9),
    messages.ProveConsistency(**_R, old_size=5, size=9),
    messages.ShowRequest(**_R, target=TARGET),
)
FROM_OMEGA: tuple[messages.FromOmega, ...] = (
    messages.Invoke(
        **_R,
        plugin="word-count",
        method="count",
        payload=TEXT,
        timeout_ms=2000,
        commitment_key=COMMITMENT_KEY,
        version="^1.2",
        keep_alive=True,
    ),
    messages.InvokePipeline(
        **_R,
        steps=(
            messages.Step("first", "word-count", "count", JSON, "1.2.0", 500),
            messages.Step("second", "word-count", "count", messages.StepOutput("first", "/a")),
            messages.Step("third", "word-count", "count", BINARY),
        ),
        timeout_ms=5000,
        budget=messages.Budget(calls=3, cpu_ms=1000, output_bytes=65536),
        commitment_key=COMMITMENT_KEY,
        on_error="skip_dependents",
        keep_alive=True,
    ),
    messages.Cancel(**_R, target=TARGET),
    *READS,
)
FROM_ADMIN: tuple[messages.FromAdmin, ...] = (
    *READS,
    messages.RegisterPlugin(**_R, bundle=b"PK\x05\x06", conformance=b'{"payload":""}'),
    messages.ValidateBundle(**_R, bundle=b"PK\x05\x06", conformance=b'{"payload":""}'),
    messages.EnablePlugin(**_R, plugin="word-count", version="1.2.0"),
    messages.DisablePlugin(**_R, plugin="word-count"),
    messages.Approve(**_R, plugin="word-count", version="1.2.0", diff_digest=DIGEST_A),
    messages.Grant(**_R, plugin="word-count", capability="env.read:LANG"),
    messages.Revoke(**_R, kind="client_key", id=KEY_ID, reason="lost laptop", disconnect=True),
    messages.SetTrust(**_R, envelope=b'{"payload":""}'),
)
REPLIES: tuple[messages.Reply, ...] = (
    messages.Result(
        **_A,
        payload=JSON,
        usage=USAGE,
        output_sha256=DIGEST_B,
        plugin="word-count",
        version="1.2.0",
    ),
    messages.PipelineResult(
        **_A,
        steps=(
            messages.StepResult(
                step="first", outcome="result", payload=TEXT, usage=USAGE, output_sha256=DIGEST_B
            ),
            messages.StepResult(step="second", outcome="refused", refusal=REFUSAL),
            messages.StepResult(step="third", outcome="skipped"),
        ),
        usage=USAGE,
    ),
    messages.Progress(**_A, permille=250, note="a quarter", step="first"),
    messages.Cancelled(**_A, outcome="too_late", reached="answered"),
    messages.KeepAlive(**_A),
    REFUSAL,
    messages.Plugins(
        **_A,
        plugins=(
            messages.PluginEntry(
                plugin="word-count",
                description="Counts words",
                enabled_version="1.2.0",
                highest_version="1.3.0",
                versions=2,
                workers=1,
            ),
        ),
        next_after="word-count",
    ),
    messages.Plugin(
        **_A,
        plugin="word-count",
        versions=(
            messages.VersionEntry("1.2.0", "enabled", DIGEST_A, "acme", "1.0.0", 3),
        ),
        manifest=b"{}",
        grants=("clock.read",),
        pending_diff="capabilities: + random.read",
        pending_diff_digest=DIGEST_B,
        pending_approvals=(KEY_ID,),
        approvals_required=2,
    ),
    messages.Validation(
        **_A,
        problems=(
            messages.Problem(
                RefusalCode.CAPABILITY_NOT_GRANTED,
                "$.capabilities[0]",
                "clock.read",
                "a grant",
                'add [grants."word-count"] capabilities = ["clock.read"] to policy.toml',
            ),
        ),
        plugin="word-count",
        version="1.2.0",
    ),
    messages.Registered(**_A, plugin="word-count", version="1.2.0", bundle_sha256=DIGEST_A),
    messages.Enabled(**_A, plugin="word-count", version="1.2.0", previous="1.1.0"),
    messages.Disabled(**_A, plugin="word-count", previous="1.2.0"),
    messages.Approved(**_A, plugin="word-count", version="1.2.0", diff_digest=DIGEST_A,
                      approvals=2, required=3),
    messages.Granted(**_A, plugin="word-count", capability="env.read:LANG"),
    messages.Revoked(**_A, kind="client_key", id=KEY_ID, ended=3),
    messages.Trust(**_A, version=2, sha256=DIGEST_A, publishers=("acme",)),
    messages.StatusReport(
        **_A,
        state="degraded",
        domain="development",
        gateway_version="0.1.0",
        api_version="1.0.0",
        log_id=LOG_ID,
        ledger_size=8,
        uptime_us=1_000_000,
        in_flight=1,
        in_flight_max=256,
        plugins=2,
        enabled=1,
        workers=(
            messages.WorkerEntry(
                INCARNATION, "word-count", "1.2.0", "ready", 1, 17, 4242, "replica"),
        ),
        trust_version=1,
        policy_sha256=DIGEST_C,
        degraded=("low space",),
        breakers=(messages.BreakerEntry("word-count", "count", "open", 5_000),),
    ),
    messages.Head(**_A, checkpoint=CHECKPOINT, verifier_key=VERIFIER_KEY),
    messages.Proof(**_A, seq=7, line="{}", hashes=(DIGEST_A, DIGEST_B), checkpoint=CHECKPOINT),
    messages.Consistency(**_A, old_size=5, hashes=(DIGEST_A,), checkpoint=CHECKPOINT),
    messages.RequestStory(**_A, target=TARGET, lines=("{}",)),
)
TO_WORKER: tuple[messages.ToWorker, ...] = (
    messages.Run(
        call=9,
        method="count",
        payload=TEXT,
        timeout_ms=1950,
        request_id=REQUEST,
        purpose="replica",
        cpu_ms_max=1000,
        output_bytes_max=65536,
    ),
    messages.Abort(call=9),
    messages.Drain(),
    messages.Probe(probe=1, nonce=NONCE),
    messages.Ping(nonce=NONCE),
)
FROM_WORKER: tuple[messages.FromWorker, ...] = (
    messages.Ready(pid=4242, attestation=ATTESTATION, concurrency=4),
    messages.CallProgress(call=9, permille=250, note="a quarter"),
    messages.CallResult(call=9, payload=DATASET, usage=USAGE, fault=11),
    messages.CallFailure(
        call=9,
        code="memory_limit_exceeded",
        plugin_message="MemoryError",
        denied="socket",
        used=65,
        allowed=64,
        usage=USAGE,
        fault=31,
    ),
    messages.ProbeReport(
        probe=1,
        nonce=NONCE,
        outcomes=(
            messages.ProbeOutcome("open_file", "denied"),
            messages.ProbeOutcome("control", "allowed"),
        ),
    ),
    messages.Pong(nonce=NONCE),
    messages.Bye(reason="recycle_calls", detail="10000 calls"),
)
DIRECTIONS: dict[str, tuple[msgspec.Struct, ...]] = {
    "from_omega": FROM_OMEGA,
    "from_admin": FROM_ADMIN,
    "reply": REPLIES,
    "to_worker": TO_WORKER,
    "from_worker": FROM_WORKER,
}

_G = {"plugin": "word-count", "version": "1.2.0"}
EVENTS: tuple[events.EventFields, ...] = (
    events.LedgerOpen(
        gateway_version="0.1.0",
        api_version="1.0.0",
        domain="development",
        durability="power",
        python_version="3.11.2",
        zmq_version="4.3.5",
        kernel="6.12.1",
        verifier_key=VERIFIER_KEY,
        trust_sha256=DIGEST_A,
        trust_version=1,
        policy_sha256=DIGEST_B,
        request_window=1_000_000,
        request_window_ms=86_400_000,
        restored_from=LOG_ID,
        restore_reason="the disk was lost",
        archived_before=4,
        archived_to="/srv/archive/2026",
    ),
    events.LedgerRecovery(
        torn_bytes=17, torn_sha256=DIGEST_A, checkpoint_size=5, events_after_checkpoint=2
    ),
    events.StateSnapshot(
        inventory_sha256=DIGEST_A,
        trust_sha256=DIGEST_B,
        policy_sha256=DIGEST_C,
        open_invocations=(TARGET,),
        state_sha256=DIGEST_A,
    ),
    events.KeyChange(action="added", role="omega", key_id=KEY_ID, actor="home"),
    events.TrustChange(version=2, sha256=DIGEST_A, previous_sha256=DIGEST_B, actor=KEY_ID),
    events.PolicyChange(sha256=DIGEST_A, previous_sha256=DIGEST_B, actor="home"),
    events.GrantChange(
        action="granted", plugin="word-count", capability="clock.read", actor=KEY_ID
    ),
    events.PluginRegister(
        **_G,
        bundle_sha256=DIGEST_A,
        manifest_sha256=DIGEST_B,
        publisher="acme",
        signing_keys=(KEY_ID,),
        api_version="1.0.0",
        domain="development",
        capabilities=("clock.read",),
        deterministic=("count",),
        conformance_sha256=DIGEST_B,
        conformance_keys=(KEY_ID,),
        actor=KEY_ID,
    ),
    events.PluginReject(
        bundle_sha256=DIGEST_A,
        code=RefusalCode.SIGNATURE_INVALID,
        where="manifest.dsse.json",
        **_G,
        actor=KEY_ID,
    ),
    events.PluginApprove(**_G, diff_sha256=DIGEST_A, actor=KEY_ID),
    events.PluginEnable(**_G, previous="1.1.0", diff_sha256=DIGEST_A, actor=KEY_ID),
    events.PluginDisable(**_G, actor=KEY_ID),
    events.PluginQuarantine(**_G, reason="probe_succeeded", detail="open_file"),
    events.Revoke(kind="client_key", id=KEY_ID, reason="lost laptop", actor=KEY_ID, ended=3,
                  disconnect=True),
    events.WorkerStart(
        incarnation=INCARNATION,
        **_G,
        bundle_sha256=DIGEST_A,
        launcher="local",
        grants=("clock.read",),
    ),
    events.WorkerAttest(
        incarnation=INCARNATION,
        accepted=True,
        pid=4242,
        **{
            name: getattr(ATTESTATION, name)
            for name in ATTESTATION.__struct_fields__
            if name != "zygote_pid"
        },
    ),
    events.WorkerProbe(
        incarnation=INCARNATION,
        probe=1,
        passed=False,
        outcomes={"control": "allowed", "open_file": "allowed"},
        failed=("open_file",),
    ),
    events.WorkerExit(
        incarnation=INCARNATION, reason="killed", status=0, signal=9, calls=17, detail="deadline"
    ),
    events.ZygoteRecycle(incarnation=INCARNATION, successor="cd" * 16, reason="calls"),
    events.FrameIn(
        plane="worker",
        peer=INCARNATION,
        type="call_progress",
        bytes=64,
        request_id=REQUEST,
        call=9,
        note_commitment=DIGEST_A,
    ),
    events.FrameOut(
        plane="worker",
        peer=INCARNATION,
        type="run",
        bytes=180,
        request_id=REQUEST,
        call=9,
        purpose="primary",
        code=RefusalCode.DRAINING,
    ),
    events.FrameDrop(
        plane="front.admin",
        peer="unknown",
        code=RefusalCode.FRAME_MALFORMED,
        bytes=3,
        count=12,
        where="$",
    ),
    events.InvokeAccept(
        request_id=REQUEST,
        peer=KEY_ID,
        **_G,
        bundle_sha256=DIGEST_A,
        method="count",
        input_kind="text",
        input_bytes=7,
        input_commitment=DIGEST_B,
        timeout_ms=2000,
        input_fingerprint=DIGEST_C,
        pipeline=TARGET,
        step="first",
    ),
    events.InvokeRefuse(
        request_id=REQUEST,
        peer=KEY_ID,
        code=RefusalCode.DUPLICATE_REQUEST,
        where="$.request_id",
        plugin="word-count",
        method="count",
        retry_after_ms=250,
        first_end_seq=6,
        pipeline=TARGET,
        step="first",
    ),
    events.InvokeEnd(
        request_id=REQUEST,
        outcome="result",
        reached="running",
        code=RefusalCode.CANCELLED,
        incarnation=INCARNATION,
        output_kind="json",
        output_bytes=27,
        output_commitment=DIGEST_A,
        output_fingerprint=DIGEST_B,
        message_commitment=DIGEST_C,
        cpu_ms=12,
        wall_ms=15,
        max_rss_kb_upper_bound=20480,
        used=65,
        allowed=64,
        duration_us=16000,
        replica="agreed",
    ),
    events.ReplyUndeliverable(
        plane="front.omega", peer=KEY_ID, type="result", reason="gone", request_id=REQUEST, call=9
    ),
    events.DeterminismMismatch(
        request_id=REQUEST,
        **_G,
        method="count",
        against="replica",
        input_fingerprint=DIGEST_A,
        output_fingerprint=DIGEST_B,
        other_output_fingerprint=DIGEST_C,
        other_seq=4,
    ),
    events.BreakerChange(
        plugin="word-count",
        method="count",
        before="closed",
        after="open",
        reason="5 crashes in 60 s",
        retry_after_ms=1000,
    ),
    events.QuotaRefuse(
        peer=KEY_ID,
        quota="calls_per_second_max",
        used=101,
        allowed=100,
        window_begin_us=1_790_000_000_000_000,
        window_end_us=1_790_000_001_000_000,
        plugin="word-count",
        count=2,
    ),
    events.GatewayDegraded(reason="low space", degraded=True),
    events.LedgerRoll(segment=1),
    events.LedgerClose(reason="drained"),
)


def tag_of(message: msgspec.Struct) -> str:
    """Give the word a message carries in its field `type`."""
    tag = message.__struct_config__.tag
    assert isinstance(tag, str)
    return tag


def without_optional_fields(message: msgspec.Struct) -> msgspec.Struct:
    """Give the smallest form of an example: every field that has a default is at its default."""
    kind = type(message)
    required = [
        field.name for field in msgspec.structs.fields(kind) if field.required
    ]
    return kind(**{name: getattr(message, name) for name in required})
