"""What can be wrong with a ledger's bytes, by name, and how the place of it is told.

It leaves finding it to `broker.evidence.walk` and `broker.evidence.verify`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

ProblemKind = Literal[
    "flipped", "not_canonical", "deleted", "swapped", "inserted", "rewritten", "other_log",
    "truncated", "missing_segment", "foreign_file", "checkpoint_invalid", "missing_checkpoint",
    "anchor_invalid", "missing_anchor",
]


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The first damaged place: a file, the byte in it, the event or checkpoint expected there."""

    kind: ProblemKind
    file: str
    offset: int | None
    number: int | None
    sentence: str


class DamageError(Exception):
    """Carries the problem out of whatever depth found it."""

    def __init__(
        self, kind: ProblemKind, file: str, sentence: str, *,
        offset: int | None = None, number: int | None = None,
    ) -> None:
        """Make the problem from its parts."""
        super().__init__(sentence)
        self.problem = Problem(
            kind=kind, file=file, offset=offset, number=number, sentence=sentence
        )

    @classmethod
    def of(cls, problem: Problem) -> DamageError:
        """Raise a problem that was found elsewhere."""
        one = problem
        return cls(one.kind, one.file, one.sentence, offset=one.offset, number=one.number)
