"""The bounded form of `scripts/soak`: mixed load and faults lose nothing and leave nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

ROOT = Path(__file__).resolve().parents[2]


def test_a_short_soak_has_nothing_to_complain_about(tmp_path: Path) -> None:
    """Killed processes, upgrades, revocations, clients that leave or read late: every call ends
    once, the ledger holds, and nothing but remembered requests is kept."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.soak", "--minutes", "0.1", "--output", "json",
         "--folder", str(tmp_path)],
        cwd="/", capture_output=True, text=True, timeout=240, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])},
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["wrong"] == []
    assert told["ledger"]["open"] == 0
    assert told["ledger"]["events"] > 1000
    assert any(name.startswith("fault: ") for name in told["outcomes"])
