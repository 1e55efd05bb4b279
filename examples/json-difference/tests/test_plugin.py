"""What `difference` promises: the patch, applied to the first document, gives the second."""

from __future__ import annotations

import copy

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plugin import DEPTH_MAX, Documents, Replace, difference

from sandbox_worker.sdk import CannotAnswer, Context


def patch_of(before: object, after: object) -> list[dict]:
    """The patch as JSON."""
    found = difference(Context(), Documents(before, after))
    assert found.equal is (not found.patch)
    return msgspec.to_builtins(found.patch)


def applied(document: object, patch: list[dict]) -> object:
    """Apply a patch as RFC 6902 says, by the letter."""
    holder = {"": copy.deepcopy(document)}
    for operation in patch:
        steps = [""] + [
            step.replace("~1", "/").replace("~0", "~") for step in operation["path"].split("/")[1:]
        ]
        target: object = holder
        for step in steps[:-1]:
            target = target[int(step)] if isinstance(target, list) else target[step]
        last = int(steps[-1]) if isinstance(target, list) else steps[-1]
        if operation["op"] == "remove":
            del target[last]
        elif operation["op"] == "add" and isinstance(target, list):
            assert last <= len(target)
            target.insert(last, operation["value"])
        else:
            assert operation["op"] == "add" or isinstance(target, list) or last in target
            target[last] = operation["value"]
    return holder[""]


CASES = {
    "equal documents": ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}, []),
    "a changed member": ({"a": 1}, {"a": 2}, [{"op": "replace", "path": "/a", "value": 2}]),
    "a new member": ({}, {"a": 1}, [{"op": "add", "path": "/a", "value": 1}]),
    "a member gone": ({"a": 1}, {}, [{"op": "remove", "path": "/a"}]),
    "names that must be escaped": (
        {"a/b": {"c~d": 1}}, {"a/b": {"c~d": 2}},
        [{"op": "replace", "path": "/a~1b/c~0d", "value": 2}],
    ),
    "the whole document": ([], {}, [{"op": "replace", "path": "", "value": {}}]),
    "inserted in the middle": ([1, 2, 4], [1, 2, 3, 4],
                               [{"op": "add", "path": "/2", "value": 3}]),
    "taken from the middle": ([1, 2, 3, 4, 5], [1, 5], [
        {"op": "remove", "path": "/3"}, {"op": "remove", "path": "/2"},
        {"op": "remove", "path": "/1"},
    ]),
    "true is not one": ([True], [1], [{"op": "replace", "path": "/0", "value": 1}]),
    "one point nought is one": ([1.0], [1], []),
}


@pytest.mark.parametrize("name", CASES)
def test_the_patch_is_as_small_as_a_person_would_write_it(name: str):
    """Each kind of change has the operation one expects."""
    before, after, patch = CASES[name]
    assert patch_of(before, after) == patch


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 3), st.text("ab/~", max_size=2)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.text("ab/~", max_size=2), inner, max_size=4)
    ),
    max_leaves=15,
)


@given(JSON, JSON)
@settings(max_examples=400, deadline=None)
def test_a_patch_leads_from_one_document_to_the_other(before: object, after: object):
    """For any two documents, applying the patch gives the second; asking twice the same patch."""
    patch = patch_of(before, after)
    # Bytes tell true from 1, which Python's == does not.
    found = msgspec.json.encode(applied(before, patch), order="sorted")
    assert found == msgspec.json.encode(after, order="sorted")
    assert patch == patch_of(before, after)


def test_documents_that_share_nothing_have_no_useful_difference():
    """Beyond ten thousand operations the plugin says so."""
    with pytest.raises(CannotAnswer):
        difference(Context(), Documents(list(range(20_000)), []))


def test_a_value_that_would_nest_too_deep_in_an_answer_is_refused():
    """An answer may nest 32 levels, of which the patch takes three."""
    deep: object = 1
    for _ in range(DEPTH_MAX):
        deep = [deep]
    found = difference(Context(), Documents(None, deep))
    assert found.patch == [Replace("", deep)]
    with pytest.raises(CannotAnswer, match="nests deeper"):
        difference(Context(), Documents(None, [deep]))
