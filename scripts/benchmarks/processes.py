"""Child processes of a bench: started with one settings line, ended without exception.

Rules this file keeps: every child runs `benchmarks.child`, which asks the kernel to end it with
this process, so that a killed bench leaves nothing behind; folders are removed by whoever made
them.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from typing import Self

from benchmarks.measure import BenchFailed

START_S = 20.0
_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")


class Child:
    """One running child; use it in a `with` block."""

    def __init__(
        self, root: str, role: str, settings: Mapping[str, object], *, wait: bool = True
    ) -> None:
        """Start a role of `benchmarks.child` and, if asked, wait until it says it is ready.

        Raises:
            BenchFailed: it ended or said nothing within the time.
        """
        self.role = role
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.child", role],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment(root), cwd="/",
        )
        self.pid = self._process.pid
        self.tell(json.dumps({**settings, "parent": os.getpid()}))
        if wait:
            try:
                self.hear(START_S)
            except BenchFailed:
                self.end()
                raise

    def __enter__(self) -> Self:
        """Give the child."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the child and wait for it."""
        self.end()

    def tell(self, line: str) -> None:
        """Write one line to it."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()

    def hear(self, seconds: float) -> str:
        """Read one line from it.

        Raises:
            BenchFailed: it ended, or said nothing for this long.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            state = self._process.poll()
            how = "said nothing" if state is None else f"ended with status {state}"
            raise BenchFailed(f"the process {self.role!r} {how}")
        return line.decode().strip()

    def wait(self, seconds: float) -> int | None:
        """Wait until it ends by itself; gives its status, None when it goes on."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def end(self) -> None:
        """Ask it to end, insist after a while, and reap it."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(START_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()


def environment(root: str) -> dict[str, str]:
    """This process's environment, with the benches and the project importable."""
    paths = [os.path.join(root, "scripts"), root, os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@contextlib.contextmanager
def temporary_folder(parent: str | None) -> Iterator[str]:
    """Make a private folder and remove it with everything in it.

    `/var/tmp` is preferred to `/tmp`, which is memory on many systems, where a flush costs nothing
    and a figure of the ledger would mean nothing.
    """
    if parent is None and os.access("/var/tmp", os.W_OK):
        parent = "/var/tmp"
    path = tempfile.mkdtemp(prefix="omega-bench-", dir=parent)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def cpu_us(pids: list[int]) -> float:
    """Processor time, user and system, of live processes and their reaped children, in us."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        ticks += sum(map(int, fields[11:15])) if fields else 0
    return ticks * _TICK_US


def tree_of(pid: int) -> list[int]:
    """Give a process and everything below it."""
    parents = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        fields = _stat(int(name))
        if fields:
            parents[int(name)] = int(fields[1])
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def _stat(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on, see proc_pid_stat(5); empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rpartition(")")[2].split()
    except OSError:
        return []
