"""The trust root: first, next, who may publish what, and what a revoked key may do: nothing."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.trust.errors import TrustRefused
from broker.trust.roots import (
    Root,
    check_publisher,
    check_succession,
    load_first_root,
    load_next_root,
    publisher_key_known,
    publisher_keys,
    root_keys,
    sign_root,
    still_trusted,
)
from broker.trust.signatures import sign_envelope
from schemas.refusals import RefusalCode
from schemas.trust import TRUST_PAYLOAD_TYPES, Publisher, TrustRoot
from tests.trust.builders import NOW_S, SEED_A, SEED_B, SEED_C, identifier, public, trust_root

A, B, C = (public(seed).hex() for seed in (SEED_A, SEED_B, SEED_C))
KIND = TRUST_PAYLOAD_TYPES["development"]


def refusal(action) -> TrustRefused:
    """The refusal that an action ends with."""
    with pytest.raises(TrustRefused) as caught:
        action()
    return caught.value


def test_a_root_that_is_written_is_read():
    """Document, digest and signers come back."""
    root = load_first_root(sign_root(trust_root(), [SEED_C]), "development")
    assert root.trust == trust_root()
    assert root.key_ids == (identifier(SEED_C),)
    assert len(root.sha256) == 64


def test_a_first_root_is_signed_by_its_own_keys():
    """Without a signature of its own root keys a document is no root."""
    data = sign_root(trust_root(), [SEED_A])
    assert refusal(lambda: load_first_root(data, "development")).code is RefusalCode.TRUST_INVALID


def test_a_root_of_another_domain_is_refused():
    """A development root is nothing to a production home, and the other way round."""
    development = sign_root(trust_root(), [SEED_C])
    refused = refusal(lambda: load_first_root(development, "production"))
    assert refused.code is RefusalCode.DOMAIN_MISMATCH
    crossed = sign_envelope(
        msgspec.json.encode(trust_root(domain="production"), order="sorted"), KIND, [SEED_C]
    )
    refused = refusal(lambda: load_first_root(crossed, "development"))
    assert refused.code is RefusalCode.DOMAIN_MISMATCH


MISTAKES = {
    "a threshold that cannot be reached": {"root_threshold": 2},
    "a root key named twice": {"roots": (C, C)},
    "a publisher's threshold that cannot be reached": {
        "publishers": {"acme": Publisher(keys=(A,), threshold=2, plugins=("*",))}
    },
    "a publisher's key named twice": {
        "publishers": {"acme": Publisher(keys=(A, A), threshold=1, plugins=("*",))}
    },
    "every root key revoked": {"revoked_keys": (identifier(SEED_C),)},
    "a key that is no key": {"roots": ("zz" * 32,)},
    "a version of zero": {"version": 0},
    "a glob with a slash": {
        "publishers": {"acme": Publisher(keys=(A,), threshold=1, plugins=("a/b",))}
    },
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_document_with_a_mistake_is_refused(name: str):
    """A root that could never work is refused when it comes, not when it is needed."""
    data = sign_root(trust_root(**MISTAKES[name]), [SEED_C])
    assert refusal(lambda: load_first_root(data, "development")).code is RefusalCode.TRUST_INVALID


@pytest.mark.parametrize(
    "payload",
    [b"{}", b"[]", b"", b"\xff", b'{"version":1,"version":2}',
     msgspec.json.encode(trust_root()), b" " + msgspec.json.encode(trust_root(), order="sorted")],
)
def test_another_spelling_is_refused(payload: bytes):
    """A root has one spelling; these were signed by the right key."""
    data = sign_envelope(payload, KIND, [SEED_C])
    assert refusal(lambda: load_first_root(data, "development")).code is RefusalCode.TRUST_INVALID


NEXT: dict[str, tuple[TrustRoot, list[bytes], RefusalCode | None]] = {
    "same keys, higher version": (trust_root(version=4), [SEED_C], None),
    "a version is left out": (trust_root(version=9), [SEED_C], None),
    "the same version again": (trust_root(), [SEED_C], RefusalCode.TRUST_VERSION_NOT_RAISED),
    "an older version": (
        trust_root(version=2), [SEED_C], RefusalCode.TRUST_VERSION_NOT_RAISED
    ),
    "new root key, signed by old and new": (
        trust_root(version=4, roots=(A,)), [SEED_C, SEED_A], None
    ),
    "new root key, signed by the new one only": (
        trust_root(version=4, roots=(A,)), [SEED_A], RefusalCode.TRUST_INVALID
    ),
    "new root key, signed by the old one only": (
        trust_root(version=4, roots=(A,)), [SEED_C], RefusalCode.TRUST_INVALID
    ),
    "higher threshold, signed by too few": (
        trust_root(version=4, roots=(A, C), root_threshold=2), [SEED_C],
        RefusalCode.TRUST_INVALID,
    ),
    "higher threshold, signed by enough": (
        trust_root(version=4, roots=(A, C), root_threshold=2), [SEED_C, SEED_A], None
    ),
    "another domain": (
        trust_root(version=4, domain="production"), [SEED_C], RefusalCode.DOMAIN_MISMATCH
    ),
}


@pytest.mark.parametrize("name", NEXT)
def test_rotation_needs_the_old_keys_and_the_new(name: str):
    """A root is replaced only by a newer one that its own keys and the new keys signed."""
    document, seeds, code = NEXT[name]
    data = sign_root(document, seeds)
    if code is None:
        assert load_next_root(data, trust_root()).trust == document
    else:
        assert refusal(lambda: load_next_root(data, trust_root())).code is code


def test_no_changed_byte_changes_what_is_taken():
    """A flipped byte of an envelope refuses it, or it was one of a key's hint, which means nothing:
    what is taken is what was signed."""
    document = trust_root(version=4)
    good, taken = sign_root(document, [SEED_C]), 0
    for position in range(len(good)):
        changed = bytearray(good)
        changed[position] ^= 1 << (position % 8)
        try:
            root = load_next_root(bytes(changed), trust_root())
        except TrustRefused:
            continue
        assert root.trust == document
        taken += 1
    assert taken <= len(identifier(SEED_C))


@given(st.binary(max_size=300), st.integers(0, 2000), st.integers(0, 40))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_a_root_or_a_refusal(data: bytes, position: int, length: int):
    """No bytes make the reader of roots raise anything but its one refusal, signed or not."""
    good = sign_root(trust_root(version=4), [SEED_C])
    spliced = good[:position] + data + good[position + length :]
    signed = sign_envelope(data or b"{}", KIND, [SEED_C])
    for envelope in (data, signed):
        refusal(lambda envelope=envelope: load_next_root(envelope, trust_root()))
    with contextlib.suppress(TrustRefused):
        # Only a key's hint can differ, and what is taken is what was signed.
        assert load_next_root(spliced, trust_root()).trust == trust_root(version=4)


def test_a_revoked_root_key_signs_no_next_root():
    """A key that the root in force revokes counts for nothing afterwards."""
    current = trust_root(roots=(A, C), revoked_keys=(identifier(SEED_C),))
    assert root_keys(current) == (public(SEED_A),)
    data = sign_root(trust_root(version=4), [SEED_C])
    assert refusal(lambda: load_next_root(data, current)).code is RefusalCode.TRUST_INVALID


def test_a_revoked_publisher_key_is_not_listed():
    """Publisher keys are those of the document without the revoked ones."""
    publishers = {"acme": Publisher(keys=(A, B), threshold=1, plugins=("*",))}
    current = trust_root(publishers=publishers, revoked_keys=(identifier(SEED_A),))
    assert publisher_keys(current, "acme") == (public(SEED_B),)


PUBLISHING = {
    "one of the globs": ("acme", "word-count", NOW_S, None),
    "no glob": ("acme", "image-size", NOW_S, RefusalCode.PUBLISHER_NOT_ALLOWED),
    "a glob is the whole id": ("acme", "sword-count", NOW_S, RefusalCode.PUBLISHER_NOT_ALLOWED),
    "nobody": ("other", "word-count", NOW_S, RefusalCode.PUBLISHER_UNKNOWN),
    "first second": ("acme", "word-count", 100, None),
    "a second before": ("acme", "word-count", 99, RefusalCode.PUBLISHER_NOT_ALLOWED),
    "last second": ("acme", "word-count", 1_999_999_999, None),
    "a second after": ("acme", "word-count", 2_000_000_000, RefusalCode.PUBLISHER_NOT_ALLOWED),
}


@pytest.mark.parametrize("name", PUBLISHING)
def test_a_publisher_is_held_to_its_ids_and_its_time(name: str):
    """Ids are matched whole; validity is from the first second until before the last."""
    publisher, plugin, now_s, code = PUBLISHING[name]
    trust = trust_root(publishers={"acme": Publisher(
        keys=(A,), threshold=1, plugins=("word-*", "exact"),
        valid_from_s=100, valid_until_s=2_000_000_000,
    )})
    if code is None:
        check_publisher(trust, publisher, plugin, now_s)
    else:
        refused = refusal(lambda: check_publisher(trust, publisher, plugin, now_s))
        assert refused.code is code


FIRST = sign_root(trust_root(), [SEED_C])
PINNED = load_first_root(FIRST, "development")


def first(seeds: list[bytes], **changes: object) -> Root:
    """A root as a home reads it at start: whole and signed by its own keys, no more."""
    return load_first_root(sign_root(trust_root(**changes), seeds), "development")


SUCCESSORS: dict[str, tuple[Root, bytes | None, RefusalCode | None]] = {
    "the pinned one": (PINNED, None, None),
    "the pinned one, kept": (PINNED, FIRST, None),
    "an older one": (
        first([SEED_C], version=2), FIRST, RefusalCode.TRUST_VERSION_NOT_RAISED
    ),
    "another one of the same version": (
        first([SEED_C], publishers={}), FIRST, RefusalCode.TRUST_VERSION_NOT_RAISED
    ),
    "a newer one, signed by the pinned keys": (
        first([SEED_C, SEED_A], version=4, roots=(A,)), FIRST, None
    ),
    "a newer one of quite other keys": (
        first([SEED_A], version=4, roots=(A,)), FIRST, RefusalCode.TRUST_INVALID
    ),
    "a newer one without the pinned one": (
        first([SEED_C], version=4), None, RefusalCode.TRUST_INVALID
    ),
    "a newer one after another one than is pinned": (
        first([SEED_A], version=4, roots=(A,)), sign_root(trust_root(roots=(A,)), [SEED_A]),
        RefusalCode.TRUST_INVALID,
    ),
    "a newer one after one of a version that is not pinned": (
        first([SEED_C], version=9), sign_root(trust_root(version=4), [SEED_C]),
        RefusalCode.TRUST_INVALID,
    ),
    "a newer one after something else": (
        first([SEED_C], version=4), b"{}", RefusalCode.TRUST_INVALID
    ),
}


@pytest.mark.parametrize("name", SUCCESSORS)
def test_a_start_goes_on_with_the_pinned_root_or_its_rightful_successor(name: str):
    """What the ledger has seen once is neither rolled back nor swapped, whatever the files say."""
    root, previous, code = SUCCESSORS[name]

    def check() -> None:
        check_succession(PINNED.trust.version, PINNED.sha256, root, previous)

    if code is None:
        check()
    else:
        assert refusal(check).code is code


def test_a_first_start_pins_any_root():
    """Where the ledger has seen no root, the operator's word is all there is."""
    check_succession(0, "", PINNED, None)


TWO = {"acme": Publisher(keys=(A, B), threshold=2, plugins=("word-*",))}
LATER = {
    "acme": Publisher(keys=(A,), threshold=1, plugins=("word-*",), valid_until_s=NOW_S)
}
STANDING: dict[str, tuple[TrustRoot, list[bytes], set[str], str, bool]] = {
    "as it was": (trust_root(), [SEED_A], set(), "word-count", True),
    "a second signer does no harm": (trust_root(), [SEED_A, SEED_B], set(), "word-count", True),
    "the publisher is gone": (trust_root(publishers={}), [SEED_A], set(), "word-count", False),
    "its time is over": (trust_root(publishers=LATER), [SEED_A], set(), "word-count", False),
    "it may not have this id": (trust_root(), [SEED_A], set(), "image-size", False),
    "the root revokes the key": (
        trust_root(revoked_keys=(identifier(SEED_A),)), [SEED_A], set(), "word-count", False
    ),
    "the key was taken back": (
        trust_root(), [SEED_A], {identifier(SEED_A)}, "word-count", False
    ),
    "another key was taken back": (
        trust_root(), [SEED_A], {identifier(SEED_B)}, "word-count", True
    ),
    "the key is another publisher's now": (
        trust_root(publishers={
            "acme": Publisher(keys=(B,), threshold=1, plugins=("*",)),
            "other": Publisher(keys=(A,), threshold=1, plugins=("*",)),
        }), [SEED_A], set(), "word-count", False,
    ),
    "two must have signed now": (
        trust_root(publishers=TWO), [SEED_A], set(), "word-count", False
    ),
    "two must have signed and did": (
        trust_root(publishers=TWO), [SEED_A, SEED_B], set(), "word-count", True
    ),
    "two did, one was taken back": (
        trust_root(publishers=TWO), [SEED_A, SEED_B], {identifier(SEED_B)}, "word-count", False
    ),
}


@pytest.mark.parametrize("name", STANDING)
def test_what_is_registered_stands_on_the_root_in_force(name: str):
    """A signature counts as long as key, publisher and id still belong together, and no longer."""
    trust, seeds, revoked, plugin, stands = STANDING[name]
    keys = tuple(map(identifier, seeds))
    assert still_trusted("acme", keys, trust, revoked, plugin, NOW_S) is stands


def test_no_signature_stands_on_nothing():
    """A record without signing keys is never trusted."""
    assert not still_trusted("acme", (), trust_root(), set(), "word-count", NOW_S)


def test_a_publishers_key_is_known_by_its_id_alone():
    """A key id of the document is known, revoked or not; a root key's, a key or a typo is not."""
    revoked = trust_root(revoked_keys=(identifier(SEED_A),))
    assert publisher_key_known(identifier(SEED_A), trust_root())
    assert publisher_key_known(identifier(SEED_A), revoked)
    for other in (identifier(SEED_B), identifier(SEED_C), A, "", "no such key"):
        assert not publisher_key_known(other, trust_root())
