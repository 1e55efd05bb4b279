"""Documents from a JSON Schema: at its bounds, empty, huge, deep, hostile, and not quite fitting.

Rules this file keeps: pure and deterministic, the same schema gives the same documents; bounded,
whatever the schema; what is said to fit was held against the gateway's own validator, so what this
file cannot make is left out and never sent as something else.

It leaves what is admitted to `broker.trust.json_schemas` and sending to `broker.authoring.conform`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from broker.trust.json_schemas import compile_schema
from schemas.canonical import InvalidJson, JsonValue, check_canonical, document_bytes
from schemas.names import INTEGER_MAX, JSON_BYTES_MAX, JSON_DEPTH_MAX

Schema = dict[str, JsonValue]

CASES_MAX: Final = 24
"""Documents of one kind from one schema."""
_CHOICES_MAX: Final = 12
_LONG: Final = 4096
_ROOM_BYTES: Final = JSON_BYTES_MAX - 8 * 1024
_ANYTHING: Final[tuple[JsonValue, ...]] = ({"a": 1}, "text", 7, None, [], False)
_TYPES: Final[dict[str, str]] = {
    "properties": "object", "required": "object", "additionalProperties": "object",
    "minProperties": "object", "patternProperties": "object", "items": "array",
    "prefixItems": "array", "minItems": "array", "contains": "array", "minLength": "string",
    "maxLength": "string", "pattern": "string", "minimum": "integer", "maximum": "integer",
}
HOSTILE_TEXTS: Final = (
    "\x00", "\x1b[31m\x07\x08\r", "\ufeff\u202e\u200b\u2028", "\U0001f468\u200d\U0001f469",
    "e\u0301\u0327\u0327\u0327", "%s{0}${x}`'\"\\", "../../etc/passwd", "\ufffe\ud7ff\ue000",
)
"""Texts that are Unicode and trip programs: controls, directions, beyond the plane, formats."""


class Documents:
    """The documents of one schema, as canonical bytes."""

    def __init__(self, schema: bytes) -> None:
        """Read an admitted schema.

        Args:
            schema: its RFC 8785 bytes.
        """
        self._root: JsonValue = msgspec.json.decode(schema)
        definitions = self._root.get("$defs") if isinstance(self._root, dict) else None
        self._definitions: Schema = definitions if isinstance(definitions, dict) else {}
        self._validator = compile_schema(schema)
        self._known: dict[int, list[JsonValue]] = {}
        self._kept: list[Schema] = []

    def bounds(self) -> list[bytes]:
        """Documents that fit, one place at a time at each of its bounds."""
        return self._fitting(self._choices(self._root))

    def empty(self) -> list[bytes]:
        """The smallest documents that fit: only what is required, and all with nothing in it."""
        return self._fitting([self._smallest(self._root, whole=whole) for whole in (False, True)])

    def largest(self) -> list[bytes]:
        """A document near the size that the gateway takes, or the largest that fits."""
        sizes = (_ROOM_BYTES, _ROOM_BYTES // 4, _ROOM_BYTES // 32)
        return self._fitting(self._largest(self._root, size) for size in sizes)[:1]

    def deepest(self) -> list[bytes]:
        """Documents nested as deep as the gateway takes, where the schema leaves a place open."""
        return self._fitting(
            value for level in range(JSON_DEPTH_MAX, 0, -1) for shape in (_list_of, _object_of)
            if (value := self._deepest(self._root, level, shape)) is not None
        )[:2]

    def hostile(self) -> list[bytes]:
        """Documents that fit with hostile texts in every place that takes one."""
        return self._fitting(
            self._texts(self._root, text) for text in HOSTILE_TEXTS if self._takes_text(self._root)
        )

    def marked(self, mark: str) -> bytes | None:
        """A document that fits and holds a text; None when no place takes it."""
        found = self._fitting([self._texts(self._root, mark)])
        return found[0] if found and mark.encode() in found[0] else None

    def wrong_types(self) -> list[bytes]:
        """Documents with a value of another type, at the root and in each member."""
        simple = self._simple(self._root)
        values: list[JsonValue] = [None, True, 0, "", [], {}]
        others: tuple[JsonValue, ...] = (None, 0, "0", [[]], {"a": {}})
        if isinstance(simple, dict):
            for name in list(simple)[:4]:
                values += [{**simple, name: other} for other in others]
        return _bytes(values)[: CASES_MAX + 6]

    def without_members(self) -> list[bytes]:
        """Documents that lack a member each."""
        simple = self._simple(self._root)
        if not isinstance(simple, dict):
            return []
        return _bytes(
            {other: value for other, value in simple.items() if other != name}
            for name in list(simple)[:8]
        )

    def with_members(self) -> list[bytes]:
        """Documents with members nobody knows."""
        simple = self._simple(self._root)
        if not isinstance(simple, dict):
            return []
        return _bytes([
            {**simple, "unknown member": 1}, {**simple, "__class__": "x", "": None},
            {**simple, **{f"m{number}": number for number in range(1_000)}},
        ])

    # --- making values ---

    def _fitting(self, values: Iterator[JsonValue] | list[JsonValue]) -> list[bytes]:
        """Keep what really fits, each once."""
        return [
            data for data in _bytes(values)
            if self._validator.problem(check_canonical(data)) is None
        ][:CASES_MAX]

    def _resolved(self, schema: JsonValue) -> Schema:
        """Write references and conjunctions out: one table of keywords."""
        if not isinstance(schema, dict):
            return {} if schema is not False else {"enum": []}
        merged: Schema = {k: v for k, v in schema.items() if k not in ("$ref", "allOf", "$defs")}
        parts = schema.get("allOf")
        others: list[JsonValue] = list(parts) if isinstance(parts, list) else []
        reference = schema.get("$ref")
        if isinstance(reference, str):
            others.append(self._definitions[reference.removeprefix("#/$defs/")])
        for part in others:
            for keyword, value in self._resolved(part).items():
                known = merged.get(keyword)
                if isinstance(known, dict) and isinstance(value, dict):
                    merged[keyword] = {**value, **known}
                elif isinstance(known, list) and isinstance(value, list) and keyword == "required":
                    merged[keyword] = [*known, *value]
                else:
                    merged.setdefault(keyword, value)
        return merged

    def _branches(self, schema: Schema) -> list[Schema]:
        """Write each choice out; without one the schema itself."""
        for keyword in ("anyOf", "oneOf"):
            branches = schema.get(keyword)
            if isinstance(branches, list):
                rest = {name: value for name, value in schema.items() if name != keyword}
                return [
                    self._resolved({**rest, "allOf": [branch]}) for branch in branches[:8]
                ]
        return [schema]

    def _kind(self, schema: Schema) -> str:
        found = schema.get("type")
        if isinstance(found, list):
            found = found[0] if found else None
        if isinstance(found, str):
            return found
        return next((kind for keyword, kind in _TYPES.items() if keyword in schema), "any")

    def _simple(self, schema: JsonValue) -> JsonValue:
        """Give one ordinary value."""
        found = self._choices(schema)
        return found[0] if found else None

    def _choices(self, schema: JsonValue) -> list[JsonValue]:
        """Give values at the bounds of a schema, an ordinary one first; a few may not fit."""
        if isinstance(schema, dict):
            if id(schema) not in self._known:
                # Kept, so that no other table can have this one's identity.
                self._kept.append(schema)
                self._known[id(schema)] = self._made(self._resolved(schema))
            return self._known[id(schema)]
        return [] if schema is False else list(_ANYTHING)

    def _made(self, schema: Schema) -> list[JsonValue]:
        examples = schema.get("examples")
        values: list[JsonValue] = list(examples[:4]) if isinstance(examples, list) else []
        branches = self._branches(schema)
        if len(branches) > 1 or branches[0] is not schema:
            of_each = [self._made(branch) for branch in branches]
            longest = max(map(len, of_each), default=0)
            return [*values, *(one[place] for place in range(longest) for one in of_each
                               if place < len(one))][: 2 * _CHOICES_MAX]
        if "const" in schema:
            return [schema["const"]]
        members = schema.get("enum")
        if isinstance(members, list):
            return members[: 2 * _CHOICES_MAX]
        kinds = schema.get("type")
        if isinstance(kinds, list):
            of_kinds = [self._of_kind(str(kind), schema) for kind in kinds]
            return [*values, *(one for each in of_kinds for one in each[:4])]
        return [*values, *self._of_kind(self._kind(schema), schema)]

    def _of_kind(self, kind: str, schema: Schema) -> list[JsonValue]:
        if kind == "object":
            return self._objects(schema)
        if kind == "array":
            return self._arrays(schema)
        if kind == "string":
            return list(_strings(schema))
        if kind in ("integer", "number"):
            return list(_numbers(schema, whole=kind == "integer"))
        simple: dict[str, list[JsonValue]] = {"boolean": [True, False], "null": [None]}
        return simple.get(kind, list(_ANYTHING))

    def _members(self, schema: Schema) -> Schema:
        found = schema.get("properties")
        return found if isinstance(found, dict) else {}

    def _required(self, schema: Schema) -> list[str]:
        found = schema.get("required")
        return [str(name) for name in found] if isinstance(found, list) else []

    def _objects(self, schema: Schema) -> list[JsonValue]:
        members = self._members(schema)
        full: Schema = {
            name: values[0] for name, part in members.items() if (values := self._choices(part))
        }
        required = self._required(schema)
        open_part = schema.get("additionalProperties", True)
        for name in required:
            full.setdefault(name, self._simple(open_part))
        fewest = _bound(schema, "minProperties", 0)
        for number in range(fewest - len(full)):
            full[f"member{number}"] = self._simple(open_part)
        least: Schema = {name: full[name] for name in required}
        varied: list[JsonValue] = []
        for name, part in members.items():
            varied += [{**full, name: value} for value in self._choices(part)[1:]]
        extra: list[JsonValue] = []
        if isinstance(open_part, dict):
            extra = [{**full, "another": value} for value in self._choices(open_part)[:3]]
        return [full, least, *extra, *varied][: 2 * CASES_MAX]

    def _arrays(self, schema: Schema) -> list[JsonValue]:
        first = schema.get("prefixItems")
        head = [self._simple(part) for part in first] if isinstance(first, list) else []
        if "contains" in schema:
            head += [self._simple(schema["contains"])] * _bound(schema, "minContains", 1)
        values = self._choices(schema.get("items", True))
        if not values:
            return [head, []]
        fewest, most = _bound(schema, "minItems", 0), _bound(schema, "maxItems", 64)

        def of(size: int, value: JsonValue) -> JsonValue:
            return [*head, *[value] * (size - len(head))]

        sizes = dict.fromkeys((max(1, fewest), fewest, fewest + 1, min(most, 64)))
        lists = [of(size, values[0]) for size in sizes if fewest <= size <= most]
        return [*lists, *(of(max(1, fewest), value) for value in values[1:_CHOICES_MAX])]

    def _smallest(self, schema: JsonValue, *, whole: bool) -> JsonValue:
        """Give a value with as little in it as fits; with `whole` every member is there."""
        resolved = self._branches(self._resolved(schema))[0]
        kind = self._kind(resolved)
        if "const" in resolved or "enum" in resolved or kind not in ("object", "array", "string"):
            return self._simple(schema)
        if kind == "object":
            members, required = self._members(resolved), self._required(resolved)
            return {
                name: self._smallest(members.get(name, True), whole=whole)
                for name in (dict.fromkeys([*members, *required]) if whole else required)
            }
        if kind == "array" and not _bound(resolved, "minItems", 0) and "contains" not in resolved:
            return []
        if kind == "string" and not _bound(resolved, "minLength", 0) and "pattern" not in resolved:
            return ""
        return self._simple(schema)

    def _largest(self, schema: JsonValue, room: int) -> JsonValue:
        """Give a value of about `room` bytes, or the largest below."""
        resolved = self._branches(self._resolved(schema))[0]
        kind = self._kind(resolved)
        if "const" in resolved or "enum" in resolved or "pattern" in resolved:
            return self._simple(schema)
        if kind == "any":
            return "a" * max(1, room - 2)
        if kind == "string":
            return "a" * max(_bound(resolved, "minLength", 0),
                             min(_bound(resolved, "maxLength", room), room - 2))
        if kind == "array":
            items = self._largest(resolved.get("items", True), min(room // 8, 256))
            size = len(document_bytes(items)) + 1
            most = min(_bound(resolved, "maxItems", room), room // size)
            simple = self._simple(schema)
            return [items] * most if most else simple
        if kind == "object":
            members = self._members(resolved)
            share = room // max(1, len(members)) - 64
            value = {name: self._largest(part, max(1, share)) for name, part in members.items()}
            if not members and isinstance(resolved.get("additionalProperties", True), dict | bool):
                part = resolved.get("additionalProperties", True)
                one = self._simple(part)
                count = room // (len(document_bytes(one)) + 12)
                most = min(count, _bound(resolved, "maxProperties", count))
                value = {f"m{number:07}": one for number in range(most)} if part else {}
            for name in self._required(resolved):
                value.setdefault(name, self._simple(resolved.get("additionalProperties", True)))
            return value
        return self._simple(schema)

    def _deepest(
        self, schema: JsonValue, level: int, shape: Callable[[int], JsonValue]
    ) -> JsonValue:
        """Put a nested value into the first open place; None when there is none."""
        resolved = self._branches(self._resolved(schema))[0]
        kind = self._kind(resolved)
        if kind == "any" and "enum" not in resolved and "const" not in resolved:
            return shape(level)
        if kind == "object":
            members: Schema = dict(self._members(resolved))
            open_part = resolved.get("additionalProperties", True)
            if not members and open_part is not False:
                members = {"a": open_part}
            for name, part in members.items():
                found = self._deepest(part, level - 1, shape)
                simple = self._simple(schema)
                if found is not None and isinstance(simple, dict):
                    return {**simple, name: found}
        if kind == "array":
            found = self._deepest(resolved.get("items", True), level - 1, shape)
            return None if found is None else [found]
        return None

    def _takes_text(self, schema: JsonValue) -> bool:
        return self._texts(schema, "a") != self._texts(schema, "b")

    def _texts(self, schema: JsonValue, text: str) -> JsonValue:
        """Give an ordinary value with one text wherever any text fits."""
        resolved = self._branches(self._resolved(schema))[0]
        kind = self._kind(resolved)
        if "const" in resolved or "enum" in resolved:
            return self._simple(schema)
        if kind == "any" or (kind == "string" and "pattern" not in resolved):
            least, most = _bound(resolved, "minLength", 0), _bound(resolved, "maxLength", _LONG)
            return (text * (least // len(text) + 1))[: max(least, min(most, len(text)))]
        if kind == "object":
            simple = self._simple(schema)
            members = self._members(resolved)
            found = {name: self._texts(part, text) for name, part in members.items()}
            return {**(simple if isinstance(simple, dict) else {}), **found}
        if kind == "array":
            size = max(1, _bound(resolved, "minItems", 0))
            return [self._texts(resolved.get("items", True), text)] * size
        return self._simple(schema)


def _strings(schema: Schema) -> Iterator[JsonValue]:
    least, most = _bound(schema, "minLength", 0), _bound(schema, "maxLength", _LONG)
    pattern = schema.get("pattern")
    if isinstance(pattern, str):
        for more in (False, True):
            text = pattern_sample(pattern, more=more)
            yield text + text[-1:] * (least - len(text))
        return
    ordinary = "some words "
    yield (ordinary * (least // len(ordinary) + 1))[: max(least, min(most, 4))]
    for size in dict.fromkeys((least, least + 1, most - 1, most)):
        if least <= size <= most:
            yield "a" * size


def _numbers(schema: Schema, *, whole: bool) -> Iterator[JsonValue]:
    low = max(_bound(schema, "minimum", -INTEGER_MAX),
              _bound(schema, "exclusiveMinimum", -INTEGER_MAX - 1) + 1)
    high = min(_bound(schema, "maximum", INTEGER_MAX),
               _bound(schema, "exclusiveMaximum", INTEGER_MAX + 1) - 1)
    step = _bound(schema, "multipleOf", 1)
    for wanted in (1, 0, -1, low, low + 1, high - 1, high):
        value = min(max(wanted, low), high)
        yield value - value % step if value - value % step >= low else value + -value % step
    if not whole:
        yield 0.5
        yield 1.5e-7


def _bound(schema: Schema, keyword: str, otherwise: int) -> int:
    found = schema.get(keyword)
    return int(found) if isinstance(found, int | float) else otherwise


def _list_of(level: int) -> JsonValue:
    value: JsonValue = []
    for _ in range(level - 1):
        value = [value]
    return value


def _object_of(level: int) -> JsonValue:
    value: JsonValue = {}
    for _ in range(level - 1):
        value = {"a": value}
    return value


def _bytes(values: Iterator[JsonValue] | list[JsonValue]) -> list[bytes]:
    """Write values canonically, each once; what the wire could not carry is left out."""
    found: dict[bytes, None] = {}
    for value in values:
        try:
            data = document_bytes(value)
            check_canonical(data)
        except InvalidJson:
            continue
        found[data] = None
    return list(found)


_ATOM: Final = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|.", re.DOTALL)
_TIMES: Final = re.compile(r"([?*+]|\{(\d+)(,(\d*))?\})\??")
_STANDS_FOR: Final = {"d": "0", "w": "a", "s": " ", "D": "a", "W": "-", "S": "a", "t": "\t",
                      "n": "\n", "r": "\r", "f": "\f", "v": "\v"}  # fmt: skip


def pattern_sample(pattern: str, *, more: bool) -> str:
    """Give a text that an admitted pattern takes, mostly: the shortest, or with `more` repeated.

    The caller holds it against the schema; classes that exclude give one of a few letters.
    """
    text, _ = _alternatives(pattern.removeprefix("^").removesuffix("$"), 0, more)
    return text


def _alternatives(pattern: str, place: int, more: bool) -> tuple[str, int]:
    """Read up to the end or a closing bracket; gives the first alternative's text."""
    texts, text = list[str](), ""
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            texts.append(text)
            text, place = "", place + 1
            continue
        if pattern[place] == "(":
            start = place + 3 if pattern.startswith("(?:", place) else place + 1
            piece, place = _alternatives(pattern, start, more)
            place += 1
        else:
            atom = _ATOM.match(pattern, place)
            assert atom is not None
            piece, place = _letter(atom[0]), atom.end()
        times = _TIMES.match(pattern, place)
        if times is not None:
            place = times.end()
            piece *= _count(times, more)
        text += piece
    return [*texts, text][-1 if more else 0], place


def _count(times: re.Match[str], more: bool) -> int:
    if times[2] is None:
        return {"?": 1, "*": 3, "+": 3}[times[1][0]] if more else int(times[1][0] == "+")
    least = int(times[2])
    most = least if times[3] is None else int(times[4] or least + 3)
    return most if more else least


def _letter(atom: str) -> str:
    """Give one character that a piece of a pattern takes."""
    if atom.startswith("["):
        if atom.startswith("[^"):
            return next((one for one in "a0 -_~" if re.fullmatch(atom, one)), "a")
        inner = _ATOM.match(atom, 1)
        assert inner is not None
        return _letter(inner[0])
    if atom.startswith("\\"):
        return _STANDS_FOR.get(atom[1], atom[1])
    return "a" if atom == "." else atom
