"""Checking Ed25519 signatures with libsodium; used by the writer, by verifiers and by clients."""

from __future__ import annotations

import nacl.exceptions
import nacl.signing

from schemas.proof import ProofError


def check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Check an Ed25519 signature.

    Args:
        public_key: 32 bytes.
        message: what was signed.
        signature: 64 bytes.

    Raises:
        ProofError: it is not this key's signature over this message.
    """
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise ProofError("the signature is wrong") from None
