"""The principal components of a table: along which mixtures of its columns the rows differ most.

Columns are centred and divided by their standard deviation, so that units do not decide; the
components are the right singular vectors of what remains (Jolliffe, Principal Component Analysis,
second edition, section 3.5). A vector and its opposite mean the same, so each is turned until its
largest entry is positive. Numbers are rounded to nine digits, which hides the order in which a
processor adds.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from msgspec import Meta

from sandbox_worker.sdk import CannotAnswer, Context, InvalidInput, method

DIGITS = 9

Column = Annotated[str, Meta(min_length=1, max_length=64)]


class Table(msgspec.Struct, forbid_unknown_fields=True):
    """A name for each column, and rows with a number for each."""

    columns: Annotated[list[Column], Meta(min_length=2, max_length=64)]
    rows: Annotated[list[list[float]], Meta(min_length=3, max_length=2000)]


class Component(msgspec.Struct, forbid_unknown_fields=True):
    """One component: its share of all variance, and how much of each column is in it."""

    share: float
    loadings: dict[str, float]


class Components(msgspec.Struct, forbid_unknown_fields=True):
    """The answer, largest share first. `constant` are columns that never change and were left
    out."""

    rows: int
    constant: list[str]
    means: dict[str, float]
    components: list[Component]


@method(deterministic=True, idempotent=True)
def analyse(context: Context, table: Table) -> Components:
    """Find the components."""
    names, width = table.columns, len(table.columns)
    if len(set(names)) != width:
        raise InvalidInput("two columns have the same name")
    for number, row in enumerate(table.rows):
        if len(row) != width:
            raise InvalidInput(f"row {number} has {len(row)} numbers for {width} columns")
    matrix = np.array(table.rows, dtype=np.float64)
    means, deviations = matrix.mean(axis=0), matrix.std(axis=0)
    varies = deviations > 1e-12 * np.maximum(1.0, np.abs(means))
    if not varies.any():
        raise CannotAnswer("every row is the same")
    kept = [name for name, one in zip(names, varies, strict=True) if one]
    centred = (matrix[:, varies] - means[varies]) / deviations[varies]
    _, sizes, vectors = np.linalg.svd(centred, full_matrices=False)
    context.progress(0.9, f"{len(kept)} columns that change")
    shares = sizes**2 / (sizes**2).sum()
    signs = np.sign(vectors[np.arange(len(vectors)), np.abs(vectors).argmax(axis=1)])
    return Components(
        rows=len(table.rows),
        constant=[name for name, one in zip(names, varies, strict=True) if not one],
        means={name: _plain(value) for name, value in zip(names, means, strict=True)},
        components=[
            Component(_plain(share), dict(zip(kept, map(_plain, sign * vector), strict=True)))
            for share, sign, vector in zip(shares, signs, vectors, strict=True)
            if share > 1e-12
        ],
    )


def _plain(value: object) -> float:
    """Give a number of numpy's as one of Python's, with nine digits; never a negative zero."""
    return float(f"{value:.{DIGITS}g}") + 0.0
