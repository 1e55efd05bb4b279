"""kill -9 in the middle of a call, of each kind of process: who is gone, how soon, and what the
ledger says. Every accepted call ends there exactly once."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from functools import partial

import pytest

from broker.client import Refused
from broker.evidence.verify import verify_directory
from schemas.events import InvokeAccept, InvokeEnd
from schemas.refusals import RefusalCode
from tests.support.gateway import RunningGateway, running_gateway, wait_for
from tests.support.timing import GONE_S, best_of
from tests.system.test_life import LIMITS, LONG, SLOW, Asked, alive, descendants

pytestmark = [pytest.mark.system, pytest.mark.jail]


def kill(pid: int, doomed: set[int]) -> float:
    """Kill one process without warning and give how long it took until all these were gone, in s.

    Gone is what /proc shows as dead or not at all. It is asked without a pause.
    """
    began = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    while alive(doomed):
        assert time.monotonic() - began < 10, f"{alive(doomed)} live on"
        os.sched_yield()
    return time.monotonic() - began


def ends(gateway: RunningGateway) -> Counter[str]:
    """How often each accepted call ended, by request id; none is missing and none is foreign."""
    accepted, ended = set(), Counter[str]()
    for event in gateway.events():
        if isinstance(event.fields, InvokeAccept):
            accepted.add(event.fields.request_id)
        elif isinstance(event.fields, InvokeEnd):
            ended[event.fields.request_id] += 1
    assert set(ended) == accepted
    return ended


class Family:
    """The processes of the worker that is in the middle of a call, as /proc shows them."""

    def __init__(self, supervisor: int) -> None:
        self.supervisor = supervisor
        self.all = {supervisor, *descendants(supervisor)}
        (self.stub,) = _children(supervisor)
        (self.zygote,) = _children(self.stub)
        self.running = max(_children(self.zygote), key=_ticks)


def _children(pid: int) -> set[int]:
    below = descendants(pid)
    return below - {deeper for child in below for deeper in descendants(child)}


def _ticks(pid: int) -> int:
    """Processor time that a process has used, in clock ticks; see proc_pid_stat(5)."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def in_the_middle(gateway: RunningGateway) -> Family:
    """Wait until a call process has run for a while, and give its worker's processes."""

    def found() -> Family | None:
        for worker in gateway.operator().status().workers:
            if worker.pid is None:
                continue
            try:
                family = Family(worker.pid)
                if _ticks(family.running) >= 5:
                    return family
            except (ValueError, FileNotFoundError, ProcessLookupError):
                # It is just starting, or just ending.
                continue
        return None

    return wait_for("a call in the middle", found)


def test_each_process_of_a_worker_can_be_killed_in_the_middle_of_a_call() -> None:
    """Whichever dies, nothing of what hangs on it lives half a second later, the call ends once
    with the reason, and the next call is served."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))

        def kill_once(victim: str, code: RefusalCode) -> float:
            asked = Asked(gateway, "dawdle", LONG)
            family = in_the_middle(gateway)
            pid, doomed = {
                "call process": (family.running, {family.running}),
                "zygote": (family.zygote, family.all),
                "stub": (family.stub, family.all),
                "supervisor": (family.supervisor, family.all),
            }[victim]
            took_s = kill(pid, doomed)
            outcome = asked.finish()
            assert isinstance(outcome, Refused), (victim, outcome)
            assert outcome.code == code, victim
            assert gateway.omega().invoke("slow-plugin", "echo", victim).text == victim
            return took_s

        for victim, code in (
            ("call process", RefusalCode.PLUGIN_CRASHED),
            ("zygote", RefusalCode.WORKER_LOST),
            ("stub", RefusalCode.WORKER_LOST),
            ("supervisor", RefusalCode.WORKER_LOST),
        ):
            assert best_of(partial(kill_once, victim, code)) < GONE_S, victim
        assert set(ends(gateway).values()) == {1}


@pytest.mark.parametrize("victim", ["broker", "launcher"])
def test_broker_and_launcher_take_everybody_with_them(victim: str) -> None:
    """Half a second after either is killed no process of the gateway lives; the next start ends
    the open call, once, and serves."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))

        def kill_once() -> float:
            Asked(gateway, "dawdle", LONG)
            in_the_middle(gateway)
            everybody = {gateway.pid, *descendants(gateway.pid)}
            (launcher,) = _children(gateway.pid)
            took_s = kill(gateway.pid if victim == "broker" else launcher, everybody)
            gateway.stop(signal.SIGKILL)
            gateway.start()
            return took_s

        assert best_of(kill_once) < GONE_S
        assert set(ends(gateway).values()) == {1}
        assert gateway.omega().invoke("slow-plugin", "echo", "again").text == "again"
        assert verify_directory(str(gateway.home / "ledger")).ok
