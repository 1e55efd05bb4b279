"""Signed notes and checkpoints: what is written is read back, other spellings are refused."""

from __future__ import annotations

import nacl.signing
import pytest

from broker.ledger.signature import check_signature
from schemas.proof import (
    Checkpoint,
    ProofError,
    VerifierKey,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    sign_note,
    verify_checkpoint,
    verify_note,
)

LOG_ID = "omega-gateway/development/0123456789abcdef"
SIGNING_KEY = nacl.signing.SigningKey(bytes(range(32)))
KEY = VerifierKey(name=LOG_ID, public_key=bytes(SIGNING_KEY.verify_key))
TEXT = str(Checkpoint(origin=LOG_ID, size=4096, root=bytes(range(32))))


def sign(message: bytes) -> bytes:
    return SIGNING_KEY.sign(message).signature


NOTE = sign_note(TEXT, KEY, sign)


def test_a_published_verifier_key_is_read():
    """The key hash of the signed-note specification's example key comes out as published."""
    text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
    key = parse_verifier_key(text)
    assert key.name == "PeterNeumann"
    assert key.key_hash.hex() == "c74f20a3"
    assert str(key) == text


def test_every_changed_character_of_a_verifier_key_is_refused():
    """No single other character, missing character or added one gives a key."""
    text = str(KEY)
    for at in range(len(text)):
        for other in ("A", "+", " ", "\n", ""):
            changed = text[:at] + other + text[at + 1 :]
            if changed != text:
                with pytest.raises(ProofError):
                    parse_verifier_key(changed)


def test_a_checkpoint_comes_back_as_it_was_written():
    """A signed checkpoint verifies to the same origin, size and root."""
    checkpoint = verify_checkpoint(NOTE, KEY, check_signature)
    assert checkpoint == Checkpoint(origin=LOG_ID, size=4096, root=bytes(range(32)))
    assert str(parse_note(NOTE)) == NOTE


def test_every_changed_character_of_a_note_is_refused():
    """Whatever single character is changed, dropped or doubled, the note does not verify."""
    for at in range(len(NOTE)):
        for changed in (
            NOTE[:at] + chr(ord(NOTE[at]) ^ 1) + NOTE[at + 1 :], NOTE[:at] + NOTE[at + 1 :],
            NOTE[:at] + NOTE[at] + NOTE[at:],
        ):
            if changed != NOTE:
                with pytest.raises(ProofError):
                    verify_checkpoint(changed, KEY, check_signature)


def test_base64_has_one_spelling():
    """Bits that padding leaves unused must be zero, in the root and in the signature."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

    def respelled(text: str) -> str:
        at = text.rindex("=")
        while text[at] == "=":
            at -= 1
        return text[:at] + digits[digits.index(text[at]) + 1] + text[at + 1 :]

    with pytest.raises(ProofError, match="only spelling"):
        parse_note(respelled(NOTE))
    with pytest.raises(ProofError, match="only spelling"):
        parse_checkpoint(respelled(TEXT))


def test_foreign_signatures_are_ignored_and_none_is_an_error():
    """A cosignature beside ours changes nothing; a note that only others signed proves nothing."""
    other = VerifierKey(name="witness.example", public_key=bytes(32))
    foreign = sign_note(TEXT, other, sign)
    both = NOTE + foreign[len(TEXT) + 1 :]
    assert verify_note(both, KEY, check_signature) == TEXT
    with pytest.raises(ProofError, match="no signature"):
        verify_note(foreign, KEY, check_signature)
    with pytest.raises(ProofError, match="two signatures"):
        verify_note(NOTE + NOTE[len(TEXT) + 1 :], KEY, check_signature)


def test_a_checkpoint_of_another_origin_is_refused():
    """A key signs only for the log that bears its name."""
    text = TEXT.replace("0123456789abcdef", "fedcba9876543210")
    with pytest.raises(ProofError, match="signed by"):
        verify_checkpoint(sign_note(text, KEY, sign), KEY, check_signature)


@pytest.mark.parametrize(
    "text",
    [
        "", "\n\n\n", TEXT + "extension\n", TEXT.replace("4096", "04096"),
        TEXT.replace("4096", "-1"), TEXT.replace("4096", "9007199254740992"),
        TEXT.replace("=", ""), TEXT.replace("4096", "4096\r"), "a b\n" + TEXT.partition("\n")[2],
        LOG_ID + "\n1\nAAAA\n",
    ],
)
def test_other_spellings_of_a_checkpoint_are_refused(text):
    """A checkpoint has three lines, a plain number and a root of 32 bytes."""
    with pytest.raises(ProofError):
        parse_checkpoint(text)
