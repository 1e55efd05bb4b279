"""The shapes that names, ids, digests and numbers may have, everywhere in the gateway.

Rules this file keeps: every text that crosses a boundary has a pattern and a length; every number a
bound. A pattern ends in `$(?!\\n)` because Python's `$` alone also matches before a last newline.
The sizes are those of the design card; a configured limit may be lower, never higher.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

API_VERSION: Final = "1.0.0"
"""OMEGA_PLUGIN_API_VERSION: the contract between this gateway and a plugin (INV-PNP-09)."""

FRAME_BYTES_MAX_OMEGA: Final = 2 * 1024 * 1024
FRAME_BYTES_MAX_ADMIN: Final = 16 * 1024 * 1024
READ_BYTES_MAX: Final = 64 * 1024
"""The largest frame of a key that may only read."""
FRAME_BYTES_MAX_WORKER: Final = 2 * 1024 * 1024
JSON_BYTES_MAX: Final = 256 * 1024
JSON_SLOW_BYTES_MAX: Final = 64 * 1024
JSON_DEPTH_MAX: Final = 32
TEXT_BYTES_MAX: Final = 1024 * 1024
PLUGIN_MESSAGE_BYTES_MAX: Final = 1024
INTEGER_MAX: Final = 2**53 - 1
"""The largest integer that RFC 8785 spells exactly (RFC 7493, section 2.2)."""

_END: Final = r"$(?!\n)"

RequestId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}" + _END,
        description="A UUIDv4 in lower case; one id names one request in the whole ledger.",
    ),
]
TraceParent = Annotated[
    str,
    Meta(
        pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}" + _END,
        description="W3C trace context; passed through, never interpreted.",
    ),
]
PluginId = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9-]{2,63}" + _END, description="The id of a plugin.")
]
MethodName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9_]{0,63}" + _END, description="The name of a method.")
]
VersionText = Annotated[
    str,
    Meta(
        pattern=r"^[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?" + _END,
        description="One semantic version, without build metadata.",
    ),
]
VersionRequest = Annotated[
    str,
    Meta(
        pattern=r"^(\^[0-9]{1,9}\.[0-9]{1,9}"
        r"|[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}(-[0-9A-Za-z.-]{1,64})?)" + _END,
        description="An exact version, or ^X.Y for the newest compatible enabled one.",
    ),
]
Sha256 = Annotated[
    str, Meta(pattern=r"^[0-9a-f]{64}" + _END, description="A SHA-256 digest in lower-case hex.")
]
KeyId = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{16}" + _END,
        description="The first 16 hex digits of the SHA-256 of a raw public key.",
    ),
]
SchemaId = Annotated[
    str,
    Meta(
        pattern=r"^sha256:[0-9a-f]{64}" + _END,
        description="The content id of a JSON Schema: SHA-256 of its RFC 8785 bytes.",
    ),
]
CapabilityName = Annotated[
    str,
    Meta(
        pattern=r"^(clock\.read|random\.read|artifact\.read|net\.connect|process\.[a-z]{1,16}"
        r"|env\.read:[A-Z][A-Z0-9_]{0,63}|fs\.read:[a-z][a-z0-9-]{0,31})" + _END,
        description="A capability, with its argument after the colon.",
    ),
]
EnvironmentName = Annotated[
    str,
    Meta(pattern=r"^[A-Z][A-Z0-9_]{0,63}" + _END, description="A value that `env.read` names."),
]
RootedPath = Annotated[
    str,
    Meta(
        pattern=r"^[a-z][a-z0-9-]{0,31}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){1,8}" + _END,
        description="A file beneath a named root, ROOT/PATH; it cannot climb.",
    ),
]
StepName = Annotated[
    str, Meta(pattern=r"^[a-z][a-z0-9_-]{0,63}" + _END, description="The name of a pipeline step.")
]
Incarnation = Annotated[
    str,
    Meta(pattern=r"^[0-9a-f]{32}" + _END, description="One life of one worker: 128 random bits."),
]
LogId = Annotated[
    str,
    Meta(
        pattern=r"^omega-gateway/(production|development)/[0-9a-f]{16}" + _END,
        description="The identity of one ledger; the origin line of its checkpoints.",
    ),
]
ArtifactId = Annotated[
    str,
    Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}" + _END, description="An id of OMEGA's."),
]
DatasetKey = Annotated[str, Meta(min_length=1, max_length=256, description="One key of a dataset.")]
Name = Annotated[
    str,
    Meta(pattern=r"^[a-z][a-z0-9-]{0,63}" + _END, description="A publisher, root or key name."),
]
FilePath = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}(/[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}){0,7}" + _END,
        description="A relative path in a bundle; it cannot climb.",
    ),
]
ModuleName = Annotated[
    str,
    Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}(\.[A-Za-z_][A-Za-z0-9_]{0,63}){0,7}" + _END,
        description="A Python module.",
    ),
]
ShortText = Annotated[
    str, Meta(max_length=1024, pattern=r"^[ -~]*" + _END, description="Printable ASCII.")
]
Sentence = Annotated[str, Meta(max_length=4096, description="A sentence for a person.")]
PluginText = Annotated[
    str,
    Meta(
        max_length=PLUGIN_MESSAGE_BYTES_MAX,
        pattern=r"^[^\x00-\x1f\x7f-\x9f]*" + _END,
        description="Printable text that a plugin wrote: a claim, at most 1 KiB.",
    ),
]
Commitment = Annotated[
    str,
    Meta(
        pattern=r"^[0-9a-f]{64}" + _END,
        description="HMAC-SHA256 under the call's commitment key, in lower-case hex.",
    ),
]
CommitmentKey = Annotated[
    bytes, Meta(min_length=32, max_length=32, description="32 random bytes that OMEGA made.")
]

Count = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
Milliseconds = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]
TimeoutMs = Annotated[int, Meta(ge=1, le=3_600_000, description="A relative time in ms.")]
Microseconds = Annotated[int, Meta(ge=0, le=INTEGER_MAX)]

Role = Literal["omega", "operator", "auditor"]
Domain = Literal["production", "development"]
PayloadKind = Literal["text", "json", "binary_ref", "dataset_slice"]
Durability = Literal["power", "process"]
Purpose = Literal["primary", "replica"]
