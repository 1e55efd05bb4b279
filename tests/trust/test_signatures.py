"""DSSE envelopes: what verifies, what counts, and what is refused."""

from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trust.errors import TrustRefused
from broker.trust.signatures import (
    add_signatures,
    key_id,
    sign_envelope,
    signature_holds,
    verify_envelope,
)
from schemas.manifest import PAYLOAD_TYPES, pre_authentication_encoding
from schemas.refusals import RefusalCode
from schemas.trust import TRUST_PAYLOAD_TYPES
from tests.trust.builders import SEED_A, SEED_B, SEED_C, identifier, public
from tests.vectors import vectors

KIND = PAYLOAD_TYPES["development"]
PAYLOAD = b'{"publisher":"acme"}'
A, B, C = public(SEED_A), public(SEED_B), public(SEED_C)


def envelope(*seeds: bytes, payload: bytes = PAYLOAD, kind: str = KIND) -> dict:
    """A signed envelope as plain values."""
    return json.loads(sign_envelope(payload, kind, seeds))


def written(document: dict) -> bytes:
    """The canonical bytes of an envelope."""
    return msgspec.json.encode(document, order="sorted")


def refusal(data: bytes, keys=(A,), threshold: int = 1, kind: str = KIND) -> RefusalCode:
    """The code with which an envelope is refused."""
    with pytest.raises(TrustRefused) as refused:
        verify_envelope(data, payload_type=kind, keys=keys, threshold=threshold)
    return refused.value.code


def test_the_signed_bytes_come_back_with_the_keys_that_signed():
    """A good envelope gives the exact payload and the ids of the listed keys, each once."""
    data = sign_envelope(PAYLOAD, KIND, [SEED_B, SEED_A])
    verified = verify_envelope(data, payload_type=KIND, keys=(A, B, C), threshold=2)
    assert verified.payload == PAYLOAD
    assert verified.key_ids == tuple(sorted((identifier(SEED_A), identifier(SEED_B))))


def test_pre_authentication_encoding_is_that_of_the_specification():
    """The bytes that are signed are those of DSSE's own example."""
    encoded = pre_authentication_encoding("http://example.com/HelloWorld", b"hello world")
    assert encoded == b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"


def test_one_key_counts_once_whatever_its_keyid_says():
    """Two signatures of one key under two names reach no threshold of two."""
    document = envelope(SEED_A)
    twin = {**document["signatures"][0], "keyid": identifier(SEED_B)}
    document["signatures"].append(twin)
    assert refusal(written(document), (A, B), 2) is RefusalCode.SIGNATURE_THRESHOLD


def test_a_key_listed_twice_counts_once():
    """Naming a key twice among the keys does not make one signature two."""
    assert refusal(written(envelope(SEED_A)), (A, A), 2) is RefusalCode.SIGNATURE_THRESHOLD


def test_a_keyid_is_only_a_hint():
    """A signature holds under a wrong or empty keyid, and a right keyid holds nothing."""
    for name in ("", identifier(SEED_B), "anything"):
        document = envelope(SEED_A)
        document["signatures"][0]["keyid"] = name
        verify_envelope(written(document), payload_type=KIND, keys=(A,), threshold=1)
    forged = envelope(SEED_B)
    forged["signatures"][0]["keyid"] = identifier(SEED_A)
    assert refusal(written(forged)) is RefusalCode.SIGNATURE_INVALID


def test_foreign_signatures_count_for_nothing_and_hinder_nothing():
    """A signature by an unknown key neither adds to the count nor spoils it."""
    data = written(envelope(SEED_A, SEED_C))
    assert verify_envelope(
        data, payload_type=KIND, keys=(A, B), threshold=1
    ).key_ids == (identifier(SEED_A),)
    assert refusal(data, (A, B), 2) is RefusalCode.SIGNATURE_THRESHOLD


def test_a_threshold_below_one_is_a_mistake_of_the_caller():
    """Nobody can ask for an envelope to be accepted without signatures."""
    with pytest.raises(ValueError, match="unsigned"):
        verify_envelope(written(envelope(SEED_A)), payload_type=KIND, keys=(A,), threshold=0)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (PAYLOAD_TYPES["production"], RefusalCode.DOMAIN_MISMATCH),
        (TRUST_PAYLOAD_TYPES["development"], RefusalCode.DOMAIN_MISMATCH),
        ("application/json", RefusalCode.SIGNATURE_INVALID),
    ],
)
def test_another_payload_type_is_refused(kind: str, code: RefusalCode):
    """What was signed for another domain or document does not verify, whoever signed it."""
    assert refusal(written(envelope(SEED_A, kind=kind))) is code


def test_a_payload_type_written_over_does_not_verify():
    """Renaming the payload type of a production envelope breaks its signature."""
    document = envelope(SEED_A, kind=PAYLOAD_TYPES["production"])
    document["payloadType"] = KIND
    assert refusal(written(document)) is RefusalCode.SIGNATURE_INVALID


def _spaced(document: dict) -> bytes:
    return json.dumps(document).encode()


def _twice(document: dict) -> bytes:
    return written(document).replace(b'{"payload":', b'{"payload":"","payload":', 1)


def _unpadded(document: dict) -> bytes:
    document["payload"] = base64.b64encode(b"12345").decode().rstrip("=")
    return written(document)


def _loose_bits(document: dict) -> bytes:
    document["payload"] = "MR=="
    return written(document)


def _url_safe(document: dict) -> bytes:
    document["signatures"][0]["sig"] = "-_" * 43 + "=="
    return written(document)


def _unknown_field(document: dict) -> bytes:
    return written({**document, "threshold": 0})


def _no_signatures(document: dict) -> bytes:
    return written({**document, "signatures": []})


@pytest.mark.parametrize(
    "spelling",
    [_spaced, _twice, _unpadded, _loose_bits, _url_safe, _unknown_field, _no_signatures],
)
def test_another_spelling_of_an_envelope_is_malformed(spelling):
    """Spaces, duplicate keys, loose base64 and unknown fields are refused before any signature."""
    assert refusal(spelling(envelope(SEED_A))) is RefusalCode.BUNDLE_MALFORMED


@given(st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_refused_and_nothing_else_is_raised(data: bytes):
    """Whatever the bytes are, the outcome is one refusal."""
    with pytest.raises(TrustRefused):
        verify_envelope(data, payload_type=KIND, keys=(A,), threshold=1)


@pytest.mark.parametrize(
    "point",
    [
        bytes(32),
        bytes([1]) + bytes(31),
        bytes.fromhex("ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f"),
        bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
        bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    ],
)
def test_keys_of_small_order_sign_nothing(point: bytes):
    """A key under which one signature would hold for every message is refused."""
    for signature in (point + bytes(32), bytes([1]) + bytes(63)):
        assert not signature_holds(point, b"anything", signature)


def test_signatures_can_be_added_in_any_order():
    """Adding a second signature gives the same bytes as signing with both keys at once."""
    both = sign_envelope(PAYLOAD, KIND, [SEED_A, SEED_B])
    assert add_signatures(sign_envelope(PAYLOAD, KIND, [SEED_A]), [SEED_B]) == both
    assert add_signatures(sign_envelope(PAYLOAD, KIND, [SEED_B]), [SEED_A]) == both
    assert add_signatures(both, [SEED_A]) == both


def test_the_published_ed25519_vectors_agree():
    """Every case of the published suite verifies or fails as its authors say."""
    suite = json.loads((vectors("ed25519-wycheproof") / "ed25519_test.json").read_text())
    cases = 0
    for group in suite["testGroups"]:
        key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            holds = signature_holds(
                key, bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            )
            assert holds == (case["result"] == "valid"), case["tcId"]
            cases += 1
    assert cases == suite["numberOfTests"] >= 150


def test_a_key_is_named_by_its_digest():
    """The id is the first 16 hex digits of the SHA-256 of the raw key."""
    assert key_id(bytes(32)) == "66687aadf862bd77"
