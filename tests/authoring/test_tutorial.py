"""The tutorial, played as it stands: its commands run, and they print what it says."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.authoring.hazards import hazards
from tests.support.pages import ROOT, commands, play

PAGE = ROOT / "docs" / "tutorial" / "first-plugin.md"


def test_the_tutorial_works_as_it_stands(tmp_path: Path):
    """Every shell block ends as its page says, in order, and prints what stands below it."""
    assert play(PAGE, tmp_path, commands(tmp_path / "bin")) == 7


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
