"""The tree: our loops against the definitions of RFC 6962, and proofs that must not pass."""

from __future__ import annotations

import hashlib

import pytest

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
