"""The gateway's log: one line an event, in the form that its reader can use."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
from broker.config import LogConfig
from broker.log import open_log
log = open_log(LogConfig(level=sys.argv[1], format=sys.argv[2]))
log.debug("fine detail")
log.info("serving", endpoint="ipc:///run/x", workers=3)
log.error("broken", reason="two\\nlines")
"""


def lines(level: str, form: str) -> list[str]:
    """What a process with its stderr in a pipe logs."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, level, form],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_pipe_gets_one_json_line_an_event() -> None:
    """Into a pipe each event is one JSON object with level, time and its facts."""
    first, second = map(json.loads, lines("info", "auto"))
    assert first["event"] == "serving"
    assert (first["workers"], first["level"]) == (3, "info")
    assert first["timestamp"].endswith("Z")
    assert second["reason"] == "two\nlines"


def test_level_filters() -> None:
    """What is below the configured level is not written."""
    assert len(lines("debug", "json")) == 3
    assert len(lines("error", "json")) == 1


def test_text_in_a_pipe_has_no_colour() -> None:
    """Text can be asked for; without a terminal it carries no escape sequence."""
    written = lines("info", "text")
    assert "endpoint=ipc:///run/x" in written[0]
    assert not any("\x1b" in line for line in written)


def test_terminal_gets_text() -> None:
    """On a terminal the same events are text for people."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", PROGRAM, "info", "auto"],
        cwd=ROOT, stderr=theirs, timeout=30, check=True,
    )  # fmt: skip
    os.close(theirs)
    written = os.read(ours, 65536).decode()
    os.close(ours)
    assert "serving" in written
    assert "{" not in written


def test_log_is_not_imported_by_what_must_start_quickly() -> None:
    """Neither the launcher nor a worker pays for the logging library."""
    program = """
import sys
import broker.launchers.process, broker.launchers.local, sandbox_worker.__main__
print("structlog" in sys.modules, "logging" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[0] == "False"
