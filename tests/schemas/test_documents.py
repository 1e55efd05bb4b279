"""Manifest, launch document, policy, trust root and profile: strict and bounded documents."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from schemas.canonical import struct_bytes
from schemas.launch import LaunchDocument
from schemas.manifest import (
    PAYLOAD_TYPES,
    Envelope,
    Limits,
    PluginManifest,
    pre_authentication_encoding,
)
from schemas.policy import Policy
from schemas.profile import ClientProfile
from schemas.trust import TRUST_PAYLOAD_TYPES, TrustRoot
from tests.schemas import samples

_LIMITS = {
    "cpu_ms": 1000, "wall_ms": 2000, "memory_mb": 128, "output_bytes": 65536, "concurrency": 2,
}
_KEY = "a" * 40
MANIFEST: dict[str, object] = {
    "format": "omega-manifest/1",
    "id": "word-count",
    "version": "1.2.0",
    "api_version": "1.0.0",
    "domain": "development",
    "publisher": "acme",
    "description": "Counts words",
    "entry": "plugin.py",
    "methods": {
        "count": {
            "input": {"kind": "text"},
            "output": {"kind": "json", "schema": "sha256:" + samples.DIGEST_A},
            "deterministic": True,
        }
    },
    "schemas": {"sha256:" + samples.DIGEST_A: {"type": "object"}},
    "capabilities": [],
    "limits": _LIMITS,
    "modules": ["json"],
    "resources": [],
    "files": [{"path": "plugin.py", "size": 10, "sha256": samples.DIGEST_B}],
}
LAUNCH: dict[str, object] = {
    "format": "omega-launch/1",
    "incarnation": samples.INCARNATION,
    "plugin": "word-count",
    "version": "1.2.0",
    "plugin_digest": samples.DIGEST_A,
    "bundle": "/bundles/x",
    "endpoint": "ipc:///run/x",
    "server_key": _KEY,
    "worker_secret_key": _KEY,
    "limits": _LIMITS,
    "grants": ["env.read:LANG"],
    "expires_at_us": 1_790_000_000_000_000,
    "grant_values": {"env.read:LANG": "C"},
}
TRUST: dict[str, object] = {
    "format": "omega-trust/1",
    "domain": "production",
    "version": 1,
    "roots": [samples.DIGEST_A],
    "root_threshold": 1,
    "publishers": {"acme": {"keys": [samples.DIGEST_B], "threshold": 1, "plugins": ["word-*"]}},
}
POLICY: dict[str, object] = {
    "grants": {"word-*": {"capabilities": ["clock.read"]}},
    "roots": {"corpus": "/srv/corpus"},
    "limits": {"cpu_ms_max": 5},
    "quotas": {"in_flight_max": 5},
    "modules": {"allowed": {"word-*": ["numpy"]}},
}
PROFILE: dict[str, object] = {
    "format": "omega-profile/1",
    "endpoint": "ipc:///run/front",
    "server_key": _KEY,
    "role": "omega",
}
_DOCUMENTS: dict[str, tuple[dict[str, object], type[msgspec.Struct]]] = {
    "manifest": (MANIFEST, PluginManifest),
    "launch": (LAUNCH, LaunchDocument),
    "trust": (TRUST, TrustRoot),
    "policy": (POLICY, Policy),
    "profile": (PROFILE, ClientProfile),
}


def _reads(document: object, kind: type[msgspec.Struct]) -> bool:
    try:
        msgspec.json.decode(json.dumps(document), type=kind)
    except msgspec.ValidationError:
        return False
    return True


@pytest.mark.parametrize("name", sorted(_DOCUMENTS))
def test_the_example_reads(name: str) -> None:
    """A right document is accepted."""
    assert _reads(*_DOCUMENTS[name])


@pytest.mark.parametrize("name", sorted(_DOCUMENTS))
def test_unknown_lines_are_refused_at_every_level(name: str) -> None:
    """No document may hold a field that is not in the contract."""
    document, kind = _DOCUMENTS[name]
    assert not _reads(document | {"news": 1}, kind)
    for key, value in document.items():
        if isinstance(value, dict) and key in {"limits", "quotas", "modules"}:
            assert not _reads(document | {key: value | {"news": 1}}, kind), key


@pytest.mark.parametrize("name", ["manifest", "launch", "trust", "profile"])
def test_a_document_says_which_format_it_is(name: str) -> None:
    """A document without its format line, or with another one, is refused."""
    document, kind = _DOCUMENTS[name]
    assert not _reads(document | {"format": "omega-manifest/2"}, kind)
    assert not _reads({k: v for k, v in document.items() if k != "format"}, kind)


_WRONG_MANIFESTS: dict[str, dict[str, object]] = {
    "another entry": {"entry": "other.py"},
    "a climbing file": {"files": [{"path": "../x", "size": 1, "sha256": samples.DIGEST_A}]},
    "an absolute file": {"files": [{"path": "/x", "size": 1, "sha256": samples.DIGEST_A}]},
    "no file": {"files": []},
    "no method": {"methods": {}},
    "a dunder method": {"methods": {"__init__": {"input": {"kind": "text"},
                                                 "output": {"kind": "text"}}}},
    **{f"a method's file {name}": {"methods": {"count": {
        "input": {"kind": "text"}, "output": {"kind": "text"}, "files": files,
    }}} for name, files in {
        "that climbs": {"words": "corpus/../secret"}, "that is absolute": {"words": "/etc/passwd"},
        "without a root": {"words": "words.txt"}, "of no name": {"": "corpus/words.txt"},
        "of a hidden folder": {"words": "corpus/.ssh/id"},
        "too many": {f"f{number}": "corpus/words.txt" for number in range(16)},
    }.items()},
    "an untyped method": {"methods": {"count": {}}},
    "a fifth payload kind": {"methods": {"count": {"input": {"kind": "any"},
                                                   "output": {"kind": "text"}}}},
    "an unknown capability": {"capabilities": ["fs.write:x"]},
    "no memory limit": {"limits": {k: v for k, v in _LIMITS.items() if k != "memory_mb"}},
    "too much memory": {"limits": _LIMITS | {"memory_mb": 4097}},
    "a range for a version": {"api_version": ">=1.0"},
    "another domain": {"domain": "test"},
}


@pytest.mark.parametrize("name", sorted(_WRONG_MANIFESTS))
def test_wrong_manifests_are_refused(name: str) -> None:
    """Each of these is refused by its type alone."""
    assert not _reads(MANIFEST | _WRONG_MANIFESTS[name], PluginManifest)


def test_a_manifest_has_one_spelling() -> None:
    """Reading a manifest and writing it gives the bytes again, JSON Schemas included."""
    from schemas.canonical import canonical_bytes

    data = canonical_bytes(MANIFEST)
    manifest = msgspec.json.decode(data, type=PluginManifest)

    assert struct_bytes(manifest) == data


def test_limits_are_all_required() -> None:
    """Every limit is named by the manifest: there is no default for what a plugin may use."""
    assert all(field.required for field in msgspec.structs.fields(Limits))


def test_pre_authentication_encoding_is_that_of_dsse() -> None:
    """The signed bytes are those of the DSSE protocol's own example."""
    signed = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")

    assert signed == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_no_signature_crosses_domains() -> None:
    """Manifests and trust roots of the two domains have four different signed types."""
    kinds = [*PAYLOAD_TYPES.values(), *TRUST_PAYLOAD_TYPES.values()]

    assert len(set(kinds)) == 4
    assert len({pre_authentication_encoding(kind, b"{}") for kind in kinds}) == 4


def test_an_envelope_needs_a_signature() -> None:
    """An envelope without signatures is not read at all."""
    envelope = {"payload": "e30=", "payloadType": "x", "signatures": []}
    assert not _reads(envelope, Envelope)
    assert _reads(envelope | {"signatures": [{"keyid": "", "sig": "AA=="}]}, Envelope)


def test_everything_absent_from_a_policy_is_refused() -> None:
    """An empty policy grants nothing, opens no root and allows no further module."""
    policy = msgspec.json.decode(b"{}", type=Policy)

    assert (policy.grants, policy.roots, policy.modules.allowed) == ({}, {}, {})


# --- docs/manifest.schema.json
# ----------------------------------------------------------------


def _published() -> dict[str, object]:
    path = Path(__file__).parents[2] / "docs" / "manifest.schema.json"
    document = json.loads(path.read_text("utf-8"))
    assert isinstance(document, dict)
    return document


def test_the_published_manifest_schema_agrees_with_the_decoder() -> None:
    """docs/manifest.schema.json takes the example and refuses each wrong manifest of this file."""
    import jsonschema_rs

    validator = jsonschema_rs.validator_for(_published())

    assert validator.is_valid(MANIFEST)
    assert not validator.is_valid(MANIFEST | {"news": 1})
    for name, changes in _WRONG_MANIFESTS.items():
        assert not validator.is_valid(MANIFEST | changes), name
    for name in MANIFEST:
        assert not validator.is_valid({k: v for k, v in MANIFEST.items() if k != name}), name


def test_every_field_of_a_manifest_has_a_bound_and_says_what_it_is() -> None:
    """Whoever writes a manifest by the published schema finds each field's unit and bound."""
    definitions = _published()["$defs"]
    assert isinstance(definitions, dict)
    bounds = {"string": "pattern maxLength", "integer": "maximum", "array": "maxItems",
              "object": "maxProperties"}
    asked = 0
    for kind, definition in definitions.items():
        assert definition["additionalProperties"] is False
        for name, field in definition["properties"].items():
            leaves = [field, *field.get("anyOf", ()), field.get("items", {}),
                      field.get("propertyNames", {})]
            for leaf in leaves:
                if leaf.get("type") in bounds:
                    words = bounds[leaf["type"]].split()
                    assert any(word in leaf for word in words), f"{kind}.{name}"
                    assert leaf["description"], f"{kind}.{name}"
                    asked += 1
    assert asked > 25
