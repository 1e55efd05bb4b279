"""When the kernel makes no process: a refusal for the call that needed it, and nothing else."""

from __future__ import annotations

import os
import resource
import select
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox_worker.jail.identity import SANDBOX_ID
from schemas.messages import CallFailure, CallResult, Probe, ProbeReport
from schemas.witness import failed_probes
from tests.sandbox_worker.harness import worker

pytestmark = [pytest.mark.jail, pytest.mark.system]

ECHO = '''
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    return text.text
'''


def allow_processes(pid: int, most: int) -> None:
    """Set how many processes the user of one process may have before it makes none more."""
    child = os.fork()
    if child == 0:
        try:
            # The kernel lets a process set the limits of those of its own user; see prlimit(2).
            if os.getuid() == 0:
                os.setgroups([])
                os.setresgid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
                os.setresuid(SANDBOX_ID, SANDBOX_ID, SANDBOX_ID)
            _, hard = resource.prlimit(pid, resource.RLIMIT_NPROC)
            resource.prlimit(pid, resource.RLIMIT_NPROC, (most if most >= 0 else hard, hard))
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


@contextmanager
def no_forks(pid: int) -> Iterator[None]:
    """Let one process make no other: the kernel answers EAGAIN, see fork(2)."""
    allow_processes(pid, 0)
    try:
        yield
    finally:
        allow_processes(pid, -1)


def ticks(*pids: int) -> int:
    """Processor time that processes have used, in ticks of a hundredth of a second."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields)


def test_a_fork_that_fails_costs_one_call_and_not_the_worker(tmp_path: Path) -> None:
    """Waiting processes still serve; then each call is refused by itself; then all is as before."""
    with worker(tmp_path, ECHO, pool_size=2) as one:
        one.send(Probe(probe=1, nonce=b"0" * 16))
        assert isinstance(one.receive(), ProbeReport)
        zygote = one.zygote
        with no_forks(zygote):
            ends = [one.call("x") for _ in range(6)]
            before = ticks(one.process.pid, zygote)
            select.select([], [], [], 0.5)
            spent = ticks(one.process.pid, zygote) - before
            one.send(Probe(probe=2, nonce=b"1" * 16))
            ends.append(one.call("y"))
            ended = os.waitid(os.P_PID, one.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        report = one.receive()
        after = one.value("z")

    assert isinstance(ends[0], CallResult)
    refused = [end for end in ends if isinstance(end, CallFailure)]
    assert [end.code for end in refused] == ["call_process_failed"] * len(refused)
    assert refused[-1] is ends[-1]
    assert len(refused) >= 4
    assert spent <= 15, "forks are tried in a tight loop"
    assert ended is None
    assert isinstance(report, ProbeReport), "the witness was not heard when forks worked again"
    assert report.probe == 2
    assert failed_probes({one.name: one.outcome for one in report.outcomes}, ()) == ()
    assert after == "z"
