"""Makers of real signed bundles and trust roots, for tests that need them in memory."""

from __future__ import annotations

import hashlib

from nacl.signing import SigningKey

from broker.trust.bundles import write_bundle
from broker.trust.signatures import key_id, sign_envelope
from schemas.canonical import canonical_bytes
from schemas.manifest import PAYLOAD_TYPES
from schemas.names import Domain
from schemas.trust import Publisher, TrustRoot

PUBLISHER_SEED = bytes(range(32))
ROOT_SEED = bytes(range(32, 64))


def public_hex(seed: bytes) -> str:
    """Give the raw public key of an Ed25519 seed, in hex."""
    return bytes(SigningKey(seed).verify_key).hex()


def public_key_id(seed: bytes) -> str:
    """Give the key id of an Ed25519 seed's public key."""
    return key_id(bytes(SigningKey(seed).verify_key))


def trust_root(domain: Domain = "development", version: int = 1) -> TrustRoot:
    """Make a trust root with the publisher `house`, who may publish anything."""
    return TrustRoot(
        format="omega-trust/1",
        domain=domain,
        version=version,
        roots=(public_hex(ROOT_SEED),),
        root_threshold=1,
        publishers={
            "house": Publisher(keys=(public_hex(PUBLISHER_SEED),), threshold=1, plugins=("*",))
        },
    )


def manifest(
    plugin: str,
    version: str,
    files: dict[str, bytes],
    *,
    domain: Domain = "development",
    concurrency: int = 4,
    schema: dict[str, object] | None = None,
    capabilities: tuple[str, ...] = (),
    modules: tuple[str, ...] = (),
    publisher: str = "house",
) -> bytes:
    """Write a manifest with a JSON method `work`, a text method `read` and a keys method `pick`."""
    schema = schema if schema is not None else {
        "type": "object",
        "properties": {"value": {"type": "integer"}},
        "required": ["value"],
    }
    schema_id = "sha256:" + hashlib.sha256(canonical_bytes(schema)).hexdigest()
    json_spec = {"kind": "json", "schema": schema_id}
    return canonical_bytes({
        "format": "omega-manifest/1",
        "id": plugin,
        "version": version,
        "api_version": "1.0.0",
        "domain": domain,
        "publisher": publisher,
        "description": "Answers with what it was given.",
        "entry": "plugin.py",
        "methods": {
            "pick": {"input": {"kind": "dataset_slice"}, "output": {"kind": "dataset_slice"}},
            "read": {"input": {"kind": "text"}, "output": json_spec, "idempotent": True},
            "work": {"input": json_spec, "output": json_spec, "deterministic": True,
                     "timeout_ms": 2000},
        },
        "schemas": {schema_id: schema},
        "capabilities": list(capabilities),
        "limits": {"cpu_ms": 1000, "wall_ms": 2000, "memory_mb": 256, "output_bytes": 65536,
                   "concurrency": concurrency},
        "modules": list(modules),
        "resources": [],
        "files": [
            {"path": path, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
            for path, data in sorted(files.items())
        ],
    })


def signed_bundle(
    plugin: str, version: str, *, domain: Domain = "development", concurrency: int = 4,
    source: bytes = b"from sandbox_worker.sdk import method\n", seed: bytes = PUBLISHER_SEED,
    capabilities: tuple[str, ...] = (), schema: dict[str, object] | None = None,
    modules: tuple[str, ...] = (), publisher: str = "house",
) -> bytes:
    """Pack and sign one plugin version."""
    files = {"plugin.py": source}
    payload = manifest(plugin, version, files, domain=domain, concurrency=concurrency,
                       capabilities=capabilities, schema=schema, modules=modules,
                       publisher=publisher)
    return write_bundle(files, sign_envelope(payload, PAYLOAD_TYPES[domain], [seed]))
