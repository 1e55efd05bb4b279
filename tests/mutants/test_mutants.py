"""Applies each planted fault to a copy of the sources and sees the simulation fail because of it.

A patch begins with a sentence and a line `Caught by: …`, the words of the invariant that must fail.
A patch that no longer applies fails too: a fault that cannot be planted proves nothing. A line
`Seeds: …` says that fewer runs meet the fault already.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
SEEDS = "50"
SUITE = ("tests/broker/test_lifecycle.py",
         "tests/simulation/test_simulation.py::test_every_invariant_holds_in_every_run")

EXHAUSTIVE = {
    "answer_twice": "answered before its end",
    "forget_calls_of_a_dead_worker": "waits for a worker that is gone",
    "send_before_ledger": "before it was durable",
}
"""Faults that must also be found by searching all orders, with the words of the invariant."""


def plant(patch: Path, folder: Path) -> None:
    """Copy what the simulation needs and apply one patch to the copy."""
    ignore = shutil.ignore_patterns("__pycache__")
    for package in ("broker", "schemas", "sandbox_worker"):
        shutil.copytree(ROOT / package, folder / package, ignore=ignore)
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "__init__.py", folder / "tests")
    for part in ("simulation", "support"):
        shutil.copytree(ROOT / "tests" / part, folder / "tests" / part, ignore=ignore)
    # A seed that is kept for another fault may meet this one elsewhere than its patch says.
    (folder / "tests" / "simulation" / "seeds.txt").write_text("")
    (folder / "tests" / "broker").mkdir()
    for name in ("__init__.py", "test_lifecycle.py"):
        shutil.copy(ROOT / "tests" / "broker" / name, folder / "tests" / "broker")
    shutil.copy(ROOT / "pyproject.toml", folder)
    subprocess.run(
        ["git", "apply", "--whitespace=nowarn", str(patch)], cwd=folder, check=True,
        env={**os.environ, "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )


def suite(folder: Path, seeds: str = SEEDS) -> subprocess.CompletedProcess[str]:
    """Run the simulation and the table tests on a copy."""
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *SUITE],
        cwd=folder, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMEGA_SIMULATION_SEEDS": seeds, "PYTHONPATH": str(folder)},
    )


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.stem for patch in PATCHES])
def test_a_planted_fault_is_caught(patch: Path, tmp_path: Path) -> None:
    """The suite fails on the mutant, and with the words that the patch names."""
    head = dict(line.split(": ", 1) for line in patch.read_text().splitlines() if re.match(
        "(Caught by|Seeds): ", line))
    reason = head["Caught by"]
    plant(patch, tmp_path)

    outcome = suite(tmp_path, head.get("Seeds", SEEDS))

    assert outcome.returncode == 1, outcome.stdout[-2000:] + outcome.stderr[-2000:]
    assert reason in outcome.stdout, outcome.stdout[-4000:]


@pytest.mark.parametrize("name", EXHAUSTIVE)
def test_a_planted_fault_is_found_among_all_orders(name: str, tmp_path: Path) -> None:
    """Going in every order finds the mutant too, at most two things after the start."""
    plant(ROOT / "tests" / "mutants" / f"{name}.patch", tmp_path)

    outcome = subprocess.run(
        [sys.executable, "-m", "tests.simulation.exhaustive", "--depth", "2", "--start",
         "both run"],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )

    assert outcome.returncode == 1, outcome.stdout + outcome.stderr
    assert EXHAUSTIVE[name] in json.loads(outcome.stdout)["failure"]


def test_the_copy_without_a_fault_passes(tmp_path: Path) -> None:
    """The suite that catches the mutants passes on the sources as they are."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for package in ("broker", "schemas", "sandbox_worker", "tests"):
        shutil.copytree(ROOT / package, folder / package,
                        ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)

    outcome = suite(folder)

    assert outcome.returncode == 0, outcome.stdout[-4000:]
