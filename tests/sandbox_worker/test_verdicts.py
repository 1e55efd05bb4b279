"""What a call's end is called, and which deaths count as faults of a plugin's own code."""

from __future__ import annotations

import opcode
import signal
from collections.abc import Iterator

import pytest

from sandbox_worker.forker import Exit
from sandbox_worker.replies import Answered, Failed
from sandbox_worker.verdicts import Verdict, answered, fault, verdict
from schemas.manifest import Limits
from schemas.messages import Abort, CallFailure, CallResult, Run, Usage
from schemas.payloads import TextPayload
from tests.sandbox_worker.harness import Worker, text_to_json, worker

LIMITS = Limits(cpu_ms=100, wall_ms=1000, memory_mb=64, output_bytes=10, concurrency=1)
ORDER = Run(
    call=1, method="main", payload=TextPayload(""), timeout_ms=1000,
    request_id="00000000-0000-4000-a000-000000000001",
)  # fmt: skip
ANSWER = Answered(TextPayload("well"))
_WIDER, _LOAD = opcode.opmap["EXTENDED_ARG"], opcode.opmap["LOAD_CONST"]
SOURCE = f'''
import time
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    if text.text == "forbidden":
        time.clock_settime(0, 0.0)
    if text.text == "fault":
        crash = lambda: None
        crash.__code__ = crash.__code__.replace(
            co_code={bytes([_WIDER, 0x7F, _WIDER, 0xFF, _WIDER, 0xFF, _LOAD, 0xFF])!r})
        crash()
    if text.text == "leave":
        __import__("posix")._exit(11)
    while text.text == "stay":
        pass
    return text.text
'''


def judged(
    status: int, reply: Answered | Failed | None, cpu_ms: int = 1, *, killed: bool = False
) -> Verdict:
    """Judge one end: its wait status, its reply and the processor time used."""
    usage = Usage(cpu_ms=cpu_ms, wall_ms=2, max_rss_kb_upper_bound=3, output_bytes=4)
    return verdict(
        Exit(1, status, cpu_ms * 1000, 3), reply, usage, ORDER, LIMITS,
        output_kind="text", output_bytes_max=10, killed=killed,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("status", "reply", "cpu_ms", "expected"),
    [
        (0, ANSWER, 1, Verdict()),
        (0, None, 1, Verdict("plugin_crashed")),
        (3 << 8, ANSWER, 1, Verdict("plugin_crashed")),
        (signal.SIGSEGV, ANSWER, 1, Verdict("plugin_crashed")),
        (signal.SIGSYS, ANSWER, 1, Verdict("system_call_forbidden")),
        (signal.SIGKILL, None, 100, Verdict("cpu_limit_exceeded", 100, 100)),
        (signal.SIGXCPU, None, 99, Verdict("cpu_limit_exceeded", 99, 100)),
        (signal.SIGKILL, None, 99, Verdict("plugin_crashed")),
        (0, Failed("plugin_error", "no"), 1, Verdict("plugin_error")),
        (0, Failed("memory_limit_exceeded", ""), 1, Verdict("memory_limit_exceeded", 1, 64)),
    ],
)
def test_the_kernels_word_goes_before_the_processes(
    status: int, reply: Answered | Failed | None, cpu_ms: int, expected: Verdict
) -> None:
    """A process that answered and then died of a signal has not answered."""
    assert judged(status, reply, cpu_ms) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (signal.SIGKILL, Verdict()),
        (0, Verdict()),
        (signal.SIGSYS, Verdict("system_call_forbidden")),
        (signal.SIGSEGV, Verdict("plugin_crashed")),
        (signal.SIGXCPU, Verdict("cpu_limit_exceeded", 1, 100)),
        (3 << 8, Verdict("plugin_crashed")),
    ],
)
def test_only_our_own_signal_says_nothing_of_who_had_answered(
    status: int, expected: Verdict
) -> None:
    """Who was dead when it was killed, and only not reaped, is judged by its death also in a crowd,
    where the time is that of the kill and the size that of the exit report."""
    ending = answered(Exit(1, status, 5_000_000, 3), 1000)

    assert (ending.cpu_us, ending.max_rss_kb) == (1000, 3)
    assert judged(ending.status, ANSWER, killed=True) == expected
    assert judged(status, ANSWER, killed=True) == expected


def test_only_what_code_brings_about_itself_is_a_fault() -> None:
    """Signals that the supervisor or a limit sends are none, nor is any exit status."""
    found = {number for number in range(1, 65) if fault(Exit(1, number, 0, 0))}

    assert {signal.SIGSYS, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL} <= found
    assert not found & {signal.SIGKILL, signal.SIGXCPU, signal.SIGTERM}
    assert all(fault(Exit(1, code << 8, 0, 0)) is None for code in range(256))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin can be brought down in several ways."""
    with worker(
        tmp_path_factory.mktemp("worker"), SOURCE, methods=text_to_json(), modules=("time",)
    ) as running:
        yield running


@pytest.mark.jail
@pytest.mark.system
@pytest.mark.parametrize(
    ("what", "code", "number"),
    [
        ("forbidden", "system_call_forbidden", signal.SIGSYS),
        ("fault", "plugin_crashed", signal.SIGSEGV),
        ("leave", "plugin_crashed", None),
    ],
)
def test_a_failure_tells_the_signal_of_a_fault(
    one: Worker, what: str, code: str, number: int | None
) -> None:
    """The report names it once; the next call's report is clean."""
    end = one.call(what)
    after = one.call("fine")

    assert isinstance(end, CallFailure)
    assert (end.code, end.fault) == (code, number)
    assert isinstance(after, CallResult)
    assert after.fault is None


@pytest.mark.jail
@pytest.mark.system
def test_a_call_that_is_ended_is_no_fault(one: Worker) -> None:
    """SIGKILL by the supervisor says nothing about the plugin's code."""
    call = one.start("stay")
    one.send(Abort(call=call))
    end = one.end_of(call)

    assert isinstance(end, CallFailure)
    assert (end.code, end.fault) == ("cancelled", None)
