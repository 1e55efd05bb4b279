"""The trust root: who may publish what, with which keys, until when, and what was taken back.

Rules this file keeps:
- A root is a DSSE document of its domain in its one spelling. The first is signed by its own root
  keys and trusted because an operator brought it; every later one is signed by enough keys of the
  root before it *and* by enough of its own, and its version is higher.
- A revoked key counts nowhere, not for publishers and not for roots.
- Time is an argument, in whole seconds since 1970.

It leaves to the shell where the document lies and to the ledger which one is in force.
Source: specification section 2; DSSE 1.0.2; TUF 1.0, section 5.3 (root rotation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

import msgspec

from broker.policy import matches
from broker.trust.errors import TrustRefused, printable
from broker.trust.mistakes import split_place
from broker.trust.signatures import (
    decode_base64,
    key_id,
    read_envelope,
    sign_envelope,
    verify_envelope,
)
from schemas.canonical import struct_bytes
from schemas.names import Domain
from schemas.refusals import RefusalCode
from schemas.trust import TRUST_PAYLOAD_TYPES, Publisher, TrustRoot

TRUST_FILE: Final = "trust/root.dsse.json"
"""Where a home keeps the envelope of the trust root in force."""
KEPT_TRUST_FILE: Final = "trust/root-{version}.dsse.json"
"""Where it keeps each one that was in force: the keys of the last must sign the next."""

_decoder: Final = msgspec.json.Decoder(TrustRoot)


class Root(NamedTuple):
    """A verified trust root, the SHA-256 of its signed bytes, who signed, and its envelope."""

    trust: TrustRoot
    sha256: str
    key_ids: tuple[str, ...]
    envelope: bytes


def sign_root(trust: TrustRoot, signing_keys: Sequence[bytes]) -> bytes:
    """Write a trust root as an envelope.

    Args:
        trust: the document.
        signing_keys: Ed25519 seeds, 32 bytes each, of root keys.
    """
    return sign_envelope(struct_bytes(trust), TRUST_PAYLOAD_TYPES[trust.domain], signing_keys)


def load_first_root(envelope: bytes, domain: Domain) -> Root:
    """Read a root that is trusted because of where it came from: a file that an operator named.

    Args:
        envelope: the envelope's bytes.
        domain: the domain of this home.

    Raises:
        TrustRefused: `domain_mismatch` or `trust_invalid`.
    """
    # The keys to verify with stand in the document itself: this proves that it is whole and that
    # their holders made it, not that they are the right ones.
    claimed = _Claimed.of(envelope)
    return _verified(envelope, domain, claimed.roots, claimed.threshold)


def load_next_root(envelope: bytes, current: TrustRoot) -> Root:
    """Read a root that is to replace the present one.

    Args:
        envelope: the envelope's bytes.
        current: the root in force.

    Raises:
        TrustRefused: `domain_mismatch`, `trust_invalid` or `trust_version_not_raised`.
    """
    root = _verified(
        envelope, current.domain, root_keys(current), current.root_threshold
    )
    # Its own keys must have signed too: a root whose holders cannot sign could never be replaced.
    _verified(envelope, current.domain, root_keys(root.trust), root.trust.root_threshold)
    if root.trust.version <= current.version:
        raise TrustRefused(
            RefusalCode.TRUST_VERSION_NOT_RAISED,
            f"the document has version {root.trust.version}, in force is {current.version}",
            where="$.version",
        )
    return root


def check_succession(
    pinned_version: int, pinned_sha256: str, root: Root, previous_envelope: bytes | None
) -> None:
    """Check that a root read at start is the one the ledger pins, or its rightful successor.

    Args:
        pinned_version: version of the root the ledger saw last; 0 when it saw none.
        pinned_sha256: SHA-256 of that root's signed bytes; empty when there was none.
        root: the root that is to be in force.
        previous_envelope: the envelope of the pinned root, None when the home has lost it.

    Raises:
        TrustRefused: `trust_version_not_raised`, it is older or another one of the same version;
            `trust_invalid`, the pinned root is not at hand or its keys did not sign; and
            `domain_mismatch`.
    """
    if not pinned_sha256 or (root.trust.version, root.sha256) == (pinned_version, pinned_sha256):
        return
    if root.trust.version <= pinned_version:
        raise TrustRefused(
            RefusalCode.TRUST_VERSION_NOT_RAISED,
            f"the document has version {root.trust.version}, the ledger has seen "
            + ("another one of it" if root.trust.version == pinned_version
               else f"version {pinned_version}"),
            where="$.version",
        )
    if previous_envelope is None:
        raise _invalid(f"version {pinned_version}, whose keys must have signed, is not kept here")
    previous = pinned_root(previous_envelope, root.trust.domain, pinned_version, pinned_sha256)
    load_next_root(root.envelope, previous.trust)


def pinned_root(envelope: bytes, domain: Domain, version: int, sha256: str) -> Root:
    """Read a root that the ledger pins, from a copy that nobody vouches for.

    Raises:
        TrustRefused: `trust_invalid`, it is another one; `domain_mismatch`.
    """
    root = load_first_root(envelope, domain)
    if (root.trust.version, root.sha256) != (version, sha256):
        raise _invalid(f"what is kept as version {version} is not what the ledger has seen")
    return root


def root_keys(trust: TrustRoot) -> tuple[bytes, ...]:
    """Give the raw public keys that may sign the next root."""
    return _usable(trust.roots, trust)


def publisher_keys(trust: TrustRoot, name: str) -> tuple[bytes, ...]:
    """Give the raw public keys of a publisher that are not revoked.

    Raises:
        TrustRefused: `publisher_unknown`.
    """
    return _usable(publisher(trust, name).keys, trust)


def publisher(trust: TrustRoot, name: str) -> Publisher:
    """Look a publisher up.

    Raises:
        TrustRefused: `publisher_unknown`.
    """
    found = trust.publishers.get(name)
    if found is None:
        raise TrustRefused(
            RefusalCode.PUBLISHER_UNKNOWN,
            f"the trust root, version {trust.version}, names no publisher {printable(name)}",
            where="$.publisher",
        )
    return found


def check_publisher(trust: TrustRoot, name: str, plugin: str, now_s: int) -> None:
    """Check that a publisher may publish a plugin id now.

    Raises:
        TrustRefused: `publisher_unknown` or `publisher_not_allowed`.
    """
    entry = publisher(trust, name)
    if not entry.valid_from_s <= now_s < entry.valid_until_s:
        raise TrustRefused(
            RefusalCode.PUBLISHER_NOT_ALLOWED,
            f"{name} is valid from {entry.valid_from_s} until {entry.valid_until_s}, now is {now_s}"
            " (seconds since 1970)",
            where="$.publisher",
        )
    if not any(matches(plugin, glob) for glob in entry.plugins):
        raise TrustRefused(
            RefusalCode.PUBLISHER_NOT_ALLOWED,
            f"{name} may publish {', '.join(entry.plugins)}, not {plugin}",
            where="$.id",
        )


def still_trusted(
    record_publisher: str,
    signing_keys: tuple[str, ...],
    trust: TrustRoot,
    revoked_keys: Collection[str],
    plugin: str,
    now_s: int,
) -> bool:
    """Say whether what was registered could still be registered, as far as its signers go.

    Args:
        record_publisher: the publisher it was registered for.
        signing_keys: ids of the keys that signed it.
        trust: the root in force.
        revoked_keys: ids of keys taken back by request, beyond those that the root revokes.
        plugin: its id.
        now_s: seconds since 1970.
    """
    try:
        check_publisher(trust, record_publisher, plugin, now_s)
    except TrustRefused:
        return False
    left = {key_id(key) for key in publisher_keys(trust, record_publisher)}.difference(revoked_keys)
    return len(left.intersection(signing_keys)) >= trust.publishers[record_publisher].threshold


def publisher_key_known(named: str, trust: TrustRoot) -> bool:
    """Say whether a key id is that of a publisher's key, revoked by the root or not."""
    return any(
        key_id(bytes.fromhex(key)) == named
        for entry in trust.publishers.values() for key in entry.keys
    )


def parse_root(payload: bytes) -> TrustRoot:
    """Read a document that nobody signed yet, or whose signatures were verified.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    try:
        trust = _decoder.decode(payload)
    except msgspec.ValidationError as error:
        where, found, expected = split_place(error)
        raise _invalid(f"found {found}, expected {expected}", where) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(printable(str(error))) from None
    if struct_bytes(trust) != payload:
        raise _invalid("the document is not in its canonical form, without defaults left out")
    _check_thresholds(trust)
    return trust


class _Claimed(NamedTuple):
    """What an unverified root says about its own keys."""

    roots: tuple[bytes, ...]
    threshold: int

    @classmethod
    def of(cls, envelope: bytes) -> _Claimed:
        trust = parse_root(_unverified_payload(envelope))
        return cls(root_keys(trust), trust.root_threshold)


def _unverified_payload(envelope: bytes) -> bytes:
    try:
        return decode_base64(read_envelope(envelope).payload, "payload")
    except TrustRefused as error:
        raise _invalid(error.sentence, error.where) from None


def _usable(keys: Sequence[str], trust: TrustRoot) -> tuple[bytes, ...]:
    revoked = set(trust.revoked_keys)
    raw = [bytes.fromhex(key) for key in keys]
    return tuple(key for key in raw if key_id(key) not in revoked)


def _verified(
    envelope: bytes, domain: Domain, keys: Sequence[bytes], threshold: int
) -> Root:
    try:
        payload, key_ids = verify_envelope(
            envelope, payload_type=TRUST_PAYLOAD_TYPES[domain], keys=keys, threshold=threshold
        )
    except TrustRefused as error:
        if error.code is RefusalCode.DOMAIN_MISMATCH:
            raise
        raise _invalid(error.sentence, error.where) from None
    trust = parse_root(payload)
    if trust.domain != domain:
        raise TrustRefused(
            RefusalCode.DOMAIN_MISMATCH,
            f"the document is of the {trust.domain} domain, this home of {domain}",
            where="$.domain",
        )
    return Root(trust, hashlib.sha256(payload).hexdigest(), key_ids, envelope)


def _check_thresholds(trust: TrustRoot) -> None:
    """A threshold that the keys cannot reach, or keys named twice, are mistakes of the writer."""
    entries = [("$", trust.roots, trust.root_threshold)]
    entries += [
        (f"$.publishers.{name}", entry.keys, entry.threshold)
        for name, entry in trust.publishers.items()
    ]
    for where, keys, threshold in entries:
        if len(set(keys)) != len(keys):
            raise _invalid("a key is named twice", where)
        if threshold > len(keys):
            raise _invalid(f"{threshold} of {len(keys)} keys can never sign", where)
    usable = len(root_keys(trust))
    if usable < trust.root_threshold:
        raise _invalid(
            f"{usable} root keys are not revoked, {trust.root_threshold} must sign", "$.roots"
        )


def _invalid(sentence: str, where: str = "") -> TrustRefused:
    return TrustRefused(RefusalCode.TRUST_INVALID, sentence, where=printable(where))
