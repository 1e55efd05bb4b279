"""The control: in an ordinary process the attempts succeed, so the sandbox is what stops them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from plugin import attempts, open_file, try_everything

from sandbox_worker.sdk import Context, TextPayload

FOLDER = Path(__file__).parents[1]
ONE = "import sys; from plugin import attempts; attempts(sys.argv[2])[sys.argv[1]]()"


@pytest.mark.parametrize("name", attempts(""))
def test_outside_the_sandbox_an_attempt_succeeds(name: str, tmp_path: Path):
    """Each attempt, in a process of its own without a sandbox, does what it set out to do."""
    path = tmp_path / "file"
    path.write_text("content")
    done = subprocess.run(
        [sys.executable, "-c", ONE, name, str(path)], cwd=FOLDER, capture_output=True, text=True,
        timeout=30, check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_file_can_be_read_outside_the_sandbox(tmp_path: Path):
    """`open_file` gives a file's text where nothing stops it."""
    path = tmp_path / "file"
    path.write_text("content")
    assert open_file(Context(), TextPayload(str(path))).text == "content"


def test_what_stopped_an_attempt_is_named(monkeypatch: pytest.MonkeyPatch):
    """The answer holds the exception's name and words, and does not claim what is not so."""
    read = attempts("/does/not/exist")["read a file"]
    monkeypatch.setattr("plugin.attempts", lambda path: {"read": read, path: lambda: None})
    report = try_everything(Context(), TextPayload("nothing"))
    assert not report.all_stopped
    assert [one.stopped for one in report.attempts] == [True, False]
    assert report.attempts[0].outcome.startswith("FileNotFoundError: ")
