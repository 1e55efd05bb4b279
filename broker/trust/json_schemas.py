"""JSON Schemas: which are admitted, and the one place where a validator is built.

Rules this file keeps:
- The dialect is a subset of draft 2020-12, an allow-list of keywords. References are local
  (`#/$defs/NAME`) and acyclic; nothing is ever fetched.
- Size, depth, number of keywords and expanded size are bounded, and so is how many subschemas can
  apply to one value: time of validation is at most that number times the size of the value.
- Patterns run in a linear-time engine and their compiled size is bounded; look-around is refused.
- `format` and `content…` are notes for people, never checked. Members of `enum` are scalars.
- What is said about a value that does not fit is a path and a keyword, never a part of the value.

It leaves the bytes of the value to `schemas.canonical`. Source: JSON Schema 2020-12, core and
validation.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final, NamedTuple

import jsonschema_rs

from broker.trust.errors import TrustRefused, printable
from schemas.canonical import InvalidJson, JsonValue, check_canonical
from schemas.refusals import RefusalCode

SCHEMA_BYTES_MAX: Final = 64 * 1024
SCHEMA_DEPTH_MAX: Final = 32
BRANCHES_MAX: Final = 200
EXPANDED_MAX: Final = 10_000
EXPANDED_DEPTH_MAX: Final = 64
WEIGHT_MAX: Final = 64
"""How many subschemas may apply to one value; a pattern counts as sixteen."""
PATTERN_WEIGHT: Final = 16
PATTERN_CHARACTERS_MAX: Final = 1024
PATTERN_COMPILED_BYTES_MAX: Final = 64 * 1024

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_NOTES: Final = frozenset(
    {"$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
     "writeOnly", "format", "contentEncoding", "contentMediaType"}
)
_CHECKS: Final = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
     "multipleOf", "minLength", "maxLength", "pattern", "minItems", "maxItems", "uniqueItems",
     "minContains", "maxContains", "minProperties", "maxProperties", "required",
     "dependentRequired"}
)
_SAME_VALUE: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else"})
_BELOW: Final = frozenset(
    {"properties", "patternProperties", "additionalProperties", "propertyNames", "items",
     "prefixItems", "contains"}
)
_EXCLUSIVE: Final = frozenset({"properties", "prefixItems"})
"""Keywords of whose subschemas at most one applies to a value."""
_MAPS: Final = frozenset({"properties", "patternProperties"})
_LISTS: Final = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_ROOT_ONLY: Final = frozenset({"$defs", "$schema"})
_REFERENCE: Final = re.compile(r"#/\$defs/([A-Za-z0-9_.-]{1,128})")

Profile = tuple[int, ...]
"""At index k: how many subschemas can apply to one value k levels below, counted with weights."""


def admit(schema: bytes) -> None:
    """Accept a schema of the subset.

    Args:
        schema: the RFC 8785 bytes of one JSON Schema.

    Raises:
        TrustRefused: `schema_not_admitted`, with the path inside the schema in `where`.
    """
    compile_schema(schema)


def compile_schema(schema: bytes) -> Validator:
    """Admit a schema and build its validator; it need not have been admitted before.

    Raises:
        TrustRefused: `schema_not_admitted`, with the path inside the schema in `where`.
    """
    try:
        document = check_canonical(
            schema, bytes_max=SCHEMA_BYTES_MAX, slow_bytes_max=SCHEMA_BYTES_MAX,
            depth_max=SCHEMA_DEPTH_MAX,
        )
    except InvalidJson as error:
        raise _refused(str(error), "$") from None
    walk = _Walk(document)
    return Validator(_build(walk.root), walk.property_names)


def _build(document: dict[str, JsonValue]) -> jsonschema_rs.Draft202012Validator:
    """Build a validator: the only place where one is made."""
    try:
        return jsonschema_rs.Draft202012Validator(
            document,
            offline=True,
            validate_formats=False,
            mask="***",
            pattern_options=jsonschema_rs.RegexOptions(
                size_limit=PATTERN_COMPILED_BYTES_MAX, dfa_size_limit=1024 * 1024
            ),
        )
    except jsonschema_rs.ValidationError as error:
        where = _path(error.instance_path, None)
        if error.kind.name == "format":
            # The only format of the dialect's own schema that we admit is `regex`.
            raise _refused(
                "the pattern has no linear-time form of at most "
                f"{PATTERN_COMPILED_BYTES_MAX} bytes (no look-around, no large repetitions)", where
            ) from None
        raise _refused(f"not a valid schema here ({error.kind.name})", where) from None
    except ValueError as error:
        raise _refused(printable(str(error).partition("\n")[0]), "$") from None


class Validator:
    """One compiled schema."""

    def __init__(
        self, compiled: jsonschema_rs.Draft202012Validator, names: frozenset[str]
    ) -> None:
        """Hold the compiled schema and the property names it mentions."""
        self._compiled = compiled
        self._names = names

    def problem(self, value: JsonValue) -> str | None:
        """Say where a decoded JSON document does not fit; None when it fits.

        Returns:
            Such as `$.items[3].name (maxLength)`: printable, at most 200 characters. A property
            that the schema does not name is shown as `*`, so that no part of the value leaks.
        """
        if self._compiled.is_valid(value):
            return None
        try:
            # Stops at the first error, so a bad document costs little more than a good one.
            self._compiled.validate(value)
        except jsonschema_rs.ValidationError as error:
            return f"{_path(error.instance_path, self._names)} ({error.kind.name})"
        return "$"


def _path(steps: list[str | int], names: frozenset[str] | None) -> str:
    """Write a path; of property names only those of `names`, when given."""
    parts = "".join(
        f"[{step}]" if isinstance(step, int)
        else f".{step}" if names is None or step in names
        else ".*"
        for step in steps
    )
    return printable("$" + parts, 160)


def _refused(sentence: str, where: str) -> TrustRefused:
    return TrustRefused(RefusalCode.SCHEMA_NOT_ADMITTED, sentence, where=printable(where, 200))


class _Measure(NamedTuple):
    """Of one subschema with its references written out: how many subschemas, and its profile."""

    size: int
    profile: Profile


class _Part(NamedTuple):
    """One subschema of a keyword: what it adds to its parent's weight, its place and measure."""

    weight: int
    where: str
    measure: _Measure


class _Walk:
    """One pass over a schema: keywords, references, expanded size, weights and names."""

    def __init__(self, document: JsonValue) -> None:
        """Walk the whole schema, its definitions first.

        Raises:
            TrustRefused: `schema_not_admitted`.
        """
        if not isinstance(document, dict):
            raise _refused("a schema is an object", "$")
        self.root: dict[str, JsonValue] = document
        self._names: set[str] = set()
        self._branches = self._depth = 0
        if document.get("$schema", DIALECT) != DIALECT:
            raise _refused(f"the dialect is {DIALECT}", "$.$schema")
        definitions = document.get("$defs", {})
        if not isinstance(definitions, dict):
            raise _refused("$defs is an object", "$.$defs")
        self._definitions = definitions
        self._measured: dict[str, _Measure | None] = {}
        for name in definitions:
            if not _REFERENCE.fullmatch(f"#/$defs/{name}"):
                raise _refused("a definition's name is letters, digits, '_', '.' and '-'",
                               "$.$defs")
            self._definition(name)
        self._bound(self._schema(document, "$", root=True), "$")
        self.property_names = frozenset(self._names)

    def _definition(self, name: str) -> _Measure:
        where = f"$.$defs.{name}"
        if name in self._measured:
            known = self._measured[name]
            if known is None:
                raise _refused("references run in a circle", where)
            return known
        if name not in self._definitions:
            raise _refused("there is no such definition", where)
        self._measured[name] = None
        measured = self._schema(self._definitions[name], where)
        self._bound(measured, where)
        self._measured[name] = measured
        return measured

    def _bound(self, measure: _Measure, where: str) -> None:
        size, profile = measure
        if size > EXPANDED_MAX:
            raise _refused(
                f"with references written out it has {size} subschemas, allowed are {EXPANDED_MAX}",
                where,
            )
        if max(profile) > WEIGHT_MAX:
            raise _refused(
                f"{max(profile)} subschemas (a pattern counts {PATTERN_WEIGHT}) could apply to one "
                f"value, allowed are {WEIGHT_MAX}", where,
            )

    def _schema(self, schema: JsonValue, where: str, *, root: bool = False) -> _Measure:
        """Check one subschema and measure it."""
        if isinstance(schema, bool):
            return _Measure(1, (1,))
        if not isinstance(schema, dict):
            raise _refused("a subschema is an object, true or false", where)
        self._depth += 1
        if self._depth > EXPANDED_DEPTH_MAX:
            raise _refused(f"with references written out it is deeper than {EXPANDED_DEPTH_MAX}",
                           where)
        allowed = _NOTES | _CHECKS | _SAME_VALUE | _BELOW | {"$ref"}
        size, own = 1, 1 + PATTERN_WEIGHT * ("pattern" in schema)
        profile: Profile = ()
        for keyword in schema:
            place = f"{where}.{keyword}"
            if keyword not in allowed and not (root and keyword in _ROOT_ONLY):
                raise _refused("the keyword is not in the admitted subset", place)
            self._check_value(keyword, schema[keyword], place)
            level: Profile = ()
            for part in self._parts(keyword, schema[keyword], place):
                size += part.measure.size
                same = keyword in _SAME_VALUE or keyword == "$ref"
                reached = part.measure.profile if same else (0, *part.measure.profile)
                level = _joined(level, reached, exclusive=keyword in _EXCLUSIVE)
                own += part.weight
                self._bound(_Measure(size, (own, *level)), part.where)
            profile = _joined(profile, level)
        self._depth -= 1
        return _Measure(size, _joined((own,), profile))

    def _parts(self, keyword: str, value: JsonValue, where: str) -> Iterator[_Part]:
        """Give the subschemas of one keyword."""
        if keyword == "$ref":
            found = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
            if found is None:
                raise _refused("a reference is #/$defs/NAME", where)
            yield _Part(0, where, self._definition(found[1]))
        elif keyword in _MAPS:
            if not isinstance(value, dict):
                raise _refused("the keyword takes an object of subschemas", where)
            self._names.update(value if keyword == "properties" else ())
            weight = PATTERN_WEIGHT if keyword == "patternProperties" else 0
            for name, part in value.items():
                yield _Part(weight, where, self._schema(part, f"{where}.{name}"))
        elif keyword in _LISTS:
            for number, part in enumerate(self._branch_list(value, where)):
                place = f"{where}[{number}]"
                yield _Part(0, place, self._schema(part, place))
        elif keyword in _SAME_VALUE | _BELOW:
            yield _Part(0, where, self._schema(value, where))

    def _branch_list(self, value: JsonValue, where: str) -> list[JsonValue]:
        if not isinstance(value, list):
            raise _refused("the keyword takes a list of subschemas", where)
        self._branches += len(value)
        if self._branches > BRANCHES_MAX:
            raise _refused(f"more than {BRANCHES_MAX} branches", where)
        return value

    def _check_value(self, keyword: str, value: JsonValue, where: str) -> None:
        """Check what the compiler would let pass."""
        if keyword == "pattern" and isinstance(value, str):
            texts: list[str] = [value]
        elif keyword == "patternProperties" and isinstance(value, dict):
            texts = list(value)
        else:
            texts = []
        if any(len(text) > PATTERN_CHARACTERS_MAX for text in texts):
            raise _refused(f"a pattern has at most {PATTERN_CHARACTERS_MAX} characters", where)
        if (
            keyword == "enum"
            and isinstance(value, list)
            and any(isinstance(member, (dict, list)) for member in value)
        ):
            raise _refused("members of an enum are scalars; write anyOf with const", where)


def _joined(left: Profile, right: Profile, *, exclusive: bool = False) -> Profile:
    """Add two profiles level by level; of exclusive ones the larger counts."""
    if len(left) < len(right):
        left, right = right, left
    padded = (*right, *(0,) * (len(left) - len(right)))
    return tuple(
        max(a, b) if exclusive else a + b for a, b in zip(left, padded, strict=True)
    )
