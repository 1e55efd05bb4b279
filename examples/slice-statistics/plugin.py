"""What the keys of a dataset's slice are like: repeated ones, prefixes, gaps in numbered series.

A plugin is handed keys and never what they stand for, and a slice that it gives back may hold keys
of its input only; the gateway checks that.
"""

from __future__ import annotations

import hashlib
import itertools
import re

import msgspec

from sandbox_worker.sdk import Context, DatasetSlicePayload, InvalidInput, method

MOST_FREQUENT = 10
SAMPLE_KEYS = 100
GAPS_MAX = 100

_SEPARATOR = re.compile(r"[/:._-]")
_NUMBERED = re.compile(r"(.*?)([0-9]{1,15})(\D*)", re.DOTALL)


class PrefixCount(msgspec.Struct, forbid_unknown_fields=True):
    """How many keys begin with one prefix: what stands before the first separator."""

    prefix: str
    keys: int


class Series(msgspec.Struct, forbid_unknown_fields=True):
    """Keys that differ in one number: `pattern` has # in its place."""

    pattern: str
    first: int
    last: int
    keys: int
    missing: list[int]


class SliceStatistics(msgspec.Struct, forbid_unknown_fields=True):
    """The answer. Lengths are in characters."""

    keys: int
    distinct: int
    repeated: list[str]
    shortest: int
    longest: int
    mean_length: float
    ascending: bool
    ascii_only: bool
    common_prefix: str
    prefixes: list[PrefixCount]
    series: list[Series]


@method(deterministic=True, idempotent=True)
def describe(context: Context, given: DatasetSlicePayload) -> SliceStatistics:
    """Say what the keys are like."""
    keys = _keys(given)
    counts: dict[str, int] = {}
    prefixes: dict[str, int] = {}
    numbered: dict[str, set[int]] = {}
    for key in keys:
        counts[key] = counts.get(key, 0) + 1
        prefix = _SEPARATOR.split(key, maxsplit=1)[0]
        prefixes[prefix] = prefixes.get(prefix, 0) + 1
        match = _NUMBERED.fullmatch(key)
        if match is not None:
            numbered.setdefault(f"{match[1]}#{match[3]}", set()).add(int(match[2]))
    context.progress(0.5, f"{len(counts)} different keys of {len(keys)}")
    lengths = [len(key) for key in keys]
    frequent = sorted(prefixes.items(), key=lambda entry: (-entry[1], entry[0]))
    return SliceStatistics(
        keys=len(keys),
        distinct=len(counts),
        repeated=sorted(key for key, count in counts.items() if count > 1)[:MOST_FREQUENT],
        shortest=min(lengths),
        longest=max(lengths),
        mean_length=round(sum(lengths) / len(lengths), 2),
        ascending=all(left <= right for left, right in itertools.pairwise(keys)),
        ascii_only=all(map(str.isascii, keys)),
        common_prefix=_common_prefix(min(keys), max(keys)),
        prefixes=[PrefixCount(prefix, count) for prefix, count in frequent[:MOST_FREQUENT]],
        series=_series(numbered),
    )


@method(deterministic=True, idempotent=True)
def sample(_context: Context, given: DatasetSlicePayload) -> DatasetSlicePayload:
    """Draw keys evenly and always the same ones: those whose digests are smallest.

    Which keys are drawn from a slice does not depend on their order, and a key that is drawn from a
    slice is drawn from every part of it too.
    """
    keys = dict.fromkeys(_keys(given))
    drawn = set(sorted(keys, key=lambda key: hashlib.sha256(key.encode()).digest())[:SAMPLE_KEYS])
    return DatasetSlicePayload(given.dataset_id, tuple(key for key in keys if key in drawn))


def _keys(given: DatasetSlicePayload) -> tuple[str, ...]:
    if not given.keys:
        raise InvalidInput("the slice holds no keys")
    return given.keys


def _common_prefix(smallest: str, largest: str) -> str:
    """All keys lie between these two, so they share what these two share."""
    count = 0
    for left, right in zip(smallest, largest, strict=False):
        if left != right:
            break
        count += 1
    return smallest[:count]


def _series(numbered: dict[str, set[int]]) -> list[Series]:
    """Keep what is a series: three numbers or more, and at least half of those between them."""
    found = []
    for pattern, numbers in sorted(numbered.items()):
        first, last = min(numbers), max(numbers)
        if len(numbers) >= 3 and len(numbers) * 2 >= last - first + 1:
            missing = [number for number in range(first, last) if number not in numbers]
            found.append(Series(pattern, first, last, len(numbers), missing[:GAPS_MAX]))
    return sorted(found, key=lambda one: (-one.keys, one.pattern))[:MOST_FREQUENT]
