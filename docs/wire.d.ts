// Generated from the message types; see docs/WIRE.md. Optional means: may be absent.
// FromWorker and ToWorker are internal to the gateway and may change without notice.


/** An id of OMEGA's. `^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$` */
export type ArtifactId = string;

/** 0 to 8_388_608 bytes */
export type BundleBytes = Uint8Array;

/** A call's number at the broker. integer, 1 to 2^53 - 1 */
export type CallId = number;

/** A capability, with its argument after the colon. `^(clock\.read|random\.read|artifact\.read|net\.connect|process\.[a-z]{1,16}|env\.read:[A-Z][A-Z0-9_]{0,63}|fs\.read:[a-z][a-z0-9-]{0,31})$` */
export type CapabilityName = string;

/** 32 random bytes that OMEGA made. 32 bytes */
export type CommitmentKey = Uint8Array;

/** 1 to 524_288 bytes */
export type ConformanceBytes = Uint8Array;

/** integer, 0 to 2^53 - 1 */
export type Count = number;

/** One key of a dataset. 1 to 256 characters */
export type DatasetKey = string;

/** integer, 1 to 64 */
export type Fault = number;

/** The first 16 hex digits of the SHA-256 of a raw public key. `^[0-9a-f]{16}$` */
export type KeyId = string;

/** The identity of one ledger; the origin line of its checkpoints. `^omega-gateway/(production|development)/[0-9a-f]{16}$` */
export type LogId = string;

/** The name of a method. `^[a-z][a-z0-9_]{0,63}$` */
export type MethodName = string;

/** 16 bytes */
export type Nonce = Uint8Array;

/** integer, 0 to 1_000 */
export type Permille = number;

/** The id of a plugin. `^[a-z][a-z0-9-]{2,63}$` */
export type PluginId = string;

/** Printable text that a plugin wrote: a claim, at most 1 KiB. `^[^\x00-\x1f\x7f-\x9f]*$`, 0 to 1_024 characters */
export type PluginText = string;

/** A UUIDv4 in lower case; one id names one request in the whole ledger. `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$` */
export type RequestId = string;

/** The content id of a JSON Schema: SHA-256 of its RFC 8785 bytes. `^sha256:[0-9a-f]{64}$` */
export type SchemaId = string;

/** A sentence for a person. 0 to 4_096 characters */
export type Sentence = string;

/** A SHA-256 digest in lower-case hex. `^[0-9a-f]{64}$` */
export type Sha256 = string;

/** Printable ASCII. `^[ -~]*$`, 0 to 1_024 characters */
export type ShortText = string;

/** The name of a pipeline step. `^[a-z][a-z0-9_-]{0,63}$` */
export type StepName = string;

/** A relative time in ms. integer, 1 to 3_600_000 */
export type TimeoutMs = number;

/** W3C trace context; passed through, never interpreted. `^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$` */
export type TraceParent = string;

/** An exact version, or ^X.Y for the newest compatible enabled one. `^(\^[0-9]{1,9}\.[0-9]{1,9}|[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?)$` */
export type VersionRequest = string;

/** One semantic version, without build metadata. `^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?$` */
export type VersionText = string;

export type RefusalCode =
  | "frame_malformed"
  | "frame_too_large"
  | "frame_count"
  | "message_unknown"
  | "message_invalid"
  | "plugin_origin_routing"
  | "handshake_refused"
  | "connection_refused"
  | "role_not_allowed"
  | "key_revoked"
  | "key_unknown"
  | "duplicate_request"
  | "request_unknown"
  | "json_not_canonical"
  | "json_too_large"
  | "json_too_deep"
  | "text_too_large"
  | "payload_kind_not_accepted"
  | "input_schema_violation"
  | "output_schema_violation"
  | "output_kind_mismatch"
  | "output_not_canonical"
  | "output_reference_unknown"
  | "artifact_unavailable"
  | "artifact_mismatch"
  | "file_unavailable"
  | "nondeterministic_output"
  | "unknown_plugin"
  | "unknown_version"
  | "unknown_method"
  | "plugin_not_enabled"
  | "plugin_quarantined"
  | "revoked"
  | "in_flight_limit"
  | "queue_full"
  | "quota_exceeded"
  | "deadline_unreachable"
  | "deadline_exceeded"
  | "circuit_open"
  | "draining"
  | "low_space"
  | "gateway_degraded"
  | "cancelled"
  | "abandoned"
  | "worker_lost"
  | "worker_start_failed"
  | "worker_crash_loop"
  | "worker_protocol_violation"
  | "sandbox_unavailable"
  | "call_process_failed"
  | "plugin_error"
  | "invalid_input"
  | "cannot_answer"
  | "plugin_crashed"
  | "plugin_load_failed"
  | "packages_changed"
  | "system_call_forbidden"
  | "cpu_limit_exceeded"
  | "wall_limit_exceeded"
  | "memory_limit_exceeded"
  | "output_limit_exceeded"
  | "output_invalid"
  | "pipeline_invalid"
  | "pipeline_step_failed"
  | "budget_exceeded"
  | "bundle_malformed"
  | "bundle_too_large"
  | "bundle_files_mismatch"
  | "signature_invalid"
  | "signature_threshold"
  | "domain_mismatch"
  | "publisher_unknown"
  | "publisher_not_allowed"
  | "manifest_invalid"
  | "schema_not_admitted"
  | "api_version_incompatible"
  | "version_not_raised"
  | "already_registered"
  | "capability_not_granted"
  | "capability_refused"
  | "limit_not_allowed"
  | "module_not_allowed"
  | "approval_required"
  | "approval_mismatch"
  | "upgrade_withdrawn"
  | "conformance_required"
  | "trust_invalid"
  | "trust_version_not_raised"
  | "seq_unknown"
  | "events_archived"
  | "size_unknown"
  | "machine_unsupported"
  | "config_invalid"
  | "home_invalid"
  | "key_unreadable"
  | "socket_in_use"
  | "ledger_locked"
  | "ledger_damaged"
  | "ledger_truncated"
  | "ledger_unwritable"
  | "internal_error";

export type Payload =
  | TextPayload
  | JSONPayload
  | BinaryRefPayload
  | DatasetSlicePayload;

/**
 * Run one method of one plugin. `timeout_ms` is relative to arrival.
 * With `keep_alive` the gateway gives signs of life, and ends the call when the client is gone.
 */
export interface Invoke {
  readonly type: "invoke";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
  readonly method: MethodName;
  readonly payload: Payload;
  readonly timeout_ms: TimeoutMs;
  readonly commitment_key: CommitmentKey;
  readonly version?: VersionRequest | null;
  readonly keep_alive?: boolean;
}

/** A text by value; `text` is at most `text_bytes_max` bytes in UTF-8. */
export interface TextPayload {
  readonly type: "text";
  readonly text: string;
  readonly media_type?: "application/toml" | "application/xml" | "application/yaml" | "text/csv" | "text/html" | "text/markdown" | "text/plain" | "text/tab-separated-values" | "text/x-python";
}

/** A JSON document as its RFC 8785 bytes; `schema` names the JSON Schema it claims to fit. */
export interface JSONPayload {
  readonly type: "json";
  readonly data: Uint8Array;
  readonly schema?: SchemaId | null;
}

/** A reference to an artifact that OMEGA already has; never its bytes. `size` is in bytes. */
export interface BinaryRefPayload {
  readonly type: "binary_ref";
  readonly artifact_id: ArtifactId;
  readonly sha256: Sha256;
  readonly size: Count;
  readonly media_type: "application/gzip" | "application/json" | "application/octet-stream" | "application/pdf" | "application/toml" | "application/vnd.apache.parquet" | "application/wasm" | "application/x-elf" | "application/x-ndjson" | "application/xml" | "application/yaml" | "application/zip" | "audio/flac" | "audio/mpeg" | "audio/wav" | "image/gif" | "image/jpeg" | "image/png" | "image/svg+xml" | "image/webp" | "text/csv" | "text/html" | "text/markdown" | "text/plain" | "text/tab-separated-values" | "text/x-python" | "video/mp4";
}

/** Keys of a dataset that OMEGA has; keys only, at most 10,000. */
export interface DatasetSlicePayload {
  readonly type: "dataset_slice";
  readonly dataset_id: ArtifactId;
  readonly keys: ReadonlyArray<DatasetKey>;
}

/** Run a graph of steps under one deadline and one budget. */
export interface InvokePipeline {
  readonly type: "invoke_pipeline";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly steps: ReadonlyArray<Step>;
  readonly timeout_ms: TimeoutMs;
  readonly budget: Budget;
  readonly commitment_key: CommitmentKey;
  readonly on_error?: "abort" | "skip_dependents";
  readonly keep_alive?: boolean;
}

/** One step of a pipeline. */
export interface Step {
  readonly name: StepName;
  readonly plugin: PluginId;
  readonly method: MethodName;
  readonly input: Payload | StepOutput;
  readonly version?: VersionRequest | null;
  readonly timeout_ms?: TimeoutMs | null;
}

/** An input taken from an earlier step: its whole output, or the part a JSON Pointer names. */
export interface StepOutput {
  readonly type: "step_output";
  readonly step: StepName;
  readonly pointer?: string;
}

/** What a whole pipeline may use. */
export interface Budget {
  readonly calls: number;
  readonly cpu_ms: Count;
  readonly output_bytes: Count;
}

/** End one call or pipeline of this key, wherever it is. */
export interface Cancel {
  readonly type: "cancel";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly target: RequestId;
}

/** List registered plugins, a page at a time, in order of their ids. */
export interface ListPlugins {
  readonly type: "list_plugins";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly after?: PluginId | null;
  readonly limit?: number;
}

/**
 * Show one plugin with its versions, methods, grants and pending difference.
 * `version` says of which version manifest and difference are shown.
 */
export interface GetPlugin {
  readonly type: "get_plugin";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
  readonly version?: VersionText | null;
}

/** Ask how the gateway is. */
export interface Status {
  readonly type: "status";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
}

/** Ask for the newest checkpoint. */
export interface LedgerHead {
  readonly type: "ledger_head";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
}

/**
 * Ask for an inclusion proof of one event.
 * `size` names the checkpoint to prove against: it must have been signed over exactly so many events. Without it, that is the newest.
 */
export interface Prove {
  readonly type: "prove";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly seq: Count;
  readonly size?: Count | null;
}

/** Ask for a consistency proof from a past size to the newest checkpoint, or to that of `size`. */
export interface ProveConsistency {
  readonly type: "prove_consistency";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly old_size: Count;
  readonly size?: Count | null;
}

/** Ask for all events of one request, with their positions. */
export interface ShowRequest {
  readonly type: "show_request";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly target: RequestId;
}

/**
 * Register the version that a signed bundle holds.
 * `conformance` is the envelope of a conformance report about these very bytes.
 */
export interface RegisterPlugin {
  readonly type: "register_plugin";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly bundle: BundleBytes;
  readonly conformance?: ConformanceBytes | null;
}

/** Say everything that would hinder a registration, and change nothing. */
export interface ValidateBundle {
  readonly type: "validate_bundle";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly bundle: BundleBytes;
  readonly conformance?: ConformanceBytes | null;
}

/** Let one registered version serve calls. */
export interface EnablePlugin {
  readonly type: "enable_plugin";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
  readonly version: VersionText;
}

/** Let no version of this plugin serve new calls. */
export interface DisablePlugin {
  readonly type: "disable_plugin";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
}

/** Approve exactly one difference between two versions. */
export interface Approve {
  readonly type: "approve";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
  readonly version: VersionText;
  readonly diff_digest: Sha256;
}

/** Grant one capability to one plugin. */
export interface Grant {
  readonly type: "grant";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly plugin: PluginId;
  readonly capability: CapabilityName;
}

/**
 * Take back a version, a publisher's key, a client's key or a grant.
 * `id` is `plugin@version`, a key id, or `plugin capability`, by `kind`. With `disconnect`, for a client's key, its open connections end too.
 */
export interface Revoke {
  readonly type: "revoke";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly kind: "client_key" | "grant" | "plugin_version" | "publisher_key";
  readonly id: ShortText;
  readonly reason: string;
  readonly disconnect?: boolean;
}

/** Replace the trust root by a newer one that the present one signed. */
export interface SetTrust {
  readonly type: "set_trust";
  readonly request_id: RequestId;
  readonly traceparent?: TraceParent | null;
  readonly known_size?: Count | null;
  readonly envelope: Uint8Array;
}

/** The answer of one invocation. `output_sha256` is over the payload's preimage. */
export interface Result {
  readonly type: "result";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly payload: Payload;
  readonly usage: Usage;
  readonly output_sha256: Sha256;
  readonly plugin: PluginId;
  readonly version: VersionText;
}

/**
 * Where the evidence of a reply lies; durable before the reply left.
 * `checkpoint` is a C2SP signed note and `consistency` the RFC 6962 proof, in hex, from the client's `known_size` to it; both are present when the newest checkpoint has another size than `known_size`. A checkpoint smaller than `known_size` comes without a proof: it is a fork.
 */
export interface Receipt {
  readonly log_id: LogId;
  readonly seq: Count;
  readonly event_hash: Sha256;
  readonly checkpoint?: string | null;
  readonly consistency?: ReadonlyArray<Sha256> | null;
}

/** What one call used. The memory figure includes what the zygote had touched before the fork. */
export interface Usage {
  readonly cpu_ms: Count;
  readonly wall_ms: Count;
  readonly max_rss_kb_upper_bound: Count;
  readonly output_bytes: Count;
}

/** The answer of a pipeline, in declared order. */
export interface PipelineResult {
  readonly type: "pipeline_result";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly steps: ReadonlyArray<StepResult>;
  readonly usage: Usage;
}

/** What became of one step; exactly one of `payload` and `refusal` is set unless it was skipped. */
export interface StepResult {
  readonly step: StepName;
  readonly outcome: "refused" | "result" | "skipped";
  readonly payload?: Payload | null;
  readonly refusal?: Refusal | null;
  readonly usage?: Usage | null;
  readonly output_sha256?: Sha256 | null;
}

/** The answer to anything not allowed: a code, a sentence, where, and what would make it allowed. */
export interface Refusal {
  readonly type: "refusal";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly code: RefusalCode;
  readonly message: Sentence;
  readonly where?: string;
  readonly hint?: string;
  readonly retry_after_ms?: Count | null;
  readonly plugin_message?: PluginText | null;
  readonly usage?: Usage | null;
}

/** How far a call says it is; a claim of the plugin. */
export interface Progress {
  readonly type: "progress";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly permille: Permille;
  readonly note?: PluginText;
  readonly step?: StepName | null;
}

/** What a cancel met. `too_late` means that an end was committed before it. */
export interface Cancelled {
  readonly type: "cancelled";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly outcome: "cancelled" | "too_late";
  readonly reached: "answered" | "dispatched" | "queued" | "running";
}

/** A sign of life to a client that asked for it. */
export interface KeepAlive {
  readonly type: "keep_alive";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
}

/** A page of plugins; `next_after` is set when there is another page. */
export interface Plugins {
  readonly type: "plugins";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugins: ReadonlyArray<PluginEntry>;
  readonly next_after?: PluginId | null;
}

/** One plugin in a list. */
export interface PluginEntry {
  readonly plugin: PluginId;
  readonly description: string;
  readonly enabled_version: VersionText | null;
  readonly highest_version: VersionText;
  readonly versions: Count;
  readonly workers: Count;
}

/**
 * One plugin with everything an operator wants to see.
 * `manifest` is the RFC 8785 bytes that were signed, of the version asked for or else the enabled or else the highest one; `grants` are what it is granted, by request or, of what it asks for, by policy. `pending_diff` is the document `omega-difference/1` from the version enabled last to the one asked for or else the highest; while it waits for approval, `pending_diff_digest` is its SHA-256 and `pending_approvals` names the operators' keys that approved it so far, of the `approvals_required` that policy asks for.
 */
export interface Plugin {
  readonly type: "plugin";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly versions: ReadonlyArray<VersionEntry>;
  readonly manifest: Uint8Array | null;
  readonly grants?: ReadonlyArray<CapabilityName>;
  readonly pending_diff?: string | null;
  readonly pending_diff_digest?: Sha256 | null;
  readonly pending_approvals?: ReadonlyArray<KeyId>;
  readonly approvals_required?: Count;
}

/** One registered version as a reader sees it. */
export interface VersionEntry {
  readonly version: VersionText;
  readonly state: "disabled" | "enabled" | "quarantined" | "registered" | "revoked";
  readonly bundle_sha256: Sha256;
  readonly publisher: string;
  readonly api_version: VersionText;
  readonly registered_seq: Count;
}

/** How the gateway is. */
export interface StatusReport {
  readonly type: "status_report";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly state: "degraded" | "draining" | "serving";
  readonly domain: "development" | "production";
  readonly gateway_version: string;
  readonly api_version: VersionText;
  readonly log_id: LogId;
  readonly ledger_size: Count;
  readonly uptime_us: Count;
  readonly in_flight: Count;
  readonly in_flight_max: Count;
  readonly plugins: Count;
  readonly enabled: Count;
  readonly workers: ReadonlyArray<WorkerEntry>;
  readonly trust_version: Count;
  readonly policy_sha256: Sha256;
  readonly degraded?: ReadonlyArray<string>;
  readonly breakers?: ReadonlyArray<BreakerEntry>;
}

/** One worker as a reader sees it; `role` says which of a call's runs it serves. */
export interface WorkerEntry {
  readonly incarnation: string;
  readonly plugin: PluginId;
  readonly version: VersionText;
  readonly state: string;
  readonly in_flight: Count;
  readonly calls: Count;
  readonly pid?: number | null;
  readonly role?: "primary" | "replica" | null;
}

/** A circuit breaker that is not closed. */
export interface BreakerEntry {
  readonly plugin: PluginId;
  readonly method: MethodName;
  readonly state: "half_open" | "open";
  readonly retry_after_ms?: Count | null;
}

/** The newest checkpoint, a C2SP signed note, and the key that signs it. */
export interface Head {
  readonly type: "head";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly checkpoint: string;
  readonly verifier_key: string;
}

/** An event's line and its RFC 6962 inclusion proof, in hex, against the checkpoint. */
export interface Proof {
  readonly type: "proof";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly seq: Count;
  readonly line: string;
  readonly hashes: ReadonlyArray<Sha256>;
  readonly checkpoint: string;
}

/** An RFC 6962 consistency proof, in hex, from `old_size` to the checkpoint. */
export interface Consistency {
  readonly type: "consistency";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly old_size: Count;
  readonly hashes: ReadonlyArray<Sha256>;
  readonly checkpoint: string;
}

/** All events of one request, as ledger lines in order. */
export interface RequestStory {
  readonly type: "request_story";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly target: RequestId;
  readonly lines: ReadonlyArray<string>;
}

/** All problems of a bundle at once; none means that it would be registered. */
export interface Validation {
  readonly type: "validation";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly problems: ReadonlyArray<Problem>;
  readonly plugin?: PluginId | null;
  readonly version?: VersionText | null;
}

/** One thing that hinders a registration. */
export interface Problem {
  readonly code: RefusalCode;
  readonly where: string;
  readonly found: string;
  readonly expected: string;
  readonly remedy: string;
}

/** The version is in the inventory; it serves no call before it is enabled. */
export interface Registered {
  readonly type: "registered";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly version: VersionText;
  readonly bundle_sha256: Sha256;
}

/** New calls go to this version. */
export interface Enabled {
  readonly type: "enabled";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly version: VersionText;
  readonly previous?: VersionText | null;
}

/** No version serves new calls. */
export interface Disabled {
  readonly type: "disabled";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly previous?: VersionText | null;
}

/** The approval counts: `approvals` operators of `required` approved exactly this difference. */
export interface Approved {
  readonly type: "approved";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly version: VersionText;
  readonly diff_digest: Sha256;
  readonly approvals?: Count;
  readonly required?: Count;
}

/** The grant holds from now on. */
export interface Granted {
  readonly type: "granted";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly plugin: PluginId;
  readonly capability: CapabilityName;
}

/** The revocation holds from now on; `ended` calls were ended by it. */
export interface Revoked {
  readonly type: "revoked";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly kind: string;
  readonly id: string;
  readonly ended: Count;
}

/** The trust root in force. */
export interface Trust {
  readonly type: "trust";
  readonly request_id?: RequestId | null;
  readonly receipt?: Receipt | null;
  readonly version: Count;
  readonly sha256: Sha256;
  readonly publishers: ReadonlyArray<string>;
}

/** The zygote is jailed and attested; the worker can take probes and then calls. */
export interface Ready {
  readonly type: "ready";
  readonly pid: Count;
  readonly attestation: Attestation;
  readonly concurrency: Fault;
}

/** What the supervisor read from outside about its zygote and its self-test call process. */
export interface Attestation {
  readonly zygote_pid: Count;
  readonly uid: Count;
  readonly landlock_abi: Count;
  readonly no_new_privileges: number;
  readonly seccomp_mode: number;
  readonly seccomp_filters_zygote: Count;
  readonly seccomp_filters_call: Count;
  readonly capabilities_effective: string;
  readonly capabilities_bounding: string;
  readonly threads: Count;
  readonly base_filter_sha256: Sha256;
  readonly strict_filter_sha256: Sha256;
  readonly namespaces: Readonly<Partial<Record<"cgroup" | "ipc" | "mnt" | "net" | "pid" | "user" | "uts", Count>>>;
  readonly interpreter: ShortText;
}

/** A running call's own word on how far it is. */
export interface CallProgress {
  readonly type: "call_progress";
  readonly call: CallId;
  readonly permille: Permille;
  readonly note?: PluginText;
}

/** One call's output. */
export interface CallResult {
  readonly type: "call_result";
  readonly call: CallId;
  readonly payload: Payload;
  readonly usage: Usage;
  readonly fault?: Fault | null;
}

/**
 * Why one call has no output. `used` and `allowed` are in the unit of the limit that ended it.
 * `denied` is the class of the last operation that the sandbox denied, as the plugin's process said it: a hint from hostile code.
 */
export interface CallFailure {
  readonly type: "call_failure";
  readonly call: CallId;
  readonly code: "artifact_mismatch" | "artifact_unavailable" | "call_process_failed" | "cancelled" | "cannot_answer" | "cpu_limit_exceeded" | "deadline_exceeded" | "file_unavailable" | "invalid_input" | "memory_limit_exceeded" | "output_invalid" | "output_kind_mismatch" | "output_limit_exceeded" | "plugin_crashed" | "plugin_error" | "plugin_load_failed" | "system_call_forbidden" | "wall_limit_exceeded";
  readonly plugin_message?: PluginText | null;
  readonly denied?: string | null;
  readonly used?: Count | null;
  readonly allowed?: Count | null;
  readonly usage?: Usage | null;
  readonly fault?: Fault | null;
}

/** What the witness saw. */
export interface ProbeReport {
  readonly type: "probe_report";
  readonly probe: CallId;
  readonly nonce: Nonce;
  readonly outcomes: ReadonlyArray<ProbeOutcome>;
}

/** One probe: what was tried, and whether the jail held it. The control must be `allowed`. */
export interface ProbeOutcome {
  readonly name: string;
  readonly outcome: "allowed" | "denied" | "killed";
}

/** The answer to one ping. */
export interface Pong {
  readonly type: "pong";
  readonly nonce: Nonce;
}

/** The worker has nothing in flight and ends, or never could begin; `detail` is our own text. */
export interface Bye {
  readonly type: "bye";
  readonly reason?: "drained" | "launch_refused" | "packages_changed" | "plugin_load_failed" | "recycle_calls" | "recycle_killed" | "recycle_minutes" | "sandbox_unavailable";
  readonly detail?: ShortText;
}

/** Run one method once. `replica` is the determinism oracle's second run of the same invocation. */
export interface Run {
  readonly type: "run";
  readonly call: CallId;
  readonly method: MethodName;
  readonly payload: Payload;
  readonly timeout_ms: TimeoutMs;
  readonly request_id: RequestId;
  readonly purpose?: "primary" | "replica";
  readonly cpu_ms_max?: Count | null;
  readonly output_bytes_max?: Count | null;
}

/** Kill the call process of one call; its result is no longer wanted. */
export interface Abort {
  readonly type: "abort";
  readonly call: CallId;
}

/** Take no new call, finish what runs, then say bye. */
export interface Drain {
  readonly type: "drain";
}

/** Run the witness probes through the production path; never plugin code. */
export interface Probe {
  readonly type: "probe";
  readonly probe: CallId;
  readonly nonce: Nonce;
}

/** Ask the worker's main loop for a sign of life. */
export interface Ping {
  readonly type: "ping";
  readonly nonce: Nonce;
}

export type FromOmega =
  | Invoke
  | InvokePipeline
  | Cancel
  | ListPlugins
  | GetPlugin
  | Status
  | LedgerHead
  | Prove
  | ProveConsistency
  | ShowRequest;

export type FromAdmin =
  | ListPlugins
  | GetPlugin
  | Status
  | LedgerHead
  | Prove
  | ProveConsistency
  | ShowRequest
  | RegisterPlugin
  | ValidateBundle
  | EnablePlugin
  | DisablePlugin
  | Approve
  | Grant
  | Revoke
  | SetTrust;

export type ToOmega =
  | Result
  | PipelineResult
  | Progress
  | Cancelled
  | KeepAlive
  | Refusal
  | Plugins
  | Plugin
  | StatusReport
  | Head
  | Proof
  | Consistency
  | RequestStory;

export type ToAdmin =
  | Refusal
  | Plugins
  | Plugin
  | Validation
  | Registered
  | Enabled
  | Disabled
  | Approved
  | Granted
  | Revoked
  | Trust
  | StatusReport
  | Head
  | Proof
  | Consistency
  | RequestStory;

export type FromWorker =
  | Ready
  | CallProgress
  | CallResult
  | CallFailure
  | ProbeReport
  | Pong
  | Bye;

export type ToWorker =
  | Run
  | Abort
  | Drain
  | Probe
  | Ping;
