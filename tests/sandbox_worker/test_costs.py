"""What a call costs in counts that no load on the machine changes: page faults, mappings, memory.

They decide how many calls a machine can serve, and a single careless import or allocation shows in
them at once. Times are measured by `scripts/bench sandbox`.
"""

from __future__ import annotations

import compileall
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

import sandbox_worker
from sandbox_worker import forker
from sandbox_worker.bundle import read_bundle
from sandbox_worker.jobs import job_bytes, run_job
from schemas.manifest import Method, PayloadSpec
from schemas.messages import CallResult, Run
from schemas.payloads import JSONPayload
from tests.sandbox_worker.harness import PATIENCE_S, Worker, worker
from tests.sandbox_worker.zygotes import launch_of

pytestmark = [pytest.mark.jail, pytest.mark.system]

ECHO = """
from __future__ import annotations
from sandbox_worker.sdk import Context, JSONPayload, method

@method()
def main(_context: Context, document: JSONPayload) -> JSONPayload:
    return document
"""
DOCUMENT = JSONPayload(
    b'{"items":[1,2,{"a":null}],"name":"zo\xc3\xab","text":"' + b"x" * 900 + b'"}'
)
METHODS = {"main": Method(PayloadSpec("json"), PayloadSpec("json"))}
WARM_CALLS, CALLS = 30, 100
CALL_FAULTS_MAX, ZYGOTE_FAULTS_MAX = 160, 80
ANSWER_FAULTS_MAX = 40
FIRST_NUMBER, FRAME_OVERHEAD = 1000, 256
MAPPINGS_MAX, ANONYMOUS_KB_MAX = 90, 6000


class Faults(NamedTuple):
    """Minor page faults of a zygote and of its reaped call processes; see proc_pid_stat(5)."""

    own: int
    reaped: int


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    """Bytecode beside the sources, as an installation has it.

    A zygote that has to compile first keeps 20 more of its pages half filled.
    """
    (folder,) = sandbox_worker.__path__
    assert compileall.compile_dir(folder, quiet=1)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin imports nothing, after its first calls."""
    # A pool of one neither grows nor shrinks: there is one process for each call.
    folder = tmp_path_factory.mktemp("costs")
    with worker(folder, ECHO, methods=METHODS, pool_size=1) as running:
        _call(running, WARM_CALLS)
        yield running


def _call(one: Worker, count: int) -> None:
    for _ in range(count):
        end = one.call(DOCUMENT)
        assert isinstance(end, CallResult), end
        assert end.payload == DOCUMENT


def _faults(one: Worker) -> Faults:
    fields = Path(f"/proc/{one.zygote}/stat").read_text().rpartition(")")[2].split()
    return Faults(int(fields[7]), int(fields[8]))


def _settled(one: Worker) -> Faults:
    """The counts once every ended process was reaped and the pool is full again."""
    deadline, counts = time.monotonic() + PATIENCE_S, _faults(one)
    children = Path(f"/proc/{one.zygote}/task/{one.zygote}/children")
    while len(children.read_text().split()) != one.launch.pool_size or counts != _faults(one):
        assert time.monotonic() < deadline, children.read_text()
        counts = _faults(one)
    return counts


def test_page_faults_of_a_call_are_few(one: Worker) -> None:
    """A call process asks for few pages over its whole life, and the zygote for few between two."""
    before = _settled(one)
    _call(one, CALLS)
    after = _settled(one)

    assert (after.reaped - before.reaped) / CALLS <= CALL_FAULTS_MAX
    assert (after.own - before.own) / CALLS <= ZYGOTE_FAULTS_MAX


def _field(process: int, name: str) -> str:
    """A line of proc_pid_status(5), without its name."""
    status = Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"^{name}:\s+(.*)$", status, re.MULTILINE)
    assert found is not None, status
    return found[1]


def _own_faults(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[7])


def _waiting_child(zygote: int) -> int:
    """The one call process of a zygote, when its jail is closed and it waits for its job."""
    deadline = time.monotonic() + PATIENCE_S
    children = Path(f"/proc/{zygote}/task/{zygote}/children")
    while time.monotonic() < deadline:
        for child in map(int, children.read_text().split()):
            filters = _field(child, "Seccomp_filters")
            if filters != _field(zygote, "Seccomp_filters") and _field(child, "State")[0] == "S":
                return child
    raise AssertionError("no call process waits")


def test_who_waits_for_a_ready_process_waits_for_few_page_faults(tmp_path: Path) -> None:
    """Of what a call process asks for, little is left for after its job is there."""
    launch = launch_of(tmp_path, ECHO, METHODS)
    order = Run(call=1, request_id="", method="main", payload=DOCUMENT, timeout_ms=1000)
    started = forker.start(launch, read_bundle(launch))
    try:
        (job,) = started.fork([FIRST_NUMBER])
        child = _waiting_child(started.pid)
        before = _own_faults(child)
        job.settimeout(PATIENCE_S)
        job.send(job_bytes((*run_job(order, METHODS["main"], {}), ())))
        reply = job.recv(len(DOCUMENT.data) + FRAME_OVERHEAD)
        # It stays until its figures were read.
        after = _own_faults(child)
        job.close()
    finally:
        started.close()

    assert DOCUMENT.data in reply
    assert after - before <= ANSWER_FAULTS_MAX


def test_a_zygote_holds_little_memory(one: Worker) -> None:
    """What each fork has to copy stays small: pages of its own, and mappings."""
    assert int(_field(one.zygote, "RssAnon").split()[0]) <= ANONYMOUS_KB_MAX
    if os.getuid() == 0:
        # To anybody else the kernel does not show them: the zygote is not dumpable.
        mappings = Path(f"/proc/{one.zygote}/maps").read_text().splitlines()
        assert len(mappings) <= MAPPINGS_MAX
