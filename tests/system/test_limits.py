"""A plugin for each limit that a manifest declares: refused by that limit's code, with its figures
in the sentence and in the ledger."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from broker.client import OmegaClient, Refused
from schemas.events import FrameIn, FrameOut, InvokeEnd
from tests.support.gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail]

HEAD = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def work(context: Context, text: TextPayload) -> TextPayload:
    '''


class Case(NamedTuple):
    """One plugin: what it does too much of, and what it may."""

    body: str
    limits: str
    code: str
    allowed: int
    unit: str


CASES = {
    "cpu": Case("while True: pass", "cpu_ms = 60", "cpu_limit_exceeded", 60,
                "ms of processor time"),
    "wall": Case("lock = __import__('_thread').allocate_lock(); lock.acquire(); lock.acquire()",
                 "wall_ms = 150", "wall_limit_exceeded", 150, "ms"),
    "memory": Case("return bytearray(1 << 30)", "memory_mb = 96", "memory_limit_exceeded", 96,
                   "MiB of address space; what it asked for next did not fit"),
    "output": Case("return TextPayload('x' * 2000)", "output_bytes = 1000",
                   "output_limit_exceeded", 1000, "bytes"),
}  # fmt: skip
USUAL = {"cpu_ms": 2000, "wall_ms": 3000, "memory_mb": 128, "output_bytes": 4096, "concurrency": 2}


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """A gateway with a plugin for each limit."""
    with running_gateway() as running:
        for name, case in CASES.items():
            lines = [f"{key} = {value}" for key, value in USUAL.items()
                     if not case.limits.startswith(key)]  # fmt: skip
            running.install(running.write_plugin(
                f"{name}-plugin", HEAD + case.body, limits="\n".join([case.limits, *lines])))
        yield running


@pytest.mark.parametrize("name", CASES)
def test_each_limit_has_its_code_and_its_figures(gateway: RunningGateway, name: str) -> None:
    """The refusal says what was used and what was allowed, and so does the call's last event."""
    case = CASES[name]
    with pytest.raises(Refused) as caught:
        gateway.omega().invoke(f"{name}-plugin", "work", "x", timeout=10)
    refusal = caught.value.refusal
    end = [event.fields for event in gateway.events() if isinstance(event.fields, InvokeEnd)][-1]

    assert (refusal.code, end.code) == (case.code, case.code)
    assert end.allowed == case.allowed
    assert end.used is not None
    assert (end.used >= end.allowed) == (name != "memory")
    assert f"used {end.used}, allowed {case.allowed} {case.unit}" in refusal.message
    assert refusal.usage is not None
    assert (end.cpu_ms, end.wall_ms) == (refusal.usage.cpu_ms, refusal.usage.wall_ms)
    assert end.max_rss_kb_upper_bound == refusal.usage.max_rss_kb_upper_bound


def test_no_more_calls_run_at_once_than_the_manifest_says(gateway: RunningGateway) -> None:
    """Of five calls at the same time two run and three wait; each ends by its own limit."""
    def call() -> None:
        with OmegaClient.from_home(str(gateway.home)) as omega, pytest.raises(Refused):
            omega.invoke("wall-plugin", "work", "x", timeout=10)

    callers = [threading.Thread(target=call) for _ in range(5)]
    for thread in callers:
        thread.start()
    for thread in callers:
        thread.join(20)
    running, most = 0, 0
    for event in gateway.events():
        fields = event.fields
        if isinstance(fields, FrameOut) and fields.type == "run":
            running += 1
        elif isinstance(fields, FrameIn) and fields.type in ("call_result", "call_failure"):
            running -= 1
        most = max(most, running)
    assert most == 2
