"""Which conformance reports count for a bundle, and what is said of those that do not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import jsonschema_rs
import msgspec
import pytest

from broker.policy import load_policy, policy_digest
from broker.trust.conformance import is_required, sign_report
from broker.trust.signatures import sign_envelope
from broker.trust.validation import ValidationContext, validate_bundle
from schemas.canonical import struct_bytes
from schemas.conformance import (
    CONFORMANCE_PAYLOAD_TYPES,
    RULES,
    ConformanceReport,
    Counts,
    RuleResult,
    suite_digest,
)
from schemas.manifest import PAYLOAD_TYPES
from schemas.policy import Policy
from tests.trust.builders import SEED_A, SEED_B, bundle, context, identifier, public, trust_root

BUNDLE = bundle()
WANTED = Policy(conformance_required=("word-*",))


def report(**changes: object) -> ConformanceReport:
    """A report that counts for `BUNDLE`, with some fields changed."""
    fields: dict[str, object] = {
        "format": "omega-conformance/v1",
        "domain": "development",
        "suite_sha256": suite_digest(),
        "bundle_sha256": hashlib.sha256(BUNDLE).hexdigest(),
        "plugin": "word-count",
        "version": "1.2.3",
        "gateway_version": "0.0.0",
        "rules": tuple(RuleResult(rule=number, verdict="held", calls=1) for number in RULES),
        "counts": Counts(20, 18, 2, 1, 2, 3000, 40),
    }
    return ConformanceReport(**(fields | changes))


def known(**changes: object) -> ValidationContext:
    """A gateway that wants a report, and whose trust root gives B the role."""
    root = trust_root(conformance_keys=(public(SEED_B).hex(),), **changes)
    return context(trust=root, policy=WANTED)


def refusals(envelope: bytes | None, where: ValidationContext | None = None) -> list[str]:
    """What is found wrong, each with its remedy."""
    found = validate_bundle(BUNDLE, where or known(), envelope)
    assert {one.code.value for one in found.problems} <= {"conformance_required"}
    return [f"{one.found}; {one.remedy}" for one in found.problems]


def broken(number: str) -> tuple[RuleResult, ...]:
    """Every rule, one of them broken."""
    return tuple(
        RuleResult(rule=rule, verdict="broken" if rule == number else "held", calls=1)
        for rule in RULES
    )


def test_a_report_of_a_conformance_key_counts():
    """The version may be registered, and what was established is ready to be ledgered."""
    signed = sign_report(report(), [SEED_B])
    found = validate_bundle(BUNDLE, known(), signed)
    assert found.problems == ()
    assert found.conformed is not None
    assert found.conformed.sha256 == hashlib.sha256(struct_bytes(report())).hexdigest()
    assert found.conformed.keys == (identifier(SEED_B),)


def test_the_published_schema_agrees_with_the_decoder():
    """docs/conformance.schema.json takes a report, and none with a field more or less."""
    path = Path(__file__).parents[2] / "docs" / "conformance.schema.json"
    validator = jsonschema_rs.validator_for(json.loads(path.read_text("utf-8")))
    document = msgspec.to_builtins(report())
    assert validator.is_valid(document)
    assert not validator.is_valid(document | {"news": 1})
    for name in document:
        assert not validator.is_valid({k: v for k, v in document.items() if k != name}), name


NOT_COUNTING: dict[str, tuple[Callable[[], bytes | None], str]] = {
    "none": (lambda: None, "wants a signed conformance report; Run omega-plugin conform"),
    "another bundle": (
        lambda: sign_report(report(bundle_sha256="0" * 64), [SEED_B]), "of another bundle, 0000"),
    "a publisher's key": (
        lambda: sign_report(report(), [SEED_A]), "not signed by a conformance key: 0 of 1"),
    "an old suite": (
        lambda: sign_report(report(suite_sha256="1" * 64), [SEED_B]), "of another suite, 1111"),
    "a broken rule": (
        lambda: sign_report(report(rules=broken("CON-11")), [SEED_B]), "broke CON-11"),
    "a rule left out": (
        lambda: sign_report(report(rules=broken("")[1:]), [SEED_B]), "every rule of the suite"),
    "nothing answered": (
        lambda: sign_report(report(counts=Counts(1, 0, 1, 0, 0, 0, 0)), [SEED_B]),
        "no answered call"),
    "the other domain": (
        lambda: sign_report(report(domain="production"), [SEED_B]),
        "signed as application/vnd.omega.conformance-report.v1+json"),
    "the other domain inside": (
        lambda: sign_envelope(struct_bytes(report(domain="production")),
                              CONFORMANCE_PAYLOAD_TYPES["development"], [SEED_B]),
        "of the production domain"),
    "a manifest's payload type": (
        lambda: sign_envelope(struct_bytes(report()), PAYLOAD_TYPES["development"], [SEED_B]),
        "signed as application/vnd.omega.plugin-manifest"),
    "another spelling": (
        lambda: sign_envelope(msgspec.json.encode(report()) + b" ",
                              CONFORMANCE_PAYLOAD_TYPES["development"], [SEED_B]),
        "not in its canonical form"),
    "something else": (
        lambda: sign_envelope(b"[]", CONFORMANCE_PAYLOAD_TYPES["development"], [SEED_B]),
        "not a report"),
    "an unsigned report": (lambda: struct_bytes(report()), "not a DSSE envelope"),
}


@pytest.mark.parametrize("name", NOT_COUNTING)
def test_a_report_that_does_not_count_is_one_refusal_with_what_to_do(name: str):
    """Each way to come without a report that counts has its own sentence."""
    make, words = NOT_COUNTING[name]
    found = refusals(make())
    assert len(found) == 1
    assert words in found[0]
    assert "omega-plugin conform" in found[0]


def test_a_report_is_checked_where_none_is_wanted():
    """What is handed over must hold: a wrong report is refused under any policy."""
    root = trust_root(conformance_keys=(public(SEED_B).hex(),))
    assert refusals(sign_report(report(), [SEED_A]), context(trust=root)) != []
    assert refusals(sign_report(report(), [SEED_B]), context(trust=root)) == []


def test_a_key_that_was_taken_back_signs_for_nothing():
    """Neither one that the root revokes nor one that was revoked by request."""
    signed = sign_report(report(), [SEED_B])
    assert refusals(signed) == []
    assert refusals(signed, known(revoked_keys=(identifier(SEED_B),))) != []
    by_request = context(
        trust=known().trust, policy=WANTED, revoked_keys=frozenset({identifier(SEED_B)})
    )
    assert refusals(signed, by_request) != []


@pytest.mark.parametrize(("line", "plugins"), [
    ("", ()), ("conformance_required = false", ()),
    ("conformance_required = true", ("word-count", "image-size")),
    ('conformance_required = ["word-*"]', ("word-count",)),
])
def test_policy_says_which_plugins_need_one(line: str, plugins: tuple[str, ...]):
    """For all, for none, or by glob; what was written before reads as before."""
    policy = load_policy(line.encode())
    wanted = [name for name in ("word-count", "image-size") if is_required(name, policy)]
    assert wanted == list(plugins)
    assert (policy_digest(policy) == policy_digest(Policy())) == (not plugins)
