"""Payloads: one byte string stands for each, and two payloads never share one."""

from __future__ import annotations

import hashlib
import hmac
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.payloads import (
    ACTIVE_MEDIA_TYPES,
    PAYLOAD_KINDS,
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    MediaType,
    Payload,
    TextMediaType,
    TextPayload,
    preimage,
)
from tests.schemas import golden_files, samples

_digests = st.text("0123456789abcdef", min_size=64, max_size=64)
_words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,9}", fullmatch=True)
_payloads = st.one_of(
    st.builds(TextPayload, st.text(max_size=8), st.sampled_from(TextMediaType.__args__)),
    st.builds(
        JSONPayload, st.sampled_from([b"{}", b"1", b'"x"']),
        st.none() | _digests.map(lambda digest: "sha256:" + digest),
    ),
    st.builds(
        BinaryRefPayload, _words, _digests, st.integers(0, 99),
        st.sampled_from(MediaType.__args__),
    ),
    st.builds(DatasetSlicePayload, _words, st.lists(_words, max_size=3).map(tuple)),
)


def _fields_of(data: bytes) -> list[bytes]:
    """Take a preimage apart again, as a reader in another language would."""
    fields = []
    while data:
        length = int.from_bytes(data[:8], "big")
        assert len(data) >= 8 + length
        fields.append(data[8 : 8 + length])
        data = data[8 + length :]
    return fields


@given(_payloads, _payloads)
def test_different_payloads_have_different_preimages(one: Payload, other: Payload) -> None:
    """Two payloads have one preimage only if they are the same payload."""
    assert (preimage(one) == preimage(other)) == (one == other)


@given(_payloads)
def test_a_preimage_is_the_type_and_the_fields_in_order(payload: Payload) -> None:
    """A preimage takes apart into the type's word and then the fields in declared order."""
    fields = _fields_of(preimage(payload))

    assert fields[0].decode() == PAYLOAD_KINDS[type(payload)]
    values = [getattr(payload, name) for name in payload.__struct_fields__]
    flat = [
        item for value in values for item in (value if isinstance(value, tuple) else (value,))
    ]
    wanted = [
        item if isinstance(item, bytes) else "" if item is None else str(item) for item in flat
    ]
    assert fields[1:] == [w if isinstance(w, bytes) else w.encode() for w in wanted]


def test_the_kinds_are_the_tags() -> None:
    """The word of a kind is the tag on the wire, and the four of the specification are all."""
    assert {kind.__struct_config__.tag: kind for kind in PAYLOAD_KINDS} == {
        "text": TextPayload, "json": JSONPayload, "binary_ref": BinaryRefPayload,
        "dataset_slice": DatasetSlicePayload,
    }


def test_golden_preimages() -> None:
    """The preimages in the golden file are those of the payloads beside them."""
    rows = json.loads((golden_files.FOLDER / "preimages.json").read_text("utf-8"))
    examples: list[Payload] = [*samples.PAYLOADS, JSONPayload(b"{}", None)]

    assert [row["preimage"] for row in rows] == [preimage(e).hex() for e in examples]


def test_a_commitment_needs_its_key_and_its_label() -> None:
    """The same payload under another key or label gives another commitment."""
    data = preimage(samples.TEXT)
    keys = (samples.COMMITMENT_KEY, bytes(32))
    commitments = {
        hmac.new(key, label + b"\x00" + data, hashlib.sha256).hexdigest()
        for key in keys
        for label in (b"input", b"output", b"progress")
    }

    assert len(commitments) == 6


def test_active_media_types_are_in_the_list() -> None:
    """What is marked active can be named at all, and the two the design names are marked."""
    assert set(MediaType.__args__) >= ACTIVE_MEDIA_TYPES >= {"text/html", "image/svg+xml"}
    assert set(TextMediaType.__args__) < set(MediaType.__args__)


@pytest.mark.parametrize(
    "wrong",
    [
        {"type": "text", "text": b"bytes"},
        {"type": "text", "text": "x", "media_type": "text/unheard-of"},
        {"type": "json", "data": "text"},
        {"type": "json", "data": b"{}", "schema": "sha256:short"},
        {"type": "binary_ref", "artifact_id": "../x", "sha256": "a" * 64, "size": 1,
         "media_type": "image/png"},
        {"type": "binary_ref", "artifact_id": "x", "sha256": "a" * 64, "size": 1,
         "media_type": "image/png", "data": b"bytes are never carried"},
        {"type": "dataset_slice", "dataset_id": "x", "keys": ["k"] * 10_001},
        {"type": "dataset_slice", "dataset_id": "x", "keys": [""]},
        {"type": "any", "value": 1},
        {"text": "x"},
    ],
)
def test_nothing_else_is_a_payload(wrong: dict[str, object]) -> None:
    """There is no untyped payload, and references carry no bytes."""
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(wrong), type=Payload)
