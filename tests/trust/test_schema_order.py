"""Which of two schemas accepts more: by form where it shows, and never wrongly."""

from __future__ import annotations

import random
import time

import pytest

from broker.trust.errors import TrustRefused
from broker.trust.json_schemas import compile_schema
from broker.trust.schema_order import SchemaOrder
from schemas.canonical import canonical_bytes

TEXT = {"type": "string"}
NARROWER = {
    "a maximum": ({}, {"maximum": 9}, "$.maximum"),
    "a lower maximum": ({"maximum": 9}, {"maximum": 8}, "$.maximum"),
    "an exclusive bound": ({"minimum": 3}, {"exclusiveMinimum": 3}, "$.exclusiveMinimum"),
    "a shorter text": ({"maxLength": 9}, {"maxLength": 8}, "$.maxLength"),
    "an integer": ({"type": "number"}, {"type": "integer"}, "$.type"),
    "one type of two": ({"type": ["string", "null"]}, TEXT, "$.type"),
    "a member less": ({"enum": ["a", "b"]}, {"enum": ["a"]}, "$.enum"),
    "one value": (TEXT, {"const": "a"}, "$.const"),
    "a required name": ({"required": ["a"]}, {"required": ["a", "b"]}, "$.required"),
    "a property's type": (
        {"properties": {"a": {}}}, {"properties": {"a": TEXT}}, "$.properties.a.type"),
    "no other names": (
        {"properties": {"a": TEXT}}, {"properties": {"a": TEXT}, "additionalProperties": False},
        "$.additionalProperties"),
    "a name that may not be": (
        {"properties": {"a": TEXT}, "additionalProperties": False},
        {"properties": {}, "additionalProperties": False}, "$.additionalProperties (a)"),
    "shorter items": (
        {"items": TEXT}, {"items": {"type": "string", "maxLength": 3}}, "$.items.maxLength"),
    "a multiple of a multiple": ({"multipleOf": 3}, {"multipleOf": 6}, "$.multipleOf"),
    "a branch less": (
        {"anyOf": [TEXT, {"type": "null"}]}, {"anyOf": [TEXT]}, "$.anyOf"),
    "behind a reference": (
        {"$ref": "#/$defs/n", "$defs": {"n": {"maximum": 9}}},
        {"$ref": "#/$defs/n", "$defs": {"n": {"maximum": 8}}}, "$.maximum"),
    "one part more": ({"allOf": [TEXT]}, {"allOf": [TEXT, {"maxLength": 3}]}, "$.maxLength"),
}
SAME = {
    "notes": ({"title": "a", "maximum": 3}, {"description": "b", "maximum": 3}),
    "a reference written out": (
        {"$ref": "#/$defs/n", "$defs": {"n": TEXT}}, {"allOf": [TEXT]}),
    "a bound that says nothing": ({"minLength": 0}, {}),
    "a property named like a note": (
        {"properties": {"title": TEXT}}, {"properties": {"title": TEXT}, "title": "x"}),
}
CHANGED = {
    "another type": (TEXT, {"type": "integer"}, "$.type"),
    "one bound up, one down": (
        {"minimum": 1, "maximum": 9}, {"minimum": 0, "maximum": 8}, "$.minimum"),
    "another pattern": ({"pattern": "^a$"}, {"pattern": "^b$"}, "$.pattern"),
    "a choice of exactly one": (
        {"oneOf": [TEXT]}, {"oneOf": [TEXT, {"type": "null"}]}, "$.oneOf"),
    "names by pattern": (
        {"patternProperties": {"^a$": TEXT}}, {"patternProperties": {"^b$": TEXT}},
        "$.patternProperties"),
}


def order(before: object, after: object) -> tuple[str, str]:
    """Compare two schemas that are admitted."""
    texts = [canonical_bytes(schema) for schema in (before, after)]
    for text in texts:
        compile_schema(text)
    return SchemaOrder().compare(*texts)


@pytest.mark.parametrize("name", NARROWER)
def test_what_accepts_less_is_narrower_and_the_other_way_wider(name: str):
    """Each keyword shows which way it goes, and the place is named."""
    wide, narrow, place = NARROWER[name]
    assert order(wide, narrow) == ("narrower", place)
    assert order(narrow, wide) == ("wider", place)


@pytest.mark.parametrize("name", SAME)
def test_another_way_to_write_it_is_the_same(name: str):
    """Notes and references change nothing."""
    before, after = SAME[name]
    assert order(before, after) == ("same", "")
    assert order(after, before) == ("same", "")


@pytest.mark.parametrize("name", CHANGED)
def test_what_cannot_be_ordered_is_changed(name: str):
    """Where form does not show it, nothing is promised."""
    before, after, place = CHANGED[name]
    assert order(before, after) == ("changed", place)
    assert order(after, before)[0] == "changed"


def schema(chance: random.Random, depth: int = 0) -> object:
    """Draw a schema over a few names and values."""
    made: dict[str, object] = {}
    keywords = chance.sample((
        "type", "enum", "minimum", "maximum", "exclusiveMaximum", "minLength", "maxLength",
        "required", "properties", "additionalProperties", "items", "prefixItems", "minItems",
        "anyOf", "allOf", "not", "patternProperties", "contains", "if", "pattern",
    ), chance.randint(1, 3))
    for keyword in keywords:
        inner = schema(chance, depth + 1) if depth < 2 else {}
        made[keyword] = {
            "type": chance.choice(("string", "integer", "object", "array", ["string", "number"])),
            "enum": chance.choice((["a"], ["a", "b"], ["a", None, True])),
            "required": chance.choice((["a"], ["a", "b"])), "properties": {"a": inner},
            "additionalProperties": chance.choice((False, True, inner)), "items": inner,
            "prefixItems": [inner], "anyOf": [inner, {"type": "null"}], "allOf": [inner],
            "not": inner, "patternProperties": {"^b$": inner}, "contains": inner, "if": inner,
            "pattern": "^a$",
        }.get(keyword, chance.randint(0, 3))
    return made


def document(chance: random.Random, depth: int = 0) -> object:
    """Draw a document over the same names and values."""
    kind = chance.randint(0, 7 if depth < 2 else 4)
    if kind < 5:
        return (None, True, chance.randint(0, 4), chance.choice("ab"), "aaa")[kind]
    if kind == 5:
        return [document(chance, depth + 1) for _ in range(chance.randint(0, 3))]
    return {name: document(chance, depth + 1) for name in "abc" if chance.random() < 0.6}


def test_the_order_is_never_wrong():
    """Of random schemas and documents, none fits what was called narrower and not the wider."""
    chance = random.Random(27)
    told = {"narrower": 0, "wider": 0, "same": 0, "changed": 0}
    documents = [document(chance) for _ in range(40)]
    for _ in range(400):
        before = schema(chance)
        after = {**before, **schema(chance)} if chance.random() < 0.6 else schema(chance)
        if chance.random() < 0.5:
            before, after = after, before
        texts = [canonical_bytes(one) for one in (before, after)]
        try:
            old, new = (compile_schema(text) for text in texts)
        except TrustRefused:
            # Too much for one value; such a schema is never compared.
            continue
        found = SchemaOrder().compare(*texts).order
        told[found] += 1
        for one in documents:
            fits_old, fits_new = old.problem(one) is None, new.problem(one) is None
            case = (before, after, one)
            assert fits_old or not fits_new or found in ("wider", "changed"), case
            assert fits_new or not fits_old or found in ("narrower", "changed"), case
    assert min(told.values()) > 0, told


def test_the_work_is_bounded():
    """A comparison of everything with everything ends, and then nothing is promised."""
    names = {f"n{number}": {"anyOf": [{"maxLength": size} for size in range(14)]}
             for number in range(10)}
    deep: dict[str, object] = {"properties": names}
    for number in range(8):
        deep = {"properties": {"x": deep, "y": deep}} if number < 3 else deep
    before, after = canonical_bytes(deep), canonical_bytes({**deep, "type": "object"})
    compared = SchemaOrder()
    began = time.process_time()
    found = [compared.compare(before, after).order for _ in range(200)]
    assert found[-1] == "changed"
    assert time.process_time() - began < 5
