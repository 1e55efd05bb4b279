"""The validator: one row per reason, and all reasons at once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import msgspec
import pytest

from broker.trust.errors import TrustRefused
from broker.trust.signatures import key_id
from broker.trust.validation import ValidationContext, load_registered, validate_bundle
from schemas.canonical import canonical_bytes
from schemas.manifest import PAYLOAD_TYPES, SOURCE_BYTES_MAX, Limits, Method, PayloadSpec
from schemas.policy import GrantRule, LimitMaxima, Policy
from schemas.refusals import RefusalCode
from schemas.trust import Publisher
from tests.trust.builders import (
    NOW_S,
    SCHEMA,
    SCHEMA_ID,
    SEED_A,
    SEED_B,
    SOURCE,
    accepted,
    bundle,
    context,
    identifier,
    manifest,
    manifest_bytes,
    problems,
    public,
    trust_root,
    two_key_root,
)

SCHEMA_OTHER = canonical_bytes({"type": "string", "pattern": "(?=a)"})
OTHER_ID = "sha256:" + hashlib.sha256(SCHEMA_OTHER).hexdigest()
MANY = {
    "sha256:" + hashlib.sha256(data).hexdigest(): msgspec.Raw(data)
    for data in (canonical_bytes({"description": f"{number}" * 60_000}) for number in range(5))
}
JSON = PayloadSpec("json", SCHEMA_ID)
TEXT = PayloadSpec("text")

Case = tuple[Callable[[], bytes], Callable[[], ValidationContext], list[tuple[str, str]]]


def _methods(**specs: Method) -> dict[str, Method]:
    return {"count": Method(TEXT, JSON), **specs}


def _replaced(**members: object) -> bytes:
    """A manifest's bytes with some members put in by hand; None takes one out."""
    document = json.loads(manifest_bytes(manifest())) | members
    return canonical_bytes({key: part for key, part in document.items() if part is not None})


CASES: dict[str, Case] = {
    "an accepted bundle": (bundle, context, []),
    "signed by enough of two": (
        lambda: bundle(seeds=(SEED_A, SEED_B)), lambda: context(trust=two_key_root()), []
    ),
    "bytes that are no archive": (lambda: b"hello", context, [("bundle_malformed", "")]),
    "too many bytes": (lambda: bytes(9_000_000), context, [("bundle_too_large", "")]),
    "signed by somebody else": (
        lambda: bundle(seeds=(SEED_B,)), context, [("signature_invalid", "signatures")]
    ),
    "signed by one of two": (
        bundle, lambda: context(trust=two_key_root()), [("signature_threshold", "signatures")]
    ),
    "signed with a revoked key": (
        bundle, lambda: context(trust=trust_root(revoked_keys=(identifier(SEED_A),))),
        [("signature_invalid", "signatures")],
    ),
    "signed with a key that a request took back": (
        bundle, lambda: context(revoked_keys={identifier(SEED_A)}),
        [("signature_invalid", "signatures")],
    ),
    "a development bundle at a production home": (
        bundle, lambda: context(domain="production", trust=trust_root(domain="production")),
        [("domain_mismatch", "payloadType")],
    ),
    "a production bundle at a development home": (
        lambda: bundle(manifest(domain="production"), payload_type=PAYLOAD_TYPES["production"]),
        context, [("domain_mismatch", "payloadType")],
    ),
    "a manifest of one domain signed for another": (
        lambda: bundle(manifest(domain="production")), context, [("domain_mismatch", "$.domain")]
    ),
    "a publisher nobody knows": (
        lambda: bundle(manifest(publisher="nobody")), context,
        [("publisher_unknown", "$.publisher")],
    ),
    "a publisher's id it may not use": (
        lambda: bundle(manifest(id="image-size")), context, [("publisher_not_allowed", "$.id")]
    ),
    "a publisher whose time is over": (
        bundle,
        lambda: context(trust=trust_root(publishers={"acme": Publisher(
            keys=(public(SEED_A).hex(),), threshold=1, plugins=("*",), valid_until_s=NOW_S,
        )})),
        [("publisher_not_allowed", "$.publisher")],
    ),
    "an unlisted file": (
        lambda: bundle(manifest(), files={"plugin.py": SOURCE, "extra.py": b"x"}), context,
        [("bundle_files_mismatch", "extra.py")],
    ),
    "a listed file that is not there": (
        lambda: bundle(manifest({"plugin.py": SOURCE, "extra.py": b"x"})), context,
        [("bundle_files_mismatch", "extra.py")],
    ),
    "a file of another size": (
        lambda: bundle(manifest(), files={"plugin.py": SOURCE + b" "}), context,
        [("bundle_files_mismatch", "plugin.py")],
    ),
    "a file of another content": (
        lambda: bundle(manifest(), files={"plugin.py": SOURCE[:-1] + b" "}), context,
        [("bundle_files_mismatch", "plugin.py")],
    ),
    "no source": (
        lambda: bundle(manifest({"other.py": b"x"}), files={"other.py": b"x"}), context,
        [("bundle_files_mismatch", "plugin.py")],
    ),
    "a source too long to compile": (
        lambda: bundle(files={"plugin.py": b"#" * (SOURCE_BYTES_MAX + 1)}), context,
        [("bundle_too_large", "plugin.py")],
    ),
    "the unsigned manifest beside the signed one": (
        lambda: bundle(manifest(), files={"plugin.py": SOURCE, "manifest.json": b"{}"}), context,
        [("bundle_files_mismatch", "manifest.json")],
    ),
    "a resource that is no file": (
        lambda: bundle(manifest(resources=("data.csv",))), context,
        [("manifest_invalid", "$.resources[0]")],
    ),
    "a version that is not higher": (
        bundle, lambda: context(highest_version=lambda _plugin: "1.2.3"),
        [("version_not_raised", "$.version")],
    ),
    "a version with a leading zero": (
        lambda: bundle(manifest(version="01.2.3")), context, [("manifest_invalid", "$.version")]
    ),
    "the same bundle again": (
        bundle,
        lambda: context(
            known_bundles={hashlib.sha256(bundle()).hexdigest()},
            highest_version=lambda _plugin: "1.2.3",
        ),
        [("already_registered", "$.version")],
    ),
    "built for a newer API": (
        lambda: bundle(manifest(api_version="1.1.0")), context,
        [("api_version_incompatible", "$.api_version")],
    ),
    "built for an older API": (
        bundle, lambda: context(api_version="2.0.0"),
        [("api_version_incompatible", "$.api_version")],
    ),
    "a schema under a wrong name": (
        lambda: bundle(manifest(schemas={"sha256:" + "0" * 64: msgspec.Raw(SCHEMA)})), context,
        [("manifest_invalid", "$.schemas.sha256:" + "0" * 64)],
    ),
    "a schema outside the subset": (
        lambda: bundle(manifest(
            methods=_methods(more=Method(PayloadSpec("json", OTHER_ID), TEXT)),
            schemas={SCHEMA_ID: msgspec.Raw(SCHEMA), OTHER_ID: msgspec.Raw(SCHEMA_OTHER)},
        )), context, [("schema_not_admitted", f"$.schemas.{OTHER_ID}.pattern")],
    ),
    "more schemas than may be weighed in one go": (
        lambda: bundle(manifest(schemas={SCHEMA_ID: msgspec.Raw(SCHEMA)} | MANY)), context,
        [("schema_not_admitted", "$.schemas")],
    ),
    "a schema that no method uses": (
        lambda: bundle(manifest(methods={"count": Method(TEXT, TEXT)})), context,
        [("manifest_invalid", f"$.schemas.{SCHEMA_ID}")],
    ),
    "JSON without a schema": (
        lambda: bundle(manifest(methods=_methods(more=Method(PayloadSpec("json"), JSON)))),
        context, [("manifest_invalid", "$.methods.more.input.schema")],
    ),
    "a text with a schema": (
        lambda: bundle(manifest(methods=_methods(
            more=Method(PayloadSpec("text", SCHEMA_ID), JSON)
        ))),
        context, [("manifest_invalid", "$.methods.more.input.schema")],
    ),
    "a method whose schema is not there": (
        lambda: bundle(manifest(schemas={})), context,
        [("manifest_invalid", "$.methods.count.output.schema")],
    ),
    "a text that is an image": (
        lambda: bundle(manifest(methods=_methods(
            more=Method(PayloadSpec("text", None, ("text/plain", "image/png")), JSON)
        ))),
        context, [("manifest_invalid", "$.methods.more.input.media_types[1]")],
    ),
    "a deterministic method with a clock": (
        lambda: bundle(manifest(capabilities=("clock.read",))),
        lambda: context(granted={"word-count": ["clock.read"]}),
        [("manifest_invalid", "$.methods.count.deterministic")],
    ),
    "a capability that is not granted": (
        lambda: bundle(manifest(capabilities=("artifact.read",))), context,
        [("capability_not_granted", "$.capabilities[0]")],
    ),
    "a capability that is granted": (
        lambda: bundle(manifest(capabilities=("artifact.read",))),
        lambda: context(granted={"word-count": ["artifact.read"]}), [],
    ),
    "the network, though granted": (
        lambda: bundle(manifest(capabilities=("net.connect",))),
        lambda: context(granted={"word-count": ["net.connect"]}),
        [("capability_refused", "$.capabilities[0]")],
    ),
    "a file of a root that is not asked for": (
        lambda: bundle(manifest(methods=_methods(
            more=Method(PayloadSpec("text"), JSON, files={"words": "corpus/en/words.txt"})
        ))), context, [("manifest_invalid", "$.methods.more.files.words")],
    ),
    "a file of a granted root": (
        lambda: bundle(manifest(capabilities=("fs.read:corpus",), methods=_methods(
            more=Method(PayloadSpec("text"), JSON, files={"words": "corpus/en/words.txt"})
        ))),
        lambda: context(policy=Policy(
            grants={"word-*": GrantRule(("fs.read:corpus",))}, roots={"corpus": "/srv"},
        )), [],
    ),
    "a value that the policy does not hold": (
        lambda: bundle(manifest(capabilities=("env.read:LANG",))),
        lambda: context(granted={"word-count": ["env.read:LANG"]}),
        [("capability_not_granted", "$.capabilities[0]")],
    ),
    "a capability twice": (
        lambda: bundle(manifest(capabilities=("artifact.read", "artifact.read"))),
        lambda: context(granted={"word-count": ["artifact.read"]}),
        [("manifest_invalid", "$.capabilities")],
    ),
    "a limit above the policy": (
        bundle, lambda: context(policy=Policy(limits=LimitMaxima(cpu_ms_max=999))),
        [("limit_not_allowed", "$.limits.cpu_ms")],
    ),
    "a module nobody approved": (
        lambda: bundle(manifest(modules=("re", "socket"))), context,
        [("module_not_allowed", "$.modules[1]")],
    ),
    "a conformance report is wanted": (
        bundle, lambda: context(policy=Policy(conformance_required=True)),
        [("conformance_required", "conformance")],
    ),
    "signed bytes that are no JSON": (
        lambda: bundle(payload=b"hello"), context, [("manifest_invalid", "$")]
    ),
    "an unknown field": (
        lambda: bundle(payload=_replaced(colour="red")), context,
        [("manifest_invalid", "$.colour")],
    ),
    "a missing field": (
        lambda: bundle(payload=_replaced(limits=None)), context,
        [("manifest_invalid", "$.limits")],
    ),
    "a limit out of bounds": (
        lambda: bundle(manifest(limits=Limits(1, 2000, 128, 65_536, 4))), context,
        [("manifest_invalid", "$.limits.cpu_ms")],
    ),
    "an id in capitals": (
        lambda: bundle(manifest(id="Word-Count")), context, [("manifest_invalid", "$.id")]
    ),
    "a field twice": (
        lambda: bundle(payload=manifest_bytes(manifest()).replace(
            b'{"api_version"', b'{"api_version":"9.9.9","api_version"', 1
        )), context, [("manifest_invalid", "$")],
    ),
    "a default written out": (
        lambda: bundle(payload=manifest_bytes(manifest()).replace(
            b'"input":', b'"idempotent":false,"input":'
        )), context, [("manifest_invalid", "$")],
    ),
    "spaces": (
        lambda: bundle(payload=b" " + manifest_bytes(manifest())), context,
        [("manifest_invalid", "$")],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_reason_has_its_code_and_place(name: str):
    """A bundle with one fault has exactly that problem, with where it lies."""
    data, known, expected = CASES[name]
    assert problems(data(), known()) == expected


def test_every_registration_code_has_a_row():
    """The table above misses no refusal code that a bundle can meet."""
    met = {code for _, _, expected in CASES.values() for code, _ in expected}
    assert met >= {
        "bundle_malformed", "bundle_too_large", "bundle_files_mismatch", "signature_invalid",
        "signature_threshold", "domain_mismatch", "publisher_unknown", "publisher_not_allowed",
        "manifest_invalid", "schema_not_admitted", "api_version_incompatible",
        "version_not_raised", "already_registered", "capability_not_granted",
        "capability_refused", "limit_not_allowed", "module_not_allowed", "conformance_required",
    }


def test_an_accepted_bundle_gives_everything_that_was_established():
    """Manifest, digests and signers of an accepted bundle are those of its bytes."""
    data = bundle()
    found = accepted(data)
    assert found.manifest is not None
    assert found.manifest.id == "word-count"
    assert found.bundle_sha256 == hashlib.sha256(data).hexdigest()
    assert found.manifest_sha256 == hashlib.sha256(manifest_bytes(manifest())).hexdigest()
    assert found.signing_keys == (key_id(public(SEED_A)),)
    assert found.bundle is not None
    assert found.bundle.files == {"plugin.py": SOURCE}


def test_all_problems_come_at_once():
    """Faults of meaning in different places are all told, each with found, expected and remedy."""
    data = bundle(
        manifest(
            id="image-size", api_version="2.0.0", capabilities=("net.connect", "artifact.read"),
            modules=("socket",), resources=("gone.csv",),
        ),
        files={"plugin.py": SOURCE, "extra.txt": b""},
    )
    found = validate_bundle(data, context(highest_version=lambda _plugin: "5.0.0"))
    assert {problem.code.value for problem in found.problems} == {
        "publisher_not_allowed", "api_version_incompatible", "version_not_raised",
        "bundle_files_mismatch", "manifest_invalid", "capability_refused",
        "capability_not_granted", "module_not_allowed",
    }
    assert found.manifest is not None
    for problem in found.problems:
        assert problem.where
        assert problem.found
        assert problem.remedy


def test_all_mistakes_of_form_come_at_once():
    """Fields of wrong types, bounds and names are all told, also inside methods and files."""
    payload = _replaced(
        id="X", limits={"cpu_ms": "fast", "wall_ms": 1, "memory_mb": 128, "output_bytes": 1},
        methods={"Count": {"input": {"kind": "file"}, "output": {"kind": "text"}},
                 "more": {"input": {"kind": "text"}}},
        files=[{"path": "../x", "size": -1, "sha256": "0"}], colour="red", version=3,
        schemas={"nothing": {}},
    )
    places = [where for _, where in problems(bundle(payload=payload))]
    assert set(places) == {
        "$.colour", "$.id", "$.version", "$.limits.cpu_ms", "$.limits.wall_ms",
        "$.limits.concurrency", "$.methods", "$.methods.Count.input.kind",
        "$.methods.more.output", "$.files[0].path", "$.files[0].size", "$.files[0].sha256",
        "$.schemas",
    }


def test_the_line_of_policy_to_add_is_in_the_remedy():
    """What an operator could allow is told as the line that allows it."""
    data = bundle(manifest(capabilities=("artifact.read",), modules=("numpy",)))
    remedies = [one.remedy for one in validate_bundle(data, context()).problems]
    assert remedies == [
        'Add to policy.toml: [grants."word-count"] capabilities = ["artifact.read"]',
        'Add to policy.toml: [modules.allowed] "word-count" = ["numpy"]',
    ]


def test_what_a_manifest_says_cannot_reach_a_terminal():
    """Escape sequences in a manifest are not part of what is printed."""
    payload = _replaced(id="\x1b[31mred", description=["\u202e"])
    for problem in validate_bundle(bundle(payload=payload), context()).problems:
        for text in (problem.where, problem.found, problem.expected, problem.remedy):
            assert text.isascii()
            assert text.isprintable() or not text


def test_a_registered_bundle_is_read_again():
    """The same bytes under the same digests come back at start without policy or keys."""
    data = bundle()
    found = accepted(data)
    again = load_registered(data, found.manifest_sha256, found.bundle_sha256, "development")
    assert again.manifest == found.manifest


def test_a_damaged_stored_bundle_is_refused():
    """At start, other bytes, another manifest or another domain are refusals, never answers."""
    data, other = bundle(), bundle(manifest(version="1.2.4"))
    found = accepted(data)
    digest = hashlib.sha256(other).hexdigest()
    for arguments, code in (
        ((other, found.manifest_sha256, found.bundle_sha256), RefusalCode.BUNDLE_MALFORMED),
        ((other, found.manifest_sha256, digest), RefusalCode.SIGNATURE_INVALID),
        ((b"", found.manifest_sha256, found.bundle_sha256), RefusalCode.BUNDLE_MALFORMED),
    ):
        with pytest.raises(TrustRefused) as caught:
            load_registered(*arguments, "development")
        assert caught.value.code is code
    with pytest.raises(TrustRefused) as caught:
        load_registered(data, found.manifest_sha256, found.bundle_sha256, "production")
    assert caught.value.code is RefusalCode.DOMAIN_MISMATCH
