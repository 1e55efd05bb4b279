"""The witness on the real thing: again and again while a worker serves, and what its word costs."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import msgspec
import pytest

from broker.client import GatewayError, OmegaClient, Refused
from broker.home import load_home
from broker.launchers.external import take_document
from sandbox_worker.link import Link
from schemas.events import (
    InvokeEnd,
    PluginQuarantine,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
)
from schemas.launch import LaunchDocument
from schemas.messages import Drain, Ping, Pong, Probe, ProbeOutcome, ProbeReport, Ready
from schemas.refusals import RefusalCode
from schemas.witness import PROBES
from tests.simulation.world import ATTESTATION
from tests.support.gateway import ECHO, RunningGateway, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail]

OFTEN = "\n[times]\nwitness_interval_ms = 150\n"
LATE = "\n[times]\nwitness_interval_ms = 150\nwitness_ms = 3000\n"
"""An honest worker on a crowded machine reports in time all the same."""
EXTERNAL = '\n[workers]\nexternal = ["echo-plugin"]\n'
BUSY = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def count(context: Context, text: TextPayload) -> TextPayload:
    for _ in range(int(text.text)):
        pass
    return text
'''
LIMITS = "cpu_ms = 9000\nwall_ms = 9000\nmemory_mb = 128\noutput_bytes = 4096\nconcurrency = 1\n"


def reports(gateway: RunningGateway) -> list[WorkerProbe]:
    """What the witness has said by now."""
    fields = [event.fields for event in gateway.events()]
    return [one for one in fields if isinstance(one, WorkerProbe)]


def test_the_witness_comes_again_to_a_busy_worker_and_to_an_idle_one() -> None:
    """Every report names all probes and passes; a full worker's call is answered meanwhile."""
    with running_gateway(OFTEN) as gateway:
        gateway.install(gateway.write_plugin("busy-plugin", BUSY, limits=LIMITS))

        omega, during, count = gateway.omega(), list[WorkerProbe](), 1_000_000
        omega.invoke("busy-plugin", "count", "1", timeout=20)
        while len(during) < 3:
            # Until a call takes long enough, on whatever machine.
            count *= 2
            before = len(reports(gateway))
            answer = omega.invoke("busy-plugin", "count", f"{count}", timeout=20)
            during = reports(gateway)[before:]
            assert getattr(answer.payload, "text", None) == f"{count}"
        wait_for("two more of an idle worker",
                 lambda: len(reports(gateway)) > before + len(during) + 1)

        assert {one.incarnation for one in reports(gateway)} == {during[0].incarnation}
        for report in reports(gateway):
            assert report.passed
            assert set(report.outcomes) == set(PROBES)
            assert report.outcomes["ptrace"] == "killed"
        attested = next(one.fields for one in gateway.events()
                        if isinstance(one.fields, WorkerAttest))
        assert len(set(attested.namespaces.values())) == 7
        assert attested.landlock_abi >= 6
        assert attested.base_filter_sha256 != attested.strict_filter_sha256


def test_a_worker_that_reports_nothing_is_ended_and_replaced() -> None:
    """Its supervisor is stopped: the report is late, the incarnation ends, the next one serves."""
    with running_gateway(LATE) as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        gateway.omega().invoke("echo-plugin", "echo", "x")
        worker = gateway.operator().status().workers[0].pid
        assert worker is not None

        os.kill(worker, signal.SIGSTOP)
        exited = gateway.wait_for_event(
            "its end", lambda event: isinstance(event.fields, WorkerExit))

        assert getattr(exited.fields, "reason", "") == "probe_overdue"
        wait_for("the process to be gone", lambda: not Path(f"/proc/{worker}").exists())
        gateway.omega().invoke("echo-plugin", "echo", "served again")
        starts = [one for one in gateway.events() if isinstance(one.fields, WorkerStart)]
        assert len(starts) == 2


class LostJail:
    """A worker on a real socket whose jail holds once and then lets one probe through."""

    def __init__(self, gateway: RunningGateway, *, through: str) -> None:
        self._run = load_home(str(gateway.home), environment=gateway.environment).run_directory
        self._through = through
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.live, daemon=True)
        self.thread.start()

    def live(self) -> None:
        """Take the launch document, attest, and answer the witness until told to stop."""
        launch = msgspec.json.decode(
            wait_for("a launch document", lambda: take_document(self._run, "echo-plugin")),
            type=LaunchDocument,
        )
        link = Link(launch)
        link.send(Ready(pid=os.getpid(), attestation=ATTESTATION, concurrency=1))
        held = True
        while not self.stop.wait(0.01):
            for order in link.orders():
                if isinstance(order, Ping):
                    link.send(Pong(nonce=order.nonce))
                elif isinstance(order, Probe):
                    link.send(self.report(order, held=held))
                    held = False
                else:
                    assert not isinstance(order, Drain)
        link.close()

    def report(self, order: Probe, *, held: bool) -> ProbeReport:
        """All denied but the control, and later one more."""
        allowed = {"control"} if held else {"control", self._through}
        return ProbeReport(probe=order.probe, nonce=order.nonce, outcomes=tuple(
            ProbeOutcome(name, "allowed" if name in allowed else "denied") for name in PROBES
        ))


def test_one_probe_that_gets_through_quarantines_the_plugin_in_the_middle_of_a_call() -> None:
    """The call ends with that code, and the version serves nobody again, not after a restart."""
    with running_gateway(OFTEN + EXTERNAL) as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        worker = LostJail(gateway, through="connect")
        with pytest.raises(Refused) as ended:
            gateway.omega().invoke("echo-plugin", "echo", "x", timeout=10)
        worker.stop.set()
        worker.thread.join()

        assert ended.value.code == RefusalCode.PLUGIN_QUARANTINED
        fields = [event.fields for event in gateway.events()]
        quarantine = next(one for one in fields if isinstance(one, PluginQuarantine))
        assert (quarantine.reason, quarantine.detail) == ("probe_succeeded", "connect")
        end = next(one for one in fields if isinstance(one, InvokeEnd))
        assert (end.reached, end.code) == ("dispatched", RefusalCode.PLUGIN_QUARANTINED)
        assert [one.passed for one in reports(gateway)] == [True, False]
        gateway.stop()
        gateway.start()
        with pytest.raises(GatewayError) as again, \
                OmegaClient.from_home(str(gateway.home)) as omega:
            omega.invoke("echo-plugin", "echo", "y")
        assert isinstance(again.value, Refused)
        assert again.value.code == RefusalCode.PLUGIN_QUARANTINED
