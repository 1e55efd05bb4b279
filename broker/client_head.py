"""The checkpoint a client accepted last, and the refusal to accept another history.

Rules this file keeps:
- A checkpoint counts when the profile's key signed it, its origin is the profile's log, and it is
  proven to continue the one that was held when the question was asked.
- Two checkpoints of one size have one root. A result's event lies behind every checkpoint accepted
  before the question. Anything else is a fork, and a fork is an exception, never a warning.
- The newest is kept in `head.note`, replaced as a whole.

A profile without a verifier key takes checkpoints on the word of the gateway's CURVE key; that they
continue one another is checked all the same. It leaves the mathematics to `broker.ledger.merkle`.
Source: RFC 6962, section 2.1; C2SP tlog-checkpoint.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import nacl.exceptions
import nacl.signing

from broker.client_errors import GatewayError, LedgerForked
from broker.client_profile import Profile
from broker.ledger.merkle import verify_consistency, verify_inclusion
from schemas.events import line_hash
from schemas.messages import Proof, Receipt
from schemas.profile import HEAD_FILE
from schemas.proof import (
    Checkpoint,
    ProofError,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    verify_checkpoint,
)


class HeadKeeper:
    """The newest accepted checkpoint of one profile."""

    def __init__(self, profile: Profile) -> None:
        """Read the kept checkpoint.

        Raises:
            GatewayError: the kept checkpoint or the profile's verifier key cannot be read.
        """
        self._path = os.path.join(profile.directory, HEAD_FILE)
        self._log_id = profile.settings.log_id
        self.head: Checkpoint | None = None
        try:
            key = profile.settings.verifier_key
            self._key = parse_verifier_key(key) if key is not None else None
            with open(self._path, encoding="utf-8") as file:
                self.head = self._read(file.read(65_536))
        except FileNotFoundError:
            pass
        except (ProofError, UnicodeDecodeError) as error:
            raise GatewayError(f"{self._path}: cannot be used: {error}") from None

    @property
    def known_size(self) -> int:
        """The size to name in a request, so that the answer proves what came since."""
        return self.head.size if self.head is not None else 0

    def check_receipt(
        self, receipt: Receipt, base: Checkpoint | None, *, is_new: bool
    ) -> None:
        """Hold a receipt against what was known when its request was sent.

        Args:
            receipt: the receipt.
            base: the checkpoint held at that time.
            is_new: whether its event was written after the request was.

        Raises:
            LedgerForked: it belongs to another history.
        """
        log_id = base.origin if base is not None else self._log_id
        if log_id is not None and receipt.log_id != log_id:
            raise LedgerForked(f"the answer is of ledger {receipt.log_id}, expected {log_id}")
        if is_new and base is not None and receipt.seq < base.size:
            raise LedgerForked(
                f"a new event has position {receipt.seq}, but {base.size} events were there before"
            )
        if receipt.checkpoint is not None:
            self.accept(receipt.checkpoint, base, receipt.consistency or ())

    def accept(self, note: str, base: Checkpoint | None, hashes: Sequence[str]) -> Checkpoint:
        """Accept a checkpoint that continues `base`, and keep it if it is the newest.

        Raises:
            LedgerForked: its signature, origin or proof does not hold.
        """
        try:
            checkpoint = self._read(note)
            if base is not None and base.size:
                verify_consistency(
                    base.size, checkpoint.size, base.root, checkpoint.root, _raw(hashes)
                )
        except ProofError as error:
            raise LedgerForked(f"a checkpoint was refused: {error}") from None
        self._compare(checkpoint)
        if checkpoint.size > self.known_size or self.head is None:
            self.head = checkpoint
            self._keep(note)
        return checkpoint

    def verify(self, note: str, base: Checkpoint | None) -> Checkpoint:
        """Read the newest checkpoint without accepting it; its signature must hold.

        Args:
            note: the checkpoint.
            base: the checkpoint held when the gateway was asked; the newest cannot be older.

        Raises:
            LedgerForked: the signature does not hold, or it contradicts what was accepted.
        """
        try:
            checkpoint = self._read(note)
        except ProofError as error:
            raise LedgerForked(f"a checkpoint was refused: {error}") from None
        self._compare(checkpoint)
        if base is not None and checkpoint.size < base.size:
            raise LedgerForked(
                f"the newest checkpoint has size {checkpoint.size}, but {base.size} was seen before"
            )
        return checkpoint

    def verify_proof(self, proof: Proof, base: Checkpoint | None) -> None:
        """Check that a proof's line is in the ledger at its place; `base` as for `verify`.

        Raises:
            LedgerForked: it is not.
        """
        checkpoint = self.verify(proof.checkpoint, base)
        try:
            verify_inclusion(
                bytes.fromhex(line_hash(proof.line.encode())),
                proof.seq, checkpoint.size, _raw(proof.hashes), checkpoint.root,
            )
        except ProofError as error:
            raise LedgerForked(f"event {proof.seq} is not proven: {error}") from None

    def _compare(self, checkpoint: Checkpoint) -> None:
        head = self.head
        if head is not None and checkpoint.size == head.size and checkpoint.root != head.root:
            raise LedgerForked(f"two checkpoints of size {head.size} have different roots")

    def _read(self, note: str) -> Checkpoint:
        if self._key is not None:
            checkpoint = verify_checkpoint(note, self._key, _check_signature)
        else:
            checkpoint = parse_checkpoint(parse_note(note).text)
        if self._log_id is not None and checkpoint.origin != self._log_id:
            raise ProofError(f"it is of ledger {checkpoint.origin}, expected {self._log_id}")
        return checkpoint

    def _keep(self, note: str) -> None:
        """Replace `head.note`; a crash leaves the old one or the new one."""
        directory = os.path.dirname(self._path)
        fd, path = tempfile.mkstemp(prefix=".head.", dir=directory)
        with os.fdopen(fd, "w", encoding="utf-8", newline="\n") as file:
            file.write(note)
            file.flush()
            os.fsync(fd)
        os.replace(path, self._path)


def _raw(hashes: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(one) for one in hashes]


def _check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise ProofError("the signature is wrong") from None
