"""The published Ed25519 suite against the stand-alone verifier's own arithmetic and libsodium."""

from __future__ import annotations

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


def test_wycheproof_agrees_with_both_verifiers():
    """Every published signature is accepted or refused as its authors say, by both."""
    script = load_script()
    suite = json.loads((vectors("ed25519-wycheproof") / "ed25519_test.json").read_text())
    count = 0
    for group in suite["testGroups"]:
        public_key = bytes.fromhex(group["publicKey"]["pk"])
        for case in group["tests"]:
            arguments = public_key, bytes.fromhex(case["msg"]), bytes.fromhex(case["sig"])
            wanted = case["result"] == "valid"
            assert accepts(script.check_signature, script.WrongError, *arguments) == wanted, case
            assert accepts(check_signature, ProofError, *arguments) == wanted, case
            count += 1
    assert count == suite["numberOfTests"]


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
def test_points_of_small_order_are_refused_by_both(point, high_bit):
    """A key or commitment of small order never verifies, whatever the message."""
    script = load_script()
    point = point[:31] + bytes([point[31] | high_bit])
    _, secret = nacl.bindings.crypto_sign_seed_keypair(bytes(32))
    good = nacl.bindings.crypto_sign(b"message", secret)[:64]
    public_key = secret[32:]
    raised = (int.from_bytes(good[32:], "little") + ORDER).to_bytes(32, "little")
    assert accepts(script.check_signature, script.WrongError, public_key, b"message", good)
    for key, signature in (
        (point, point + bytes(32)), (point, good), (public_key, point + good[32:]),
        (public_key, good[:32] + raised),
    ):
        for message in (b"", b"message"):
            assert not accepts(script.check_signature, script.WrongError, key, message, signature)
            assert not accepts(check_signature, ProofError, key, message, signature)
