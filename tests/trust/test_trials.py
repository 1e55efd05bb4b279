"""Trials of schemas: which documents are made, and what a prober's end means."""

from __future__ import annotations

import signal

import pytest

from broker.prober import try_schemas
from broker.trust.trials import PLACES_MAX, documents, places, trial_problem
from schemas.canonical import canonical_bytes
from schemas.refusals import RefusalCode
from tests.trust.test_json_schemas import reference_bomb

FITS = b'{"fits":true}'
ENDS = {
    "processor time is used up": ((0, signal.SIGXCPU, b""), "schema_not_admitted", "2 s"),
    "the hard limit had to end it": ((0, signal.SIGKILL, b""), "schema_not_admitted", "2 s"),
    "memory is used up": ((0, signal.SIGABRT, b""), "schema_not_admitted", "512 MiB"),
    "the machine stands still": ((0, signal.SIGALRM, b""), "worker_start_failed", "within 20 s"),
    "it cannot be sealed": ((5, 0, b""), "sandbox_unavailable", "status 5"),
    "it crashes after its word": ((0, signal.SIGSEGV, FITS), "sandbox_unavailable", "signal 11"),
    "it says nothing": ((0, 0, b""), "schema_not_admitted", "nothing that can be read"),
    "it says something else": ((0, 0, b"{}x"), "schema_not_admitted", "nothing that can be read"),
    "it says more than it may": ((0, 0, FITS[:-1] + b',"a":1}'), "schema_not_admitted", "nothing"),
    "it does not say that all fits": ((0, 0, b"{}"), "schema_not_admitted", ""),
    "it names a schema": (
        (0, 0, b'{"schema":"sha256:ab","where":"$.items","sentence":"slow"}'),
        "schema_not_admitted", "slow",
    ),
}


@pytest.mark.parametrize("name", ENDS)
def test_a_prober_that_ends_in_any_other_way_is_a_refusal(name: str) -> None:
    """Only an orderly end with a clear word admits; everything else has code, place and remedy."""
    end, code, found = ENDS[name]
    told = trial_problem(*end)
    assert told is not None
    assert told.code == RefusalCode(code)
    assert found in told.found
    assert told.where.startswith("$.schemas")
    assert told.remedy
    assert trial_problem(0, 0, FITS) is None


def test_the_place_in_a_schema_is_told_as_a_place_in_the_manifest() -> None:
    """Which schema, and where in it, are one path."""
    told = trial_problem(0, 0, b'{"schema":"sha256:ab","where":"$.items","sentence":"slow"}')
    assert told is not None
    assert told.where == "$.schemas.sha256:ab.items"


def test_documents_are_made_for_every_place_a_schema_speaks_of() -> None:
    """Properties, items, numbered items, references and choices are followed."""
    found = places({
        "$defs": {"Point": {"properties": {"x": {"type": "integer"}}}},
        "properties": {"points": {"items": {"$ref": "#/$defs/Point"}},
                       "pair": {"prefixItems": [{}, {"type": "string"}]}},
        "anyOf": [{"additionalProperties": {"type": "null"}}, True],
    })
    assert set(found) == {
        (), ("points",), ("pair",), ("~",), ("points", -1), ("pair", 0), ("pair", 1),
        ("points", -1, "x"),
    }


@pytest.mark.parametrize("keyword", ["anyOf", "properties", "prefixItems"])
def test_places_and_documents_are_bounded(keyword: str) -> None:
    """A bomb of references gives a bounded number of places, each document about its size."""
    found = places(reference_bomb(28, keyword))
    assert len(found) <= PLACES_MAX
    for place in found:
        for document in documents(place, 4096):
            assert len(canonical_bytes(document)) < 3 * 4096


def test_a_schema_that_cannot_be_built_is_told_with_its_place() -> None:
    """What only the engine knows is told as it is at an author's desk."""
    verdict = try_schemas({
        "sha256:1": b"{}", "sha256:2": canonical_bytes({"items": {"pattern": "(?=a)b"}}),
    })
    assert (verdict.fits, verdict.schema, verdict.where) == (False, "sha256:2", "$.items.pattern")
    assert "no linear-time form" in verdict.sentence
