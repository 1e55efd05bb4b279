"""`scripts/test` runs every part once and passes only when all did; and it fails when a jail test
was skipped: a sandbox that was not tried is not held."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.support.gateway import ROOT, wait_for

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


PYTHON = """#!/bin/bash
# A Python whose pytest only writes down what it was asked for, and ends as it is told.
case "$1 $2" in
"-m pytest")
    echo "$PWD $*" >>FOLDER/asked
    [ "$WAITS" = no ] || exec tail -f FOLDER/asked
    echo "$JAIL_TESTS" >"$OMEGA_JAIL_COUNT"
    eval "$FAULT" ;;
"-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
"-m pip" | */machine.py*) ;;
*) exec REAL "$@" ;;
esac
"""
COMMANDS = {
    "id": '[ "$1" = -u ] && echo "$USER_ID" || echo somebody', "chown": "", "ruff": "",
    "mypy": 'eval "$STYLE"', "setpriv": 'while [ "$1" != -- ]; do shift; done; shift; "$@"',
}
PARTS = {"0": 8, "1000": 6}
"""How many parts root has, and how many anybody else; all but style are pytest's."""


def suite(folder: Path, user: str = "0", **told: str) -> subprocess.Popen[str]:
    """Start `scripts/test` of a project that has only folders, with the commands above."""
    project, programs = folder / "project", folder / "project" / ".venv" / "bin"
    programs.mkdir(parents=True)
    (folder / "t").mkdir()
    (project / "scripts").mkdir()
    for name in ("test", "environment.bash"):
        shutil.copy(ROOT / "scripts" / name, project / "scripts")
    (project / "pyproject.toml").touch()
    text = PYTHON.replace("FOLDER", str(folder)).replace("REAL", sys.executable)
    for name, lines in {**COMMANDS, "python": text}.items():
        (programs / name).write_text(lines if name == "python" else f"#!/bin/bash\n{lines}\n")
        (programs / name).chmod(0o755)
    stamp = subprocess.run(
        ["bash", "-c", "source scripts/environment.bash; environment_stamp .venv/bin/python test"],
        cwd=project, capture_output=True, check=True, timeout=30,
    )
    (programs.parent / ".prepared-test").write_bytes(stamp.stdout)
    return subprocess.Popen(
        [project / "scripts" / "test"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={"PATH": os.environ["PATH"], "TMPDIR": str(folder / "t"), "WAITS": "no",
             "JAIL_TESTS": "3", "USER_ID": user, **told},
    )


def asked(folder: Path) -> list[str]:
    """What pytest was called with, one line a part."""
    path = folder / "asked"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("user", PARTS)
def test_every_folder_is_tested_once_by_each_user(tmp_path: Path, user: str) -> None:
    """Each folder belongs to one part, and what is in none to the rest; all passed is said."""
    output, errors = (run := suite(tmp_path, user)).communicate(timeout=60)

    assert (run.returncode, errors) == (0, "")
    assert output.endswith("== all tests passed\n")
    calls = asked(tmp_path)
    assert len(calls) == PARTS[user] - 1
    jails = 3 * len([call for call in calls if "(jail or system) and not once" not in call])
    assert f"jail tests that ran: {jails} as somebody" in output
    for again in (False, True)[: 1 + (user == "0")]:
        words = [word for call in calls if ("(jail or system) and not once" in call) is again
                 for word in call.split()]
        named = Counter(word for word in words if word.startswith("tests/"))
        left_out = [word.removeprefix("--ignore=") for word in words if "--ignore=" in word]
        assert named == Counter(left_out) == Counter(set(left_out))
        assert all((ROOT / folder).is_dir() for folder in left_out)
    assert list((tmp_path / "t").iterdir()) == []


FAULTS = """
case "$*" in
*not\\ once\\ --ignore*) exit 5 ;;
*not\\ once\\ tests*) kill -9 $$ ;;
*=5\\ tests/broker*) exit 1 ;;
*worker\\ tests/escape) kill -9 $PPID ;;
esac
"""


def test_whatever_did_not_pass_fails_the_run(tmp_path: Path) -> None:
    """A part that fails, is killed or loses its shell, and a run without a jail test, are all named
    at the end; every other part has run."""
    output, errors = (run := suite(
        tmp_path, FAULT=FAULTS, STYLE="exit 2", JAIL_TESTS="0")).communicate(timeout=60)

    assert run.returncode == 1
    assert [line for line in errors.splitlines() if line.startswith("== FAILED: ")] == [
        f"== FAILED: {what}" for what in (
            "test as nobody system (137)", "test as ourselves gateway (1)",
            "test as nobody all but system (5)", "test as ourselves sandbox (137)",
            "check style (1)", "no jail test ran", "no jail test ran as user 65534",
        )
    ]
    assert "all tests passed" not in output
    assert len(asked(tmp_path)) == PARTS["0"] - 1


def test_a_run_that_is_ended_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM ends the parts that run, and neither a process nor a folder is left."""
    run = suite(tmp_path, WAITS="yes")
    wait_for("two parts", lambda: len(asked(tmp_path)) == 2)
    run.send_signal(signal.SIGTERM)
    # The parts hold the pipes open: these end only once all of them have.
    run.communicate(timeout=20)

    assert run.returncode == 143
    assert list((tmp_path / "t").iterdir()) == []
