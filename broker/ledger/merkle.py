"""The Merkle tree over the ledger's events: hashes, proofs, and the running root.

Rules this file keeps:
- A leaf hash is SHA-256(0x00 ‖ data), a node hash SHA-256(0x01 ‖ left ‖ right), so no node can pass
  for a leaf. An event's `event_hash` is already the leaf hash of its canonical body.
- Verifying raises; nothing returns a truth value. A proof has exactly the length its sizes demand.
- Nothing here touches a file: proof paths are made over a `subtree` function that is handed in.

It leaves storing hashes to `broker.ledger.tiles`.
Source: RFC 6962 section 2.1; RFC 9162 sections 2.1.3 and 2.1.4.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Sequence
from typing import Final

from schemas.proof import HASH_BYTES, ProofError

__all__ = [
    "EMPTY_ROOT", "CompactRange", "ProofError", "Subtree", "consistency_path", "fold",
    "inclusion_path", "leaf_hash", "node_hash", "verify_consistency", "verify_inclusion",
]

_NODE: Final = hashlib.sha256(b"\x01")
"""The state after a node's prefix; copying it costs less than making one."""
_PAIR: Final = struct.Struct(f"{2 * HASH_BYTES}s")
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""The root of a tree without leaves."""

Subtree = Callable[[int, int], bytes]
"""Gives the RFC 6962 hash of the leaves from `begin` to before `end`."""


def leaf_hash(data: bytes) -> bytes:
    """Hash the data of one leaf."""
    return hashlib.sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two subtrees into one."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def fold(hashes: bytes) -> bytes:
    """Hash a complete subtree: a power of two of 32-byte hashes, end to end."""
    begin = _NODE.copy
    while len(hashes) > HASH_BYTES:
        digests = []
        for (pair,) in _PAIR.iter_unpack(hashes):
            state = begin()
            state.update(pair)
            digests.append(state.digest())
        hashes = b"".join(digests)
    return hashes


class CompactRange:
    """The roots of the complete subtrees of a growing tree, largest first: enough for its root."""

    def __init__(self, size: int = 0, peaks: Sequence[bytes] = ()) -> None:
        """Begin with the empty tree, or go on with one of `size` leaves."""
        self.size = size
        self.peaks = list(peaks)

    def push(self, root: bytes, level: int = 0) -> None:
        """Append one leaf hash, or the root of a complete subtree of 2^level leaves.

        A subtree can be appended where as many leaves as it has divide the size.
        """
        index = self.size >> level
        while index & 1:
            root = hashlib.sha256(b"\x01" + self.peaks.pop() + root).digest()
            index >>= 1
        self.peaks.append(root)
        self.size += 1 << level

    def root(self) -> bytes:
        """Give the root over all leaves so far."""
        if not self.peaks:
            return EMPTY_ROOT
        root = self.peaks[-1]
        for peak in reversed(self.peaks[:-1]):
            root = node_hash(peak, root)
        return root


def split(size: int) -> int:
    """Give the largest power of two below `size`, which is at least 2."""
    return 1 << ((size - 1).bit_length() - 1)


def inclusion_path(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """Make the proof that leaf `index` is in a tree of `size` leaves (RFC 6962, 2.1.1)."""
    assert 0 <= index < size
    begin, end = 0, size
    path: list[bytes] = []
    while end - begin > 1:
        middle = begin + split(end - begin)
        if index < middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(begin, middle))
            begin = middle
    path.reverse()
    return path


def consistency_path(old_size: int, size: int, subtree: Subtree) -> list[bytes]:
    """Make the proof that a tree continues that of `old_size` leaves (RFC 6962, 2.1.2)."""
    assert 0 < old_size <= size
    begin, end = 0, size
    path: list[bytes] = []
    while old_size != end:
        middle = begin + split(end - begin)
        if old_size <= middle:
            path.append(subtree(middle, end))
            end = middle
        else:
            path.append(subtree(begin, middle))
            begin = middle
    # The verifier knows the old root; a subtree that begins at 0 here is exactly that.
    if begin:
        path.append(subtree(begin, end))
    path.reverse()
    return path


def _climb(
    node: int, last: int, seed: bytes, proof: Sequence[bytes]
) -> tuple[bytes, bytes]:
    """Hash from a node to the root.

    `node` is the seed's index on its level and `last` that level's last index. Gives two roots: one
    over the leaves up to and with the seed's, from its left neighbours alone, and the whole tree's.
    """
    old = new = seed
    for one in proof:
        if len(one) != HASH_BYTES:
            raise ProofError("a hash in the proof is not 32 bytes long")
        if last == 0:
            raise ProofError("the proof is too long")
        if node & 1 or node == last:
            old, new = node_hash(one, old), node_hash(one, new)
            while node and not node & 1:
                node >>= 1
                last >>= 1
        else:
            new = node_hash(new, one)
        node >>= 1
        last >>= 1
    if last != 0:
        raise ProofError("the proof is too short")
    return old, new


def verify_inclusion(
    leaf_hash: bytes, leaf_index: int, tree_size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that a leaf is at its place in a tree.

    Args:
        leaf_hash: the leaf's hash, 32 bytes.
        leaf_index: its position from 0.
        tree_size: how many leaves the tree has.
        proof: the hashes of the path, 32 bytes each, from the leaf upwards.
        root: the tree's root, 32 bytes.

    Raises:
        ProofError: the proof does not show it. Source: RFC 9162, section 2.1.3.2.
    """
    if not 0 <= leaf_index < tree_size:
        raise ProofError(f"leaf {leaf_index} is outside a tree of {tree_size}")
    if len(leaf_hash) != HASH_BYTES or len(root) != HASH_BYTES:
        raise ProofError("leaf hash and root have 32 bytes")
    _, computed = _climb(leaf_index, tree_size - 1, leaf_hash, proof)
    if computed != root:
        raise ProofError("the proof leads to another root")


def verify_consistency(
    size1: int, size2: int, root1: bytes, root2: bytes, proof: Sequence[bytes]
) -> None:
    """Check that one tree is the continuation of another.

    Equal sizes are consistent exactly when the roots are the same bytes and the proof is empty. The
    empty tree proves nothing about a later one and is refused, also against itself.

    Args:
        size1: leaves of the older tree, at least 1.
        size2: leaves of the newer tree.
        root1: the older root, 32 bytes.
        root2: the newer root, 32 bytes.
        proof: the hashes, 32 bytes each.

    Raises:
        ProofError: the proof does not show it. Source: RFC 9162, section 2.1.4.2.
    """
    if not 0 < size1 <= size2:
        raise ProofError(f"a tree of {size2} cannot be shown to continue one of {size1}")
    if size1 == size2:
        if proof or not root1 or root1 != root2:
            raise ProofError("trees of one size have one root and need no proof")
        return
    # The path begins at the largest complete subtree that ends where the old tree does. If that
    # is the old tree itself, its root is known and the proof leaves it out.
    level = (size1 & -size1).bit_length() - 1
    path = [root1, *proof] if size1 == 1 << level else list(proof)
    if not path or len(path[0]) != HASH_BYTES:
        raise ProofError("the proof does not begin with a hash of 32 bytes")
    old, new = _climb((size1 - 1) >> level, (size2 - 1) >> level, path[0], path[1:])
    if old != root1 or new != root2:
        raise ProofError("the proof leads to other roots")
