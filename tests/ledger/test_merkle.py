"""The tree: our loops against the definitions of RFC 6962, and proofs that must not pass."""

from __future__ import annotations

import functools
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.ledger.merkle import (
    EMPTY_ROOT,
    CompactRange,
    ProofError,
    consistency_path,
    fold,
    inclusion_path,
    leaf_hash,
    node_hash,
    split,
    verify_consistency,
    verify_inclusion,
)
from tests.evidence.conftest import load_script

LEAVES = [leaf_hash(b"event %d" % number) for number in range(71)]


def root_of(leaves: list[bytes]) -> bytes:
    """MTH of RFC 6962 section 2.1, word for word, over leaf hashes."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    middle = split(len(leaves))
    return node_hash(root_of(leaves[:middle]), root_of(leaves[middle:]))


def path_of(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 6962 section 2.1.1."""
    if len(leaves) == 1:
        return []
    middle = split(len(leaves))
    if index < middle:
        return [*path_of(index, leaves[:middle]), root_of(leaves[middle:])]
    return [*path_of(index - middle, leaves[middle:]), root_of(leaves[:middle])]


def subproof_of(old: int, leaves: list[bytes], known: bool) -> list[bytes]:
    """SUBPROOF of RFC 6962 section 2.1.2."""
    if old == len(leaves):
        return [] if known else [root_of(leaves)]
    middle = split(len(leaves))
    if old <= middle:
        return [*subproof_of(old, leaves[:middle], known), root_of(leaves[middle:])]
    return [*subproof_of(old - middle, leaves[middle:], False), root_of(leaves[:middle])]


def subtree(begin: int, end: int) -> bytes:
    return root_of(LEAVES[begin:end])


def test_known_hashes():
    """The three constants that RFC 6962 fixes are ours."""
    assert EMPTY_ROOT.hex().startswith("e3b0c44298fc1c14")
    assert leaf_hash(b"") == hashlib.sha256(b"\x00").digest()
    assert node_hash(b"l", b"r") == hashlib.sha256(b"\x01lr").digest()


def test_compact_range_and_fold_give_the_defined_root():
    """The running root equals the definition at every size; fold equals it for complete trees."""
    running = CompactRange()
    for size in range(71):
        assert running.root() == root_of(LEAVES[:size])
        if size & (size - 1) == 0 and size:
            assert fold(b"".join(LEAVES[:size])) == root_of(LEAVES[:size])
        running.push(LEAVES[size])


def test_paths_equal_the_recursions_and_verify():
    """For every tree of at most 70 leaves each proof is the defined one and is accepted."""
    for size in range(1, 71):
        root = root_of(LEAVES[:size])
        for index in range(size):
            path = inclusion_path(index, size, subtree)
            assert path == path_of(index, LEAVES[:size])
            verify_inclusion(LEAVES[index], index, size, path, root)
        for old in range(1, size + 1):
            path = consistency_path(old, size, subtree)
            assert path == subproof_of(old, LEAVES[:size], True)
            verify_consistency(old, size, root_of(LEAVES[:old]), root, path)


def test_no_changed_proof_is_accepted():
    """A flipped bit, a missing hash, an extra hash or another position is refused."""
    root = root_of(LEAVES[:23])
    path = inclusion_path(11, 23, subtree)
    wrong = [path[:-1], [*path, path[0]], path[1:], [path[0][:31], *path[1:]], path[::-1]]
    wrong += [[*path[:at], bytes(32), *path[at + 1 :]] for at in range(len(path))]
    for proof in wrong:
        with pytest.raises(ProofError):
            verify_inclusion(LEAVES[11], 11, 23, proof, root)
    for index, size in ((10, 23), (-1, 23), (11, 11), (11, 46), (23, 23)):
        with pytest.raises(ProofError):
            verify_inclusion(LEAVES[11], index, size, path, root)
    old_root = root_of(LEAVES[:13])
    proof = consistency_path(13, 23, subtree)
    for changed in (proof[:-1], [*proof, proof[0]], proof[1:], [], [proof[0][:31], *proof[1:]]):
        with pytest.raises(ProofError):
            verify_consistency(13, 23, old_root, root, changed)
    for old, new in ((12, 23), (13, 33), (0, 23), (-1, 23), (23, 13), (23, 23)):
        with pytest.raises(ProofError):
            verify_consistency(old, new, old_root, root, proof)


def test_each_root_of_a_consistency_proof_is_compared():
    """Neither the older nor the newer root can be another one."""
    old_root, root = root_of(LEAVES[:13]), root_of(LEAVES[:23])
    proof = consistency_path(13, 23, subtree)
    for first, second in ((LEAVES[0], root), (old_root, LEAVES[0]), (root, old_root)):
        with pytest.raises(ProofError):
            verify_consistency(13, 23, first, second, proof)


def test_a_proof_longer_than_its_sizes_is_refused_even_when_it_adds_up():
    """A path to the root of a larger tree proves nothing about the size that is given."""
    one, two, three = LEAVES[:3]
    with pytest.raises(ProofError, match="too long"):
        verify_inclusion(one, 0, 1, [two], node_hash(two, one))
    with pytest.raises(ProofError, match="too long"):
        verify_consistency(1, 2, one, node_hash(three, node_hash(one, two)), [two, three])


def test_equal_and_empty_trees():
    """Equal trees need the same root and no proof; the empty tree proves nothing."""
    verify_consistency(5, 5, LEAVES[0], LEAVES[0], [])
    for size, first, second, proof in (
        (5, LEAVES[0], LEAVES[1], []), (5, LEAVES[0], LEAVES[0], [LEAVES[0]]), (1, b"", b"", []),
        (0, EMPTY_ROOT, EMPTY_ROOT, []),
    ):
        with pytest.raises(ProofError):
            verify_consistency(size, size, first, second, proof)


# --- The shapes of the published suites, over trees of ours ---

ANY = hashlib.sha256(b"any").digest()
INCLUSION_SHAPES = {
    "index - 1": lambda i, n, leaf, root, p: (leaf, i - 1, n, p, root),
    "index + 1": lambda i, n, leaf, root, p: (leaf, i + 1, n, p, root),
    "index ^ 2": lambda i, n, leaf, root, p: (leaf, i ^ 2, n, p, root),
    "size * 2": lambda i, n, leaf, root, p: (leaf, i, n * 2, p, root),
    "size / 2": lambda i, n, leaf, root, p: (leaf, i, n // 2, p, root),
    "huge index": lambda i, n, leaf, root, p: (leaf, i + 2**64, n, p, root),
    "huge size": lambda i, n, leaf, root, p: (leaf, i, 2**64 + n, p, root),
    "huge both": lambda i, n, leaf, root, p: (leaf, 2**200 + i, 2**200 + n, p, root),
    "wrong leaf": lambda i, n, leaf, root, p: (b"WrongLeaf", i, n, p, root),
    "empty leaf": lambda i, n, leaf, root, p: (b"", i, n, p, root),
    "empty tree's root": lambda i, n, leaf, root, p: (leaf, i, n, p, EMPTY_ROOT),
    "empty root": lambda i, n, leaf, root, p: (leaf, i, n, p, b""),
    "empty root and leaf": lambda i, n, leaf, root, p: (b"", i, n, p, b""),
    "random root": lambda i, n, leaf, root, p: (leaf, i, n, p, ANY),
    "trailing nothing": lambda i, n, leaf, root, p: (leaf, i, n, [*p, b""], root),
    "trailing root": lambda i, n, leaf, root, p: (leaf, i, n, [*p, root], root),
    "leading nothing": lambda i, n, leaf, root, p: (leaf, i, n, [b"", *p], root),
    "leading root": lambda i, n, leaf, root, p: (leaf, i, n, [root, *p], root),
    "inserted": lambda i, n, leaf, root, p: (leaf, i, n, [*p[:1], ANY, *p[1:]], root),
    "empty size": lambda i, n, leaf, root, p: (leaf, i, 0, p, root),
    "no leaf at all": lambda i, n, leaf, root, p: (leaf, 0, 0, [], EMPTY_ROOT),
}
CONSISTENCY_SHAPES = {
    "size1 - 1": lambda a, b, r, s, p: (a - 1, b, r, s, p),
    "size1 + 1": lambda a, b, r, s, p: (a + 1, b, r, s, p),
    "size1 ^ 2": lambda a, b, r, s, p: (a ^ 2, b, r, s, p),
    "size1 negative": lambda a, b, r, s, p: (-a, b, r, s, p),
    "size2 * 2": lambda a, b, r, s, p: (a, b * 2, r, s, p),
    "size2 / 2": lambda a, b, r, s, p: (a, b // 2, r, s, p),
    "huge size2": lambda a, b, r, s, p: (a, 2**64 + b, r, s, p),
    "huge sizes": lambda a, b, r, s, p: (2**200 + a, 2**200 + b, r, s, p),
    "wrong root1": lambda a, b, r, s, p: (a, b, b"WrongRoot", s, p),
    "wrong root2": lambda a, b, r, s, p: (a, b, r, b"WrongRoot", p),
    "empty root1": lambda a, b, r, s, p: (a, b, b"", s, p),
    "swapped roots": lambda a, b, r, s, p: (a, b, s, r, p),
    "swapped sizes": lambda a, b, r, s, p: (b, a, s, r, p),
    "empty proof": lambda a, b, r, s, p: (a, b, r, s, []),
    "truncated": lambda a, b, r, s, p: (a, b, r, s, p[:-1]),
    "beheaded": lambda a, b, r, s, p: (a, b, r, s, p[1:]),
    "trailing nothing": lambda a, b, r, s, p: (a, b, r, s, [*p, b""]),
    "trailing root1": lambda a, b, r, s, p: (a, b, r, s, [*p, r]),
    "trailing root2": lambda a, b, r, s, p: (a, b, r, s, [*p, s]),
    "leading nothing": lambda a, b, r, s, p: (a, b, r, s, [b"", *p]),
    "leading root1": lambda a, b, r, s, p: (a, b, r, s, [r, *p]),
    "leading root2": lambda a, b, r, s, p: (a, b, r, s, [s, *p]),
    "leading first": lambda a, b, r, s, p: (a, b, r, s, [p[0], *p]),
}


def refused(function, *arguments) -> bool:
    try:
        function(*arguments)
    except ProofError:
        return True
    return False


@pytest.mark.parametrize("shape", INCLUSION_SHAPES)
def test_published_shapes_of_wrong_inclusion_proofs_are_refused(shape):
    """What the published suite does to a few proofs, done to each proof of 40 trees."""
    for size in range(1, 41):
        root = root_of(LEAVES[:size])
        for index in range(size):
            good = LEAVES[index], index, size, inclusion_path(index, size, subtree), root
            wrong = INCLUSION_SHAPES[shape](index, size, LEAVES[index], root, good[3])
            if wrong != good:
                assert refused(verify_inclusion, *wrong), (index, size)


@pytest.mark.parametrize("shape", CONSISTENCY_SHAPES)
def test_published_shapes_of_wrong_consistency_proofs_are_refused(shape):
    """What the published suite does to a few proofs, done to each proof between 40 trees."""
    roots = [root_of(LEAVES[:size]) for size in range(41)]
    for size in range(2, 41):
        for old in range(1, size):
            proof = consistency_path(old, size, subtree)
            good = old, size, roots[old], roots[size], proof
            wrong = CONSISTENCY_SHAPES[shape](*good)
            if wrong != good:
                assert refused(verify_consistency, *wrong), (old, size)


def test_trees_of_one_size_and_trees_of_none():
    """Equal sizes need equal roots, of whatever length, and nothing else; size 0 shows nothing."""
    one, two = b"don't care 1", b"don't care 2"
    verify_consistency(1, 1, two, two, [])
    verify_consistency(2**64, 2**64, ANY, ANY, [])
    for arguments in (
        (0, 0, one, two, []), (0, 0, one, one, []), (0, 1, one, two, []),
        (0, 1, EMPTY_ROOT, two, []), (0, 0, EMPTY_ROOT, EMPTY_ROOT, []),
        (0, 0, EMPTY_ROOT, two, []), (1, 1, one, two, []),
        (1, 1, EMPTY_ROOT, two, []), (0, 0, EMPTY_ROOT, EMPTY_ROOT, [EMPTY_ROOT]),
        (0, 1, EMPTY_ROOT, EMPTY_ROOT, [EMPTY_ROOT]), (1, 1, ANY, ANY, [EMPTY_ROOT]),
        (1, 0, one, two, []), (2, 1, one, two, []), (1, 2, one, two, []), (-1, -1, ANY, ANY, []),
    ):
        assert refused(verify_consistency, *arguments), arguments


@given(data=st.data())
def test_any_other_proof_is_refused_by_both_verifiers(data):
    """Trees of any size below 2,000: the made proof holds, any other list of hashes does not."""
    script = load_script("verify_proof")
    size = data.draw(st.integers(1, 1999))
    old, index = data.draw(st.integers(1, size)), data.draw(st.integers(0, size - 1))
    read = functools.cache(made_root)
    whole, before = read(0, size), read(0, old)
    paths = inclusion_path(index, size, read), consistency_path(old, size, read)
    for kind, path in enumerate(paths):
        other = data.draw(st.lists(st.sampled_from([*path, whole, before, ANY]), max_size=12))
        for proof in (path, other):
            if kind:
                arguments = old, size, before, whole, proof
                failed = refused(verify_consistency, *arguments)
                second = script.check_consistency, ("", old, before), ("", size, whole), proof
            else:
                leaf = read(index, index + 1)
                failed = refused(verify_inclusion, leaf, index, size, proof, whole)
                second = script.check_inclusion, leaf, index, ("", size, whole), proof
            assert failed == (proof != path)
            if all(len(one) == 32 for one in proof):
                try:
                    second[0](*second[1:])
                    assert not failed
                except script.WrongError:
                    assert failed


def made_root(begin: int, end: int) -> bytes:
    """Hash the leaves of an endless made-up ledger."""
    running = CompactRange()
    for number in range(begin, end):
        running.push(leaf_hash(b"%d" % number))
    return running.root()
