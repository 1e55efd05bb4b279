"""The tutorial, played as it stands: its commands run, and they print what it says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from broker.authoring.hazards import hazards
from tests.authoring.folders import ENVIRONMENT, ROOT

PAGE = ROOT / "docs" / "tutorial" / "first-plugin.md"
BLOCK = re.compile(r"^```(\w+) ?([\w.]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def commands(folder: Path) -> dict[str, str]:
    """An environment in which both commands are those of this source tree."""
    folder.mkdir()
    for name, module in (
        ("omega-plugin", "broker.authoring.main"), ("omega-gateway", "broker.cli.main"),
    ):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m {module} "$@"\n')
        path.chmod(0o755)
    return {
        **ENVIRONMENT, "PATH": f"{folder}{os.pathsep}{ENVIRONMENT['PATH']}",
        "XDG_RUNTIME_DIR": str(folder), "PYTEST_ADDOPTS": "-p no:cacheprovider",
    }


def test_the_tutorial_works_as_it_stands(tmp_path: Path):
    """Every shell block ends as its page says, in order, and prints what stands below it."""
    environment = commands(tmp_path / "bin")
    folder, said, played = tmp_path, "", 0
    for kind, word, text in BLOCK.findall(PAGE.read_text("utf-8")):
        if kind == "sh":
            done = subprocess.run(
                ["bash", "-ec", f"{text}\npwd > {tmp_path}/where"], cwd=folder, env=environment,
                capture_output=True, text=True, check=False, timeout=60,
            )
            said = done.stdout + done.stderr
            assert (done.returncode != 0) == (word == "fails"), said
            if done.returncode == 0:
                folder = Path((tmp_path / "where").read_text().strip())
            played += 1
        elif kind == "python":
            (folder / word).write_text(text)
        else:
            assert kind == "prints"
            missing = [line for line in text.splitlines() if line not in said]
            assert missing == [], said
    assert played == PAGE.read_text().count("```sh") == 7


@pytest.mark.parametrize(("row", "source", "kind"), [
    ("`datetime.now()`", "from datetime import datetime\ndatetime.now()", "clock"),
    ('`open("words.txt")`', 'open("words.txt")', "file"),
    ('`print("here")`', 'print("here")', "print"),
    ("`threading.Thread(...)`", "import threading", "thread"),
    ("`requests.get(...)`", "import requests", "socket"),
])
def test_what_the_tutorials_table_says_fails_is_found_by_check(row: str, source: str, kind: str):
    """Each line of the table that names a denial is one that `check` notes."""
    assert row in PAGE.read_text("utf-8")
    assert [one.kind for one in hazards(source, ())] == [kind]
