"""The difference of two JSON documents as an RFC 6902 patch.

Applied to `before`, the patch gives `after`. Objects are compared member by member; of arrays the
equal beginning and end are left alone and the rest is replaced, removed or added place by place.
Numbers are equal when their values are; true is not 1. The patch is always the same for the same
documents, not always the shortest.
"""

from __future__ import annotations

import msgspec

from sandbox_worker.sdk import CannotAnswer, Context, method

OPERATIONS_MAX = 10_000
DEPTH_MAX = 29
"""Of a value in the patch: it lies three levels deep in an answer, which may have 32."""


class Documents(msgspec.Struct, forbid_unknown_fields=True):
    """The two documents to compare."""

    before: object
    after: object


class Remove(msgspec.Struct, tag_field="op", tag="remove", forbid_unknown_fields=True):
    """Take the value at a path away."""

    path: str


class Add(msgspec.Struct, tag_field="op", tag="add", forbid_unknown_fields=True):
    """Put a value at a path; in an array, before the one that is there."""

    path: str
    value: object


class Replace(msgspec.Struct, tag_field="op", tag="replace", forbid_unknown_fields=True):
    """Put a value in the place of another."""

    path: str
    value: object


Operation = Add | Remove | Replace


class Difference(msgspec.Struct, forbid_unknown_fields=True):
    """The answer: `patch` is empty when the documents are equal."""

    equal: bool
    patch: list[Operation]


@method(deterministic=True, idempotent=True)
def difference(context: Context, documents: Documents) -> Difference:
    """Compare two documents."""
    patch: list[Operation] = []
    _compare(documents.before, documents.after, "", patch)
    context.progress(1.0, f"{len(patch)} operations")
    return Difference(not patch, patch)


def _compare(before: object, after: object, path: str, patch: list[Operation]) -> None:
    """Append what turns `before` into `after`, which both lie at `path`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in sorted(before.keys() | after.keys()):
            place = path + "/" + name.replace("~", "~0").replace("/", "~1")
            if name not in after:
                _append(patch, Remove(place))
            elif name not in before:
                _append(patch, Add(place, after[name]))
            else:
                _compare(before[name], after[name], place, patch)
    elif isinstance(before, list) and isinstance(after, list):
        _compare_arrays(before, after, path, patch)
    elif not _equal(before, after):
        _append(patch, Replace(path, after))


def _compare_arrays(
    before: list[object], after: list[object], path: str, patch: list[Operation]
) -> None:
    shorter = min(len(before), len(after))
    start = 0
    while start < shorter and _equal(before[start], after[start]):
        start += 1
    end = 0
    while end < shorter - start and _equal(before[-1 - end], after[-1 - end]):
        end += 1
    common = shorter - start - end
    for index in range(start, start + common):
        _compare(before[index], after[index], f"{path}/{index}", patch)
    # From the last place down, so that no removal moves a place that is still to be removed.
    for index in range(len(before) - end - 1, start + common - 1, -1):
        _append(patch, Remove(f"{path}/{index}"))
    for index in range(start + common, len(after) - end):
        _append(patch, Add(f"{path}/{index}", after[index]))


def _equal(left: object, right: object) -> bool:
    """Compare two JSON values; in Python True == 1, in JSON it is not."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_equal(left[k], right[k]) for k in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right


def _append(patch: list[Operation], operation: Operation) -> None:
    if len(patch) == OPERATIONS_MAX:
        raise CannotAnswer(f"the documents differ in more than {OPERATIONS_MAX} places")
    if not isinstance(operation, Remove) and _depth(operation.value) > DEPTH_MAX:
        raise CannotAnswer(f"what is new at {operation.path!r} nests deeper than {DEPTH_MAX}")
    patch.append(operation)


def _depth(value: object) -> int:
    """How many arrays and objects lie in each other."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0
