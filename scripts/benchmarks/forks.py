"""The floors of isolation: how often this machine can fork, let exit and reap.

`fork_zygote` are as many processes as there are cores, each with what a worker's zygote has loaded
for the bench's plugin and the zygote's environment and scheduling; `fork_bare` the same with an
interpreter that has loaded nothing. No jail: a call process must do this and more.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import subprocess
import sys
from collections.abc import Iterator

import msgspec

import sandbox_worker
from benchmarks.measure import BenchFailed, Sample
from benchmarks.processes import cpu_us, environment
from sandbox_worker.jail import policy


class Forks:
    """Running forking processes, idle until they are asked."""

    def __init__(self, processes: list[subprocess.Popen[bytes]]) -> None:
        """Take them over."""
        self._processes = processes

    def measure(self, in_flight: int, seconds: float) -> Sample:
        """Fork for a while.

        Args:
            in_flight: 1 is one process; more is all of them. Each forks, lets its child exit and
                waits for it before the next.
            seconds: how long.
        """
        busy = self._processes if in_flight > 1 else self._processes[:1]
        for process in busy:
            _tell(process, str(seconds))
        answers = [[float(word) for word in _line(process).split()] for process in busy]
        per_s, p50, p99, cpu_us = (list(column) for column in zip(*answers, strict=True))
        count = len(busy)
        return Sample(sum(p50) / count, max(p99), sum(per_s), sum(cpu_us) / count)


class Jails:
    """One forking process whose children close a call process's jail, or a part of it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        """Take it over."""
        self._process = process

    def measure(self, variant: str, seconds: float) -> Sample:
        """Fork for a while.

        Args:
            variant: one of `jail_loop.VARIANTS`.
            seconds: how long.
        """
        before = cpu_us([self._process.pid])
        _tell(self._process, f"{variant} {seconds}")
        calls, per_s, p50, p99 = (float(word) for word in _line(self._process).split())
        used = cpu_us([self._process.pid]) - before
        return Sample(p50, p99, per_s, used / calls)


@contextlib.contextmanager
def jails(root: str) -> Iterator[Jails]:
    """Start the process that measures layers.

    Args:
        root: the project's folder.
    """
    filters = marshal.dumps(
        (policy.base_filter(), policy.call_filter(clock=False, random=False))
    )
    with _started(root, "from benchmarks.jail_loop import main; main()", 1) as (process,):
        _tell(process, filters.hex())
        _line(process)
        yield Jails(process)


@contextlib.contextmanager
def forks(root: str, preload: str) -> Iterator[Forks]:
    """Start as many forking processes as there are cores.

    Args:
        root: the project's folder.
        preload: `bare`, or `zygote` and module names after commas.
    """
    command = f"from benchmarks.fork_loop import main; main({preload!r})"
    with _started(root, command, os.cpu_count() or 1) as processes:
        for process in processes:
            _line(process)
        yield Forks(processes)


@contextlib.contextmanager
def _started(
    root: str, command: str, count: int
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Interpreters like the one that the worker starts for its zygote, ended with the block."""
    homes = [os.path.dirname(os.path.dirname(os.path.abspath(found)))
             for found in (sandbox_worker.__file__, msgspec.__file__)]  # fmt: skip
    # Like the environment that the worker writes for its zygote.
    variables = {
        "LC_ALL": "C.UTF-8", "LD_BIND_NOW": "1", "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0", "TZ": "UTC",
        "PYTHONPATH": os.pathsep.join([environment(root)["PYTHONPATH"], *homes]),
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-c", command],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=variables, cwd="/",
        )
        for _ in range(count)
    ]  # fmt: skip
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def _tell(process: subprocess.Popen[bytes], line: str) -> None:
    assert process.stdin is not None
    process.stdin.write(line.encode() + b"\n")
    process.stdin.flush()


def _line(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise BenchFailed("a forking process ended before its time")
    return line.decode()
