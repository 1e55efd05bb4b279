"""Vectors that others published; they lie beside a checkout, and a test without them skips."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

DIRECTORY = Path(
    os.environ.get("OMEGA_VECTORS", Path(__file__).parents[3] / "shared" / "vectors")
)


def vectors(folder: str) -> Path:
    """Give the folder of one published suite, or skip the test that wants it."""
    path = DIRECTORY / folder
    if not path.is_dir():
        pytest.skip(f"published vectors are not at {path}; set OMEGA_VECTORS to their folder")
    return path
