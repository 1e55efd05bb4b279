"""`scripts/test` fails when a jail test was skipped: a sandbox that was not tried is not held."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import ROOT

HEAD = "import pytest\n\n\n"
JAIL = "@pytest.mark.jail\ndef test_held() -> None:\n    pass\n\n\n"
SKIPPED = (
    "@pytest.mark.jail\n@pytest.mark.skipif(True, reason='no kernel')\n"
    "def test_not_tried() -> None:\n    pass\n"
)
INSIDE = "@pytest.mark.jail\ndef test_gives_up() -> None:\n    pytest.skip('no kernel')\n"
WHOLE = "pytest.skip('no kernel', allow_module_level=True)\n\n\n"
OTHER = "@pytest.mark.skip(reason='no vectors')\ndef test_other() -> None:\n    pass\n"

SUITES: dict[str, tuple[str, int, str]] = {
    # What the suite holds: its text, the exit code, the number of jail tests that ran.
    "a jail test that runs": (HEAD + JAIL, 0, "1"),
    "another test skipped": (HEAD + JAIL + OTHER, 0, "1"),
    "a jail test skipped by mark": (HEAD + JAIL + SKIPPED, 1, "1"),
    "a jail test that skips itself": (HEAD + JAIL + INSIDE, 1, "1"),
    "a module skipped as a whole": (HEAD + WHOLE + JAIL, 1, "0"),
    "another module skipped as a whole": (HEAD + WHOLE + OTHER, 5, "0"),
    "a fixture that skips": (
        HEAD + "@pytest.fixture\ndef kernel() -> None:\n    pytest.skip('no kernel')\n\n\n"
        "@pytest.mark.jail\ndef test_with(kernel: None) -> None:\n    pass\n", 1, "0",
    ),
}


@pytest.mark.parametrize("name", SUITES)
def test_a_skipped_jail_test_fails_the_run(name: str, tmp_path: Path) -> None:
    """Only the skipping of a jail test fails a run, and it is named; the count is written down."""
    text, code, ran = SUITES[name]
    path = tmp_path / "test_suite.py"
    path.write_text(text)
    count = tmp_path / "count"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "scripts.jail_must_run", "-p", "no:cacheprovider",
         "-q", str(path)], cwd=ROOT, env={**os.environ, "OMEGA_JAIL_COUNT": str(count)},
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert ("JAIL TEST SKIPPED" in done.stdout) is (code == 1)
    assert count.read_text().strip() == ran
