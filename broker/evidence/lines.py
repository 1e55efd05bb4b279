"""Many lines at once: whether each is one event in its only spelling, and the hash that it has.

One line by itself, as `schemas.events.decode_event` reads it, costs most where texts are held
against their patterns. Here a batch is decoded without patterns, written again and compared as a
whole, and each shape is then asked once for all different texts of the batch that must have it.

Rules this file keeps:
- It says yes or nothing. A batch that it does not admit is read again line by line by whoever
  asked, which finds the damage and its name, or that there is none.
- What it admits, `decode_event` admits: same structs, same spelling, same shapes, same hash.

It leaves files to `broker.evidence.walk`. Source: RFC 8785; docs/LEDGER.md, section 2.
"""

from __future__ import annotations

import functools
import hashlib
import operator
import re
import types
from collections import defaultdict
from collections.abc import Callable
from typing import (
    Annotated,
    Final,
    Literal,
    NamedTuple,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

from schemas.events import EVENT_TYPES, EventFields, LedgerOpen
from schemas.names import Count, Microseconds

_HEX: Final = b"0123456789abcdef"
_DIGEST: Final = re.compile(r"\^\[0-9a-f\]\{([0-9]+)\}\$\(\?!\\n\)")
_BODY: Final = 81
_HASH_DIGITS: Final = 64
_UNIONS: Final = (Union, types.UnionType)
_LEAF: Final = hashlib.sha256(b"\x00{")

class Batch(NamedTuple):
    """Lines that are events and follow each other.

    How many there are, their raw hashes end to end, the type of the last one, and the verifier key
    that the first `ledger.open` among them claims.
    """

    events: int
    hashes: bytes
    last: type[EventFields]
    claimed_key: str | None


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One line; `f` has the members of its type's struct in `schemas.events`."""

    event_hash: str
    log_id: str
    mono_us: Microseconds
    prev_hash: str
    seq: Count
    ts_us: Microseconds
    v: Literal[1]
    f: msgspec.Struct


_ByType = defaultdict[type[msgspec.Struct], list[msgspec.Struct]]
_Shape = Callable[[set[str | None]], bool]


class _Texts(NamedTuple):
    """Which members of one event type are texts with a shape, and which shape each has."""

    give: operator.attrgetter[tuple[str | None, ...]]
    shapes: tuple[str, ...]


def _pattern(hint: object) -> str | None:
    """Give the pattern of a text, or of a text that may be absent."""
    for part in get_args(hint) if get_origin(hint) in _UNIONS else (hint,):
        if get_origin(part) is Annotated and get_args(part)[0] is str:
            return next((one.pattern for one in get_args(part)[1:]
                         if isinstance(one, Meta) and one.pattern), None)
    return None


def _without_pattern(hint: object) -> object:
    """Give the type of a text without its pattern; its length stays."""
    if get_origin(hint) in _UNIONS:
        return functools.reduce(operator.or_, map(_without_pattern, get_args(hint)))
    if get_origin(hint) is not Annotated:
        return hint
    base, *bounds = get_args(hint)
    lengths = tuple(
        Meta(min_length=one.min_length, max_length=one.max_length) for one in bounds
        if isinstance(one, Meta) and (one.min_length or one.max_length)
    )
    return Annotated[(base, *lengths)] if lengths else base


def _loose(
    kind: type[EventFields]
) -> tuple[type[msgspec.Struct], type[msgspec.Struct], _Texts | None]:
    """Make an event type's line without patterns, and say where patterns belong."""
    hints = get_type_hints(kind, include_extras=True)
    members: list[tuple[str, object] | tuple[str, object, object]] = []
    patterns: dict[str, str] = {}
    # In the order in which they are spelled, which is read and written fastest.
    for field in sorted(msgspec.structs.fields(kind), key=lambda one: one.name):
        hint = hints[field.name]
        pattern = _pattern(hint)
        if pattern is not None:
            patterns[field.name] = pattern
            hint = _without_pattern(hint)
        required = field.default is msgspec.NODEFAULT
        members.append((field.name, hint) if required else (field.name, hint, field.default))
    fields = msgspec.defstruct(
        kind.__name__, members, frozen=True, kw_only=True, forbid_unknown_fields=True,
        omit_defaults=True, gc=False,
    )
    line = msgspec.defstruct(
        f"{kind.__name__}Line", [("f", fields)], bases=(_Line,), tag_field="event_type",
        tag=kind.EVENT_TYPE, frozen=True, forbid_unknown_fields=True, gc=False,
    )
    # attrgetter gives a tuple for two names and more.
    names = (*patterns, *patterns)[: max(2, len(patterns))]
    shapes = tuple(patterns[name] for name in names)
    return line, fields, _Texts(operator.attrgetter(*names), shapes) if names else None


def _shape(pattern: str) -> _Shape:
    """Make the question whether all texts of a set have a pattern; digests are asked together."""
    search = re.compile(pattern).search
    digits = _DIGEST.fullmatch(pattern)
    if digits is None:
        return lambda texts: all(search(text) for text in texts if text is not None)
    length = int(digits[1])

    def digests(texts: set[str | None]) -> bool:
        present = [text for text in texts if text is not None]
        together = "".join(present).encode()
        return {*map(len, present)} <= {length} and not together.translate(None, _HEX)

    return digests


_LINES: Final[list[type[msgspec.Struct]]] = []
_KINDS: Final[dict[type[msgspec.Struct], type[EventFields]]] = {}
_TEXTS: Final[dict[type[msgspec.Struct], _Texts]] = {}
for _kind in EVENT_TYPES.values():
    _line, _fields, _texts = _loose(_kind)
    _LINES.append(_line)
    _KINDS[_fields] = _kind
    if _texts is not None:
        _TEXTS[_fields] = _texts
_OPENING: Final = next(fields for fields, kind in _KINDS.items() if kind is LedgerOpen)
_SHAPES: Final = {pattern: _shape(pattern) for one in _TEXTS.values() for pattern in one.shapes}
_decoder: Final[msgspec.json.Decoder[_Line]] = msgspec.json.Decoder(
    functools.reduce(operator.or_, _LINES)
)
_encoder: Final = msgspec.json.Encoder(order="sorted")


def admit(data: bytes, seq: int, previous: str, log_id: str) -> Batch | None:
    """Admit lines that are the next events of a ledger, or say nothing.

    Args:
        data: whole lines, each with its newline.
        seq: the position that the first must have.
        previous: the event_hash before it, in hex.
        log_id: whose events they must be.
    """
    try:
        events = _decoder.decode_lines(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    if _encoder.encode_lines(events) != data:
        return None
    hashes = _leaf_hashes(data)
    digits = hashes.hex()
    follows = (
        "".join([event.event_hash for event in events]) == digits
        and "".join([event.prev_hash for event in events]) == previous + digits[:-_HASH_DIGITS]
        and [event.seq for event in events] == list(range(seq, seq + len(events)))
        and [event.log_id for event in events] == [log_id] * len(events)
    )
    if not follows:
        return None
    by_type: _ByType = defaultdict(list)
    for event in events:
        fields = event.f
        by_type[type(fields)].append(fields)
    if not _have_shapes(by_type):
        return None
    opened = by_type.get(_OPENING)
    return Batch(
        len(events), hashes, _KINDS[type(events[-1].f)],
        operator.attrgetter("verifier_key")(opened[0]) if opened else None,
    )


def _leaf_hashes(data: bytes) -> bytes:
    """Hash each line as docs/LEDGER.md says; a copied state costs less than a new one."""
    begin, digests = _LEAF.copy, []
    for line in data[:-1].split(b"\n"):
        state = begin()
        state.update(line[_BODY:])
        digests.append(state.digest())
    return b"".join(digests)


def _have_shapes(by_type: _ByType) -> bool:
    found: defaultdict[str, set[str | None]] = defaultdict(set)
    for kind, many in by_type.items():
        texts = _TEXTS.get(kind)
        if texts is not None:
            columns = zip(*map(texts.give, many), strict=True)
            for shape, column in zip(texts.shapes, columns, strict=True):
                found[shape].update(column)
    return all(_SHAPES[shape](values) for shape, values in found.items())
