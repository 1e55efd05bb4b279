"""Limits as the kernel holds them: set in every call process, and exact where they end a call."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_worker.jail import linux, rlimits
from schemas.manifest import Limits
from schemas.messages import CallFailure, CallResult
from tests.sandbox_worker.harness import Worker, worker
from tests.support.gateway import wait_for

pytestmark = [pytest.mark.jail, pytest.mark.system]

SOURCE = '''
from sandbox_worker.sdk import method

EVERYTHING = []

def small():
    kept = []
    while True:
        kept.append(bytearray(100))

def nested():
    value = None
    while True:
        value = (value,)

def kept():
    while True:
        EVERYTHING.append(bytearray(64))

def large():
    return bytearray(1 << 40)

def spin():
    while True:
        pass

@method()
def main(ctx, text):
    return globals()[text.text]() if text.text else None
'''
LIMITS = Limits(cpu_ms=1500, wall_ms=9000, memory_mb=64, output_bytes=1024, concurrency=2)
TICK_MS = 1000 // os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin takes more than it may, in several ways."""
    with worker(tmp_path_factory.mktemp("worker"), SOURCE, limits=LIMITS) as running:
        yield running


def test_every_waiting_call_process_has_its_limits(one: Worker) -> None:
    """Seen from outside: no process, one descriptor beside the closed three, bounded memory and
    time."""
    children = Path(f"/proc/{one.zygote}/task/{one.zygote}/children")
    wait_for("a call process to wait", children.read_text)
    pid = children.read_text().split()[0]

    def limits() -> dict[str, tuple[str, ...]]:
        lines = Path(f"/proc/{pid}/limits").read_text().splitlines()[1:]
        return {line[:26].strip(): tuple(line[26:].split()[:2]) for line in lines}

    wait_for("its jail to be closed", lambda: limits()["Max processes"] == ("0", "0"))
    found = limits()
    assert found["Max open files"] == ("4", "4")
    assert found["Max address space"] == (str(64 << 20), str(64 << 20))
    assert found["Max cpu time"] == ("2", "3")
    for name in ("Max core file size", "Max file size", "Max locked memory", "Max msgqueue size"):
        assert found[name] == ("0", "0"), name


@pytest.mark.parametrize("what", ["small", "nested", "kept", "large"])
def test_memory_that_runs_out_has_its_code_however_it_ran_out(one: Worker, what: str) -> None:
    """In pieces too small to answer with, in one piece, and kept beyond the call: the code is the
    same, the figure is the kernel's, and the next call is served."""
    end = one.call(what, timeout_ms=9000)

    assert isinstance(end, CallFailure)
    assert (end.code, end.allowed) == ("memory_limit_exceeded", 64)
    assert end.used is not None
    assert end.used <= 64
    assert (end.used >= 50) == (what != "large")
    assert isinstance(one.call(""), CallResult)


@pytest.mark.parametrize("cpu_ms", [20, 120])
def test_processor_time_ends_within_ten_milliseconds_and_a_tick(
    tmp_path: Path, cpu_ms: int
) -> None:
    """The timer is exact where RLIMIT_CPU knows only seconds."""
    limits = Limits(cpu_ms=cpu_ms, wall_ms=9000, memory_mb=64, output_bytes=1024, concurrency=2)
    with worker(tmp_path, SOURCE, limits=limits) as spinning:
        ends = [spinning.call("spin", timeout_ms=9000) for _ in range(3)]

    for end in ends:
        assert isinstance(end, CallFailure)
        assert (end.code, end.allowed) == ("cpu_limit_exceeded", cpu_ms)
        assert end.used is not None
        assert cpu_ms <= end.used <= cpu_ms + 10 + TICK_MS
        assert end.usage is not None
        assert end.usage.cpu_ms == end.used


def test_behind_the_timer_stands_a_limit_in_whole_seconds() -> None:
    """Without the timer, a process that spins ends at the next second of its processor time."""
    limits = rlimits.call_limits(memory_mb=1 << 20, cpu_ms=10, descriptors=4)
    child = os.fork()
    if child == 0:
        try:
            linux.succeeds(limits)
            while True:
                pass
        finally:
            os._exit(1)
    _, status, usage = os.wait4(child, 0)

    assert os.waitstatus_to_exitcode(status) == -signal.SIGXCPU
    # The kernel counts the limit in ticks and the usage exactly; under load they lie apart.
    assert 0.5 < usage.ru_utime + usage.ru_stime < 2
