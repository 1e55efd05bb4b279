"""Canonical JSON: one spelling per value (RFC 8785), checked and never repaired.

Rules this file keeps:
- What arrives is decoded, encoded again in canonical form and compared. Equal is accepted. That
  excludes duplicate keys, NaN, extra spaces, other number spellings and key orders in one step.
- The fast encoder (msgspec, sorted keys) equals RFC 8785 for documents without floats, integers of
  16 digits or more, and characters beyond the basic plane. A document that may hold one of these
  is found first and goes through `rfc8785`, within a smaller size.
- Nesting is bounded before anything is decoded, in time linear in the document: a plugin's output
  comes through here too, and nothing it writes may hold the loop.

It leaves to the callers which refusal code an `InvalidJson` becomes. Source: RFC 8785; RFC 7493.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import accumulate
from operator import sub
from typing import Final, Literal

import msgspec

from schemas.names import JSON_BYTES_MAX, JSON_DEPTH_MAX, JSON_SLOW_BYTES_MAX

JsonValue = None | bool | int | float | str | list["JsonValue"] | dict[str, "JsonValue"]
JsonProblem = Literal["json_not_canonical", "json_too_large", "json_too_deep"]

_MARKS: Final = bytes.maketrans(
    b"123456789{" + bytes(range(0xF0, 0x100)), b"000000000[" + b"\xff" * 16
)
"""Maps digits to 0, opening brackets to [ and every first byte of a character beyond the basic
plane to 0xFF: one pass over a document, and what is in the way of the fast path is easy to see."""
_ONE_BRACKET: Final = bytes.maketrans(b"{}", b"[]")
_NOT_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_OPENING: Final = re.compile(rb"\[+")
_CLOSING: Final = re.compile(rb"\]+")
_MANY_PAIRS: Final = 32
"""A round pays if at least one in so many brackets begins an innermost pair."""


class InvalidJson(ValueError):
    """The bytes are not one acceptable JSON document; `problem` is the refusal code that says
    why."""

    def __init__(self, problem: JsonProblem, sentence: str) -> None:
        """Remember which rule was broken and the sentence for a person."""
        super().__init__(sentence)
        self.problem: JsonProblem = problem


class _FloatSeenError(Exception):
    """Raised by the float hook to leave the fast path."""


def _float_seen(_text: str) -> float:
    raise _FloatSeenError


_fast_decoder: Final[msgspec.json.Decoder[JsonValue]] = msgspec.json.Decoder(float_hook=_float_seen)
_fast_encoder: Final = msgspec.json.Encoder(order="sorted")


def canonical_bytes(value: object) -> bytes:
    """Write a value in its one RFC 8785 spelling.

    Args:
        value: None, bool, int within 53 bits, finite float, str, list, tuple or dict with str keys;
            msgspec Structs are turned into dicts first.

    Returns:
        UTF-8 bytes.

    Raises:
        InvalidJson: the value has no canonical spelling.
    """
    # Loaded when it is first needed: a client of plain documents does without this package.
    import rfc8785

    try:
        return rfc8785.dumps(msgspec.to_builtins(value))
    except (rfc8785.CanonicalizationError, TypeError, RecursionError, UnicodeEncodeError) as error:
        raise InvalidJson(
            "json_not_canonical", f"the value has no canonical form: {error}"
        ) from None


def struct_bytes(value: msgspec.Struct | Mapping[str, str]) -> bytes:
    """Write one of our own structs (ASCII keys, no floats) canonically, by the fast encoder."""
    return _fast_encoder.encode(value)


def document_bytes(value: JsonValue) -> bytes:
    """Write a document canonically, by the fast encoder where that is shown to be exact.

    Raises:
        InvalidJson: the value has no canonical spelling.
    """
    try:
        data = _fast_encoder.encode(value)
        # NaN becomes null and a tuple a list; only a document that reads back equal is ours.
        if check_canonical(data) == value:
            return data
    except (ValueError, TypeError, OverflowError, RecursionError):
        # The slow encoder accepts the value or says what is wrong with it.
        pass
    return canonical_bytes(value)


def _needs_slow_path(marks: bytes) -> bool:
    """Say whether there are 16 digits in a row or a character beyond the basic plane."""
    return b"0000000000000000" in marks or b"\xff" in marks


def _check_depth(data: bytes, depth_max: int) -> None:
    """Refuse nesting beyond the bound.

    Innermost pairs of brackets are deleted round by round while there are many of them: each round
    is one level and leaves much less. What then is left has few runs of equal brackets, whose
    lengths tell the rest. So no document costs many rounds over all of it.
    """
    # A run of backslashes pairs up from its left end, so what is left before a quote escapes it;
    # without escapes every second piece between quotes lies outside the strings.
    unescaped = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    pieces = unescaped.translate(_ONE_BRACKET, _NOT_STRUCTURE).split(b'"')
    brackets, depth = b"".join(pieces[::2]), 0
    while brackets.count(b"[]") * _MANY_PAIRS > len(brackets) and depth <= depth_max:
        brackets, depth = brackets.replace(b"[]", b""), depth + 1
    opened = accumulate(map(len, _OPENING.findall(brackets)))
    closed = accumulate(map(len, _CLOSING.findall(brackets)), initial=0)
    if depth + max(map(sub, opened, closed), default=0) > depth_max:
        raise InvalidJson("json_too_deep", f"the document is nested deeper than {depth_max} levels")


def check_canonical(
    data: bytes,
    *,
    bytes_max: int = JSON_BYTES_MAX,
    slow_bytes_max: int = JSON_SLOW_BYTES_MAX,
    depth_max: int = JSON_DEPTH_MAX,
) -> JsonValue:
    """Accept exactly the RFC 8785 spelling of one JSON document.

    Args:
        data: the document's bytes.
        bytes_max: largest document, in bytes.
        slow_bytes_max: largest document that may hold floats, long integers or astral characters.
        depth_max: deepest nesting, in levels.

    Returns:
        The decoded document, so that a validator need not decode it again.

    Raises:
        InvalidJson: with the refusal code of the first rule that is broken.
    """
    if len(data) > bytes_max:
        raise InvalidJson(
            "json_too_large", f"the document has {len(data)} bytes, allowed are {bytes_max}"
        )
    marks = data.translate(_MARKS)
    if marks.count(b"[") > depth_max:
        _check_depth(data, depth_max)
    try:
        if not _needs_slow_path(marks):
            try:
                value = _fast_decoder.decode(data)
                canonical = _fast_encoder.encode(value)
            except _FloatSeenError:
                value, canonical = _slow_canonical(data, slow_bytes_max)
        else:
            value, canonical = _slow_canonical(data, slow_bytes_max)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidJson("json_not_canonical", f"the bytes are not JSON: {error}") from None
    if canonical != data:
        raise InvalidJson("json_not_canonical", _first_difference(data, canonical))
    return value


def _number(text: str) -> int | float:
    """Read an integer literal: RFC 8785 numbers are doubles, and 16 digits may not be exact."""
    return int(text) if len(text) <= 15 else float(text)


def _slow_canonical(data: bytes, slow_bytes_max: int) -> tuple[JsonValue, bytes]:
    if len(data) > slow_bytes_max:
        raise InvalidJson(
            "json_too_large",
            f"a document with floats, long integers or astral characters may have {slow_bytes_max} "
            f"bytes, this one has {len(data)}",
        )
    try:
        value: JsonValue = json.loads(data.decode(), parse_int=_number)
    except ValueError as error:
        raise InvalidJson("json_not_canonical", f"the bytes are not JSON: {error}") from None
    return value, canonical_bytes(value)


def _first_difference(data: bytes, canonical: bytes) -> str:
    at, end = 0, min(len(data), len(canonical))
    while at < end:
        # Halving keeps the comparison in C, so a large difference costs the loop nothing.
        middle = (at + end + 1) // 2
        if data[at:middle] == canonical[at:middle]:
            at = middle
        else:
            end = middle - 1
    found, expected = data[at : at + 20], canonical[at : at + 20]
    return f"at byte {at}: found {found!r}, canonical would be {expected!r}"
