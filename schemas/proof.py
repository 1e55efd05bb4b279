"""Signed notes, checkpoints and proof bundles: the languages in which the ledger is proven.

A signed note (C2SP signed-note) is a text, an empty line and signature lines. A checkpoint is a
note whose text has three lines, origin, size, root (C2SP tlog-checkpoint; origin is the log_id):

    omega-gateway/development/0123456789abcdef
    4096
    0JwFo4sMkCg2UaQKCdSLC3hAWgqv8eJmiN8B1gIbxSM=

    — omega-gateway/development/0123456789abcdef UZl3QeLP…

A verifier key is one word, `name+hash+base64(algorithm ‖ public key)`; hash is the first four bytes
of SHA-256(name ‖ 0x0A ‖ algorithm ‖ public key), in hex. The algorithm is Ed25519, 0x01.
A proof bundle `omega-proof/v1` is one JSON object: a checkpoint, and events with inclusion proofs.

Rules this file keeps:
- Each value has one spelling: what was parsed is written again and compared.
- Every signature that names the key is checked, and at least one must be there.
- Signing and checking are functions that are handed in; no key is kept here.

It leaves hashing trees to `broker.ledger.merkle`, keys to `broker.keys`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.names import INTEGER_MAX, Count, LogId, Sha256

ED25519: Final = 1
"""The algorithm byte of Ed25519 (C2SP signed-note)."""
HASH_BYTES: Final = 32
PUBLIC_KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64
NOTE_BYTES_MAX: Final = 16 * 1024
NOTE_SIGNATURES_MAX: Final = 16
LINE_TEXT_MAX: Final = 64 * 1024
"""Longest event line in a bundle, in characters."""

Sign = Callable[[bytes], bytes]
"""Takes a message, gives its 64-byte Ed25519 signature."""
CheckSignature = Callable[[bytes, bytes, bytes], None]
"""Takes public key, message and signature; raises ProofError when they do not belong together."""

_KEY_NAME: Final = re.compile(r"[!-*,-~]{1,256}")
_SIGNATURE_LINE: Final = re.compile(r"— ([!-*,-~]{1,256}) ([A-Za-z0-9+/]{8,4096}={0,2})")
_NOTE_TEXT: Final = re.compile(r"(?:[^\x00-\x1f\x7f]*\n)+")


class ProofError(ValueError):
    """The evidence does not prove what it should; the sentence says what was found."""


class VerifierKey(msgspec.Struct, frozen=True):
    """Who signs notes, and the public half of the key."""

    name: str
    public_key: bytes

    @property
    def key_hash(self) -> bytes:
        """The four bytes by which a signature line names this key."""
        return hashlib.sha256(
            self.name.encode() + b"\n" + bytes([ED25519]) + self.public_key
        ).digest()[:4]

    def __str__(self) -> str:
        """Write the key as the one word that people hand around."""
        return f"{self.name}+{self.key_hash.hex()}+{_base64(bytes([ED25519]) + self.public_key)}"


class NoteSignature(msgspec.Struct, frozen=True):
    """One signature line: a key's name, its hash and the bytes it wrote."""

    name: str
    key_hash: bytes
    signature: bytes


class Note(msgspec.Struct, frozen=True):
    """A parsed signed note; nothing in it has been verified."""

    text: str
    signatures: tuple[NoteSignature, ...]

    def __str__(self) -> str:
        """Write the note in its one spelling."""
        lines = "".join(
            f"— {one.name} {_base64(one.key_hash + one.signature)}\n" for one in self.signatures
        )
        return f"{self.text}\n{lines}"


class Checkpoint(msgspec.Struct, frozen=True):
    """The tree head of one ledger: `root` is the RFC 6962 root over the first `size` events."""

    origin: str
    size: int
    root: bytes

    def __str__(self) -> str:
        """Write the text that is signed."""
        return f"{self.origin}\n{self.size}\n{_base64(self.root)}\n"


def parse_verifier_key(text: str) -> VerifierKey:
    """Read a verifier key.

    Raises:
        ProofError: it is not an Ed25519 verifier key in its only spelling.
    """
    name, _, rest = text.partition("+")
    material = _unbase64(rest.partition("+")[2])
    if not _KEY_NAME.fullmatch(name) or len(material) != 1 + PUBLIC_KEY_BYTES:
        raise ProofError("a verifier key is name+hash+base64 with a 32-byte Ed25519 key")
    if material[0] != ED25519:
        raise ProofError(f"signature algorithm {material[0]} is not Ed25519 (1)")
    key = VerifierKey(name=name, public_key=material[1:])
    if str(key) != text:
        raise ProofError("the verifier key's hash does not belong to its name and key")
    return key


def parse_note(data: str) -> Note:
    """Split a signed note into its text and its signatures, without verifying them.

    Args:
        data: the whole note, at most NOTE_BYTES_MAX bytes.

    Raises:
        ProofError: it is not a signed note in its only spelling.
    """
    try:
        length = len(data.encode())
    except UnicodeEncodeError:
        raise ProofError("a note is UTF-8 text") from None
    if length > NOTE_BYTES_MAX:
        raise ProofError(f"a note may have {NOTE_BYTES_MAX} bytes, this one has {length}")
    head, separator, tail = data.rpartition("\n\n")
    text = head + "\n"
    if not separator or not _NOTE_TEXT.fullmatch(text) or not tail.endswith("\n"):
        raise ProofError("a note is text, an empty line and signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > NOTE_SIGNATURES_MAX:
        raise ProofError(f"a note may have {NOTE_SIGNATURES_MAX} signatures")
    note = Note(text=text, signatures=tuple(_parse_signature(line) for line in lines))
    if len({(one.name, one.key_hash) for one in note.signatures}) != len(lines):
        raise ProofError("a note carries two signatures of one key")
    if str(note) != data:
        raise ProofError("the note is not in its only spelling")
    return note


def _parse_signature(line: str) -> NoteSignature:
    match = _SIGNATURE_LINE.fullmatch(line)
    if match is None:
        raise ProofError("a signature line is an em dash, a name and base64")
    raw = _unbase64(match[2])
    if len(raw) < 5:
        raise ProofError("a signature line has no signature")
    return NoteSignature(name=match[1], key_hash=raw[:4], signature=raw[4:])


def sign_note(text: str, key: VerifierKey, sign: Sign) -> str:
    """Write a note with one signature.

    Args:
        text: the text, ending in a newline.
        key: the public half of the signing key.
        sign: makes the signature over the text's UTF-8 bytes.
    """
    assert _NOTE_TEXT.fullmatch(text), "a note's text is lines without control characters"
    signature = sign(text.encode())
    assert len(signature) == SIGNATURE_BYTES
    one = NoteSignature(name=key.name, key_hash=key.key_hash, signature=signature)
    return str(Note(text=text, signatures=(one,)))


def verify_note(data: str, key: VerifierKey, check: CheckSignature) -> str:
    """Give back a note's text once the key's signature over it was checked.

    Signatures of other keys are ignored, as C2SP signed-note asks.

    Raises:
        ProofError: not a note, no signature of this key, or a wrong one.
    """
    note = parse_note(data)
    for one in note.signatures:
        if (one.name, one.key_hash) == (key.name, key.key_hash):
            check(key.public_key, note.text.encode(), one.signature)
            return note.text
    raise ProofError(f"no signature of {key.name}+{key.key_hash.hex()}")


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a checkpoint from a note's text. Extension lines are not accepted.

    Raises:
        ProofError: it is not a checkpoint in its only spelling.
    """
    lines = text.split("\n")
    if len(lines) != 4 or not re.fullmatch(r"[0-9]{1,16}", lines[1]):
        raise ProofError("a checkpoint is three lines: origin, size, root")
    checkpoint = Checkpoint(origin=lines[0], size=int(lines[1]), root=_unbase64(lines[2]))
    if len(checkpoint.root) != HASH_BYTES or not _KEY_NAME.fullmatch(checkpoint.origin):
        raise ProofError("a checkpoint has an origin without spaces and a root of 32 bytes")
    if checkpoint.size > INTEGER_MAX or str(checkpoint) != text:
        raise ProofError("the checkpoint is not in its only spelling")
    return checkpoint


def verify_checkpoint(data: str, key: VerifierKey, check: CheckSignature) -> Checkpoint:
    """Read a checkpoint whose signature by `key` holds and whose origin is that key's name.

    Raises:
        ProofError: see `verify_note` and `parse_checkpoint`.
    """
    checkpoint = parse_checkpoint(verify_note(data, key, check))
    if checkpoint.origin != key.name:
        raise ProofError(f"a checkpoint of {checkpoint.origin} is signed by {key.name}")
    return checkpoint


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ProofError("not base64") from None


# --- Proof bundles ---


class ProofItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
                omit_defaults=True):
    """One event: its whole line, or, when it is withheld, only its hash. `proof` is in hex."""

    index: Count
    proof: Annotated[tuple[Sha256, ...], Meta(max_length=64)]
    line: Annotated[str, Meta(max_length=LINE_TEXT_MAX)] | None = None
    event_hash: Sha256 | None = None


class ConsistencyItem(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An older checkpoint that the bundle's checkpoint continues; `proof` is in hex."""

    old_checkpoint: Annotated[str, Meta(max_length=NOTE_BYTES_MAX)]
    proof: Annotated[tuple[Sha256, ...], Meta(max_length=128)]


class ProofBundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True,
                  omit_defaults=True):
    """`omega-proof/v1`: events of one ledger and what proves them; indexes ascend."""

    format: Literal["omega-proof/v1"]
    origin: LogId
    checkpoint: Annotated[str, Meta(max_length=NOTE_BYTES_MAX)]
    items: Annotated[tuple[ProofItem, ...], Meta(min_length=1, max_length=100_000)]
    consistency: Annotated[tuple[ConsistencyItem, ...], Meta(max_length=1024)] = ()
