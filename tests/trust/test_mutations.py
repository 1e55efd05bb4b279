"""Whatever is changed in a signed bundle, nobody accepts it; whatever comes, nothing else happens.

The bytes of a bundle are changed blindly, and its parts are changed by someone who knows the format
and repairs every checksum on the way.
"""

from __future__ import annotations

import json

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trust.bundles import read_archive, write_archive
from broker.trust.errors import TrustRefused
from broker.trust.json_schemas import compile_schema
from broker.trust.validation import validate_bundle
from schemas.canonical import InvalidJson, canonical_bytes
from schemas.manifest import MANIFEST_FILE
from tests.trust.builders import SOURCE, accepted, bundle, context

FILES = {"plugin.py": SOURCE, "data/table.csv": b"a,b\n1,2\n"}
GOOD = bundle(files=FILES)
MEMBERS = read_archive(GOOD)
CONTEXT = context()
MANY = settings(max_examples=300, deadline=None)


def refused(data: bytes) -> None:
    """Check that a bundle has a problem and that nothing is raised."""
    assert validate_bundle(data, CONTEXT).problems, "a changed bundle was accepted"


def test_the_bundle_that_is_changed_below_is_accepted():
    """Without a change there is no problem, so the tests below do not pass by accident."""
    accepted(GOOD)


def test_no_byte_can_be_changed():
    """Every single byte matters: flipping any one refuses the bundle."""
    for position in range(len(GOOD)):
        changed = bytearray(GOOD)
        changed[position] ^= 1 << (position % 8)
        refused(bytes(changed))


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 64), st.binary(max_size=64))
@MANY
def test_no_piece_can_be_replaced(position: int, length: int, piece: bytes):
    """Cutting, inserting and overwriting anywhere refuses the bundle."""
    changed = GOOD[:position] + piece + GOOD[position + length :]
    if changed != GOOD:
        refused(changed)


@given(
    st.dictionaries(
        st.sampled_from(["plugin.py", "data/table.csv", "data/other.csv", "z.py"]),
        st.one_of(st.none(), st.binary(max_size=32)),
        min_size=1,
    )
)
@MANY
def test_no_file_can_be_changed_added_or_taken_away(changes: dict[str, bytes | None]):
    """A well-formed archive with other files is refused although its checksums are right."""
    members = MEMBERS | changes
    members = {name: data for name, data in members.items() if data is not None}
    if members != MEMBERS:
        refused(write_archive(members))


@given(st.data())
@MANY
def test_no_character_of_the_envelope_can_be_changed(data: st.DataObject):
    """Changing payload, payload type or signature in a repaired archive refuses the bundle."""
    envelope = json.loads(MEMBERS[MANIFEST_FILE])
    part = data.draw(st.sampled_from(["payload", "payloadType", "sig"]))
    target = envelope["signatures"][0] if part == "sig" else envelope
    text = target[part]
    position = data.draw(st.integers(0, len(text) - 1))
    character = data.draw(st.characters(codec="utf-8"))
    target[part] = text[:position] + character + text[position + 1 :]
    if target[part] != text:
        changed = msgspec.json.encode(envelope, order="sorted")
        refused(write_archive({**MEMBERS, MANIFEST_FILE: changed}))


@given(st.binary(max_size=600))
@MANY
def test_any_bytes_are_refused(data: bytes):
    """No bytes make the validator raise or accept."""
    refused(data)
    refused(GOOD[:40] + data + GOOD[-60:])


JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-9, 99), st.floats(allow_nan=False), st.text()
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.one_of(
                st.text(max_size=5),
                st.sampled_from(
                    ["type", "$ref", "$defs", "items", "properties", "anyOf", "pattern", "enum",
                     "maxLength", "patternProperties", "not", "$schema", "required"]
                ),
            ),
            inner, max_size=4,
        ),
    ),
    max_leaves=12,
)


@given(JSON, JSON)
@MANY
def test_any_document_is_a_schema_or_a_refusal(schema: object, value: object):
    """No document makes the schema code raise anything but its one refusal."""
    try:
        validator = compile_schema(canonical_bytes(schema))
    except (TrustRefused, InvalidJson):
        return
    problem = validator.problem(value)
    assert problem is None or (problem.isascii() and len(problem) <= 200)


@given(st.dictionaries(st.text(max_size=12), JSON, max_size=5))
@MANY
def test_any_signed_document_is_a_manifest_or_a_refusal(document: dict):
    """Even what a publisher signed cannot make the validator raise."""
    signed = json.loads(MEMBERS[MANIFEST_FILE])
    assert signed
    try:
        payload = canonical_bytes({"publisher": "acme", **document})
    except InvalidJson:
        return
    refused(bundle(files=FILES, payload=payload))
