"""The ledger fixture, and both verifiers run side by side."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from broker.evidence.verify import verify_directory
from tests.ledger.conftest import VERIFIER_KEY, Place, place

__all__ = ["place"]

SCRIPTS = Path(__file__).parents[2] / "scripts"
SCRIPT = SCRIPTS / "verify_ledger.py"


def load_script(name: str = "verify_ledger") -> ModuleType:
    """Load a stand-alone verifier without starting an interpreter for each question."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def script() -> ModuleType:
    """Give `scripts/verify_ledger.py` as a module."""
    return load_script()


def verdict(report: dict) -> dict:
    """Give what two verifiers must agree on: all but the wording."""
    problem = report["problem"]
    if problem is not None:
        problem = {key: problem[key] for key in ("kind", "file", "offset", "number")}
    return {**report, "problem": problem}


def both(script: ModuleType, place: Place, *, key: str | None = VERIFIER_KEY,
         anchor: bool = True) -> dict:
    """Verify with both, assert that they say the same, and give what they say."""
    anchor_directory = str(place.anchor) if anchor else None
    first = msgspec.to_builtins(
        verify_directory(str(place.ledger), verifier_key=key, anchor_directory=anchor_directory)
    )
    assert (first.pop("known"), first.pop("remembered")) == (0, True)
    second = script.verify(str(place.ledger), key, anchor_directory)
    assert verdict(first) == verdict(second)
    return first
