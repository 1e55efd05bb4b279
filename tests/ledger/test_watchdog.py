"""The watchdog ends a process whose flush hangs, and no other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys, threading, time
from broker.ledger.watchdog import FlushWatchdog
started = {started}
looks = 0
enough = threading.Event()
def flush_started():
    global looks
    looks += 1
    if looks == 20:
        enough.set()
    return started
watchdog = FlushWatchdog(flush_started, flush_ms_max=80)
watchdog.start()
assert {wait}
watchdog.stop()
os.write(1, b"alive")
"""


def run(started: str, wait: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(started=started, wait=wait)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=30,
    )


@pytest.mark.system
def test_a_hanging_flush_ends_the_process_with_74():
    """A flush older than allowed ends the process at once, with one line on stderr."""
    done = run("time.monotonic_ns() // 1000", "threading.Event().wait(25)")
    assert (done.returncode, done.stdout) == (74, "")
    assert done.stderr.count("\n") == 1
    assert "74" in done.stderr


@pytest.mark.system
@pytest.mark.parametrize("started", ["None", "time.monotonic_ns() // 1000 + 10**9"])
def test_no_flush_and_a_young_flush_are_left_alone(started):
    """Without a flush, or with one that just began, the process lives and can stop watching."""
    done = run(started, "enough.wait(25)")
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive", "")
