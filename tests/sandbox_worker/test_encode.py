"""The two writers of a call process against the libraries that everybody else reads with."""

from __future__ import annotations

import msgspec
import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from sandbox_worker.encode import INTEGER_MAX, canonical_json, pack

_plain = st.one_of(st.none(), st.booleans(), st.integers(-INTEGER_MAX, INTEGER_MAX), st.text())
_scalar = _plain | st.floats(allow_nan=False, allow_infinity=False)
_document = st.recursive(
    _scalar,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(_document)
def test_canonical_json_is_rfc_8785(value: object) -> None:
    """Byte for byte what the reference library writes: numbers, escapes, order of keys."""
    assert rfc8785.dumps(value) == canonical_json(value)  # type: ignore[arg-type]  # Any JSON.


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_spelled_as_ecmascript_does(value: float) -> None:
    """Every finite double, subnormals and powers of ten included."""
    assert rfc8785.dumps(value) == canonical_json(value)


@pytest.mark.parametrize(
    ("value", "error"),
    [
        (float("nan"), ValueError),
        (float("inf"), ValueError),
        (2**53, ValueError),
        ("\ud800", ValueError),
        ({"\ud800": 1}, ValueError),
        ({1: 1}, TypeError),
        (b"bytes", TypeError),
        (object(), TypeError),
        ([{"deep": {1, 2}}], TypeError),
    ],
)
def test_what_has_no_exact_spelling_is_refused(value: object, error: type[Exception]) -> None:
    """Nothing is rounded, replaced or left out."""
    with pytest.raises(error):
        canonical_json(value)


@given(
    st.recursive(
        st.one_of(_plain, st.binary(), st.integers(-(2**63), 2**63 - 1)),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )
)
def test_packed_values_are_read_back(value: object) -> None:
    """What the call process writes, the supervisor's decoder reads as the same value."""
    assert value == msgspec.msgpack.decode(pack(value))


@pytest.mark.parametrize("value", [2**63, "\ud800", 0.5, object(), [{"a": {1}}]])
def test_what_cannot_be_packed_is_refused(value: object) -> None:
    """No silent replacement on the way to the supervisor either."""
    with pytest.raises((TypeError, ValueError)):
        pack(value)
