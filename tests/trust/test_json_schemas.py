"""JSON Schemas: the admitted subset, bombs, and what is said about values."""

from __future__ import annotations

import time

import msgspec
import pytest

from broker.trust import json_schemas
from broker.trust.errors import TrustRefused
from broker.trust.json_schemas import SCHEMA_BYTES_MAX, WEIGHT_MAX, admit, compile_schema
from schemas.canonical import canonical_bytes
from schemas.refusals import RefusalCode


def refused(schema: object) -> tuple[str, str]:
    """Sentence and place of a schema that is not admitted."""
    data = schema if isinstance(schema, bytes) else canonical_bytes(schema)
    with pytest.raises(TrustRefused) as caught:
        admit(data)
    assert caught.value.code is RefusalCode.SCHEMA_NOT_ADMITTED
    return caught.value.sentence, caught.value.where


def reference_bomb(levels: int, keyword: str, width: int = 2) -> dict:
    """A chain of definitions, each of which refers to the next one several times."""
    definitions: dict = {"d0": {"type": "string"}}
    for level in range(1, levels + 1):
        below = {"$ref": f"#/$defs/d{level - 1}"}
        parts: object = [below] * width
        if keyword == "properties":
            parts = {f"p{number}": below for number in range(width)}
        definitions[f"d{level}"] = {keyword: parts}
    return {"$defs": definitions, "$ref": f"#/$defs/d{levels}"}


REFUSED = {
    "no object": (True, "a schema is an object", "$"),
    "unknown keyword": ({"minimun": 1}, "subset", "$.minimun"),
    "identity": ({"$id": "https://example.com/x"}, "subset", "$.$id"),
    "dynamic reference": ({"$dynamicRef": "#x"}, "subset", "$.$dynamicRef"),
    "unevaluated": ({"unevaluatedItems": False}, "subset", "$.unevaluatedItems"),
    "definitions below the root": ({"items": {"$defs": {}}}, "subset", "$.items.$defs"),
    "another dialect": (
        {"$schema": "http://json-schema.org/draft-04/schema#"}, "dialect", "$.$schema"
    ),
    "reference to a file": ({"$ref": "file:///etc/passwd"}, "#/$defs/NAME", "$.$ref"),
    "reference to the network": ({"$ref": "http://127.0.0.1/"}, "#/$defs/NAME", "$.$ref"),
    "reference into a definition": (
        {"$defs": {"a": {"items": True}}, "$ref": "#/$defs/a/items"}, "#/$defs/NAME", "$.$ref"
    ),
    "reference to the root": ({"items": {"$ref": "#"}}, "#/$defs/NAME", "$.items.$ref"),
    "reference to nothing": ({"$ref": "#/$defs/a"}, "no such definition", "$.$defs.a"),
    "references in a circle": (
        {"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"items": {"$ref": "#/$defs/a"}}}},
        "circle", "$.$defs.a",
    ),
    "a long chain of references": (
        {"$defs": {f"d{n:03}": {"items": {"$ref": f"#/$defs/d{n + 1:03}"}} for n in range(500)}
         | {"d500": True}}, "deeper", "",
    ),
    "look-around": ({"pattern": "(?=a)b"}, "pattern", "$.pattern"),
    "back-reference": ({"pattern": r"(a)\1"}, "pattern", "$.pattern"),
    "a repetition of repetitions": ({"pattern": "^a{1000}{1000}"}, "pattern", "$.pattern"),
    "a pattern that is large once compiled": (
        {"pattern": "^((a{99}){99}){99}"}, "no linear-time form", "$.pattern"
    ),
    "a very long pattern": ({"pattern": "^" + "a" * 1024}, "at most 1024", "$.pattern"),
    "a wrong pattern of a property": (
        {"patternProperties": {"(?<=a)b": True}}, "a pattern", "$.patternProperties"
    ),
    "too many different patterns": (
        {"properties": {f"p{n}": {"pattern": f"^{n}"} for n in range(65)}}, "different patterns",
        "$.properties.p",
    ),
    "enum of objects": ({"enum": [{"a": 1}]}, "scalars", "$.enum"),
    "enum of numbers": ({"enum": [1, 2]}, "minimum and maximum", "$.enum"),
    "a number to be equal to": ({"const": 7}, "minimum and maximum", "$.const"),
    "a number deep in a constant": ({"const": {"a": [0.5]}}, "minimum", "$.const"),
    "items compared with each other": ({"uniqueItems": True}, "subset", "$.uniqueItems"),
    "a multiple of a fraction": ({"multipleOf": 0.0001}, "whole number", "$.multipleOf"),
    "a multiple of next to nothing": ({"multipleOf": 5e-324}, "whole", "$.multipleOf"),
    "a multiple of nothing": ({"multipleOf": 0}, "at least 1", "$.multipleOf"),
    "a multiple of more than a double holds": ({"multipleOf": 2.0**53}, "2^53", "$.multipleOf"),
    "a bound with a fraction": ({"minimum": 0.5}, "whole number", "$.minimum"),
    "a bound below what a double holds": ({"exclusiveMaximum": -1e300}, "2^53",
                                          "$.exclusiveMaximum"),
    "a count beyond everything": ({"maxItems": 1e300}, "2^53", "$.maxItems"),
    "wrong type of a keyword": ({"maxLength": "3"}, "not a valid schema", "$.maxLength"),
    "unknown type": ({"type": "strin"}, "not a valid schema", "$.type"),
    "branches that are no list": ({"anyOf": {"type": "string"}}, "a list", "$.anyOf"),
    "too many branches": ({"oneOf": [{}] * 201}, "200 branches", "$.oneOf"),
    "properties that are no object": ({"properties": []}, "an object", "$.properties"),
    "a subschema that is a number": ({"items": 3}, "an object, true or false", "$.items"),
    "definitions that are no object": ({"$defs": []}, "an object", "$.$defs"),
    "too deep": (msgspec.json.decode(b'{"items":' * 33 + b"{}" + b"}" * 33), "deeper", "$"),
    "too large": ({"description": "x" * SCHEMA_BYTES_MAX}, "bytes", "$"),
    "too many subschemas for one value": (
        {"allOf": [{"type": "integer"}] * (WEIGHT_MAX + 1)}, "could apply", "$.allOf"
    ),
    "too many keywords for one value": (
        {"allOf": [{"minLength": 1, "maxLength": 2, "minItems": 1}] * 17}, "could apply", "$.allOf"
    ),
    "too many patterns for one value": (
        {"allOf": [{"pattern": "^a"}] * 5}, "could apply", "$.allOf"
    ),
    "too many patterns for one name": (
        {"patternProperties": {"^" + "abcde"[:n]: True for n in range(1, 6)}}, "could apply",
        "$.patternProperties",
    ),
    "too many bounds for one value": (
        {"items": {"allOf": [{"minimum": -9}] * 6}}, "could apply", "$.items.allOf"
    ),
    "too many multiples for one value": ({"allOf": [{"multipleOf": 3}] * 3}, "could apply", ""),
    "too many dependencies": (
        {"dependentRequired": {f"p{n}": ["q"] for n in range(25)}}, "could apply", ""
    ),
    "a long mixture to go through": (
        {"enum": [None, *(f"t{n}" for n in range(50))]}, "could apply", ""
    ),
    "too many choices inside one another": (
        {"anyOf": [{"anyOf": [{"type": "string"}] * 9}] * 5}, "could apply", "$.anyOf"
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_lies_outside_the_subset_is_refused_with_its_place(name: str):
    """Each rule of the subset refuses, says why and where."""
    schema, sentence, where = REFUSED[name]
    found, place = refused(schema)
    assert sentence in found
    assert place.startswith(where), place


@pytest.mark.parametrize("data", [b"", b"{", b'{"a":1,"a":1}', b'{ "type":"string"}', b"\xff"])
def test_a_schema_is_in_its_canonical_form(data: bytes):
    """Another spelling of a schema is not admitted."""
    refused(data)


@pytest.mark.parametrize("keyword", ["anyOf", "allOf", "oneOf", "properties", "prefixItems"])
@pytest.mark.parametrize("levels", [14, 28, 60])
def test_reference_bombs_are_refused_at_once(keyword: str, levels: int):
    """A schema that is small as written and huge when followed costs nothing to refuse."""
    begin = time.process_time()
    refused(reference_bomb(levels, keyword))
    assert time.process_time() - begin < 0.25


def test_an_honest_schema_is_admitted():
    """References, unions, bounds, patterns and notes that plugins need pass."""
    admit(canonical_bytes({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": {
            "Point": {"type": "object", "title": "Point", "required": ["x"],
                      "properties": {"x": {"type": "number", "minimum": 0}},
                      "additionalProperties": False},
            "Name": {"type": "string", "pattern": "^[a-z][a-z0-9-]{2,63}$", "maxLength": 64},
        },
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": {"$ref": "#/$defs/Point"}, "maxItems": 100},
            "name": {"anyOf": [{"$ref": "#/$defs/Name"}, {"type": "null"}]},
            "at": {"type": "string", "format": "date-time"},
            "kind": {"enum": ["a", "b", None]},
            "word": {"enum": [f"word-{n}" for n in range(500)]},
            "share": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1, "multipleOf": 5},
        },
        "dependentRequired": {"name": ["at"]},
    }))


def test_many_properties_are_no_bomb():
    """Subschemas of different properties never meet on one value, so a wide struct passes."""
    admit(canonical_bytes(
        {"properties": {f"p{n}": {"type": "string", "pattern": "^a+$"} for n in range(500)}}
    ))


SCHEMA = compile_schema(canonical_bytes({
    "type": "object",
    "properties": {
        "items": {"type": "array", "items": {"$ref": "#/$defs/Item"}},
        "pair": {"prefixItems": [{"type": "string"}, {"type": "integer"}]},
    },
    "$defs": {"Item": {"type": "object", "properties": {"name": {"maxLength": 3}},
                       "additionalProperties": {"type": "integer"}}},
    "required": ["items"],
}))


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"items": []}, None),
        ({"items": [{"name": "abc", "other": 1}]}, None),
        ({"items": [{}, {"name": "abcd"}]}, "$.items[1].name (maxLength)"),
        ({"items": [], "pair": ["a", "b"]}, "$.pair[1] (type)"),
        ({}, "$ (required)"),
        ([], "$ (type)"),
    ],
)
def test_a_value_that_does_not_fit_is_told_by_path_and_keyword(value, problem: str | None):
    """The place is a path, and a value that fits has no problem."""
    assert SCHEMA.problem(value) == problem


def test_of_a_large_document_no_place_is_named():
    """Above the bound only that it does not fit is said; a document that fits passes as ever."""
    validator = compile_schema(canonical_bytes({"type": "array", "items": {"type": "integer"}}))
    bound = json_schemas.PLACE_BYTES_MAX
    assert validator.problem([1, "x"], size=bound) == "$[1] (type)"
    assert validator.problem([1, "x"], size=bound + 1) == json_schemas.UNPLACED
    assert validator.problem([1, 2], size=bound + 1) is None


def test_no_part_of_a_value_is_told():
    """Neither a value nor a property name that the schema does not name appears."""
    problem = SCHEMA.problem({"items": [{"secret-name": "secret-value"}]})
    assert problem == "$.items[0].* (type)"
    named = compile_schema(canonical_bytes({"additionalProperties": False}))
    assert named.problem({"secret-name": 1}) == "$ (falseSchema)"
    long = compile_schema(canonical_bytes({"items": {"items": {"type": "string"}}}))
    assert len(long.problem([["a"] * 10 + [1]]) or "") <= 200


def choice_in_choice(keyword: str, levels: int) -> dict:
    """A choice of which every branch is a list of choices, and nothing fits."""
    schema: dict = {"type": "string"}
    for _ in range(levels):
        schema = {keyword: [{"items": schema}, {"items": schema}]}
    return schema


def test_a_long_bound_is_an_integer_to_the_engine():
    """What was read as a double is compared as the integer it is, not as a fraction."""
    form = json_schemas._engine_form({"items": {"maximum": 2.0**53 - 1}})
    assert repr(form) == "{'items': {'maximum': 9007199254740991}}"


@pytest.mark.parametrize("keyword", ["anyOf", "oneOf"])
def test_a_choice_that_fails_gathers_no_mistakes(keyword: str):
    """Nothing is said, and nothing kept, of branches that did not fit; the place is the choice."""
    engine = json_schemas._engine_form({keyword: [{"minimum": 1}], "allOf": [True], "title": "t"})
    assert engine == {"allOf": [True, {"not": {"not": {keyword: [{"minimum": 1}]}}}]}
    validator = compile_schema(canonical_bytes({"properties": {"a": choice_in_choice(keyword, 3)}}))
    assert validator.problem({"a": [[[1] * 30] * 30] * 30}) == f"$.a ({keyword})"
    assert validator.problem({"a": 1 if keyword == "anyOf" else "no list"}) in (
        None, f"$.a ({keyword})"
    )


def test_the_form_that_is_run_means_the_same():
    """Choices, notes and long bounds are written otherwise for the engine, not decided otherwise.

    Every document of a small set is held against each schema twice: by the whole dialect as it
    stands, and by our validator.
    """
    documents: list = [None, True, 0, 1, 7, -3, 2**53 - 1, 0.5, 1e300, "", "a", "ab", [], [1],
                       ["a"], {}, {"a": 1}, {"a": "x", "b": []}, [[1], ["a"]]]
    schemas: list[dict] = [
        {"anyOf": [{"type": "string"}, {"minimum": 1}], "oneOf": [{"type": "integer"}, True]},
        {"oneOf": [{"type": "integer"}, {"minimum": 1}, {"maxLength": 1}]},
        {"allOf": [{"anyOf": [{"maximum": 2**53 - 1}]}], "anyOf": [{"not": {"const": "a"}}]},
        {"items": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "description": "x"},
        {"properties": {"a": {"oneOf": [{"type": "string"}]}}, "additionalProperties": False},
        {"$defs": {"d": {"anyOf": [{"type": "array"}]}}, "if": {"$ref": "#/$defs/d"},
         "then": {"prefixItems": [{"anyOf": [{"multipleOf": 7}]}]}, "else": {"type": "object"}},
        {"properties": {"anyOf": {"type": "null"}, "a": True}, "required": ["a"]},
    ]
    for schema in schemas:
        plain = json_schemas._build(schema)
        ours = compile_schema(canonical_bytes(schema))
        for document in documents:
            fits = plain.is_valid(document)
            assert (ours.problem(document) is None) is fits, (schema, document)


def test_formats_are_notes_only():
    """`format` never decides, so no format's parser is ever reached."""
    assert compile_schema(canonical_bytes({"format": "regex"})).problem("(") is None


def test_a_validator_reaches_no_file_and_no_network(tmp_path):
    """Even past the subset, building a validator fetches nothing: the file is there and valid."""
    file = tmp_path / "schema.json"
    file.write_text('{"type":"string"}')
    for place in (file.as_uri(), "http://127.0.0.1:9/schema.json"):
        with pytest.raises(TrustRefused):
            json_schemas._build({"$ref": place})
