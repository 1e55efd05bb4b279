"""A call process and its jail: no job is read before every step did what it must."""

from __future__ import annotations

import os
import socket
import time

import pytest

from sandbox_worker import call
from sandbox_worker.jail import linux
from sandbox_worker.method import Plugin

WORKS = linux.prepared(linux.KILL, os.getpid(), 0)
FAILS = linux.prepared(linux.KILL, call._NO_PID, 0)
PATIENCE_S = 20.0


def left(jail: call.Jail) -> tuple[int, bytes]:
    """Become a call process for a job that waits; give its exit status and what it did not read."""
    mine, its = socket.socketpair()
    with mine, its:
        mine.send(b"job")
        pid = os.fork()
        if pid == 0:
            call.serve(its.fileno(), jail, Plugin.__new__(Plugin), rehearsal=False, hurried=True)
        deadline = time.monotonic() + PATIENCE_S
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            assert time.monotonic() < deadline
            os.sched_yield()
        its.setblocking(False)
        try:
            return os.waitstatus_to_exitcode(ended[1]), its.recv(10)
        except BlockingIOError:
            return os.waitstatus_to_exitcode(ended[1]), b""


@pytest.mark.parametrize(
    "jail",
    [
        call.Jail(before=(WORKS, FAILS)),
        call.Jail(before=(WORKS,), forbidden=(FAILS, WORKS)),
        call.Jail(forbidden=(WORKS, FAILS)),
        call.Jail(forbidden=(FAILS,), after=(WORKS, FAILS)),
        call.Jail(after=(WORKS,), seal=(FAILS,)),
    ],
)
def test_a_jail_that_does_not_close_ends_the_process_before_its_job(jail: call.Jail) -> None:
    """One step that fails, or one that must fail and does not, is the end; nothing was read."""
    assert left(jail) == (call.JAIL_FAILED, b"job")


def test_with_every_step_done_the_job_is_read() -> None:
    """The same process with a jail that closes takes what waits."""
    status, unread = left(call.Jail(before=(WORKS,), forbidden=(FAILS,), seal=(WORKS,)))

    assert unread == b""
    assert status != call.JAIL_FAILED
