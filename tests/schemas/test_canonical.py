"""Canonical JSON: exactly the RFC 8785 spelling passes, whatever path it takes."""

from __future__ import annotations

import gc
import json
import os
import time
from pathlib import Path

import pytest
import rfc8785
from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas.canonical import InvalidJson, JsonValue, canonical_bytes, check_canonical
from schemas.events import EVENT_TYPES
from schemas.names import JSON_BYTES_MAX, JSON_DEPTH_MAX, JSON_SLOW_BYTES_MAX

_VECTORS = Path(
    os.environ.get("OMEGA_VECTORS", Path(__file__).parents[2] / "../shared/vectors")
) / "jcs/testdata"
_NAMES = ("arrays", "french", "structures", "unicode", "values", "weird")

_integers = st.integers(-(2**53) + 1, 2**53 - 1)
_documents = st.recursive(
    st.none() | st.booleans() | _integers | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4),
    max_leaves=12,
)


def _problem(data: bytes, **bounds: int) -> str:
    with pytest.raises(InvalidJson) as caught:
        check_canonical(data, **bounds)
    return caught.value.problem


@pytest.mark.parametrize("name", _NAMES)
def test_published_vectors(name: str) -> None:
    """The published RFC 8785 outputs pass, and our writer makes them from their inputs."""
    if not _VECTORS.is_dir():
        pytest.skip("the published vectors are not beside this checkout")
    source = (_VECTORS / "input" / f"{name}.json").read_bytes()
    wanted = bytes.fromhex((_VECTORS / "outhex" / f"{name}.txt").read_text().replace("\n", " "))

    assert canonical_bytes(json.loads(source)) == wanted
    assert canonical_bytes(check_canonical(wanted)) == wanted
    if source != wanted:
        assert _problem(source) == "json_not_canonical"


@given(_documents)
@example({"\ue000": 1, "\U0001f600": 2})
@example([1e21, 1e-7, -0.0, 5e-324, 2**53 - 1])
@example([float(2**53), -1e20, 0.5])
@example({"": "\x00\x08\t\n\x0b\x0c\r\x1f\x7f\u2028/\\\""})
def test_what_rfc8785_writes_is_accepted(document: JsonValue) -> None:
    """Whatever the reference library writes is accepted and means the same document."""
    data = rfc8785.dumps(document)

    assert rfc8785.dumps(check_canonical(data)) == data
    assert canonical_bytes(document) == data


@given(_documents, st.randoms(use_true_random=False))
def test_any_other_spelling_is_refused(document: JsonValue, chance: object) -> None:
    """A document with one byte put in, taken out or changed passes only if it is canonical too."""
    assert hasattr(chance, "randrange")
    data = bytearray(rfc8785.dumps(document))
    at = chance.randrange(len(data))
    kind = chance.randrange(3)
    if kind == 0:
        data[at] = chance.choice(b' "\\{}[],:0129-+.eEtnu\xf0\x00')
    elif kind == 1:
        data.insert(at, chance.choice(b' \n"\\{}[],:0129-+.eE'))
    else:
        del data[at]
    try:
        value = check_canonical(bytes(data))
    except InvalidJson:
        return
    assert rfc8785.dumps(value) == bytes(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_document_or_one_error(data: bytes) -> None:
    """For any bytes the outcome is a canonical document or `InvalidJson`, nothing else."""
    try:
        value = check_canonical(data)
    except InvalidJson:
        return
    assert rfc8785.dumps(value) == data


_REFUSED = {
    "nothing": b"",
    "a byte order mark": b"\xef\xbb\xbf{}",
    "a space": b'{"a": 1}',
    "a newline at the end": b"{}\n",
    "two documents": b"{}{}",
    "cut off": b'{"a":',
    "duplicate keys": b'{"a":1,"a":1}',
    "duplicate keys, one escaped": b'{"\\u0061":1,"a":1}',
    "keys out of order": b'{"b":1,"a":2}',
    "NaN": b"NaN",
    "Infinity": b"[Infinity]",
    "a number beyond doubles": b"1e999",
    "a long integer beyond 53 bits": b"9007199254740993",
    "an integer of 400 digits": b"1" * 400,
    "minus zero": b"-0",
    "a leading zero": b"01",
    "a float that is an integer": b"1.0",
    "an exponent": b"1e5",
    "a needless escape": b'"\\u0041"',
    "an escaped slash": b'"\\/"',
    "an escaped astral character": b'"\\ud83d\\ude00"',
    "a lone surrogate": b'"\\ud83d"',
    "capital hex in an escape": b'"\\u001F"',
    "invalid UTF-8": b'"\xff"',
    "a raw control character": b'"\x01"',
    "astral keys in code point order": '{"\ue000":1,"\U0001f600":2}'.encode(),
}


@pytest.mark.parametrize("name", sorted(_REFUSED))
def test_another_spelling_is_not_repaired(name: str) -> None:
    """The gateway checks and does not repair: each of these is `json_not_canonical`."""
    assert _problem(_REFUSED[name]) == "json_not_canonical"


def test_where_the_spelling_differs_is_said() -> None:
    """The sentence names the first byte that differs and what would be canonical there."""
    with pytest.raises(InvalidJson, match="at byte 5: found b' 1}', canonical would be b'1}'"):
        check_canonical(b'{"a": 1}')
    with pytest.raises(InvalidJson, match="at byte 2: found b' ', canonical would be b''"):
        check_canonical(b"{} ")


def test_sizes() -> None:
    """A document has its limit; one that needs the slow path has a smaller one."""
    fits = b'"' + b"x" * (JSON_BYTES_MAX - 2) + b'"'
    assert check_canonical(fits) == "x" * (JSON_BYTES_MAX - 2)
    assert _problem(b'"x' + fits[1:]) == "json_too_large"

    def with_float(size: int) -> bytes:
        return b'[0.5,"' + b"x" * (size - 8) + b'"]'

    assert check_canonical(with_float(JSON_SLOW_BYTES_MAX))
    assert _problem(with_float(JSON_SLOW_BYTES_MAX + 1)) == "json_too_large"
    long_digits = b'"' + b"1" * JSON_SLOW_BYTES_MAX + b'"'
    assert _problem(long_digits) == "json_too_large"
    astral = b'"' + "\U0001f600".encode() * (JSON_SLOW_BYTES_MAX // 4) + b'"'
    assert _problem(astral) == "json_too_large"


@pytest.mark.parametrize("begin", range(16))
def test_sixteen_digits_are_found_wherever_they_begin(begin: int) -> None:
    """A long document with 16 digits in a row is for the slow path, and with 15 it is not."""
    def document(digits: bytes) -> bytes:
        text = b"x" * (1024 + begin) + digits
        return b'"' + text.ljust(JSON_SLOW_BYTES_MAX, b"x") + b'"'

    for digits in (b"8" * 15, b"1234567x" * 64):
        assert check_canonical(document(digits)) == document(digits)[1:-1].decode()
    for digits in (b"8" * 16, b"8" * 17, b"1234567x" * 64 + b"0123456789" * 2):
        assert _problem(document(digits)) == "json_too_large"


@pytest.mark.parametrize("pair", [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
def test_depth_is_exact(pair: tuple[str, str]) -> None:
    """The deepest allowed nesting passes and one level more is refused, lists and objects alike."""
    opening, closing = pair
    levels = opening.count("[") + opening.count("{")
    times = JSON_DEPTH_MAX // levels
    inner = "[]" if levels == 1 else "[[]]"
    fits = opening * (times - 1) + inner + closing * (times - 1)
    deeper = opening * times + inner + closing * times
    if levels == 1:
        assert check_canonical(fits.encode()) is not None
    assert _problem(deeper.encode()) == "json_too_deep"


def _nested(shape: list[int]) -> JsonValue:
    """Lists within lists: for each number a chain so deep, side by side and within each other."""
    value: JsonValue = []
    for depth in shape:
        inner: JsonValue = value
        for _ in range(depth):
            inner = [inner]
        value = [inner, *([[]] * (depth % 7)), value]
    return value


def _levels(value: JsonValue) -> int:
    return 1 + max(map(_levels, value), default=0) if isinstance(value, list) else 0


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=7))
def test_depth_is_exact_in_every_shape(shape: list[int]) -> None:
    """Wide, narrow and mixed documents pass at their own depth and not at one level less."""
    value = _nested(shape)
    levels, data = _levels(value), json.dumps(value, separators=(",", ":")).encode()

    assert check_canonical(data, depth_max=levels) == value
    with pytest.raises(InvalidJson) as caught:
        check_canonical(data, depth_max=levels - 1)
    assert caught.value.problem == "json_too_deep"


def test_brackets_in_strings_are_not_nesting() -> None:
    """Brackets inside strings do not count, with and without escapes around them."""
    assert check_canonical(b'"' + b"[" * 100 + b'"') == "[" * 100
    escaped = '["' + "\\\\\\\"[{" * 100 + '"]'
    assert check_canonical(escaped.encode()) == ['\\"[{' * 100]


def test_nesting_of_100_000_levels_is_refused_before_decoding() -> None:
    """Very deep nesting is refused by the scan, not by the decoder's stack."""
    assert _problem(b"[" * 100_000 + b"]" * 100_000) == "json_too_deep"


@pytest.mark.parametrize(
    "data",
    [
        b"[" * 40 + b'"' + b'\\"' * 128_000,
        b"[" * 40 + b"\\" * 200_000,
        b'"' * 100_000 + b"[" * 100_000,
        b"[]" * 128_000 + b"\\",
        b'["' + b"\\u0061" * 40_000 + b'"]',
        b"[" + b'{"a":[]},' * 25_000 + b"[]] ",
        b'["' + b"\\" * 200_000 + b'"] ',
        b"[" + b"12345678901234567," * 3_600 + b"0 ]",
        b"1" * 60_000,
        b'{"":' * 31 + b"[" + b"0," * 100_000 + b"0 ]" + b"}" * 31,
    ],
)
def test_hostile_documents_are_answered_quickly(data: bytes) -> None:
    """No document of the allowed size holds the loop: the answer comes in a quarter second."""
    # What other tests keep in memory is no part of the answer: walking it takes as long again.
    gc.freeze()
    begin = time.process_time()
    with pytest.raises(InvalidJson):
        check_canonical(data)
    used_s = time.process_time() - begin
    gc.unfreeze()

    assert used_s < 0.25


def test_a_value_without_canonical_form_is_an_error() -> None:
    """Our writer refuses what RFC 8785 cannot spell."""
    for value in (2**53, float("nan"), "\ud800", {1: 2}, object()):
        with pytest.raises(InvalidJson):
            canonical_bytes(value)


@settings(max_examples=50)
@given(st.integers(JSON_SLOW_BYTES_MAX, JSON_BYTES_MAX - 2))
def test_plain_documents_may_use_the_whole_size(size: int) -> None:
    """A document without slow parts is held only to the larger limit."""
    assert check_canonical(b'"' + b"y" * size + b'"') == "y" * size


def test_event_keys_need_no_slow_path() -> None:
    """Our own structs have ASCII keys, so the fast writer's order is that of RFC 8785."""
    for kind in EVENT_TYPES.values():
        assert all(name.isascii() for name in kind.__struct_fields__)
