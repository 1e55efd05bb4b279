"""The plugin manifest `omega-manifest/1`: what a plugin is, takes, gives, asks for and is held to.

Rules this file keeps: every field has a type, a unit and a bound; unknown fields are refused; the
signed bytes are the RFC 8785 form of this struct, so one manifest has one spelling. The signature
envelope is DSSE; the domain is part of its payload type.

It leaves to `broker.trust` the checks that need other knowledge: signatures, policy, versions,
schemas.
Source: specification sections 2, 5 (INV-PNP-04, 06, 09) and 9; DSSE 1.0.2, protocol.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.names import (
    CapabilityName,
    Domain,
    FilePath,
    MethodName,
    ModuleName,
    Name,
    PayloadKind,
    PluginId,
    RootedPath,
    SchemaId,
    Sha256,
    TimeoutMs,
    VersionText,
)
from schemas.payloads import MediaType

MANIFEST_FILE: Final = "manifest.dsse.json"
BUNDLE_SUFFIX: Final = ".omegaplugin"
BUNDLE_BYTES_MAX: Final = 8 * 1024 * 1024
"""Largest bundle, in bytes; leaves room for the rest of a frame on front.admin."""
SOURCE_BYTES_MAX: Final = 256 * 1024
"""Largest Python source of a plugin, in bytes: what the compiler is ever given."""
FILES_MAX: Final = 15
"""Files that one method may name; with an artifact they are the descriptors a call can have."""

PAYLOAD_TYPES: Final[dict[Domain, str]] = {
    "production": "application/vnd.omega.plugin-manifest.v1+json",
    "development": "application/vnd.omega.plugin-manifest.v1.development+json",
}
"""The DSSE payload type of each domain: part of the signed bytes, so no signature crosses over."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one call of the plugin is held to; each is enforced and has its own refusal code."""

    cpu_ms: Annotated[int, Meta(ge=10, le=600_000, description="Processor time of one call, ms.")]
    wall_ms: Annotated[int, Meta(ge=10, le=3_600_000, description="Elapsed time of one call, ms.")]
    memory_mb: Annotated[
        int, Meta(ge=64, le=4096, description="Address space of one call process, MiB.")
    ]
    output_bytes: Annotated[int, Meta(ge=1, le=1_048_576, description="Largest output, bytes.")]
    concurrency: Annotated[int, Meta(ge=1, le=64, description="Calls at the same time.")]


class PayloadSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The one payload type a method takes or gives; `schema` is required for JSON and only
    there."""

    kind: PayloadKind
    schema: SchemaId | None = None
    media_types: Annotated[tuple[MediaType, ...], Meta(
        max_length=16, description="Of text and references: which are taken; none means any.")] = ()


class Method(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One method: what it takes and gives and what it promises.

    `files` names files beneath named roots that each call of it is handed.
    """

    input: PayloadSpec
    output: PayloadSpec
    deterministic: bool = False
    timeout_ms: TimeoutMs = 30_000
    idempotent: bool = False
    files: Annotated[dict[Name, RootedPath], Meta(
        max_length=FILES_MAX, description="Files a call is handed, by the name it knows them by.")
    ] = {}


class BundleFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file of the bundle, other than the manifest. `size` is in bytes."""

    path: FilePath
    size: Annotated[int, Meta(ge=0, le=BUNDLE_BYTES_MAX, description="Size of the file, bytes.")]
    sha256: Sha256


class PluginManifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything the gateway knows about a plugin version before it runs.

    `schemas` maps a content id to a JSON Schema, held as its raw bytes. `modules` are imports
    beyond the built-in ones; `resources` are bundle files that the plugin may read by name.
    """

    format: Literal["omega-manifest/1"]
    id: PluginId
    version: VersionText
    api_version: VersionText
    domain: Domain
    publisher: Name
    description: Annotated[str, Meta(max_length=1024, description="What it does, for people.")]
    entry: Literal["plugin.py"]
    methods: Annotated[dict[MethodName, Method], Meta(
        min_length=1, max_length=64, description="What OMEGA may invoke, by name.")]
    schemas: Annotated[dict[SchemaId, msgspec.Raw], Meta(
        max_length=128, description="JSON Schemas of the admitted subset, by content id.")]
    capabilities: Annotated[tuple[CapabilityName, ...], Meta(
        max_length=32, description="What it asks for beyond its input; none is the rule.")]
    limits: Limits
    modules: Annotated[tuple[ModuleName, ...], Meta(
        max_length=64, description="What it imports beyond what is built in.")]
    resources: Annotated[tuple[FilePath, ...], Meta(
        max_length=64, description="Files of the bundle that it reads by name.")]
    files: Annotated[tuple[BundleFile, ...], Meta(
        min_length=1, max_length=256, description="Every file of the bundle but the manifest.")]


class Signature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One DSSE signature; `keyid` is a hint only, `sig` is standard base64."""

    keyid: Annotated[str, Meta(max_length=64)]
    sig: Annotated[str, Meta(max_length=128)]


class Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A DSSE envelope; `payload` is standard base64 of the exact signed bytes."""

    payload: Annotated[str, Meta(max_length=2 * 1024 * 1024)]
    payloadType: Annotated[str, Meta(max_length=128)]  # noqa: N815 - the name DSSE gives it.
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=32)]


def pre_authentication_encoding(payload_type: str, payload: bytes) -> bytes:
    """Give the bytes that a DSSE signature covers.

    Args:
        payload_type: the media type, which names the domain.
        payload: the exact payload bytes.

    Source: DSSE 1.0.2, protocol, PAE.
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
