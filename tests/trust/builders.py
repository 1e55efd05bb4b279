"""Real keys, trust roots, manifests and bundles, each with one thing changed on request."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import msgspec
from nacl.signing import SigningKey

from broker.trust.bundles import write_bundle
from broker.trust.signatures import sign_envelope
from broker.trust.validation import Validated, ValidationContext, validate_bundle
from schemas.canonical import canonical_bytes
from schemas.manifest import (
    PAYLOAD_TYPES,
    BundleFile,
    Limits,
    Method,
    PayloadSpec,
    PluginManifest,
)
from schemas.policy import Policy
from schemas.refusals import RefusalCode
from schemas.trust import Publisher, TrustRoot

SEED_A, SEED_B, SEED_C = (bytes([number]) * 32 for number in (0xA1, 0xB2, 0xC3))
NOW_S = 1_790_000_000
SOURCE = b"from sandbox_worker.sdk import Context, TextPayload, method\n"
SCHEMA = canonical_bytes({"type": "object", "properties": {"words": {"type": "integer"}}})
SCHEMA_ID = "sha256:" + hashlib.sha256(SCHEMA).hexdigest()


def public(seed: bytes) -> bytes:
    """The raw public key of a seed."""
    return bytes(SigningKey(seed).verify_key)


def identifier(seed: bytes) -> str:
    """The key id of a seed's public key."""
    return hashlib.sha256(public(seed)).hexdigest()[:16]


def trust_root(**changes: object) -> TrustRoot:
    """A development trust root with one publisher, `acme`, that may publish `word-*`."""
    fields: dict[str, object] = {
        "format": "omega-trust/1",
        "domain": "development",
        "version": 3,
        "roots": (public(SEED_C).hex(),),
        "root_threshold": 1,
        "publishers": {
            "acme": Publisher(keys=(public(SEED_A).hex(),), threshold=1, plugins=("word-*",))
        },
    }
    return TrustRoot(**(fields | changes))


def two_key_root(threshold: int = 2) -> TrustRoot:
    """As `trust_root`, but two keys belong to the publisher."""
    keys = (public(SEED_A).hex(), public(SEED_B).hex())
    return trust_root(
        publishers={"acme": Publisher(keys=keys, threshold=threshold, plugins=("word-*",))}
    )


def context(**changes: object) -> ValidationContext:
    """What a development gateway knows that has never registered anything."""
    fields: dict[str, object] = {
        "domain": "development",
        "trust": trust_root(),
        "policy": Policy(),
        "granted": {},
        "highest_version": lambda _plugin: None,
        "known_bundles": frozenset(),
        "now_s": NOW_S,
    }
    return ValidationContext(**(fields | changes))


def manifest(files: dict[str, bytes] | None = None, **changes: object) -> PluginManifest:
    """A manifest that a development gateway accepts, with some fields changed."""
    files = {"plugin.py": SOURCE} if files is None else files
    fields: dict[str, object] = {
        "format": "omega-manifest/1",
        "id": "word-count",
        "version": "1.2.3",
        "api_version": "1.0.0",
        "domain": "development",
        "publisher": "acme",
        "description": "Counts words.",
        "entry": "plugin.py",
        "methods": {
            "count": Method(PayloadSpec("text"), PayloadSpec("json", SCHEMA_ID), True)
        },
        "schemas": {SCHEMA_ID: msgspec.Raw(SCHEMA)},
        "capabilities": (),
        "limits": Limits(1000, 2000, 128, 65_536, 4),
        "modules": ("re",),
        "resources": (),
        "files": tuple(
            BundleFile(path, len(data), hashlib.sha256(data).hexdigest())
            for path, data in sorted(files.items())
        ),
    }
    return PluginManifest(**(fields | changes))


def manifest_bytes(value: PluginManifest) -> bytes:
    """The bytes to sign."""
    return msgspec.json.encode(value, order="sorted")


def bundle(
    value: PluginManifest | None = None,
    *,
    files: dict[str, bytes] | None = None,
    seeds: Sequence[bytes] = (SEED_A,),
    payload_type: str = PAYLOAD_TYPES["development"],
    payload: bytes | None = None,
    envelope: Callable[[bytes], bytes] = lambda signed: signed,
) -> bytes:
    """A signed bundle. `payload` replaces the signed bytes, `envelope` changes what was signed."""
    files = {"plugin.py": SOURCE} if files is None else files
    payload = manifest_bytes(value or manifest(files)) if payload is None else payload
    return write_bundle(files, envelope(sign_envelope(payload, payload_type, seeds)))


def problems(data: bytes, known: ValidationContext | None = None) -> list[tuple[str, str]]:
    """Code and place of every problem a bundle has."""
    found = validate_bundle(data, known or context())
    return [(problem.code.value, problem.where) for problem in found.problems]


def accepted(data: bytes, known: ValidationContext | None = None) -> Validated:
    """The outcome for a bundle that must have no problem."""
    found = validate_bundle(data, known or context())
    assert found.problems == ()
    return found


def code(value: RefusalCode) -> str:
    """The word of a code, for tables."""
    return value.value
