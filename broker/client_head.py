"""The checkpoint a client accepted last, and the refusal to accept another history.

Rules this file keeps:
- A checkpoint counts when the profile's key signed it, its origin is the profile's log, and it is
  proven to continue the one that was held when the question was asked.
- Two checkpoints of one size have one root. A receipt's event lies behind every event that was
  seen before the question. Anything else is a fork, and a fork is an exception, never a warning.
- The newest is kept in `head.note`, replaced as a whole, never by an older one.

A profile without a verifier key takes checkpoints on the word of the gateway's CURVE key; that they
continue one another is checked all the same. It leaves the mathematics to `broker.ledger.merkle`.
Source: RFC 6962, section 2.1; C2SP tlog-checkpoint.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Sequence
from typing import Final

import nacl.exceptions
import nacl.signing

from broker.client_errors import GatewayError, LedgerForked
from broker.client_profile import Profile
from broker.ledger.merkle import EMPTY_ROOT, verify_consistency, verify_inclusion
from schemas.events import line_hash
from schemas.messages import Consistency, Head, Proof, Receipt
from schemas.profile import HEAD_FILE
from schemas.proof import (
    Checkpoint,
    ProofError,
    parse_checkpoint,
    parse_note,
    parse_verifier_key,
    verify_checkpoint,
)

_REPLACED: Final = (
    "the gateway was given a new ledger, as after a backup was put back; the first event of the "
    "new one says why (restored_from, restore_reason). Ask the operator; if you accept it, put "
    "head.note aside as evidence and write the new log_id and verifier_key into profile.toml"
)
_WENT_BACK: Final = (
    "the ledger was cut or rewritten, or an old copy of it was put back. Keep head.note and tell "
    "the operator: a copy that is put back needs `omega-gateway ledger restore`"
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
        self._seen = 0
        self._older: Checkpoint | None = None
        try:
            key = profile.settings.verifier_key
            self._key = parse_verifier_key(key) if key is not None else None
        except ProofError as error:
            raise GatewayError(
                f"{profile.directory}: profile.toml: verifier_key cannot be used: {error}"
            ) from None
        self.head = self._kept()

    @property
    def known_size(self) -> int:
        """The size to name in a request, so that the answer proves what came since."""
        return self.head.size if self.head is not None else 0

    @property
    def seen(self) -> int:
        """How many events the ledger has at least: what checkpoints and receipts have shown."""
        return max(self._seen, self.known_size)

    def check_receipt(self, receipt: Receipt, base: Checkpoint | None, seen: int) -> None:
        """Hold a receipt against what was known when its request was sent.

        Args:
            receipt: the receipt; its event was written after the request was sent.
            base: the checkpoint held at that time.
            seen: how many events were known to be there at that time.

        Raises:
            LedgerForked: it belongs to another history.
        """
        log_id = base.origin if base is not None else self._log_id
        if log_id is not None and receipt.log_id != log_id:
            raise LedgerForked(
                f"the answer is of ledger {receipt.log_id}, expected {log_id}: {_REPLACED}"
            )
        if receipt.seq < seen:
            raise LedgerForked(
                f"a new event has position {receipt.seq}, but {seen} events were there before: "
                f"{_WENT_BACK}"
            )
        if receipt.checkpoint is not None:
            self.accept(receipt.checkpoint, base, receipt.consistency or ())
        self._seen = max(self._seen, receipt.seq + 1)

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
            raise LedgerForked(f"a checkpoint was refused: {error}; {_WENT_BACK}") from None
        self._compare(checkpoint)
        if checkpoint.size > self.known_size or self.head is None:
            self._keep(note, checkpoint)
            self.head = checkpoint
        return checkpoint

    def check_shown(
        self, reply: Head | Proof | Consistency, base: Checkpoint | None, size: int | None = None
    ) -> None:
        """Hold the checkpoint of an answer to what its receipt showed, or to what was known before.

        Args:
            reply: the answer; its receipt was checked.
            base: the checkpoint held when it was asked for.
            size: the size that the checkpoint must have. That it lies in the past of the newest one
                is not shown by this answer: see `continues`.

        Raises:
            LedgerForked: the checkpoint is another one, or signed by another key.
        """
        if isinstance(reply, Head) and self._key is not None and (
            reply.verifier_key != str(self._key)
        ):
            raise LedgerForked("the ledger is signed by another key than the profile names")
        receipt = reply.receipt
        if size is None and receipt is not None and receipt.checkpoint == reply.checkpoint:
            return
        shown = self._signed(reply.checkpoint)
        if size is not None:
            if shown.size != size:
                raise LedgerForked(f"the checkpoint is over {shown.size} events, asked was {size}")
        elif shown != (base or Checkpoint(origin=shown.origin, size=0, root=EMPTY_ROOT)):
            raise LedgerForked(
                f"the newest checkpoint, over {shown.size} events, is not shown to continue "
                f"the one over {base.size if base else 0}"
            )

    def continues(self, note: str) -> bool:
        """Say whether the newest checkpoint is known to continue this one."""
        return self._signed(note) in (self.head, self._older)

    def check_older(self, note: str, step: Consistency) -> None:
        """Check that the checkpoint of an answer continues an older one, and remember the older.

        Args:
            note: the older checkpoint.
            step: the answer, whose own checkpoint was accepted.

        Raises:
            LedgerForked: it does not.
        """
        older, newer = self._signed(note), self._signed(step.checkpoint)
        try:
            if older != Checkpoint(origin=newer.origin, size=0, root=EMPTY_ROOT):
                verify_consistency(
                    older.size, newer.size, older.root, newer.root, _raw(step.hashes)
                )
        except ProofError as error:
            raise LedgerForked(
                f"the checkpoint over {older.size} events is not continued: {error}; {_WENT_BACK}"
            ) from None
        self._older = older

    def _compare(self, checkpoint: Checkpoint) -> None:
        head = self.head
        if head is not None and checkpoint.size == head.size and checkpoint.root != head.root:
            raise LedgerForked(f"two checkpoints of size {head.size} have different roots")

    def _signed(self, note: str) -> Checkpoint:
        try:
            return self._read(note)
        except ProofError as error:
            raise LedgerForked(f"a checkpoint was refused: {error}") from None

    def _read(self, note: str) -> Checkpoint:
        if self._key is not None:
            checkpoint = verify_checkpoint(note, self._key, _check_signature)
        else:
            checkpoint = parse_checkpoint(parse_note(note).text)
        if self._log_id is not None and checkpoint.origin != self._log_id:
            raise ProofError(f"it is of ledger {checkpoint.origin}, expected {self._log_id}")
        return checkpoint

    def _kept(self) -> Checkpoint | None:
        """Read `head.note`; there is none before the first checkpoint was accepted."""
        try:
            with open(self._path, encoding="utf-8") as file:
                return self._read(file.read(65_536))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise GatewayError(f"{self._path}: cannot be read: {error.strerror}") from None
        except (ProofError, UnicodeDecodeError) as error:
            raise GatewayError(
                f"{self._path}: cannot be used: {error}; put back a copy of it, or move it away if "
                "nothing else is known of this ledger: the next checkpoint is then believed"
            ) from None

    def _keep(self, note: str, checkpoint: Checkpoint) -> None:
        """Replace `head.note`; a crash leaves the old one or the new one.

        Another client of this profile may have kept a newer one meanwhile, which stays, or one of
        the same size, which must have the same root.
        """
        kept = self._kept()
        if kept is not None and kept.size >= checkpoint.size:
            if kept.size == checkpoint.size and kept.root != checkpoint.root:
                raise LedgerForked(f"{self._path} has another root over {kept.size} events")
            return
        path = ""
        try:
            fd, path = tempfile.mkstemp(prefix=".head.", dir=os.path.dirname(self._path))
            with os.fdopen(fd, "w", encoding="utf-8", newline="\n") as file:
                file.write(note)
                file.flush()
                os.fsync(fd)
            os.replace(path, self._path)
        except OSError as error:
            if path:
                with contextlib.suppress(OSError):
                    os.unlink(path)
            raise GatewayError(f"{self._path}: cannot be kept: {error.strerror}") from None


def verify_event(proof: Proof, seq: int) -> None:
    """Check that an answer proves the event that was asked for, under its own checkpoint.

    Raises:
        LedgerForked: it does not.
    """
    if proof.seq != seq:
        raise LedgerForked(f"event {seq} is not proven: the answer is event {proof.seq}")
    try:
        checkpoint = parse_checkpoint(parse_note(proof.checkpoint).text)
        event_hash = bytes.fromhex(line_hash(proof.line.encode()))
        verify_inclusion(
            event_hash, seq, checkpoint.size, _raw(proof.hashes), checkpoint.root
        )
    except ProofError as error:
        raise LedgerForked(f"event {seq} is not proven: {error}") from None


def _raw(hashes: Sequence[str]) -> list[bytes]:
    return [bytes.fromhex(one) for one in hashes]


def _check_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    try:
        nacl.signing.VerifyKey(public_key).verify(message, signature)
    except (nacl.exceptions.CryptoError, ValueError, TypeError):
        raise ProofError("the signature is wrong") from None
