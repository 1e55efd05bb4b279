"""DSSE envelopes with Ed25519: verify exact bytes, count distinct public keys.

Rules this file keeps:
- The envelope has one spelling (its canonical JSON, canonical base64); anything else is refused.
- The payload type is part of the signed bytes and must be the expected one, so that a signature of
  one domain or document verifies nowhere else.
- A key counts once, whatever its keyid says and however often it signed. A keyid is never believed.
- A signature that no listed key made counts for nothing. Keys of small order are refused.
- What is returned is the very byte string that was signed; nobody parses before it verified.

It leaves to the callers which keys to list. Source: DSSE 1.0.2; RFC 8032.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import nacl.exceptions
from nacl.signing import SigningKey, VerifyKey

from broker.trust.errors import TrustRefused, printable
from schemas.canonical import struct_bytes
from schemas.conformance import CONFORMANCE_PAYLOAD_TYPES
from schemas.manifest import PAYLOAD_TYPES, Envelope, Signature, pre_authentication_encoding
from schemas.refusals import RefusalCode
from schemas.trust import TRUST_PAYLOAD_TYPES

ENVELOPE_BYTES_MAX: Final = 2 * 1024 * 1024 + 16 * 1024
"""Largest envelope: the bound of its payload text and some room for signatures."""

_DOMAINS: Final = frozenset(
    {*PAYLOAD_TYPES.values(), *TRUST_PAYLOAD_TYPES.values(), *CONFORMANCE_PAYLOAD_TYPES.values()}
)
_decoder: Final = msgspec.json.Decoder(Envelope)


class Verified(NamedTuple):
    """Signed bytes and who signed them: key ids of distinct listed keys, in sorted order."""

    payload: bytes
    key_ids: tuple[str, ...]


def key_id(public_key: bytes) -> str:
    """Name a raw public key: the first 16 hex digits of its SHA-256."""
    return hashlib.sha256(public_key).hexdigest()[:16]


def read_envelope(data: bytes) -> Envelope:
    """Decode an envelope in its one spelling, without verifying anything.

    Raises:
        TrustRefused: `bundle_malformed`, the bytes are not an envelope.
    """
    if len(data) > ENVELOPE_BYTES_MAX:
        raise TrustRefused(
            RefusalCode.BUNDLE_TOO_LARGE,
            f"the envelope has {len(data)} bytes, allowed are {ENVELOPE_BYTES_MAX}",
        )
    try:
        envelope = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED, f"not a DSSE envelope: {printable(str(error))}"
        ) from None
    if struct_bytes(envelope) != data:
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED, "the envelope is not in its canonical JSON form"
        )
    return envelope


def decode_base64(text: str, where: str) -> bytes:
    """Decode standard base64 in its one spelling.

    Raises:
        TrustRefused: `bundle_malformed`, another spelling.
    """
    try:
        data = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError):
        data = None
    if data is None or base64.b64encode(data).decode() != text:
        raise TrustRefused(
            RefusalCode.BUNDLE_MALFORMED, "not canonical base64", where=where
        )
    return data


def signature_holds(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Say whether an Ed25519 signature is of this message and key (RFC 8032, section 5.1.7)."""
    try:
        VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError):
        return False
    return True


def verify_envelope(
    envelope: bytes, *, payload_type: str, keys: Sequence[bytes], threshold: int
) -> Verified:
    """Verify a DSSE envelope and give back the bytes that were signed.

    Args:
        envelope: the envelope's bytes.
        payload_type: the one payload type accepted here.
        keys: raw Ed25519 public keys, 32 bytes each, that may sign.
        threshold: how many distinct keys must have signed, at least 1.

    Raises:
        TrustRefused: `bundle_malformed` or `bundle_too_large` (not an envelope), `domain_mismatch`
            or `signature_invalid` (another payload type), `signature_invalid` (no listed key
            signed), `signature_threshold` (too few did).
    """
    if threshold < 1:
        raise ValueError("a threshold below one would accept unsigned bytes")
    document = read_envelope(envelope)
    if document.payloadType != payload_type:
        known = document.payloadType in _DOMAINS
        raise TrustRefused(
            RefusalCode.DOMAIN_MISMATCH if known else RefusalCode.SIGNATURE_INVALID,
            f"signed as {printable(document.payloadType)}, expected {payload_type}",
            where="payloadType",
        )
    payload = decode_base64(document.payload, "payload")
    message = pre_authentication_encoding(payload_type, payload)
    waiting, signed = set(keys), set[bytes]()
    for number, entry in enumerate(document.signatures):
        signature = decode_base64(entry.sig, f"signatures[{number}].sig")
        found = next((k for k in sorted(waiting) if signature_holds(k, message, signature)), None)
        if found is not None:
            signed.add(found)
            waiting.remove(found)
    if len(signed) < threshold:
        code = RefusalCode.SIGNATURE_THRESHOLD if signed else RefusalCode.SIGNATURE_INVALID
        raise TrustRefused(
            code,
            f"{len(signed)} of {len(set(keys))} listed keys signed these bytes, "
            f"{threshold} must",
            where="signatures",
        )
    return Verified(payload, tuple(sorted(map(key_id, signed))))


def sign_envelope(payload: bytes, payload_type: str, signing_keys: Sequence[bytes]) -> bytes:
    """Write an envelope in its one spelling, with one signature per key in order of the key ids.

    Args:
        payload: the exact bytes to sign.
        payload_type: what they are, and of which domain.
        signing_keys: Ed25519 seeds, 32 bytes each, at least one.
    """
    message = pre_authentication_encoding(payload_type, payload)
    signatures = {
        key_id(bytes(key.verify_key)): key.sign(message).signature
        for key in map(SigningKey, signing_keys)
    }
    return _write(payload, payload_type, [
        Signature(keyid=name, sig=base64.b64encode(signatures[name]).decode())
        for name in sorted(signatures)
    ])


def add_signatures(envelope: bytes, signing_keys: Sequence[bytes]) -> bytes:
    """Sign an envelope's payload with further keys; signatures of the same key are replaced.

    Raises:
        TrustRefused: the bytes are not an envelope.
    """
    document = read_envelope(envelope)
    payload = decode_base64(document.payload, "payload")
    new = _decoder.decode(sign_envelope(payload, document.payloadType, signing_keys)).signatures
    replaced = {entry.keyid for entry in new}
    kept = [entry for entry in document.signatures if entry.keyid not in replaced]
    return _write(
        payload, document.payloadType, sorted([*kept, *new], key=lambda entry: entry.keyid)
    )


def _write(payload: bytes, payload_type: str, signatures: Sequence[Signature]) -> bytes:
    if not signatures:
        raise ValueError("an envelope has at least one signature")
    return struct_bytes(
        Envelope(
            payload=base64.b64encode(payload).decode(),
            payloadType=payload_type,
            signatures=tuple(signatures),
        )
    )
