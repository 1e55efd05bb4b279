"""Every mistake of a document at once, where the decoder names only the first.

Rules this file keeps: it is asked only after a strict decode failed, and decides nothing; what it
says is a path, what was found and what is expected. It leaves codes and remedies to its callers.
"""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from broker.trust.errors import printable

_PATTERN: Final = "`str` matching regex "
_END: Final = r"$(?!\\n)"
_FIELD: Final = re.compile("Object (?:contains (unknown) field|missing required field) (`.*`)")


class Mistake(NamedTuple):
    """One place of a document that does not fit: its path, what is there, what should be."""

    where: str
    found: str
    expected: str


def split_place(error: msgspec.ValidationError, where: str = "$") -> Mistake:
    """Take apart what msgspec says: the path, continued from `where`, found and expected."""
    what, _, place = str(error).partition(" - at ")
    expected, _, found = what.partition(", got ")
    place = place.partition(" in ")[2] or place
    expected = expected.removeprefix("Expected ").replace(_PATTERN, "text of the form ")
    expected = expected.replace(_END, "$")
    if field := _FIELD.fullmatch(expected):
        found, expected = (
            (f"the field {field[2]}", "no such field") if field[1] else ("nothing", field[2])
        )
    return Mistake(
        printable(where + place.strip("`").removeprefix("$"), 200),
        printable(found.strip("`") or "this value"),
        printable(expected, 400),
    )


def mistakes(value: object, hint: object, where: str) -> Iterator[Mistake]:
    """Find every place of a decoded document that does not fit its type.

    Args:
        value: what JSON or TOML gave.
        hint: the type it should have.
        where: the path of `value`.
    """
    try:
        msgspec.convert(value, hint)
    except msgspec.ValidationError as error:
        inside = list(_inside(value, hint, where))
        if inside:
            yield from inside
        elif msgspec.Raw not in typing.get_args(_bare(hint)):
            # Raw documents are looked at as bytes, elsewhere.
            mistake = _with_value(split_place(error, where), value)
            if typing.get_origin(_bare(hint)) is typing.Literal:
                words = ", ".join(map(str, typing.get_args(_bare(hint))))
                mistake = mistake._replace(expected=f"one of {words}")
            yield mistake


def _bare(hint: object) -> object:
    """Give a hint without its bounds."""
    return typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint


def _inside(value: object, hint: object, where: str) -> Iterator[Mistake]:
    bare = _bare(hint)
    origin, arguments = typing.get_origin(bare), typing.get_args(bare)
    if isinstance(bare, type) and issubclass(bare, msgspec.Struct) and isinstance(value, dict):
        yield from _fields(value, bare, where)
    elif origin is dict and isinstance(value, dict):
        for key, part in value.items():
            yield from mistakes(key, arguments[0], where)
            if arguments[1] is not msgspec.Raw:
                yield from mistakes(part, arguments[1], f"{where}.{key}")
    elif origin is tuple and isinstance(value, list) and arguments[-1] is ...:
        for number, part in enumerate(value):
            yield from mistakes(part, arguments[0], f"{where}[{number}]")


def _fields(
    value: dict[str, object], kind: type[msgspec.Struct], where: str
) -> Iterator[Mistake]:
    hints = typing.get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in sorted(value.keys() - fields.keys()):
        known = ", ".join(sorted(fields))
        yield Mistake(printable(f"{where}.{name}", 200), "an unknown field", f"one of {known}")
    for name, field in fields.items():
        place = f"{where}.{name}"
        if name in value:
            yield from mistakes(value[name], hints[name], place)
        elif field.required:
            yield Mistake(place, "nothing", "this field")


def _with_value(mistake: Mistake, value: object) -> Mistake:
    """Show the value itself when it is one word or number."""
    if isinstance(value, (str, int, float)):
        shown = printable(msgspec.json.encode(value).decode())
        return mistake._replace(found=shown)
    return mistake
