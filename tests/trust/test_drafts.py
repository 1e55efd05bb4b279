"""Drafts of the next trust root: what each change does, and what is refused unsigned."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from broker.trust import drafts
from broker.trust.errors import TrustRefused
from broker.trust.roots import load_first_root, load_next_root, root_keys, sign_root
from broker.trust.signatures import key_id
from schemas.refusals import RefusalCode
from schemas.trust import TrustRoot
from tests.support.bundles import PUBLISHER_SEED, ROOT_SEED, public_hex, public_key_id, trust_root

NEW_SEED = bytes(range(100, 132))
NEW, HOUSE, ROOT = public_hex(NEW_SEED), public_hex(PUBLISHER_SEED), public_hex(ROOT_SEED)
NOW = trust_root()


def test_a_first_root_names_its_keys_and_nobody_else() -> None:
    """What is drafted first can be signed by its keys and begins a home of its domain."""
    root = drafts.first_root("production", [ROOT, NEW], 2)
    assert (root.version, root.roots, root.root_threshold, root.publishers) == (
        1, (ROOT, NEW), 2, {})
    loaded = load_first_root(sign_root(root, [ROOT_SEED, NEW_SEED]), "production")
    assert loaded.trust == root


def test_a_publisher_is_added_with_its_bounds() -> None:
    """A new publisher has what was given; one there is gets keys added and bounds replaced."""
    root = drafts.add_publisher(NOW, "acme", keys=[NEW], plugins=["text-*"], valid_until_s=9)
    assert root.version == 2
    assert root.publishers["house"] == NOW.publishers["house"]
    added = root.publishers["acme"]
    assert (added.keys, added.plugins, added.threshold, added.valid_from_s, added.valid_until_s) \
        == ((NEW,), ("text-*",), 1, 0, 9)
    more = drafts.add_publisher(NOW, "house", keys=[NEW], threshold=2).publishers["house"]
    assert (more.keys, more.threshold, more.plugins) == ((HOUSE, NEW), 2, ("*",))


def test_a_rotated_key_stands_where_the_old_one_stood() -> None:
    """Named by id or in hex, in every role; the draft follows when both root keys signed it."""
    for old in (ROOT, public_key_id(ROOT_SEED)):
        root = drafts.rotate_key(NOW, old, NEW)
        assert root.roots == (NEW,)
        assert load_next_root(sign_root(root, [ROOT_SEED, NEW_SEED]), NOW).trust == root
    assert drafts.rotate_key(NOW, HOUSE, NEW).publishers["house"].keys == (NEW,)
    reported = drafts.add_conformance_keys(NOW, [HOUSE])
    assert drafts.rotate_key(reported, HOUSE, NEW).conformance_keys == (NEW,)


def test_keys_and_publishers_are_revoked_together() -> None:
    """A key's id joins the revoked ones, a publisher goes; a revoked root key signs no more."""
    two = drafts.first_root("development", [ROOT, NEW], 1)
    root = drafts.revoke(two, [ROOT])
    assert root.revoked_keys == (public_key_id(ROOT_SEED),)
    assert [key_id(key) for key in root_keys(root)] == [public_key_id(NEW_SEED)]
    gone = drafts.revoke(NOW, [public_key_id(PUBLISHER_SEED), "house"])
    assert (gone.publishers, gone.revoked_keys) == ({}, (public_key_id(PUBLISHER_SEED),))


@pytest.mark.parametrize(("draft", "words"), [
    (lambda: drafts.first_root("production", [ROOT], 2), "2 of 1 keys can never sign"),
    (lambda: drafts.first_root("production", [ROOT, ROOT], 1), "named twice"),
    (lambda: drafts.first_root("production", ["alice"], 1), "no public key"),
    (lambda: drafts.first_root("production", [ROOT.upper()], 1), "no public key"),
    (lambda: drafts.add_publisher(NOW, "acme", keys=[NEW]), "needs keys and plugin ids"),
    (lambda: drafts.add_publisher(NOW, "acme", plugins=["*"]), "needs keys and plugin ids"),
    (lambda: drafts.add_publisher(NOW, "house"), "nothing is given"),
    (lambda: drafts.add_publisher(NOW, "house", keys=[HOUSE]), "named twice"),
    (lambda: drafts.add_publisher(NOW, "house", threshold=2), "2 of 1 keys"),
    (lambda: drafts.add_publisher(NOW, "Not A Name", keys=[NEW], plugins=["*"]), "found"),
    (lambda: drafts.add_publisher(NOW, "acme", keys=[NEW], plugins=["../x"]), "found"),
    (lambda: drafts.add_conformance_keys(drafts.add_conformance_keys(NOW, [NEW]), [NEW]),
     "already"),
    (lambda: drafts.rotate_key(NOW, NEW, HOUSE), "names no key"),
    (lambda: drafts.rotate_key(NOW, ROOT, "bob"), "no public key"),
    (lambda: drafts.revoke(NOW, ["nobody"]), "names no key or publisher nobody"),
    (lambda: drafts.revoke(NOW, [ROOT]), "0 root keys are not revoked"),
    (lambda: drafts.revoke(drafts.revoke(NOW, [HOUSE]), [HOUSE]), "revoked already"),
])
def test_a_draft_that_nobody_could_take_is_refused(
    draft: Callable[[], TrustRoot], words: str
) -> None:
    """What would never be taken is refused before anybody signs it, with what is wrong."""
    with pytest.raises(TrustRefused, match=words) as caught:
        draft()
    assert caught.value.code is RefusalCode.TRUST_INVALID
