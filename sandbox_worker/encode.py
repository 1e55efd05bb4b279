"""Two writers for a process that may import almost nothing: canonical JSON and msgpack.

The call process has no file system, and every module loaded before its fork slows every call, so
these are plain functions over builtin types. `canonical_json` writes RFC 8785: sorted keys, no
spaces, the shortest escape, numbers as ECMAScript prints them. `pack` writes msgpack. Neither
repairs anything: what has no exact spelling is refused.

It leaves reading to msgspec in the supervisor, which treats every byte as hostile.
"""

from __future__ import annotations

import _codecs

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: importing more than builtins would slow every fork.
    from collections.abc import Callable

INTEGER_MAX = 2**53 - 1
"""Beyond it a JSON number has no exact spelling (RFC 8785, section 3.2.2.3)."""

_INTEGER_MIN = -INTEGER_MAX
_ESCAPES = {code: f"\\u{code:04x}" for code in range(0x20)} | {
    0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0C: "\\f", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\",
}  # fmt: skip


_joined, _listed = "".join, ",".join


def canonical_json(value: object) -> bytes:
    """The RFC 8785 bytes of a JSON value made of dict, list, tuple, str, int, float, bool, None.

    Raises:
        TypeError: the value holds something that JSON does not have.
        ValueError: a number or a string without an exact spelling.
    """
    return _text(value).encode()


def _text(value: object) -> str:
    """One value: by its exact type, which costs less, or as what its type inherits from.

    Loops are written out because before Python 3.12 a comprehension makes a function of its own.
    """
    kind = type(value)
    if kind is str or kind is int:
        return _leaf(value)  # type: ignore[arg-type]  # mypy does not follow `kind`.
    if value is None or value is True or value is False:
        return "null" if value is None else "true" if value else "false"
    if isinstance(value, dict):
        # Joining refuses a key that is no string.
        keys = sorted(value) if _joined(value).isascii() else sorted(value, key=_utf16)
        members = []
        for key in keys:
            members.append(f"{_leaf(key)}:{_text(value[key])}")  # noqa: PERF401  See `_text`.
        return f"{{{_listed(members)}}}"
    if isinstance(value, (list, tuple)):
        items = []
        for item in value:
            items.append(_text(item))  # noqa: PERF401  See `_text`.
        return f"[{_listed(items)}]"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, (str, int)):
        return _leaf(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


def _leaf(value: str | int) -> str:
    if isinstance(value, str):
        # Python's own spelling is longer by more than its quotes where a character is escaped, and
        # it escapes all that JSON does but one: looking costs less than escaping.
        if len(f"{value!r}") == len(value) + 2 and '"' not in value:
            return f'"{value}"'
        return '"' + value.translate(_ESCAPES) + '"'
    if not _INTEGER_MIN <= value <= INTEGER_MAX:
        raise ValueError(f"integer beyond 2^53 - 1: {value.bit_length()} bits")
    return int.__repr__(value)


def _utf16(key: str) -> bytes:
    return _codecs.utf_16_be_encode(key)[0]


def _number(value: float) -> str:
    """A finite double as ECMAScript's Number::toString prints it (RFC 8785, section 3.2.2.3)."""
    if not abs(value) < float("inf"):
        raise ValueError("JSON has no infinity and no NaN")
    if value == 0:
        return "0"
    mantissa, _, exponent = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    digits = (whole + fraction).lstrip("0")
    # The decimal point stands before digit number `point`; repr gives the shortest digits.
    point = len(whole) + int(exponent or 0)
    if whole == "0":
        point -= len(fraction) + 1 - len(digits)
    digits = digits.rstrip("0")
    count = len(digits)
    if count <= point <= 21:
        text = digits + "0" * (point - count)
    elif 0 < point <= 21:
        text = digits[:point] + "." + digits[point:]
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        power = f"e{'+' if point > 0 else '-'}{abs(point - 1)}"
        text = digits[0] + ("." + digits[1:] if count > 1 else "") + power
    return "-" + text if value < 0 else text


def framed(body: bytes) -> bytes:
    """A body behind its length in four bytes."""
    return len(body).to_bytes(4, "big") + body


def pack(value: object) -> bytes:
    """The msgpack bytes of None, bool, int, str, bytes, list, tuple and dict.

    Raises:
        TypeError: anything else.
        ValueError: a string that is not UTF-8, an integer beyond 64 bits.
    """
    parts: list[bytes] = []
    _pack(value, parts.append)
    return b"".join(parts)


def _pack(value: object, put: Callable[[bytes], object]) -> None:
    if value is None or value is True or value is False:
        put(b"\xc0" if value is None else b"\xc3" if value else b"\xc2")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError("integer beyond 64 bits")
        put(b"\xd3" + value.to_bytes(8, "big", signed=True))
    elif isinstance(value, str):
        text = value.encode()
        put(b"\xdb" + len(text).to_bytes(4, "big"))
        put(text)
    elif isinstance(value, bytes):
        put(b"\xc6" + len(value).to_bytes(4, "big"))
        put(value)
    elif isinstance(value, (list, tuple)):
        put(b"\xdd" + len(value).to_bytes(4, "big"))
        for item in value:
            _pack(item, put)
    elif isinstance(value, dict):
        put(b"\xdf" + len(value).to_bytes(4, "big"))
        for key, item in value.items():
            _pack(key, put)
            _pack(item, put)
    else:
        raise TypeError(f"msgpack has no {type(value).__name__}")
