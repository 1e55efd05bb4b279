"""What is said about keys, on names that every Python carries and on keys with flaws."""

from __future__ import annotations

import pydoc_data.topics
import sys

import pytest
from plugin import SAMPLE_KEYS, describe, sample

from sandbox_worker.sdk import Context, DatasetSlicePayload, InvalidInput

MODULES = tuple(sorted(sys.stdlib_module_names))


def sliced(*keys: str) -> DatasetSlicePayload:
    """A slice of a dataset of that name."""
    return DatasetSlicePayload("names", keys)


def test_the_modules_of_the_standard_library_are_described():
    """Names that are sorted, different from each other and plain."""
    found = describe(Context(), sliced(*MODULES))
    assert (found.keys, found.distinct, found.repeated) == (len(MODULES), len(MODULES), [])
    assert found.ascending
    assert found.ascii_only
    assert found.shortest == min(map(len, MODULES))
    assert found.prefixes[0].keys == sum(name.startswith("_") for name in MODULES)


def test_flaws_of_numbered_keys_are_found():
    """A gap, a key twice, keys out of order: what one looks for before using a slice."""
    keys = [f"run-{number:03}/row" for number in range(1, 40) if number not in (7, 21)]
    found = describe(Context(), sliced(*keys, keys[4]))
    assert found.repeated == ["run-005/row"]
    assert not found.ascending
    assert found.common_prefix == "run-0"
    assert [(one.pattern, one.first, one.last, one.missing) for one in found.series] == [
        ("run-#/row", 1, 39, [7, 21])
    ]
    assert [(one.prefix, one.keys) for one in found.prefixes] == [("run", len(keys) + 1)]


def test_two_numbers_far_apart_are_no_series():
    """A list of what is missing would be longer than the slice."""
    assert describe(Context(), sliced("a1", "a2", "a900000000000000")).series == []


def test_a_sample_is_of_the_input_and_does_not_depend_on_its_order():
    """The same keys are drawn either way, in the order in which they came."""
    topics = tuple(pydoc_data.topics.topics) + MODULES
    drawn = sample(Context(), sliced(*topics))
    assert len(drawn.keys) == SAMPLE_KEYS
    assert drawn.dataset_id == "names"
    assert [key for key in topics if key in set(drawn.keys)][: SAMPLE_KEYS] == list(drawn.keys)
    assert set(sample(Context(), sliced(*reversed(topics))).keys) == set(drawn.keys)


def test_a_small_slice_is_its_own_sample():
    """Nothing is drawn twice."""
    assert sample(Context(), sliced("b", "a", "b")).keys == ("b", "a")


@pytest.mark.parametrize("run", [describe, sample])
def test_an_empty_slice_is_invalid_input(run: object):
    """There is nothing to say about it."""
    assert callable(run)
    with pytest.raises(InvalidInput, match="no keys"):
        run(Context(), sliced())


def test_ten_thousand_keys_with_long_digits_end_at_once():
    """The largest slice there is, of keys that are hard on a careless pattern."""
    keys = [f"{'1' * 200}{number}x{'2' * 10}" for number in range(10_000)]
    assert describe(Context(), sliced(*keys)).keys == 10_000
