"""What is read of a call process that has replied comes from the kernel, and nothing is missed."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox_worker import vitals
from sandbox_worker.resting import Resting
from sandbox_worker.slot import Slot
from sandbox_worker.supervisor import CROWD
from schemas.messages import CallResult
from tests.sandbox_worker.harness import LIMITS, PATIENCE_S, Worker, worker

pytestmark = pytest.mark.system

BURNT_US = 50_000
TOUCHED_KB = 32 * 1024
WRITER = f"""
import socket, sys, time
job = socket.socket(fileno=int(sys.argv[1]))
touched = bytearray({TOUCHED_KB} * 1024)
touched[::4096] = b"x" * (len(touched) // 4096)
del touched
while time.process_time() < {BURNT_US} / 1e6:
    pass
socket.send_fds(job, [b"reply"], [0]) if sys.argv[2:] else job.send(b"reply")
sys.stdin.read()
"""
GOES_ON = """
import os
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    for _ in range(3_000_000):
        pass
    body = b"\\x92\\xa6result\\x82\\xa4type\\xa4json\\xa4data\\xc4\\x02[]"
    os.write(3, len(body).to_bytes(4, "big") + body)
    while True:
        pass
"""
STARTED_US, LEFT_US = 20_000, 500_000
"""More than all rehearsed processes use, and far less than the plugin above could."""

LEAST_KB = 1000
"""Less than any call process holds."""


@contextlib.contextmanager
def _writer(*options: str) -> Iterator[tuple[socket.socket, subprocess.Popen[bytes]]]:
    """A process that works, writes and waits, and our end of the socket it writes to."""
    mine, its = socket.socketpair()
    mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    command = [sys.executable, "-S", "-c", WRITER, str(its.fileno()), *options]
    with (
        mine,
        subprocess.Popen(command, pass_fds=[its.fileno()], stdin=subprocess.PIPE) as process,
    ):
        its.close()
        mine.settimeout(PATIENCE_S)
        try:
            yield mine, process
        finally:
            process.kill()


def test_the_kernel_names_the_writer_and_what_it_used() -> None:
    """Pid, processor time and largest memory are those of the process that wrote; then it ends."""
    buffer = bytearray(64)
    with _writer() as (mine, process):
        size, writer = vitals.receive(mine, buffer)
        used = vitals.take(writer)

        assert (buffer[:size], writer) == (b"reply", process.pid)
        assert used is not None
        assert BURNT_US <= used[0] < 1_000_000
        assert TOUCHED_KB <= used[1] < 2 * TOUCHED_KB
        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        assert vitals.take(writer) is None


def test_a_process_that_rests_is_stopped_at_once_and_ended_when_due() -> None:
    """It uses nothing more after its figures were read, and one that is gone hurts nobody."""
    buffer, resting = bytearray(64), Resting()
    with _writer() as (mine, process):
        _, writer = vitals.receive(mine, buffer)
        assert vitals.take(writer, signal.SIGSTOP) is not None
        _, status = os.waitpid(writer, os.WUNTRACED)
        slot = Slot(1, mine, writer=writer)
        resting.add(slot, 7.0)

        assert os.WIFSTOPPED(status)
        assert 7.0 < resting.due < 8.0

        resting.end()

        assert process.wait(PATIENCE_S) == -signal.SIGKILL
        assert (resting.due, mine.fileno()) == (float("inf"), -1)
        resting.add(slot, 7.0)
        resting.end()


def test_a_descriptor_sent_with_a_reply_is_dropped() -> None:
    """There is room for the writer's credentials and nothing else."""
    buffer = bytearray(64)
    with _writer("with a descriptor") as (mine, process):
        before = os.listdir("/proc/self/fd")
        size, writer = vitals.receive(mine, buffer)

        assert (buffer[:size], writer) == (b"reply", process.pid)
        assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("pid", [0, -1])
def test_no_process_is_no_process(pid: int) -> None:
    """Numbers that would mean ourselves to the kernel are neither read nor signalled."""
    assert vitals.take(pid) is None


@pytest.mark.jail
def test_who_goes_on_after_the_reply_is_ended_and_charged(tmp_path: Path) -> None:
    """Time used before the reply is in the usage, and there is no time after it."""
    with worker(tmp_path, GOES_ON) as one:
        end = one.call()
        used_us = _reaped_us(one)

        assert isinstance(end, CallResult)
        assert end.usage.cpu_ms >= 20
        assert used_us < LEFT_US
        assert abs(end.usage.cpu_ms * 1000 - used_us) < 100_000


@pytest.mark.jail
def test_in_a_crowd_too_each_is_ended_and_charged(tmp_path: Path) -> None:
    """With many calls under way the size comes with the exit report, the time still before it."""
    crowd = 2 * CROWD
    limits = msgspec.structs.replace(LIMITS, concurrency=crowd, wall_ms=60_000)
    with worker(tmp_path, GOES_ON, limits=limits) as one:
        for _ in range(crowd):
            one.start("", timeout_ms=60_000)
        ends = [one.receive() for _ in range(crowd)]
        usages = [end.usage for end in ends if isinstance(end, CallResult)]
        used_ms = [usage.cpu_ms for usage in usages]
        used_us = _reaped_us(one, crowd * STARTED_US)

        assert len(usages) == crowd
        assert min(used_ms) >= 20
        assert abs(sum(used_ms) * 1000 - used_us) < crowd * 100_000
        assert min(usage.max_rss_kb_upper_bound for usage in usages) > LEAST_KB


@pytest.mark.jail
def test_an_answer_in_a_crowd_does_not_need_the_zygote(tmp_path: Path) -> None:
    """Where a zygote reaps nobody, answers leave with the limit as what a process may have held."""
    crowd = 2 * CROWD
    limits = msgspec.structs.replace(LIMITS, concurrency=crowd, wall_ms=60_000)
    # None answers before all have begun.
    source = GOES_ON.replace("import os\n", "import os, time\n").replace(
        "    for _", "    time.sleep(1)\n    for _")
    with worker(tmp_path, source, limits=limits, pool_size=0, modules=("time",),
                grants=("clock.read",)) as one:
        for _ in range(crowd):
            one.start("", timeout_ms=60_000)
        children = Path(f"/proc/{one.zygote}/task/{one.zygote}/children")
        deadline = time.monotonic() + PATIENCE_S
        while len(children.read_text().split()) < crowd:
            assert time.monotonic() < deadline
            os.sched_yield()
        os.kill(one.zygote, signal.SIGSTOP)
        ends = [one.receive() for _ in range(crowd)]
        os.kill(one.zygote, signal.SIGCONT)
        sizes_kb = [end.usage.max_rss_kb_upper_bound for end in ends
                    if isinstance(end, CallResult)]  # fmt: skip

        assert len(sizes_kb) == crowd
        assert sizes_kb.count(limits.memory_mb << 10) > CROWD
        assert isinstance(one.call(timeout_ms=60_000), CallResult)


def _reaped_us(one: Worker, least_us: int = STARTED_US) -> float:
    """Processor time of reaped call processes, once it is more than a start takes."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        fields = Path(f"/proc/{one.zygote}/stat").read_text().rpartition(")")[2].split()
        # cutime and cstime, see proc_pid_stat(5).
        used_us = (int(fields[13]) + int(fields[14])) * 1e6 / os.sysconf("SC_CLK_TCK")
        if used_us > least_us:
            return used_us
        os.sched_yield()
    raise AssertionError(f"no call process was reaped; worker {one.process.poll()}")
