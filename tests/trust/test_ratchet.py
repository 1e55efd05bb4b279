"""What an upgrade changes: which way each change goes, and one digest for all of them."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from broker.trust.ratchet import Change, difference, read_difference
from schemas.canonical import canonical_bytes
from schemas.manifest import Limits, Method, PayloadSpec, PluginManifest
from tests.trust.builders import SCHEMA, SCHEMA_ID, manifest

TIGHT = canonical_bytes({
    "type": "object", "properties": {"words": {"type": "integer", "maximum": 9}},
})
TIGHT_ID = "sha256:" + hashlib.sha256(TIGHT).hexdigest()
TEXT = PayloadSpec("text")
JSON = PayloadSpec("json", SCHEMA_ID)
NARROW = PayloadSpec("json", TIGHT_ID)
LIMITS = Limits(cpu_ms=100, wall_ms=200, memory_mb=65, output_bytes=100, concurrency=2)
BASE: dict[str, object] = {
    "capabilities": ("clock.read",), "limits": LIMITS, "modules": ("json",), "resources": ("a",),
    "methods": {"count": Method(TEXT, JSON)},
    "schemas": {SCHEMA_ID: msgspec.Raw(SCHEMA), TIGHT_ID: msgspec.Raw(TIGHT)},
}


def signed(version: str, **changes: object) -> bytes:
    """Write the signed bytes of a version."""
    found: PluginManifest = msgspec.structs.replace(
        manifest({"plugin.py": b""}), version=version, **{**BASE, **changes}
    )
    return canonical_bytes(msgspec.json.decode(msgspec.json.encode(found)))


def changes(**later: object) -> tuple[Change, ...]:
    """Give the changes of a version to the base."""
    return difference(signed("1.0.0"), signed("1.1.0", **later)).changes


def counted(**fields: object) -> dict[str, Method]:
    """The one method with other fields."""
    return {"count": msgspec.structs.replace(Method(TEXT, JSON), **fields)}


CASES: dict[str, tuple[dict[str, object], Change]] = {
    "a capability more": (
        {"capabilities": ("clock.read", "random.read")},
        Change("$.capabilities", "wider", None, "random.read")),
    "a capability less": (
        {"capabilities": ()}, Change("$.capabilities", "narrower", "clock.read", None)),
    "a module more": ({"modules": ("json", "re")}, Change("$.modules", "wider", None, "re")),
    "a resource more": (
        {"resources": ("a", "b")}, Change("$.resources", "other", None, "b")),
    "a method more": (
        {"methods": {**counted(), "sum": Method(TEXT, TEXT)}},
        Change("$.methods.sum", "wider", None, "added")),
    "a longer time-out": (
        {"methods": counted(timeout_ms=40_000)},
        Change("$.methods.count.timeout_ms", "wider", 30_000, 40_000)),
    "determinism promised": (
        {"methods": counted(deterministic=True)},
        Change("$.methods.count.deterministic", "narrower", False, True)),
    "repetition allowed": (
        {"methods": counted(idempotent=True)},
        Change("$.methods.count.idempotent", "wider", False, True)),
    "a file handed in": (
        {"methods": counted(files={"list": "corpus/list"})},
        Change("$.methods.count.files.list", "wider", None, "corpus/list")),
    "a narrower schema": (
        {"methods": counted(output=NARROW)},
        Change("$.methods.count.output.schema", "narrower", SCHEMA_ID, TIGHT_ID,
               "$.properties.words.maximum")),
    "another kind": (
        {"methods": counted(input=JSON)},
        Change("$.methods.count.input.kind", "changed", "text", "json")),
    "one media type only": (
        {"methods": counted(input=PayloadSpec("text", media_types=("text/plain",)))},
        Change("$.methods.count.input.media_types", "narrower", "any", "text/plain")),
    "another description": (
        {"description": "new"},
        Change("$.description", "other", manifest({"plugin.py": b""}).description, "new")),
}


@pytest.mark.parametrize("name", CASES)
def test_each_change_is_told_with_its_direction(name: str):
    """Wider and incomparable changes widen the whole; all others do not."""
    later, expected = CASES[name]
    found = difference(signed("1.0.0"), signed("1.1.0", **later))
    assert found.changes == (expected,)
    assert found.widens == (expected.change in ("wider", "changed"))


@pytest.mark.parametrize("field", Limits.__struct_fields__)
def test_each_limit_widens_upwards_only(field: str):
    """Every limit of the manifest is compared by itself, with both figures."""
    value = getattr(LIMITS, field)
    for after, kind in ((value + 1, "wider"), (value - 1, "narrower")):
        later = msgspec.structs.replace(LIMITS, **{field: after})
        assert changes(limits=later) == (Change(f"$.limits.{field}", kind, value, after),)


def test_a_version_that_changes_nothing_has_a_difference_of_its_own():
    """The digest is for exactly two manifests: the same changes elsewhere have another."""
    first, second = (difference(signed("1.0.0"), signed(to)) for to in ("1.1.0", "1.2.0"))
    assert first.changes == second.changes == ()
    assert not first.widens
    assert first.digest() != second.digest()
    assert first.digest() == hashlib.sha256(first.document()).hexdigest()
    assert read_difference(first.document()) == first


def test_without_the_earlier_manifest_everything_is_new():
    """A version whose bundle is damaged grants nothing to the one after it."""
    found = difference(None, signed("1.1.0"))
    assert found.before is None
    assert found.widens
    told = {one.where for one in found.changes if one.change == "wider"}
    assert told >= {"$.capabilities", "$.limits.cpu_ms", "$.methods.count", "$.modules"}
