"""HMAC-SHA256 written out: the same value as the standard and the standard library."""

from __future__ import annotations

import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.orchestrator.keyed import Keyed, keyed_sha256

# RFC 4231, sections 4.2 to 4.5: the keys of at most one block.
_VECTORS = (
    (b"\x0b" * 20, b"Hi There",
     "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
    (b"Jefe", b"what do ya want for nothing?",
     "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
    (b"\xaa" * 20, b"\xdd" * 50,
     "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
    (bytes(range(1, 26)), b"\xcd" * 50,
     "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
)


@pytest.mark.parametrize(("key", "data", "digest"), _VECTORS)
def test_the_standards_values_come_out(key: bytes, data: bytes, digest: str) -> None:
    """Every published value for a key of at most a block comes out, wherever the label ends."""
    for at in range(len(data) + 1):
        assert keyed_sha256(key, data[:at], data[at:]) == digest
        assert Keyed(key, data[:at]).sha256(data[at:]) == digest


@given(st.binary(max_size=64), st.binary(max_size=200), st.lists(st.binary(max_size=200)))
def test_it_is_what_the_library_gives(key: bytes, label: bytes, messages: list[bytes]) -> None:
    """For any key up to a block it is the library's HMAC, and what was hashed leaves no trace."""
    keyed = Keyed(key, label)
    for message in messages:
        expected = hmac.digest(key, label + message, "sha256").hex()
        assert keyed_sha256(key, label, message) == expected
        assert keyed.sha256(message) == expected


def test_a_key_longer_than_a_block_is_not_taken() -> None:
    """A longer key, which the standard hashes first, is a mistake of ours and never cut."""
    for make in (lambda key: keyed_sha256(key, b"", b""), lambda key: Keyed(key, b"")):
        with pytest.raises(AssertionError):
            make(b"k" * 65)
