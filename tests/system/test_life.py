"""How a gateway begins, stops and dies: nothing acknowledged is lost, nobody is left behind."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from broker.client import GatewayError, OmegaClient, Refused
from broker.evidence.verify import verify_directory
from schemas.events import InvokeAccept, InvokeEnd, LedgerClose, WorkerExit, WorkerStart
from schemas.refusals import RefusalCode
from tests.support.gateway import ECHO, RunningGateway, held, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail]

SLOW = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def dawdle(context: Context, text: TextPayload) -> TextPayload:
    context.progress(0.5, "half way")
    for _ in range(int(text.text)):
        pass
    return text


@method()
def echo(context: Context, text: TextPayload) -> TextPayload:
    return text
'''
LONG = str(10**12)
LIMITS = "cpu_ms = 60000\nwall_ms = 60000\nmemory_mb = 256\noutput_bytes = 65536\nconcurrency = 4\n"


def descendants(pid: int) -> set[int]:
    """All processes that a process started, and theirs."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in children.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


def alive(pids: set[int]) -> set[int]:
    """Those that still run."""
    living = set()
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if state not in "ZX":
            living.add(pid)
    return living


class Asked:
    """An invocation in a thread of its own: its outcome is the answer or the error."""

    def __init__(self, gateway: RunningGateway, method: str, text: str) -> None:
        self.outcome: object = None
        self._gateway = gateway
        self._thread = threading.Thread(target=self._ask, args=(method, text), daemon=True)
        self._thread.start()

    def _ask(self, method: str, text: str) -> None:
        try:
            with OmegaClient.from_home(str(self._gateway.home)) as client:
                self.outcome = client.invoke("slow-plugin", method, text, timeout=30)
        except GatewayError as error:
            self.outcome = error

    def finish(self) -> object:
        """Wait for the outcome."""
        self._thread.join(20)
        assert not self._thread.is_alive(), "the call hangs"
        return self.outcome


def slow_gateway_call(gateway: RunningGateway) -> Asked:
    """Install the slow plugin and begin one long call; returns when the plugin runs."""
    gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))
    asked = Asked(gateway, "dawdle", LONG)
    gateway.wait_for_event("the plugin's progress", lambda event: getattr(
        event.fields, "type", "") == "call_progress")
    return asked


def open_calls(gateway: RunningGateway) -> set[str]:
    """Request ids that were accepted and did not end."""
    open_ids: set[str] = set()
    for event in gateway.events():
        if isinstance(event.fields, InvokeAccept):
            open_ids.add(event.fields.request_id)
        elif isinstance(event.fields, InvokeEnd):
            open_ids.remove(event.fields.request_id)
    return open_ids


def test_a_killed_broker_leaves_nobody_and_ends_its_calls_at_the_next_start() -> None:
    """After kill -9 no process survives; the next start ends the open call as abandoned, once."""
    with running_gateway() as gateway:
        slow_gateway_call(gateway)
        family = descendants(gateway.pid)
        assert len(family) >= 4

        gateway.stop(signal.SIGKILL)

        wait_for("every descendant to be gone", lambda: not alive(family))
        assert len(open_calls(gateway)) == 1
        gateway.start()
        assert not open_calls(gateway)
        ends = [event.fields for event in gateway.events() if isinstance(event.fields, InvokeEnd)]
        assert [end.outcome for end in ends] == ["abandoned"]
        assert gateway.omega().invoke("slow-plugin", "echo", "again").text == "again"
        report = verify_directory(str(gateway.home / "ledger"))
        assert report.ok, report


def test_sigterm_lets_a_call_finish_and_refuses_new_ones() -> None:
    """The call in flight gets its answer, a new one is told that the gateway drains, status 0."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))
        other = gateway.omega()
        other.invoke("slow-plugin", "echo", "warm")
        worker = gateway.operator().status().workers[0].pid
        assert worker is not None
        with held(worker):
            asked = Asked(gateway, "dawdle", "1000")
            wait_for("the call", lambda: open_calls(gateway))

            os.kill(gateway.pid, signal.SIGTERM)
            wait_for("the gateway to drain", lambda: other.status().state == "draining")
            with pytest.raises(Refused) as refused:
                other.invoke("slow-plugin", "echo", "late")

        assert refused.value.code == RefusalCode.DRAINING
        assert getattr(asked.finish(), "text", asked.outcome) == "1000"
        assert gateway.process is not None
        assert gateway.process.wait(20) == 0
        assert isinstance(gateway.events()[-1].fields, LedgerClose)


def test_a_second_sigterm_stops_now_and_tells_the_caller() -> None:
    """The open call ends as abandoned, its caller is told, no process is left."""
    with running_gateway() as gateway:
        asked = slow_gateway_call(gateway)
        family = descendants(gateway.pid)

        os.kill(gateway.pid, signal.SIGTERM)
        other = gateway.omega()
        wait_for("the gateway to drain", lambda: other.status().state == "draining")
        os.kill(gateway.pid, signal.SIGTERM)

        outcome = asked.finish()
        assert isinstance(outcome, Refused), outcome
        assert outcome.code == RefusalCode.ABANDONED
        assert gateway.process is not None
        assert gateway.process.wait(20) == 0
        wait_for("every descendant to be gone", lambda: not alive(family))


def test_a_killed_worker_ends_its_call_and_is_replaced() -> None:
    """The call ends as lost at once; the next call is served by another incarnation."""
    with running_gateway() as gateway:
        asked = slow_gateway_call(gateway)
        worker = gateway.operator().status().workers[0]
        assert worker.pid is not None

        os.kill(worker.pid, signal.SIGKILL)

        outcome = asked.finish()
        assert isinstance(outcome, Refused), outcome
        assert outcome.code == RefusalCode.WORKER_LOST
        assert gateway.omega().invoke("slow-plugin", "echo", "x").text == "x"
        starts = {event.fields.incarnation for event in gateway.events()
                  if isinstance(event.fields, WorkerStart)}
        exits = {event.fields.incarnation for event in gateway.events()
                 if isinstance(event.fields, WorkerExit)}
        assert len(starts) == 2
        assert exits == {worker.incarnation}


def test_a_cancelled_call_is_killed_and_its_slot_is_free() -> None:
    """The caller of the call and the one who cancelled are both told; the worker goes on."""
    with running_gateway() as gateway:
        asked = slow_gateway_call(gateway)
        accept = next(event.fields for event in gateway.events()
                      if isinstance(event.fields, InvokeAccept))

        cancelled = gateway.omega().cancel(accept.request_id)

        assert (cancelled.outcome, cancelled.reached) == ("cancelled", "running")
        outcome = asked.finish()
        assert isinstance(outcome, Refused)
        assert outcome.code == RefusalCode.CANCELLED
        assert gateway.omega().invoke("slow-plugin", "echo", "x").text == "x"
        assert len({event.fields.incarnation for event in gateway.events()
                    if isinstance(event.fields, WorkerStart)}) == 1


def test_a_deadline_is_kept_and_the_worker_goes_on() -> None:
    """A call that takes too long ends by its deadline with a typed refusal."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("slow-plugin", SLOW, limits=LIMITS))
        omega = gateway.omega()
        omega.invoke("slow-plugin", "echo", "warm")

        with pytest.raises(Refused) as refused:
            omega.invoke("slow-plugin", "dawdle", LONG, timeout=0.5)

        assert refused.value.code == RefusalCode.DEADLINE_EXCEEDED
        assert omega.invoke("slow-plugin", "echo", "x").text == "x"


def test_registered_and_enabled_plugins_serve_again_after_a_restart() -> None:
    """The inventory is a fold of the ledger: a restart needs nothing but the home."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        gateway.stop()

        gateway.start()

        assert gateway.omega().invoke("echo-plugin", "echo", "x").text == "x"


def test_a_damaged_bundle_is_quarantined_and_does_not_stop_the_gateway() -> None:
    """One flipped byte costs that version its right to serve, by an event, and nothing else."""
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        gateway.stop()
        bundle = next((gateway.home / "registry" / "bundles").iterdir())
        data = bytearray(bundle.read_bytes())
        data[len(data) // 2] ^= 1
        bundle.write_bytes(data)

        gateway.start()

        with pytest.raises(Refused) as refused:
            gateway.omega().invoke("echo-plugin", "echo", "x")
        assert refused.value.code == RefusalCode.PLUGIN_QUARANTINED
        assert gateway.operator().list_plugins().plugins[0].enabled_version is None
        told = [line for line in gateway.log.read_text().splitlines() if "bundle damaged" in line]
        assert len(told) == 1, told
        assert '"plugin": "echo-plugin"' in told[0]
