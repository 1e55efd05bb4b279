"""Calls through a real worker: what each end of a call is reported as, and what it cost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import msgspec
import pytest

from schemas.manifest import Limits, Method, PayloadSpec
from schemas.messages import (
    Abort,
    CallFailure,
    CallProgress,
    CallResult,
    Ping,
    Pong,
    Probe,
    ProbeReport,
)
from schemas.payloads import BinaryRefPayload, DatasetSlicePayload, JSONPayload, TextPayload
from schemas.witness import failed_probes
from tests.sandbox_worker.harness import (
    Worker,
    worker,
)

pytestmark = [pytest.mark.jail, pytest.mark.system]

SOURCE = '''
import sys
import time

import msgspec

from sandbox_worker.sdk import (
    BinaryRefPayload, CannotAnswer, Context, DatasetSlicePayload, InvalidInput, JSONPayload,
    TextPayload, method,
)


class Point(msgspec.Struct):
    x: int
    y: float = 0.5


@method()
def words(ctx: Context, text: TextPayload):
    return {"words": len(text.text.split()), "id": ctx.request_id, "name": ctx.method}

@method()
def upper(ctx, text: str) -> str:
    return text.upper()

@method()
def move(ctx: Context, point: Point) -> Point:
    return Point(point.x + 1, point.y * 2)

@method()
def document(ctx: Context, document: JSONPayload):
    return JSONPayload({"got": document.data})

@method()
def artifact(ctx: Context, reference: BinaryRefPayload):
    return reference

@method()
def dataset(ctx: Context, part: DatasetSlicePayload):
    return DatasetSlicePayload(part.dataset_id, part.keys[:1])

@method()
def environment(ctx: Context, text: TextPayload):
    import os
    return [ctx.env, dict(os.environ), ctx.resource("words.txt").decode()]

@method()
def talk(ctx: Context, text: TextPayload):
    print("to nobody" * 100000)
    ctx.log("to nobody")
    ctx.progress(0.25, "a quarter\\x1b[31m")
    return None

@method()
def wrong(ctx: Context, text: TextPayload):
    raise ValueError("on purpose: " + "\\x07" * 3 + "x" * 5000)

@method()
def half(ctx: Context, text: TextPayload):
    raise ValueError("half of a pair: \\ud800")

@method()
def misnote(ctx: Context, text: TextPayload):
    ctx.progress(0.5, 7)

@method()
def invalid(ctx: Context, text: TextPayload):
    raise InvalidInput("give me numbers")

@method()
def unanswerable(ctx: Context, text: TextPayload):
    raise CannotAnswer("there is none")

@method()
def leave(ctx: Context, text: TextPayload):
    import os
    os._exit(int(text.text))

@method()
def system_exit(ctx: Context, text: TextPayload):
    sys.exit(3)

@method()
def spin(ctx: Context, text: TextPayload):
    while True:
        pass

@method()
def swallow(ctx: Context, text: TextPayload):
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass

@method()
def wait(ctx: Context, text: TextPayload):
    import _thread
    lock = _thread.allocate_lock()
    lock.acquire()
    lock.acquire()

@method()
def eat(ctx: Context, text: TextPayload):
    kept = []
    while True:
        kept.append(bytearray(1 << 24))

@method()
def large(ctx: Context, text: TextPayload):
    return "x" * int(text.text)

@method()
def endless(ctx: Context, text: TextPayload):
    import os
    while True:
        os.write(3, b"\\x00\\x00\\x00\\x01\\xc0" * 1000)

@method()
def chatter(ctx: Context, text: TextPayload):
    for step in range(100000):
        ctx.progress(step / 100000, "on and on")
    return "done"

@method()
def raw(ctx: Context, text: TextPayload):
    import os
    os.write(3, bytes.fromhex(text.text))
    return "after"

@method()
def number(ctx: Context, text: TextPayload):
    return eval(text.text)

@method()
def recurse(ctx: Context, text: TextPayload):
    def deeper():
        return deeper()
    return deeper()

@method()
def sigsys(ctx: Context, text: TextPayload):
    frame = sys._getframe()
    while "linux" not in frame.f_globals:
        frame = frame.f_back
    frame.f_globals["linux"].call(101, 0, 0, 0, 0)

@method()
def overflow(ctx: Context, text: TextPayload):
    value = []
    for _ in range(50000):
        value = [value]
    return repr(value)
'''

TEXT, JSON = PayloadSpec("text"), PayloadSpec("json")
REFERENCE, SLICE = PayloadSpec("binary_ref"), PayloadSpec("dataset_slice")
METHODS = {
    **{
        name: Method(TEXT, JSON)
        for name in (
            "words", "environment", "talk", "wrong", "half", "misnote", "invalid", "unanswerable",
            "leave",
            "system_exit", "spin", "swallow", "eat", "large", "endless",
            "chatter", "raw", "number", "recurse", "sigsys", "overflow", "missing",
        )
    },
    "wait": Method(TEXT, JSON, timeout_ms=1500),
    "upper": Method(TEXT, TEXT),
    "move": Method(JSON, JSON),
    "document": Method(JSON, JSON),
    "artifact": Method(REFERENCE, REFERENCE),
    "dataset": Method(SLICE, SLICE),
}
QUICK = Limits(cpu_ms=300, wall_ms=4000, memory_mb=128, output_bytes=64 * 1024, concurrency=8)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker whose plugin has a method for each way a call can end."""
    with worker(
        tmp_path_factory.mktemp("worker"),
        SOURCE,
        methods=METHODS,
        limits=QUICK,
        modules=("msgspec",),
        resources={"words.txt": b"apple"},
        grants=("env.read:COLOUR",),
        grant_values={"env.read:COLOUR": "green", "env.read:SECRET": "never granted"},
    ) as running:
        yield running


def _failure(one: Worker, method: str, text: str = "", timeout_ms: int = 4000) -> CallFailure:
    """The failure a call must end with; the worker must serve the next one."""
    end = one.call(text, method, timeout_ms)
    assert isinstance(end, CallFailure), end
    assert one.value("still here", "words") is not None
    return end


def test_text_in_json_out_with_usage(one: Worker) -> None:
    """An ordinary call gives canonical JSON and figures that belong to it."""
    end = one.call("three short words", "words")

    assert isinstance(end, CallResult)
    assert isinstance(end.payload, JSONPayload)
    document = msgspec.json.decode(end.payload.data)
    assert document["words"] == 3
    assert document["name"] == "words"
    assert uuid.UUID(document["id"]).version == 4
    assert end.payload.data.startswith(b'{"id":"')
    assert end.usage.output_bytes == len(end.payload.data)
    assert 0 < end.usage.cpu_ms <= QUICK.cpu_ms
    assert end.usage.max_rss_kb_upper_bound > 1000


def test_every_payload_kind_passes_both_ways(one: Worker) -> None:
    """Text, JSON, struct, reference and slice arrive as their SDK types and come back."""
    reference = BinaryRefPayload("art:1", "0" * 64, 5, "image/png")
    part = DatasetSlicePayload("set", ("a", "b"))
    text = one.call("zoë", "upper")
    artifact = one.call(reference, "artifact")
    dataset = one.call(part, "dataset")

    assert isinstance(text, CallResult)
    assert text.payload == TextPayload("ZOË")
    assert isinstance(artifact, CallResult)
    assert artifact.payload == reference
    assert isinstance(dataset, CallResult)
    assert dataset.payload == DatasetSlicePayload("set", ("a",))
    assert one.value(JSONPayload(b'{"x":1}'), "move") == {"x": 2, "y": 1}
    assert one.value(JSONPayload(b'[1,"\xc3\xa9",null]'), "document") == {"got": [1, "é", None]}


def test_a_struct_that_does_not_fit_is_the_callers_mistake(one: Worker) -> None:
    """Input that cannot become the annotated struct ends as invalid input."""
    end = one.call(JSONPayload(b'{"x":"one"}'), "move")

    assert isinstance(end, CallFailure)
    assert end.code == "invalid_input"


def test_only_granted_environment_and_listed_resources_exist(one: Worker) -> None:
    """`ctx.env` holds the grant, the process environment nothing."""
    assert one.value("", "environment") == [{"COLOUR": "green"}, {}, "apple"]


def test_output_to_the_terminal_goes_nowhere_and_progress_is_printable(one: Worker) -> None:
    """Printing a megabyte costs nothing; a progress note loses its control characters."""
    assert one.value("", "talk") is None

    told = [report for report in one.others if isinstance(report, CallProgress)]
    assert [(report.permille, report.note) for report in told] == [(250, "a quarter [31m")]
    one.others.clear()


@pytest.mark.parametrize(
    ("method", "text", "code"),
    [
        ("wrong", "", "plugin_error"),
        ("half", "", "plugin_error"),
        ("misnote", "", "plugin_error"),
        ("invalid", "", "invalid_input"),
        ("unanswerable", "", "cannot_answer"),
        ("missing", "", "plugin_load_failed"),
        ("unknown", "", "plugin_load_failed"),
        ("leave", "0", "plugin_crashed"),
        ("leave", "9", "plugin_crashed"),
        ("system_exit", "", "plugin_error"),
        ("recurse", "", "plugin_error"),
        ("sigsys", "", "system_call_forbidden"),
        ("overflow", "", "plugin_error"),
        ("eat", "", "memory_limit_exceeded"),
        ("spin", "", "cpu_limit_exceeded"),
        ("swallow", "", "cpu_limit_exceeded"),
        ("wait", "", "wall_limit_exceeded"),
        ("large", "65600", "output_limit_exceeded"),
        ("large", "2000000", "output_limit_exceeded"),
        ("endless", "", "output_invalid"),
        ("number", "2**60", "output_invalid"),
        ("number", "float('nan')", "output_invalid"),
        ("number", "{1: 2}", "output_invalid"),
        ("number", "object()", "output_invalid"),
        ("number", "'\\ud800'", "output_invalid"),
        ("number", "TextPayload('kind')", "output_kind_mismatch"),
    ],
)
def test_each_way_to_fail_has_its_code(one: Worker, method: str, text: str, code: str) -> None:
    """The code says what happened, and the worker serves the next call."""
    assert _failure(one, method, text).code == code


def test_limits_name_the_figure_used_and_the_figure_allowed(one: Worker) -> None:
    """Processor time, wall time, deadline and output each say both numbers."""
    cpu, wall = _failure(one, "spin"), _failure(one, "wait")
    output, deadline = _failure(one, "large", "70000"), _failure(one, "wait", timeout_ms=200)

    assert cpu.allowed == 300
    assert cpu.used is not None
    assert 300 <= cpu.used < 600
    assert (wall.code, wall.allowed) == ("wall_limit_exceeded", 1500)
    assert wall.used is not None
    assert 1500 <= wall.used < 15_000
    assert (output.used or 0) > (output.allowed or 0) == 65536
    assert (deadline.code, deadline.allowed) == ("deadline_exceeded", 200)
    assert deadline.used is not None
    assert 200 <= deadline.used < 2_000


def test_a_plugins_words_are_cut_and_printable(one: Worker) -> None:
    """What an exception says travels as at most one kibibyte of printable text."""
    message = _failure(one, "wrong").plugin_message

    assert message is not None
    assert message.startswith("ValueError: on purpose:    xxx")
    assert len(message.encode()) <= 1024
    assert message.isprintable()


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        ("", None),
        ("00000005", None),
        ("ffffffff", "output_limit_exceeded"),
        ("00000001c0", "output_invalid"),
        ("00000001c1", "output_invalid"),
        ("0000000393a3", "output_invalid"),
        ("0000000100", "output_invalid"),
        ("00000004" + "91" * 4, "output_invalid"),
        ("00001000" + "91" * 4096, "output_invalid"),
        ("0000000c" + "91aa" + b"rehearsed".hex() + "00", "output_invalid"),
        ("00000009" + "92a6" + b"probed".hex() + "90", "output_invalid"),
        ("00000002" + "9190", "output_invalid"),
    ],
)
def test_hostile_bytes_end_only_their_own_call(one: Worker, frame: str, code: str | None) -> None:
    """Truncated, endless, mistyped and deeply nested frames are refused, each as its own."""
    end = one.call(frame, "raw")

    if code is None:
        assert isinstance(end, (CallResult, CallFailure))
    else:
        assert isinstance(end, CallFailure)
        assert end.code == code
    assert one.value("a b", "words") is not None


def test_a_forged_early_reply_counts_and_the_later_one_is_not_read(one: Worker) -> None:
    """One answer to one job: the first. A plugin that forges it has only answered itself."""
    payload = msgspec.msgpack.encode({"type": "json", "data": b"[]"})
    body = b"\x92\xa6result" + payload
    end = one.call((len(body).to_bytes(4, "big") + body).hex(), "raw")

    assert isinstance(end, CallResult)
    assert end.payload == JSONPayload(b"[]")


def test_progress_floods_are_thinned(one: Worker) -> None:
    """A hundred thousand notes end the call or become a few reports; never a flood."""
    one.call("", "chatter")

    told = [report for report in one.others if isinstance(report, CallProgress)]
    assert len(told) < 20
    one.others.clear()


def test_eight_calls_at_once_are_answered_each_with_its_own(one: Worker) -> None:
    """Concurrent calls neither wait for nor mix with each other."""
    calls = {one.start("word " * count, "words"): count for count in range(1, 9)}
    answers: dict[int, int] = {}
    while calls.keys() - answers.keys():
        report = one.receive()
        assert isinstance(report, CallResult), report
        assert isinstance(report.payload, JSONPayload)
        answers[report.call] = msgspec.json.decode(report.payload.data)["words"]

    assert answers == calls


def test_abort_ends_the_call_at_once(one: Worker) -> None:
    """A cancelled call is killed and says so."""
    call = one.start("", "wait")
    one.send(Abort(call=call))
    end = one.end_of(call)

    assert isinstance(end, CallFailure)
    # At its limit it would have ended as something else.
    assert end.code == "cancelled"


def test_ping_is_answered_by_the_main_loop(one: Worker) -> None:
    """The pong carries the ping's nonce."""
    one.send(Ping(nonce=b"0123456789abcdef"))

    assert one.receive() == Pong(nonce=b"0123456789abcdef")


def test_a_probe_goes_down_the_path_of_calls_and_is_held(one: Worker) -> None:
    """Every probe is denied or killed, and the control is allowed."""
    one.send(Probe(probe=7, nonce=b"0123456789abcdef"))
    report = one.receive()

    assert isinstance(report, ProbeReport)
    outcomes = {outcome.name: outcome.outcome for outcome in report.outcomes}
    assert failed_probes(outcomes, ()) == ()


def test_a_large_input_arrives_whole(one: Worker) -> None:
    """A megabyte of text, more than a socket buffer, reaches the plugin."""
    end = one.call("word " * 200_000, "words")

    assert isinstance(end, CallResult)
