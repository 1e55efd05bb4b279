"""Trying schemas: with which documents, what the prober says of it, and what follows from that.

A schema that was weighed is compiled and held against bad documents before it is admitted, in a
process of its own under limits of the kernel (`broker.prober`). Weights bound what we know to be
costly; the trial is there for what nobody thought of.

Rules this file keeps: a document repeats one kind of value at one place that the schema speaks of,
up to a size; places and sizes are bounded, so that a trial of honest schemas takes little; a
prober that ends in any other way than by saying that all is well is a refusal.

It leaves limits and clocks to `broker.prober`, and when to try to `broker.registration`. Source:
docs/decisions/0029.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from broker.trust.bounds import TRIAL_CPU_S, TRIAL_MEMORY_BYTES, TRIAL_WALL_S
from broker.trust.manifests import problem
from schemas.canonical import JsonValue
from schemas.messages import Problem
from schemas.names import INTEGER_MAX
from schemas.refusals import RefusalCode

PLACES_MAX: Final = 24
"""Places of one schema that documents are made for."""

ALARM: Final = 14
"""SIGALRM; a trial that is ended because it is late counts as ended by its own alarm."""

_ABORT, _KILL, _XCPU = 6, 9, 24
_DEPTH_MAX: Final = 16
_FOLLOWED: Final = ("allOf", "anyOf", "oneOf", "not", "if", "then", "else")
_Place = tuple[str | int, ...]
_ITEM: Final = -1
"""A step into every item of a list; a number from 0 on is one item, a text one property."""


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a prober says: which schema is not admitted, where in it and why; or `fits`."""

    fits: bool = False
    schema: Annotated[str, Meta(max_length=80)] = ""
    where: Annotated[str, Meta(max_length=200)] = "$"
    sentence: Annotated[str, Meta(max_length=400)] = ""


_decoder: Final = msgspec.json.Decoder(Verdict)


def trial_problem(status: int, number: int, said: bytes) -> Problem | None:
    """Say what a prober's end means; None when its schemas are admitted.

    Args:
        status: its exit status.
        number: the signal that ended it, or 0.
        said: what it wrote, bounded by the launcher.
    """
    if number in (_XCPU, _KILL):
        return _slow(f"trying them took more than {TRIAL_CPU_S} s of processor time")
    if number == _ABORT:
        return _slow(f"trying them took more than {TRIAL_MEMORY_BYTES >> 20} MiB of memory")
    if number == ALARM:
        return problem(RefusalCode.WORKER_START_FAILED, "$.schemas",
                       f"schemas that could not be tried within {TRIAL_WALL_S} s", "a verdict",
                       "Register it again when the machine is less busy.")
    if number or status:
        return problem(RefusalCode.SANDBOX_UNAVAILABLE, "$.schemas",
                       f"the prober ended with status {status}, signal {number}", "its word")
    try:
        verdict = _decoder.decode(said)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _slow("the prober said nothing that can be read")
    if verdict.fits:
        return None
    where = f"$.schemas.{verdict.schema}" + verdict.where.removeprefix("$")
    return problem(RefusalCode.SCHEMA_NOT_ADMITTED, where, verdict.sentence,
                   "a schema of the admitted subset")


def _slow(sentence: str) -> Problem:
    return problem(RefusalCode.SCHEMA_NOT_ADMITTED, "$.schemas", sentence,
                   "schemas that are built and checked within a moment")


# --- documents ---


def places(schema: dict[str, JsonValue]) -> list[_Place]:
    """Name the places of documents that a schema speaks of, the shallow ones first."""
    definitions = schema.get("$defs", {})
    assert isinstance(definitions, dict)
    found: dict[_Place, None] = {}
    waiting: list[tuple[_Place, JsonValue]] = [((), schema)]
    seen = 0
    while waiting and len(found) < PLACES_MAX and seen < 64 * PLACES_MAX:
        place, part = waiting.pop(0)
        seen += 1
        found[place] = None
        if isinstance(part, dict) and len(place) < _DEPTH_MAX:
            waiting += _below(place, part, definitions)
    return list(found)


def _below(
    place: _Place, schema: dict[str, JsonValue], definitions: dict[str, JsonValue]
) -> Iterator[tuple[_Place, JsonValue]]:
    reference = schema.get("$ref")
    if isinstance(reference, str):
        yield place, definitions.get(reference.rpartition("/")[2], True)
    for keyword in _FOLLOWED:
        value = schema.get(keyword)
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, dict):
                yield place, part
    for keyword in ("items", "contains"):
        if isinstance(schema.get(keyword), dict):
            yield (*place, _ITEM), schema[keyword]
    prefix = schema.get("prefixItems")
    for number, part in enumerate(prefix if isinstance(prefix, list) else []):
        yield (*place, number), part
    named = schema.get("properties")
    for name, part in named.items() if isinstance(named, dict) else ():
        yield (*place, name), part
    for keyword in ("additionalProperties", "propertyNames"):
        if isinstance(schema.get(keyword), dict):
            yield (*place, "~"), schema[keyword]
    patterned = schema.get("patternProperties")
    for pattern, part in patterned.items() if isinstance(patterned, dict) else ():
        yield (*place, pattern.removeprefix("^")), part


def documents(place: _Place, size: int) -> Iterator[JsonValue]:
    """Make bad documents for one place: one kind of value, as often as `size` bytes hold it."""
    elements: list[tuple[JsonValue, int]] = [
        (1, 2), (1 - INTEGER_MAX, 18), (1e300, 24), ("a" * 6, 9), ([], 3), ({}, 3), (None, 5),
        ([[1, "a"]], 10),
    ]
    for element, width in elements:
        # A double takes the slow way into the gateway, which is bounded to a quarter.
        count = max(1, size // width // (4 if isinstance(element, float) else 1))
        many: JsonValue = [element] * count
        if _ITEM in place:
            last = len(place) - 1 - place[::-1].index(_ITEM)
            inner = _wrapped(place[last + 1 :], element)
            deeper = 8 * len(place[last + 1 :]) + 1
            yield _wrapped(place[:last], [inner] * max(1, count * width // (width + deeper)))
        yield _wrapped(place, many)
    yield _wrapped(place, "a" * size)
    # Binary numbers: every short sequence of two letters, for patterns that must remember.
    words = "".join(map("{:b}".format, range(size // 8))).replace("0", "b").replace("1", "a")
    yield _wrapped(place, words[:size])
    yield _wrapped(place, {f"k{number}": number for number in range(max(1, size // 12))})


def _wrapped(place: _Place, value: JsonValue) -> JsonValue:
    for step in reversed(place):
        value = {step: value} if isinstance(step, str) else [*[None] * max(step, 0), value]
    return value
