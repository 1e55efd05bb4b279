"""Multiplies a matrix with itself by numpy."""

from __future__ import annotations

import numpy as np

from sandbox_worker.sdk import Context, method


@method()
def square(_context: Context, matrix: list[list[int]]) -> list[list[int]]:
    """Answer with the product."""
    found = np.array(matrix)
    return (found @ found).tolist()  # type: ignore[no-any-return]  # numpy is not typed here.
