"""Calls leave nothing behind: the bounded form of `scripts/endurance`, which sends ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.jail]

ROOT = Path(__file__).resolve().parents[2]


def test_nothing_is_left_of_many_calls(tmp_path: Path) -> None:
    """After 300 calls no zombie and no process too many is there, and neither descriptors nor
    memory of any process of the gateway grew."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.endurance", "--calls", "300", "--output", "json",
         "--folder", str(tmp_path)],
        cwd="/", capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])},
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["grew"] == []
    assert told["after"]["all"]["zombies"] == 0
    assert set(told["after"]) == {"all", "broker", "launcher", "supervisor", "stub", "zygote"}
