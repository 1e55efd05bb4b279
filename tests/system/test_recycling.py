"""Workers are replaced on the real thing, beside their work: no call is lost and none too often."""

from __future__ import annotations

import itertools
import opcode
import threading
from collections import Counter

import pytest

from broker.client import OmegaClient, Refused
from schemas.events import InvokeEnd, WorkerAttest, WorkerExit, WorkerStart, ZygoteRecycle
from schemas.payloads import TextPayload
from schemas.refusals import RefusalCode
from tests.support.gateway import RunningGateway, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail]

# A constant far beyond the constants: the interpreter reads where nothing is mapped.
_WIDER, _LOAD = opcode.opmap["EXTENDED_ARG"], opcode.opmap["LOAD_CONST"]
BEYOND = bytes([_WIDER, 0x7F, _WIDER, 0xFF, _WIDER, 0xFF, _LOAD, 0xFF])
PLUGIN = f'''
import time

from sandbox_worker.sdk import Context, TextPayload, method


@method()
def echo(context: Context, text: TextPayload) -> TextPayload:
    return text


@method()
def count(context: Context, text: TextPayload) -> TextPayload:
    for _ in range(int(text.text)):
        pass
    return text


@method()
def forbidden(context: Context, text: TextPayload) -> TextPayload:
    time.clock_settime(0, 0.0)
    return text


@method()
def fault(context: Context, text: TextPayload) -> TextPayload:
    crash = lambda: None
    crash.__code__ = crash.__code__.replace(co_code={BEYOND!r})
    crash()
    return text

'''
LIMITS = "cpu_ms = 9000\nwall_ms = 20000\nmemory_mb = 128\noutput_bytes = 4096\nconcurrency = 8\n"


OFTEN_CRASHED = (
    "\n[breaker]\nconsecutive_max = 100\nwindow_calls = 100\n"
    "[times]\nrecycle_interval_ms = 600000\n"
)


def recycled(gateway: RunningGateway) -> Counter[str]:
    """Why workers were replaced by now, and how often."""
    fields = [event.fields for event in gateway.events()]
    return Counter(one.reason for one in fields if isinstance(one, ZygoteRecycle))


def install(gateway: RunningGateway) -> OmegaClient:
    """Register the plugin and have its first worker serve."""
    gateway.install(gateway.write_plugin(
        "crash-plugin", PLUGIN, limits=LIMITS, modules='["time"]'))
    omega = gateway.omega()
    omega.invoke("crash-plugin", "echo", "x")
    return omega


def test_no_call_is_lost_when_workers_are_replaced_after_their_calls() -> None:
    """Six callers at once over several incarnations: each call is answered with its own text."""
    answers: dict[str, object] = {}
    enough = threading.Event()
    with running_gateway("\n[workers]\ncalls_max = 12\n") as gateway:
        install(gateway)

        def call(caller: int) -> None:
            with OmegaClient.from_home(str(gateway.home)) as omega:
                while not enough.is_set():
                    text = f"{caller}{len(answers):05}"
                    answer = omega.invoke("crash-plugin", "count", text, timeout=15)
                    answers[text] = answer.payload

        callers = [threading.Thread(target=call, args=(caller,)) for caller in range(1, 7)]
        for thread in callers:
            thread.start()
        try:
            wait_for("three replacements", lambda: recycled(gateway)["calls"] > 2)
        finally:
            enough.set()
            for thread in callers:
                thread.join(20)
        fields = [event.fields for event in gateway.events()]

    assert answers == {text: TextPayload(text) for text in answers}
    assert {one.outcome for one in fields if isinstance(one, InvokeEnd)} == {"result"}
    assert sum(isinstance(one, InvokeEnd) for one in fields) >= len(answers) + 1
    exits = [one.reason for one in fields if isinstance(one, WorkerExit)]
    assert set(exits) <= {"drained"}
    spaces = [one.namespaces["pid"] for one in fields if isinstance(one, WorkerAttest)]
    assert all(old != new for old, new in itertools.pairwise(spaces)), "they live side by side"


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("forbidden", RefusalCode.SYSTEM_CALL_FORBIDDEN),
        ("fault", RefusalCode.PLUGIN_CRASHED),
    ],
)
def test_a_process_that_its_own_code_brought_down_has_its_incarnation_replaced(
    method: str, code: RefusalCode
) -> None:
    """The call ends as what it was; a call that runs meanwhile is answered by the old worker."""
    with running_gateway() as gateway:
        omega = install(gateway)
        answers: list[object] = []

        def count() -> None:
            with OmegaClient.from_home(str(gateway.home)) as other:
                answers.append(other.invoke("crash-plugin", "count", "40000000", timeout=20))

        counting = threading.Thread(target=count)
        counting.start()
        wait_for("the long call", lambda: gateway.operator().status().in_flight == 1)
        with pytest.raises(Refused) as refused:
            omega.invoke("crash-plugin", method, "x")
        gateway.wait_for_event("the old worker's end",
                               lambda event: isinstance(event.fields, WorkerExit))
        omega.invoke("crash-plugin", "echo", "y")
        counting.join(20)
        fields = [event.fields for event in gateway.events()]

    assert refused.value.code == code
    assert len(answers) == 1
    recycle = next(one for one in fields if isinstance(one, ZygoteRecycle))
    assert recycle.reason == "killed"
    exited = next(one for one in fields if isinstance(one, WorkerExit))
    assert (exited.incarnation, exited.reason) == (recycle.incarnation, "drained")
    last = [one for one in fields if isinstance(one, InvokeEnd)][-1]
    assert last.incarnation == recycle.successor


def test_a_plugin_that_crashes_in_every_call_does_not_keep_the_host_starting_workers() -> None:
    """Twenty crashes in a row, with a breaker that lets them through: each is answered as one, and
    one worker was started for them."""
    with running_gateway(OFTEN_CRASHED) as gateway:
        omega = install(gateway)
        codes = []
        for _ in range(20):
            with pytest.raises(Refused) as refused:
                omega.invoke("crash-plugin", "forbidden", "x")
            codes.append(refused.value.code)
        gateway.wait_for_event("the replacement",
                               lambda event: isinstance(event.fields, ZygoteRecycle))
        starts = sum(isinstance(event.fields, WorkerStart) for event in gateway.events())

        assert codes == [RefusalCode.SYSTEM_CALL_FORBIDDEN] * 20
        assert recycled(gateway) == {"killed": 1}
        assert starts == 2
        omega.invoke("crash-plugin", "echo", "still served")
