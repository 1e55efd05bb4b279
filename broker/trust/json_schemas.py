"""JSON Schemas: which are admitted, and the one place where a validator is built.

Rules this file keeps:
- The dialect is a subset of draft 2020-12, an allow-list of keywords. References are local
  (`#/$defs/NAME`) and acyclic; nothing is ever fetched.
- Size, depth, number of keywords and expanded size are bounded, and so is the weight of all checks
  that can apply to one value: time of validation is at most that weight times the value's size.
- Nothing is admitted whose cost is of another kind: no `uniqueItems`, no fractions and no numbers
  to be equal to (the engine compares them exactly, whatever their exponents), and patterns only as
  `broker.trust.patterns` has them.
- `format` and `content…` are notes for people, never checked. Members of `enum` are scalars.
- What is said about a value that does not fit is a path and a keyword, never a part of the value.

It leaves the bytes of the value to `schemas.canonical`. Source: JSON Schema 2020-12, core and
validation; docs/decisions/0014.
"""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeGuard

import jsonschema_rs

from broker.trust.errors import TrustRefused, printable
from broker.trust.patterns import PatternRefused, check_pattern
from schemas.canonical import InvalidJson, JsonValue, check_canonical
from schemas.names import INTEGER_MAX
from schemas.refusals import RefusalCode

SCHEMA_BYTES_MAX: Final = 64 * 1024
SCHEMAS_BYTES_MAX: Final = 256 * 1024
"""All schemas of one version together: weighing a kilobyte takes up to a millisecond."""
SCHEMA_DEPTH_MAX: Final = 32
BRANCHES_MAX: Final = 200
EXPANDED_MAX: Final = 10_000
EXPANDED_DEPTH_MAX: Final = 64
WEIGHT_MAX: Final = 48
"""How much may be checked of one value; a simple keyword counts as one."""
PATTERN_WEIGHT: Final = 12
BOUND_WEIGHT: Final = 9
PATTERN_CHARACTERS_MAX: Final = 1024
PATTERNS_MAX: Final = 64
"""Different patterns of one schema: each is compiled, and the loop waits for it."""
PATTERN_COMPILED_BYTES_MAX: Final = 64 * 1024
PLACE_BYTES_MAX: Final = 64 * 1024
"""The largest document of which the place that does not fit is named."""
UNPLACED: Final = f"$ (somewhere: of more than {PLACE_BYTES_MAX} bytes no place is named)"

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

_NOTES: Final = frozenset(
    {"$comment", "title", "description", "default", "examples", "deprecated", "readOnly",
     "writeOnly", "format", "contentEncoding", "contentMediaType"}
)
_CHECKS: Final = frozenset(
    {"type", "enum", "const", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
     "multipleOf", "minLength", "maxLength", "pattern", "minItems", "maxItems", "minContains",
     "maxContains", "minProperties", "maxProperties", "required", "dependentRequired"}
)
_WEIGHTS: Final = {
    "minimum": BOUND_WEIGHT, "maximum": BOUND_WEIGHT, "exclusiveMinimum": BOUND_WEIGHT,
    "exclusiveMaximum": BOUND_WEIGHT, "multipleOf": 2 * BOUND_WEIGHT, "pattern": PATTERN_WEIGHT,
    "anyOf": 3, "oneOf": 3, "propertyNames": 2, "allOf": 0, "$ref": 0,
}
"""What a keyword itself adds, its subschemas apart; one, unless it is here or is a note."""
_SAME_VALUE: Final = frozenset({"allOf", "anyOf", "oneOf", "not", "if", "then", "else"})
_BELOW: Final = frozenset(
    {"properties", "patternProperties", "additionalProperties", "propertyNames", "items",
     "prefixItems", "contains"}
)
_EXCLUSIVE: Final = frozenset({"properties", "prefixItems"})
"""Keywords of whose subschemas at most one applies to a value."""
_MAPS: Final = frozenset({"properties", "patternProperties"})
_CHOICES: Final = frozenset({"anyOf", "oneOf"})
_LISTS: Final = frozenset({"allOf", "prefixItems"}) | _CHOICES
_ROOT_ONLY: Final = frozenset({"$defs", "$schema"})
SILENT: Final = _NOTES | _ROOT_ONLY
"""Keywords that by themselves accept and refuse nothing."""
_REFERENCE: Final = re.compile(r"#/\$defs/([A-Za-z0-9_.-]{1,128})")

Profile = tuple[int, ...]
"""At index k: the weight of all that can apply to one value k levels below."""


def admit(schema: bytes) -> None:
    """Accept a schema of the subset.

    Args:
        schema: the RFC 8785 bytes of one JSON Schema.

    Raises:
        TrustRefused: `schema_not_admitted`, with the path inside the schema in `where`.
    """
    compile_schema(schema)


@functools.lru_cache(maxsize=128)
def weigh(schema: bytes) -> None:
    """Accept a schema as far as can be told without building it: in time linear in its size.

    Raises:
        TrustRefused: as `admit`.
    """
    _weighed(schema)


def compile_schema(schema: bytes) -> Validator:
    """Admit a schema and build its validator; it need not have been admitted before.

    Versions that have a schema in common share one validator for as long as one of them is held.

    Raises:
        TrustRefused: `schema_not_admitted`, with the path inside the schema in `where`.
    """
    shared = _shared.get(schema)
    if shared is None:
        walk = _weighed(schema)
        shared = _shared[schema] = Validator(build(walk.root), walk.property_names)
    return shared


def build(document: dict[str, JsonValue]) -> jsonschema_rs.Draft202012Validator:
    """Build a validator of a decoded schema, which was weighed or is built to be tried.

    Raises:
        TrustRefused: `schema_not_admitted`, with the path inside the schema in `where`.
    """
    # Built as it was written first, so that mistakes are told in its author's own places.
    _build(document)
    return _build(_engine_form(document))


def _weighed(schema: bytes) -> _Walk:
    try:
        document = check_canonical(
            schema, bytes_max=SCHEMA_BYTES_MAX, slow_bytes_max=SCHEMA_BYTES_MAX,
            depth_max=SCHEMA_DEPTH_MAX,
        )
    except InvalidJson as error:
        raise _refused(str(error), "$") from None
    return _Walk(document)


def _engine_form(schema: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Write a schema in the form that is run: the same meaning, without what costs too much.

    A choice that fails would make the engine gather every mistake of every branch, with copies of
    what they are about: gigabytes. Inside two negations it only says that nothing fits.
    """
    form: dict[str, JsonValue] = {}
    parts: list[JsonValue] = []
    for keyword, value in schema.items():
        inner = value
        if isinstance(value, dict):
            if keyword in _MAPS | {"$defs"}:
                inner = {name: _engine_part(part) for name, part in value.items()}
            elif keyword in _SAME_VALUE | _BELOW:
                inner = _engine_form(value)
        elif isinstance(value, list) and keyword in _LISTS:
            inner = [_engine_part(part) for part in value]
        elif keyword in _CHECKS and isinstance(value, float):
            # A bound of 16 digits was read as a double; it is whole, and integers compare faster.
            inner = int(value)
        if keyword in _CHOICES:
            parts.append({"not": {"not": {keyword: inner}}})
        elif keyword == "allOf" and isinstance(inner, list):
            parts = inner + parts
        elif keyword not in _NOTES:
            form[keyword] = inner
    return form | {"allOf": parts} if parts else form


def _engine_part(schema: JsonValue) -> JsonValue:
    return _engine_form(schema) if isinstance(schema, dict) else schema


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

    def problem(self, value: JsonValue, *, size: int = 0) -> str | None:
        """Say where a decoded JSON document does not fit; None when it fits.

        Args:
            value: the document.
            size: its bytes as JSON. Naming the place takes the engine as long again for each byte
                there, so of documents above `PLACE_BYTES_MAX` only that they do not fit is said.

        Returns:
            Such as `$.items[3].name (maxLength)`: printable, at most 200 characters. A property
            that the schema does not name is shown as `*`, so that no part of the value leaks.
        """
        if size > PLACE_BYTES_MAX:
            return None if self._compiled.is_valid(value) else UNPLACED
        try:
            # Stops at the first error, so a bad document costs little more than a good one.
            self._compiled.validate(value)
        except jsonschema_rs.ValidationError as error:
            return f"{_path(error.instance_path, self._names)} ({_keyword(error.kind)})"
        return None


_shared: Final[weakref.WeakValueDictionary[bytes, Validator]] = weakref.WeakValueDictionary()


def _keyword(kind: jsonschema_rs.ValidationErrorKind) -> str:
    """Name the keyword as the author wrote it: a choice stands inside two negations."""
    if isinstance(kind, jsonschema_rs.ValidationErrorKind.Not) and isinstance(kind.schema, dict):
        inner = kind.schema.get("not")
        if isinstance(inner, dict):
            return next((choice for choice in sorted(_CHOICES) if choice in inner), kind.name)
    return kind.name


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
        self._patterns: set[str] = set()
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
                f"checks of weight {max(profile)} could apply to one value, allowed is "
                f"{WEIGHT_MAX} (a pattern weighs {PATTERN_WEIGHT}, a bound of numbers "
                f"{BOUND_WEIGHT}, multipleOf {2 * BOUND_WEIGHT}, most others 1)", where,
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
        size = 1
        own = max(1, sum(_weight(keyword, value) for keyword, value in schema.items()))
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
        for text in texts:
            if len(text) > PATTERN_CHARACTERS_MAX:
                raise _refused(f"a pattern has at most {PATTERN_CHARACTERS_MAX} characters", where)
            try:
                check_pattern(text)
            except PatternRefused as error:
                raise _refused(str(error), where) from None
        self._patterns.update(texts)
        if len(self._patterns) > PATTERNS_MAX:
            raise _refused(f"more than {PATTERNS_MAX} different patterns", where)
        if keyword in _CHECKS and _is_number(value):
            whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
            if not whole or not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise _refused("a bound is a whole number within 2^53 - 1", where)
            if keyword == "multipleOf" and value < 1:
                raise _refused("multipleOf is at least 1", where)
        if (
            keyword == "enum"
            and isinstance(value, list)
            and any(isinstance(member, (dict, list)) for member in value)
        ):
            raise _refused("members of an enum are scalars; write anyOf with const", where)
        if keyword in ("enum", "const") and _holds_number(value):
            raise _refused("nothing is compared with a number; write minimum and maximum", where)


def _is_number(value: JsonValue) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _holds_number(value: JsonValue) -> bool:
    if isinstance(value, (dict, list)):
        return any(map(_holds_number, value.values() if isinstance(value, dict) else value))
    return _is_number(value)


def _weight(keyword: str, value: JsonValue) -> int:
    """What one keyword adds to the weight of the values it applies to."""
    if keyword in _NOTES | _ROOT_ONLY:
        return 0
    if keyword == "dependentRequired" and isinstance(value, dict):
        return 2 * len(value)
    if keyword == "type" and isinstance(value, list):
        return 2
    if keyword == "enum" and isinstance(value, list):
        # Texts alone are looked up in a table, a mixture is gone through.
        return 1 if all(isinstance(member, str) for member in value) else len(value)
    return _WEIGHTS.get(keyword, 1)


def _joined(left: Profile, right: Profile, *, exclusive: bool = False) -> Profile:
    """Add two profiles level by level; of exclusive ones the larger counts."""
    if len(left) < len(right):
        left, right = right, left
    padded = (*right, *(0,) * (len(left) - len(right)))
    return tuple(
        max(a, b) if exclusive else a + b for a, b in zip(left, padded, strict=True)
    )
