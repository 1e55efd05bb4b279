"""Which of two JSON Schemas accepts more, as far as their form shows it.

Rules this file keeps:
- It answers `narrower` or `wider` only where each keyword shows it; what it cannot tell is
  `changed`, and whoever asks treats that as wider. It never guesses in the other direction.
- Notes (`title`, `default` and the like) are not compared: they accept and refuse nothing.
- Its work is bounded over all comparisons of one `SchemaOrder`; beyond that all is `changed`.

It leaves which schemas are admitted at all to `broker.trust.json_schemas`, and is only asked about
such. Source: JSON Schema 2020-12, validation; docs/decisions/0027.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, NamedTuple

import msgspec

from broker.trust.json_schemas import SILENT
from schemas.canonical import JsonValue

STEPS_MAX: Final = 20_000
"""Subschemas looked at over all comparisons: some 40 ms."""

Order = Literal["same", "narrower", "wider", "changed"]
Schema = dict[str, JsonValue]

_MAPS: Final = {"properties", "patternProperties"}
_LISTS: Final = {"allOf", "anyOf", "oneOf", "prefixItems"}
_SINGLE: Final = {
    "not", "if", "then", "else", "additionalProperties", "propertyNames", "items", "contains",
}
_LOWER: Final = {"minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"}
_UPPER: Final = {"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"}
_OBJECT: Final = ("properties", "patternProperties", "additionalProperties")
_TOGETHER: Final[dict[str, tuple[str, ...]]] = {
    "contains": ("contains", "minContains", "maxContains"),
    "minContains": ("contains", "minContains", "maxContains"),
    "maxContains": ("contains", "minContains", "maxContains"),
    "if": ("if", "then", "else"), "then": ("if", "then", "else"), "else": ("if", "then", "else"),
    "prefixItems": ("prefixItems",), "patternProperties": _OBJECT,
}
"""Keywords whose meaning depends on others beside them: compared as one."""


class Compared(NamedTuple):
    """How a later schema relates to an earlier one, and at which place that shows first."""

    order: Order
    at: str = ""


class _TooMuch(Exception):
    """The work is used up."""


class SchemaOrder:
    """Compares schemas under one bound of work."""

    def __init__(self) -> None:
        """Begin with all the work there is."""
        self._left = STEPS_MAX

    def compare(self, before: bytes, after: bytes) -> Compared:
        """Say whether a later schema accepts less, more, the same or something else.

        Args:
            before: the bytes of an admitted schema.
            after: those of another one.
        """
        if before == after:
            return Compared("same")
        try:
            old, new = self._written_out(before), self._written_out(after)
            more, less = self._uncovered(old, [new], "$"), self._uncovered(new, [old], "$")
        except _TooMuch:
            return Compared("changed", "$")
        if more is None:
            return Compared("same") if less is None else Compared("narrower", less)
        return Compared("wider" if less is None else "changed", more)

    # --- one form ---

    def _written_out(self, data: bytes) -> JsonValue:
        document: Schema = msgspec.json.decode(data)
        definitions = document.get("$defs", {})
        assert isinstance(definitions, dict)
        return self._form(document, definitions)

    def _form(self, schema: JsonValue, definitions: Schema) -> JsonValue:
        """Write references out and leave notes away."""
        self._step()
        if not isinstance(schema, dict):
            return schema
        form: Schema = {}
        parts: list[JsonValue] = []
        for keyword, value in schema.items():
            if keyword in SILENT:
                continue
            if keyword == "$ref":
                name = str(value).removeprefix("#/$defs/")
                parts.append(self._form(definitions[name], definitions))
            elif keyword in _MAPS and isinstance(value, dict):
                form[keyword] = {
                    name: self._form(part, definitions) for name, part in value.items()
                }
            elif keyword in _LISTS and isinstance(value, list):
                members = [self._form(part, definitions) for part in value]
                if keyword == "allOf":
                    parts += members
                else:
                    form[keyword] = members
            elif keyword in _SINGLE:
                form[keyword] = self._form(value, definitions)
            else:
                form[keyword] = value
        if len(parts) == 1 and not form:
            return parts[0]
        return form | {"allOf": parts} if parts else form

    def _step(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMuch

    # --- does one cover another ---

    def _uncovered(self, wide: JsonValue, narrow: list[JsonValue], at: str) -> str | None:
        """Name where a value that fits all of `narrow` might not fit `wide`; None when nowhere."""
        self._step()
        parts = _conjuncts(narrow)
        if parts is None or wide is True:
            return None
        if not isinstance(wide, dict):
            return at
        for keyword, value in wide.items():
            if keyword == "allOf" and isinstance(value, list):
                places = (self._uncovered(part, narrow, at) for part in value)
                found = next((place for place in places if place is not None), None)
            else:
                found = self._keyword(keyword, value, wide, parts, f"{at}.{keyword}")
            if found is not None:
                return found
        return None

    def _keyword(
        self, keyword: str, value: JsonValue, wide: Schema, parts: list[Schema], at: str
    ) -> str | None:
        """Name where one keyword is not implied by any of `parts`."""
        if not parts:
            parts = [{}]
        places = [self._implied(keyword, value, wide, part, at) for part in parts]
        return None if None in places else places[0]

    def _implied(
        self, keyword: str, value: JsonValue, wide: Schema, part: Schema, at: str
    ) -> str | None:
        self._step()
        if keyword in _OBJECT and "patternProperties" in {*wide, *part}:
            holds = _equal(_OBJECT, wide, part)
        elif keyword == "properties" and isinstance(value, dict):
            return self._properties(value, part, at)
        elif keyword == "additionalProperties":
            return self._additional(value, wide, part, at)
        elif keyword == "items":
            if part.get("prefixItems") != wide.get("prefixItems") or "items" not in part:
                return at
            return self._uncovered(value, [part["items"]], at)
        elif keyword in ("anyOf", "oneOf") and isinstance(value, list):
            holds = part.get(keyword) == value or (
                keyword == "anyOf" and self._any_of(value, part, at)
            )
        elif keyword in _TOGETHER:
            holds = _equal(_TOGETHER[keyword], wide, part)
        else:
            holds = _RULES.get(keyword, _same)(keyword, value, part)
        return None if holds else at

    def _properties(self, value: Schema, part: Schema, at: str) -> str | None:
        mine = part.get("properties", {})
        assert isinstance(mine, dict)
        for name, schema in value.items():
            inner = mine.get(name, part.get("additionalProperties", True))
            place = self._uncovered(schema, [inner], f"{at}.{name}")
            if place is not None:
                return place
        return None

    def _additional(
        self, value: JsonValue, wide: Schema, part: Schema, at: str
    ) -> str | None:
        known, mine = wide.get("properties", {}), part.get("properties", {})
        assert isinstance(known, dict)
        assert isinstance(mine, dict)
        for name in mine.keys() - known.keys():
            if self._uncovered(value, [mine[name]], at) is not None:
                return f"{at} ({name})"
        return self._uncovered(value, [part.get("additionalProperties", True)], at)

    def _any_of(self, branches: list[JsonValue], part: Schema, at: str) -> bool:
        """Say whether each way to fit `part` is one of the branches."""
        ways = part.get("anyOf", [part])
        assert isinstance(ways, list)
        return all(
            any(self._uncovered(branch, [way], at) is None for branch in branches) for way in ways
        )


def _conjuncts(schemas: list[JsonValue]) -> list[Schema] | None:
    """Take `allOf` apart: what must hold at once. None when nothing can fit it."""
    parts: list[Schema] = []
    waiting = list(schemas)
    while waiting:
        one = waiting.pop(0)
        if one is False:
            return None
        if isinstance(one, dict):
            inner = one.get("allOf", [])
            assert isinstance(inner, list)
            waiting += inner
            parts.append({name: value for name, value in one.items() if name != "allOf"})
    return parts


def _equal(keywords: tuple[str, ...], wide: Schema, part: Schema) -> bool:
    return all(wide.get(name, ...) == part.get(name, ...) for name in keywords)


def _same(keyword: str, value: JsonValue, part: Schema) -> bool:
    return keyword in part and part[keyword] == value


def _bound(keyword: str, value: JsonValue, part: Schema) -> bool:
    """A bound is implied by one that is as tight, written either way."""
    sign = 1 if keyword in _LOWER else -1
    exclusive = keyword.startswith("exclusive")
    base = keyword.removeprefix("exclusive")
    base = base[0].lower() + base[1:]
    assert isinstance(value, (int, float))
    given = part.get(base)
    if isinstance(given, (int, float)):
        room = sign * (given - value)
        if room > 0 or (room == 0 and not exclusive):
            return True
    strict = part.get("exclusive" + base[0].upper() + base[1:])
    if isinstance(strict, (int, float)) and sign * (strict - value) >= 0:
        return True
    return value == 0 and keyword in ("minLength", "minItems", "minProperties")


def _members(part: Schema) -> list[JsonValue] | None:
    """Give the values that are all a schema accepts, where it lists them."""
    if "const" in part:
        return [part["const"]]
    members = part.get("enum")
    return members if isinstance(members, list) else None


def _among(keyword: str, value: JsonValue, part: Schema) -> bool:
    allowed = value if keyword == "enum" and isinstance(value, list) else [value]
    members = _members(part)
    return members is not None and all(
        any(_identical(member, one) for one in allowed) for member in members
    )


def _identical(left: JsonValue, right: JsonValue) -> bool:
    """Compare without taking true for 1."""
    return msgspec.json.encode(left, order="sorted") == msgspec.json.encode(right, order="sorted")


def _types(value: JsonValue) -> set[str]:
    named = {str(one) for one in value} if isinstance(value, list) else {str(value)}
    return named | {"integer"} if "number" in named else named


def _type(_keyword: str, value: JsonValue, part: Schema) -> bool:
    if "type" in part:
        return _types(part["type"]) <= _types(value)
    members = _members(part)
    names = {str: "string", bool: "boolean", type(None): "null", list: "array", dict: "object"}
    return members is not None and all(
        names.get(type(member), "number") in _types(value) for member in members
    )


def _required(_keyword: str, value: JsonValue, part: Schema) -> bool:
    mine = part.get("required", [])
    assert isinstance(mine, list)
    assert isinstance(value, list)
    return set(map(str, value)) <= set(map(str, mine))


def _multiple(_keyword: str, value: JsonValue, part: Schema) -> bool:
    mine = part.get("multipleOf")
    assert isinstance(value, (int, float))
    return isinstance(mine, (int, float)) and mine % value == 0


_RULES: Final[dict[str, Callable[[str, JsonValue, Schema], bool]]] = {
    **dict.fromkeys(_LOWER | _UPPER, _bound), "enum": _among, "const": _among, "type": _type,
    "required": _required, "multipleOf": _multiple,
}
