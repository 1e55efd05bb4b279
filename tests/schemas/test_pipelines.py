"""What a graph of steps is, and what follows from its ids, keys and pointers."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.canonical import JsonValue
from schemas.messages import Step, StepOutput
from schemas.payloads import TextPayload
from schemas.pipelines import (
    graph_flaw,
    resolve_pointer,
    step_commitment_key,
    step_request_id,
)
from tests.schemas import samples

DOCUMENT: JsonValue = {"a": [1, {"b": "x"}], "": 2, "c/d": 3, "e~f": 4, "01": 5}


def steps(*edges: str) -> list[Step]:
    """Make steps from words like `name` or `name<source`."""
    made = []
    for edge in edges:
        name, _, source = edge.partition("<")
        taken = StepOutput(step=source) if source else TextPayload("x")
        made.append(Step(name=name, plugin="some-plugin", method="work", input=taken))
    return made


@pytest.mark.parametrize("edges", [
    ("a",), ("a", "b"), ("b<a", "a"), ("a", "b<a", "c<b", "d<b"), ("d<c", "c<b", "b<a", "a"),
])
def test_a_graph_without_circles_can_run(edges: tuple[str, ...]) -> None:
    """Steps may be declared in any order."""
    assert graph_flaw(steps(*edges)) is None


@pytest.mark.parametrize(("edges", "where", "says"), [
    (("a", "a"), "$.steps[1].name", "two steps"),
    (("a", "b<c"), "$.steps[1].input.step", "no step c"),
    (("a<a",), "$.steps[0].input", "wait for each other"),
    (("a<b", "b<a"), "$.steps[0].input", "wait for each other"),
    (("x", "a<b", "b<c", "c<a"), "$.steps[1].input", "a takes from b takes from c takes from a"),
])
def test_a_flaw_is_told_with_its_place(edges: tuple[str, ...], where: str, says: str) -> None:
    """A repeated name, an unknown one and a circle are found before anything runs."""
    flaw = graph_flaw(steps(*edges))

    assert flaw is not None
    assert flaw.where == where
    assert says in flaw.sentence


@given(st.lists(st.tuples(st.integers(0, 7), st.none() | st.integers(0, 7)), max_size=8))
def test_a_graph_that_passes_can_be_put_in_order(edges: list[tuple[int, int | None]]) -> None:
    """Whatever the edges: no flaw means that an order exists, and a flaw that none does."""
    made = steps(*(f"s{a}" if b is None else f"s{a}<s{b}" for a, b in edges))
    names = {step.name for step in made}
    done: set[str] = set()
    for _ in made:
        done |= {step.name for step in made if not isinstance(step.input, StepOutput)
                 or step.input.step in done}
    runs = len(names) == len(made) and done == names

    assert (graph_flaw(made) is None) == runs


@pytest.mark.parametrize(("pointer", "value"), [
    ("", DOCUMENT), ("/a", [1, {"b": "x"}]), ("/a/0", 1), ("/a/1/b", "x"), ("/", 2),
    ("/c~1d", 3), ("/e~0f", 4), ("/01", 5),
])
def test_a_pointer_names_its_part(pointer: str, value: JsonValue) -> None:
    """RFC 6901, with its two escapes and the empty name."""
    assert resolve_pointer(DOCUMENT, pointer) == value


@pytest.mark.parametrize("pointer", ["a", "/b", "/a/2", "/a/-", "/a/01", "/a/1/b/c", "/a/-1"])
def test_a_pointer_to_nothing_is_an_error(pointer: str) -> None:
    """What is not there, and what is no pointer, is never taken for something."""
    with pytest.raises(LookupError):
        resolve_pointer(DOCUMENT, pointer)


def test_ids_and_keys_of_steps_follow_from_the_pipeline() -> None:
    """They are as docs/WIRE.md says: different for each step and pipeline, and well-formed."""
    one = step_request_id(samples.REQUEST, "first")

    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", one)
    assert (one[14], one[19] in "89ab") == ("4", True)
    assert one == step_request_id(samples.REQUEST, "first")
    assert one != step_request_id(samples.REQUEST, "second")
    assert step_commitment_key(bytes(32), "a") != step_commitment_key(bytes(32), "b")
    assert len(step_commitment_key(bytes(32), "a")) == 32
