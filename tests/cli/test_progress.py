"""The progress bar is for somebody who watches, and only when there is something to wait for."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tests.cli.command import PATIENCE_S, environment

WORK = """
import select, sys, time
from broker.cli.progress import bar
seconds, began = float(sys.argv[1]), time.monotonic()
with bar("verifying") as tell:
    while (passed := time.monotonic() - began) < seconds:
        tell(int(1000 * passed), int(1000 * seconds))
        select.select([], [], [], 0.05)
"""


def drawn(seconds: str) -> bytes:
    """Run some work whose stderr is a terminal; gives what the terminal got."""
    terminal, side = pty.openpty()
    try:
        with subprocess.Popen(
            [sys.executable, "-c", WORK, seconds], stderr=side, env=environment(TERM="xterm")
        ) as process:
            os.close(side)
            told = b""
            try:
                while data := os.read(terminal, 65536):
                    told += data
            except OSError:
                # EIO: the last writer closed its side, see pty(7).
                pass
            assert process.wait(PATIENCE_S) == 0
        return told
    finally:
        os.close(terminal)


def test_a_bar_is_drawn_after_a_second_and_taken_away() -> None:
    """What takes longer shows a bar with its word; short work shows nothing."""
    assert b"verifying" in drawn("1.4")
    assert drawn("0.2") == b""


def test_nothing_is_drawn_where_nobody_watches() -> None:
    """A pipe or file as stderr stays empty however long it takes."""
    done = subprocess.run(
        [sys.executable, "-c", WORK, "1.2"], stderr=subprocess.PIPE, env=environment(),
        timeout=PATIENCE_S, check=True,
    )
    assert done.stderr == b""
