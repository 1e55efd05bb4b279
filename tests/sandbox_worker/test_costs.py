"""What a call costs in counts that no load on the machine changes: page faults, mappings, memory.

They decide how many calls a machine can serve, and a single careless import or allocation shows in
them at once. Times are measured by `scripts/bench sandbox`.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from schemas.manifest import Method, PayloadSpec
from schemas.messages import CallResult
from schemas.payloads import JSONPayload
from tests.sandbox_worker.harness import PATIENCE_S, Worker, worker

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
WARM_CALLS, CALLS = 30, 100
CALL_FAULTS_MAX, ZYGOTE_FAULTS_MAX = 160, 80
MAPPINGS_MAX, ANONYMOUS_KB_MAX = 90, 6000


class Faults(NamedTuple):
    """Minor page faults of a zygote and of its reaped call processes; see proc_pid_stat(5)."""

    own: int
    reaped: int


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin imports nothing, after its first calls."""
    methods = {"main": Method(PayloadSpec("json"), PayloadSpec("json"))}
    # A pool of one neither grows nor shrinks: there is one process for each call.
    folder = tmp_path_factory.mktemp("costs")
    with worker(folder, ECHO, methods=methods, pool_size=1) as running:
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


def test_a_zygote_holds_little_memory(one: Worker) -> None:
    """What each fork has to copy stays small: pages of its own, and mappings."""
    status = Path(f"/proc/{one.zygote}/status").read_text()
    anonymous = re.search(r"RssAnon:\s+(\d+) kB", status)

    assert anonymous is not None
    assert int(anonymous[1]) <= ANONYMOUS_KB_MAX
    if os.getuid() == 0:
        # To anybody else the kernel does not show them: the zygote is not dumpable.
        mappings = Path(f"/proc/{one.zygote}/maps").read_text().splitlines()
        assert len(mappings) <= MAPPINGS_MAX
