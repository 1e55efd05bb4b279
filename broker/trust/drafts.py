"""Drafts of the next trust root: what `trust new|add|rotate|revoke` change, before it is signed.

Rules this file keeps: a draft is the present document with one change and the next version; it is
checked as a signed one is, so that nobody signs what no gateway takes; a key is named by its public
key or by its id.

It leaves signatures to `broker.trust.signatures` and who must sign to `broker.trust.roots`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import msgspec

from broker.trust.errors import TrustRefused, printable
from broker.trust.roots import parse_root
from broker.trust.signatures import key_id
from schemas.canonical import struct_bytes
from schemas.names import Domain
from schemas.refusals import RefusalCode
from schemas.trust import Publisher, TrustRoot

_KEY: Final = re.compile(r"[0-9a-f]{64}")


def first_root(domain: Domain, roots: Sequence[str], threshold: int) -> TrustRoot:
    """Draft the first root of a home: its root keys and no publisher yet.

    Args:
        domain: the home's domain.
        roots: raw Ed25519 public keys in hex.
        threshold: how many of them must sign the next root.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    return _checked(TrustRoot(
        format="omega-trust/1", domain=domain, version=1, roots=_public(roots),
        root_threshold=threshold, publishers={},
    ))


def add_publisher(
    trust: TrustRoot,
    name: str,
    *,
    keys: Sequence[str] = (),
    plugins: Sequence[str] = (),
    threshold: int | None = None,
    valid_from_s: int | None = None,
    valid_until_s: int | None = None,
) -> TrustRoot:
    """Draft a root with one more publisher, or with more keys or other bounds for one it names.

    Args:
        trust: the root in force.
        name: the publisher.
        keys: raw Ed25519 public keys in hex, added to those it has.
        plugins: globs of plugin ids, in place of those it has.
        threshold: how many of its keys must sign; a new publisher's is 1 if not given.
        valid_from_s: from when, in seconds since 1970.
        valid_until_s: until when, not included.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    given: dict[str, object] = {
        "plugins": tuple(plugins), "threshold": threshold, "valid_from_s": valid_from_s,
        "valid_until_s": valid_until_s,
    }
    changes = {field: value for field, value in given.items() if value not in (None, ())}
    before = trust.publishers.get(name)
    if before is None:
        if not keys or not plugins:
            raise _invalid(f"a new publisher, {printable(name)}, needs keys and plugin ids")
        before = Publisher(keys=(), threshold=1, plugins=tuple(plugins))
    if not keys and not changes:
        raise _invalid(f"nothing is given that {printable(name)} does not have")
    entry = msgspec.structs.replace(before, keys=(*before.keys, *_public(keys)), **changes)
    return _next(trust, publishers={**trust.publishers, name: entry})


def add_conformance_keys(trust: TrustRoot, keys: Sequence[str]) -> TrustRoot:
    """Draft a root that takes conformance reports signed by these keys too.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    added = _public(keys)
    if set(added) & set(trust.conformance_keys):
        raise _invalid("a key has the conformance role already")
    return _next(trust, conformance_keys=(*trust.conformance_keys, *added))


def rotate_key(trust: TrustRoot, old: str, new: str) -> TrustRoot:
    """Draft a root in which one key stands wherever another one stood.

    Args:
        trust: the root in force.
        old: a key it names, by public key or id.
        new: the raw Ed25519 public key in hex that takes its place.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    (fresh,) = _public([new])
    leaving = {key for key in _all_keys(trust) if old in (key, key_id(bytes.fromhex(key)))}
    if not leaving:
        raise _unknown(trust, old)

    def rotated(keys: Sequence[str]) -> tuple[str, ...]:
        return tuple(fresh if key in leaving else key for key in keys)

    return _next(
        trust, roots=rotated(trust.roots), conformance_keys=rotated(trust.conformance_keys),
        publishers={
            name: msgspec.structs.replace(entry, keys=rotated(entry.keys))
            for name, entry in trust.publishers.items()
        },
    )


def revoke(trust: TrustRoot, subjects: Sequence[str]) -> TrustRoot:
    """Draft a root that trusts some keys or publishers no more.

    Args:
        trust: the root in force.
        subjects: keys it names, by public key or id, and names of publishers.

    Raises:
        TrustRefused: `trust_invalid`.
    """
    publishers, revoked = dict(trust.publishers), set(trust.revoked_keys)
    for subject in subjects:
        found = {
            name for key in _all_keys(trust)
            if subject in (key, name := key_id(bytes.fromhex(key)))
        }
        if not found and subject not in publishers:
            raise _unknown(trust, subject)
        if found and found <= revoked:
            raise _invalid(f"{subject} is revoked already")
        revoked |= found
        if not found:
            del publishers[subject]
    return _next(trust, publishers=publishers, revoked_keys=tuple(sorted(revoked)))


def _all_keys(trust: TrustRoot) -> set[str]:
    named = {key for entry in trust.publishers.values() for key in entry.keys}
    return {*named, *trust.roots, *trust.conformance_keys}


def _public(keys: Sequence[str]) -> tuple[str, ...]:
    for key in keys:
        if not _KEY.fullmatch(key):
            raise _invalid(
                f"{printable(key)} is no public key: 64 lower-case hex digits, as `trust key` "
                "prints them"
            )
    return tuple(keys)


def _next(trust: TrustRoot, **changes: object) -> TrustRoot:
    return _checked(msgspec.structs.replace(trust, version=trust.version + 1, **changes))


def _checked(trust: TrustRoot) -> TrustRoot:
    return parse_root(struct_bytes(trust))


def _unknown(trust: TrustRoot, subject: str) -> TrustRefused:
    return _invalid(
        f"the trust root, version {trust.version}, names no key or publisher {printable(subject)}; "
        "`omega-gateway trust show` lists them"
    )


def _invalid(sentence: str) -> TrustRefused:
    return TrustRefused(RefusalCode.TRUST_INVALID, sentence)
