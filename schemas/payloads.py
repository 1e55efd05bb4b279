"""The four things OMEGA and a plugin may hand each other (specification, section 9; INV-PNP-04).

Rules this file keeps: there is no untyped payload. Text and JSON travel by value; artifacts and
datasets only by reference. JSON is carried as its RFC 8785 bytes. Media types are a closed list,
and those a viewer might execute are marked active.

It leaves the check of JSON bytes to `schemas.canonical` and the sizes to the receiver.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

from schemas.names import (
    ArtifactId,
    Count,
    DatasetKey,
    PayloadKind,
    SchemaId,
    Sha256,
)

TextMediaType = Literal[
    "text/plain", "text/markdown", "text/csv", "text/tab-separated-values", "text/html",
    "text/x-python", "application/toml", "application/yaml", "application/xml",
]
MediaType = Literal[
    "text/plain", "text/markdown", "text/csv", "text/tab-separated-values", "text/html",
    "text/x-python", "application/toml", "application/yaml", "application/xml",
    "application/json", "application/x-ndjson", "application/octet-stream", "application/pdf",
    "application/zip", "application/gzip", "application/x-elf", "application/wasm",
    "application/vnd.apache.parquet", "image/png", "image/jpeg", "image/gif", "image/webp",
    "image/svg+xml", "audio/wav", "audio/flac", "audio/mpeg", "video/mp4",
]

ACTIVE_MEDIA_TYPES: Final[frozenset[str]] = frozenset(
    {"text/html", "image/svg+xml", "application/xml", "application/pdf", "application/wasm",
     "application/x-elf"}
)
"""Media types that a careless viewer might execute; shown to people with a mark."""


class TextPayload(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="text"
):
    """A text by value; `text` is at most `text_bytes_max` bytes in UTF-8."""

    text: str
    media_type: TextMediaType = "text/plain"


class JSONPayload(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="json"
):
    """A JSON document as its RFC 8785 bytes; `schema` names the JSON Schema it claims to fit."""

    data: bytes
    schema: SchemaId | None = None


class BinaryRefPayload(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="binary_ref"
):
    """A reference to an artifact that OMEGA already has; never its bytes. `size` is in bytes."""

    artifact_id: ArtifactId
    sha256: Sha256
    size: Count
    media_type: MediaType


class DatasetSlicePayload(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="dataset_slice"
):
    """Keys of a dataset that OMEGA has; keys only, at most 10,000."""

    dataset_id: ArtifactId
    keys: Annotated[tuple[DatasetKey, ...], msgspec.Meta(max_length=10_000)]


Payload = TextPayload | JSONPayload | BinaryRefPayload | DatasetSlicePayload

PAYLOAD_KINDS: Final[dict[type[Payload], PayloadKind]] = {
    TextPayload: "text",
    JSONPayload: "json",
    BinaryRefPayload: "binary_ref",
    DatasetSlicePayload: "dataset_slice",
}


def _prefixed(*fields: bytes) -> bytes:
    """Join byte fields, each behind its length as eight big-endian bytes."""
    parts: list[bytes] = []
    for field in fields:
        parts.append(len(field).to_bytes(8, "big"))
        parts.append(field)
    return b"".join(parts)


_JSON_BEGIN: Final = _prefixed(b"json")


def preimage(payload: Payload) -> bytes:
    """Give the one byte string that stands for a payload in digests and commitments.

    It is the payload's type and its fields in declared order, each behind its length as eight
    big-endian bytes; numbers as ASCII decimals, JSON as its RFC 8785 bytes, each dataset key as a
    field of its own.
    An absent `schema` is an empty field.

    Args:
        payload: a payload whose JSON has been checked.

    Returns:
        The bytes to hash.

    Source: docs/WIRE.md, section "Commitments".
    """
    if isinstance(payload, JSONPayload):
        data, schema = payload.data, (payload.schema or "").encode()
        return b"".join((
            _JSON_BEGIN, len(data).to_bytes(8, "big"), data, len(schema).to_bytes(8, "big"), schema,
        ))
    if isinstance(payload, TextPayload):
        return _prefixed(b"text", payload.text.encode(), payload.media_type.encode())
    if isinstance(payload, BinaryRefPayload):
        return _prefixed(
            b"binary_ref", payload.artifact_id.encode(), payload.sha256.encode(),
            str(payload.size).encode(), payload.media_type.encode(),
        )
    return _prefixed(
        b"dataset_slice", payload.dataset_id.encode(), *(key.encode() for key in payload.keys)
    )
