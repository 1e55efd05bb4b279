"""Published and made Ed25519 cases against both stand-alone verifiers' arithmetic and libsodium.

The rule that all three keep is RFC 8032 without cofactor, and no point of small order or in another
spelling; docs/LEDGER.md, section 6, says why.
"""

from __future__ import annotations

import hashlib
import itertools
import json

import nacl.bindings
import pytest

from broker.ledger.signature import check_signature
from schemas.proof import ProofError
from tests.evidence.conftest import load_script
from tests.vectors import vectors

ORDER = 2**252 + 27742317777372353535851937790883648493


def accepts(check, error: type[Exception], *arguments: bytes) -> bool:
    try:
        check(*arguments)
    except error:
        return False
    return True


SCRIPTS = [load_script("verify_ledger"), load_script("verify_proof")]


def verdict(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether a signature is accepted, by libsodium and by each script alike."""
    arguments = public_key, message, signature
    accepted = accepts(check_signature, ProofError, *arguments)
    for script in SCRIPTS:
        assert accepts(script.check_signature, script.WrongError, *arguments) == accepted, (
            script.__name__, *(one.hex() for one in arguments)
        )
    return accepted


def test_wycheproof_agrees_with_every_verifier():
    """Every published signature is accepted or refused as its authors say, by all three."""
    suite = json.loads((vectors("ed25519-wycheproof") / "ed25519_test.json").read_text())
    count = 0
    for group in suite["testGroups"]:
        public_key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            arguments = public_key, bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            assert verdict(*arguments) == (case["result"] == "valid"), case
            count += 1
    assert count == suite["numberOfTests"]


def test_published_edge_cases_agree_with_every_verifier():
    """Of the published edge cases exactly those pass that our rule lets pass, for all three."""
    found = sorted(vectors(".").glob("*/ed25519vectors.json"))
    if not found:
        pytest.skip("the suite of edge cases is not here")
    refused = {
        "low_order_A", "low_order_R", "non_canonical_A", "non_canonical_R", "low_order_residue"
    }
    for case in json.loads(found[0].read_text()):
        wanted = refused.isdisjoint(case["flags"] or ())
        key, signature = bytes.fromhex(case["key"]), bytes.fromhex(case["sig"])
        assert verdict(key, case["msg"].encode(), signature) == wanted, case


# The eight points of small order, in all spellings that fit into 32 bytes (RFC 7748, section 7, and
# the curve's equation): signatures over them hold for many messages at once.
SMALL_ORDER = [
    bytes(32), b"\x01" + bytes(31),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    (2**255 - 20).to_bytes(32, "little"), (2**255 - 19).to_bytes(32, "little"),
    (2**255 - 18).to_bytes(32, "little"),
]


@pytest.mark.parametrize("high_bit", [0, 128])
@pytest.mark.parametrize("point", SMALL_ORDER)
def test_points_of_small_order_are_refused_by_every_verifier(point, high_bit):
    """A key or commitment of small order never verifies, whatever the message."""
    point = point[:31] + bytes([point[31] | high_bit])
    _, secret = nacl.bindings.crypto_sign_seed_keypair(bytes(32))
    good = nacl.bindings.crypto_sign(b"message", secret)[:64]
    public_key = secret[32:]
    raised = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    assert verdict(public_key, b"message", good)
    for key, signature in (
        (point, point + bytes(32)), (point, good), (public_key, point + good[32:]),
        (public_key, good[:32] + raised),
    ):
        for message in (b"", b"message"):
            assert not verdict(key, message, signature)


# --- Edge cases: every kind of key with every kind of commitment ---

script = SCRIPTS[1]
Point = tuple[int, int, int, int]


def times(scalar: int, point: Point) -> Point:
    """Multiply a point, bit by bit."""
    product = script.NEUTRAL
    while scalar:
        if scalar & 1:
            product = script.add(product, point)
        point, scalar = script.add(point, point), scalar >> 1
    return product


def spelled(point: Point) -> bytes:
    """Write a point in its only spelling."""
    inverse = pow(point[2], script.P - 2, script.P)
    x, y = point[0] * inverse % script.P, point[1] * inverse % script.P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def order_eight() -> Point:
    """Give a point of order eight: twice it has y = 0, four times it y = -1."""
    y = int.from_bytes(SMALL_ORDER[2], "little")
    root = (y * y - 1) * pow(script.D * y * y + 1, script.P - 2, script.P) % script.P
    x = pow(root, (script.P + 3) // 8, script.P)
    if x * x % script.P != root:
        x = x * pow(2, (script.P - 1) // 4, script.P) % script.P
    assert x * x % script.P == root
    return x, y, 1, x * y % script.P


def kinds(secret: int) -> list[tuple[bytes, int, int | None]]:
    """Give points as spelling, discrete logarithm and place of the part of order eight.

    The place is None for another spelling than the canonical one. First come the points of small
    order in all their spellings, then those with a large part and each small one.
    """
    small = [times(place, order_eight()) for place in range(8)]
    points: list[tuple[bytes, int, int | None]] = [
        (spelled(point), 0, place) for place, point in enumerate(small)
    ]
    canonical = {spelling for spelling, _, _ in points}
    points += [
        (spelling, 0, None) for point in SMALL_ORDER for high in (0, 128)
        if (spelling := point[:31] + bytes([point[31] | high])) not in canonical
    ]
    base = times(secret, script.BASE)
    return points + [
        (spelled(script.add(base, point)), secret, place) for place, point in enumerate(small)
    ]


def test_every_kind_of_key_and_commitment_has_one_verdict():
    """All three accept exactly what holds without cofactor and has a large part on both sides."""
    logarithm = [int.from_bytes(hashlib.sha512(name).digest(), "little") % ORDER
                 for name in (b"key", b"commitment")]
    keys, commitments = kinds(logarithm[0]), kinds(logarithm[1])
    assert len(keys) == 8 + 6 + 8
    accepted = 0
    for (key, secret, of_key), (commitment, nonce, of_commitment) in itertools.product(
        keys, commitments
    ):
        digest = hashlib.sha512(commitment + key + b"message").digest()
        challenge = int.from_bytes(digest, "little") % ORDER
        answer = (nonce + challenge * secret) % ORDER
        holds = (
            bool(secret and nonce) and of_key is not None and of_commitment is not None
            and (of_commitment + challenge * of_key) % 8 == 0
        )
        signature = commitment + answer.to_bytes(32, "little")
        assert verdict(key, b"message", signature) == holds, (of_key, of_commitment)
        accepted += holds
    assert accepted
