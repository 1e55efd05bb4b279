"""The closed list of refusal codes, and for each what it means and what would make it allowed.

Rules this file keeps:
- A code is a snake_case word that never changes its meaning; a new meaning is a new code.
- Every code has a title, a reason and a remedy, so `explain CODE`, the documentation page and the
  answer on the wire say the same thing.
- `retryable` says whether the same request may succeed later without anybody changing anything.
- `blame` names whose fault it is, so that a circuit breaker counts only what the plugin caused.

It leaves the texts to `schemas.refusal_pages`, to the broker where a code is used, and to the
command line how it is shown.
Specification: INV-PNP-10 (error, doubt, timeout or invalid output is a refusal with evidence).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from schemas.refusal_pages import PAGES, Blame


class RefusalCode(enum.StrEnum):
    """Every code that an answer, an event or an exit message may carry."""

    FRAME_MALFORMED = "frame_malformed"
    FRAME_TOO_LARGE = "frame_too_large"
    FRAME_COUNT = "frame_count"
    MESSAGE_UNKNOWN = "message_unknown"
    MESSAGE_INVALID = "message_invalid"
    PLUGIN_ORIGIN_ROUTING = "plugin_origin_routing"
    HANDSHAKE_REFUSED = "handshake_refused"
    CONNECTION_REFUSED = "connection_refused"
    ROLE_NOT_ALLOWED = "role_not_allowed"
    KEY_REVOKED = "key_revoked"
    KEY_UNKNOWN = "key_unknown"
    DUPLICATE_REQUEST = "duplicate_request"
    REQUEST_UNKNOWN = "request_unknown"
    JSON_NOT_CANONICAL = "json_not_canonical"
    JSON_TOO_LARGE = "json_too_large"
    JSON_TOO_DEEP = "json_too_deep"
    TEXT_TOO_LARGE = "text_too_large"
    PAYLOAD_KIND_NOT_ACCEPTED = "payload_kind_not_accepted"
    INPUT_SCHEMA_VIOLATION = "input_schema_violation"
    OUTPUT_SCHEMA_VIOLATION = "output_schema_violation"
    OUTPUT_KIND_MISMATCH = "output_kind_mismatch"
    OUTPUT_NOT_CANONICAL = "output_not_canonical"
    OUTPUT_REFERENCE_UNKNOWN = "output_reference_unknown"
    ARTIFACT_UNAVAILABLE = "artifact_unavailable"
    ARTIFACT_MISMATCH = "artifact_mismatch"
    FILE_UNAVAILABLE = "file_unavailable"
    NONDETERMINISTIC_OUTPUT = "nondeterministic_output"
    UNKNOWN_PLUGIN = "unknown_plugin"
    UNKNOWN_VERSION = "unknown_version"
    UNKNOWN_METHOD = "unknown_method"
    PLUGIN_NOT_ENABLED = "plugin_not_enabled"
    PLUGIN_QUARANTINED = "plugin_quarantined"
    REVOKED = "revoked"
    IN_FLIGHT_LIMIT = "in_flight_limit"
    QUEUE_FULL = "queue_full"
    QUOTA_EXCEEDED = "quota_exceeded"
    DEADLINE_UNREACHABLE = "deadline_unreachable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    CIRCUIT_OPEN = "circuit_open"
    DRAINING = "draining"
    LOW_SPACE = "low_space"
    GATEWAY_DEGRADED = "gateway_degraded"
    CANCELLED = "cancelled"
    ABANDONED = "abandoned"
    WORKER_LOST = "worker_lost"
    WORKER_START_FAILED = "worker_start_failed"
    WORKER_CRASH_LOOP = "worker_crash_loop"
    WORKER_PROTOCOL_VIOLATION = "worker_protocol_violation"
    SANDBOX_UNAVAILABLE = "sandbox_unavailable"
    CALL_PROCESS_FAILED = "call_process_failed"
    PLUGIN_ERROR = "plugin_error"
    INVALID_INPUT = "invalid_input"
    CANNOT_ANSWER = "cannot_answer"
    PLUGIN_CRASHED = "plugin_crashed"
    PLUGIN_LOAD_FAILED = "plugin_load_failed"
    PACKAGES_CHANGED = "packages_changed"
    SYSTEM_CALL_FORBIDDEN = "system_call_forbidden"
    CPU_LIMIT_EXCEEDED = "cpu_limit_exceeded"
    WALL_LIMIT_EXCEEDED = "wall_limit_exceeded"
    MEMORY_LIMIT_EXCEEDED = "memory_limit_exceeded"
    OUTPUT_LIMIT_EXCEEDED = "output_limit_exceeded"
    OUTPUT_INVALID = "output_invalid"
    PIPELINE_INVALID = "pipeline_invalid"
    PIPELINE_STEP_FAILED = "pipeline_step_failed"
    BUDGET_EXCEEDED = "budget_exceeded"
    BUNDLE_MALFORMED = "bundle_malformed"
    BUNDLE_TOO_LARGE = "bundle_too_large"
    BUNDLE_FILES_MISMATCH = "bundle_files_mismatch"
    SIGNATURE_INVALID = "signature_invalid"
    SIGNATURE_THRESHOLD = "signature_threshold"
    DOMAIN_MISMATCH = "domain_mismatch"
    PUBLISHER_UNKNOWN = "publisher_unknown"
    PUBLISHER_NOT_ALLOWED = "publisher_not_allowed"
    MANIFEST_INVALID = "manifest_invalid"
    SCHEMA_NOT_ADMITTED = "schema_not_admitted"
    API_VERSION_INCOMPATIBLE = "api_version_incompatible"
    VERSION_NOT_RAISED = "version_not_raised"
    ALREADY_REGISTERED = "already_registered"
    CAPABILITY_NOT_GRANTED = "capability_not_granted"
    CAPABILITY_REFUSED = "capability_refused"
    LIMIT_NOT_ALLOWED = "limit_not_allowed"
    MODULE_NOT_ALLOWED = "module_not_allowed"
    APPROVAL_REQUIRED = "approval_required"
    APPROVAL_MISMATCH = "approval_mismatch"
    UPGRADE_WITHDRAWN = "upgrade_withdrawn"
    CONFORMANCE_REQUIRED = "conformance_required"
    TRUST_INVALID = "trust_invalid"
    TRUST_VERSION_NOT_RAISED = "trust_version_not_raised"
    SEQ_UNKNOWN = "seq_unknown"
    EVENTS_ARCHIVED = "events_archived"
    SIZE_UNKNOWN = "size_unknown"
    MACHINE_UNSUPPORTED = "machine_unsupported"
    CONFIG_INVALID = "config_invalid"
    HOME_INVALID = "home_invalid"
    KEY_UNREADABLE = "key_unreadable"
    SOCKET_IN_USE = "socket_in_use"
    LEDGER_LOCKED = "ledger_locked"
    LEDGER_DAMAGED = "ledger_damaged"
    LEDGER_TRUNCATED = "ledger_truncated"
    LEDGER_UNWRITABLE = "ledger_unwritable"
    INTERNAL_ERROR = "internal_error"


class RefusalInfo(NamedTuple):
    """What a person needs to know about one code."""

    title: str
    reason: str
    remedy: str
    retryable: bool
    blame: Blame


REFUSALS: Final[dict[RefusalCode, RefusalInfo]] = {
    code: RefusalInfo(*PAGES[code.value]) for code in RefusalCode
}
"""Every code with its explanation, in the order of the documentation."""

assert len(PAGES) == len(RefusalCode), "a page without a code cannot be reached"
