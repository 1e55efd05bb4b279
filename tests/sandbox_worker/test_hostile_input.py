"""Bytes from a call process and sources for the compiler are hostile: each costs itself alone."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from sandbox_worker.forker import COMPILE_CPU_S
from schemas.messages import Bye, CallFailure, CallProgress, CallResult
from schemas.payloads import JSONPayload
from tests.sandbox_worker.harness import (
    LIMITS,
    PATIENCE_S,
    Worker,
    make_bundle,
    text_to_json,
    worker,
)
from tests.sandbox_worker.zygotes import refusal_of

pytestmark = [pytest.mark.jail, pytest.mark.system]

PLUGIN = '''
import os
import time

from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    head, _, what = text.text.partition(" ")
    data = bytes.fromhex(head)
    while data:
        data = data[os.write(3, data):]
    return eval(what or "1")


def forever(data):
    while True:
        os.write(3, data)


def hang():
    while True:
        pass
'''

QUICK = msgspec.structs.replace(LIMITS, cpu_ms=300, output_bytes=4096)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """One worker for all: whatever it was sent, it must serve the next call."""
    with worker(tmp_path_factory.mktemp("worker"), PLUGIN, limits=QUICK) as running:
        yield running


def _frame(*values: object) -> bytes:
    return _sized(msgspec.msgpack.encode(values))


def _sized(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def _json(data: object = b"7") -> dict[str, object]:
    return {"type": "json", "data": data}


def _nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


FORGED = _frame("result", _json(b"[]"))
HOSTILE: dict[str, tuple[bytes, str, str]] = {
    # What is sent, what the plugin does then, and how its call must end.
    "truncated, then the end": (b"\0\0\0\x64abc", "os._exit(0)", "plugin_crashed"),
    "truncated, then silence": (b"\0\0\0\x64abc", "hang()", "cpu_limit_exceeded"),
    "half a length, then the end": (b"\0\0", "os._exit(0)", "plugin_crashed"),
    "oversized by its length": (b"\xff\xff\xff\xff", "hang()", "output_limit_exceeded"),
    "oversized by one": (
        struct.pack(">I", QUICK.output_bytes + 4097), "hang()", "output_limit_exceeded",
    ),
    "oversized output": (
        _frame("result", _json(b"1" * (QUICK.output_bytes + 1))), "", "output_limit_exceeded",
    ),
    "endless notes": (b"", f"forever({_frame('progress', 1, 'x')})", "output_limit_exceeded"),
    "endless print": (b"", f"forever({_frame('wrote', '')})", "output_limit_exceeded"),
    "endless nothing": (b"", "forever(bytes(64))", "output_invalid"),
    "endless garbage": (b"", "forever(b'\\xff' * 64)", "output_limit_exceeded"),
    "no frame at all": (_sized(b""), "hang()", "output_invalid"),
    "two values in one frame": (_sized(b"\xc0\xc0"), "hang()", "output_invalid"),
    "a map": (_sized(msgspec.msgpack.encode(_json())), "hang()", "output_invalid"),
    "an unknown tag": (_frame("run", 1), "hang()", "output_invalid"),
    "an order of the broker's": (
        _sized(msgspec.msgpack.encode({"type": "abort", "call": 1})), "hang()", "output_invalid",
    ),
    "a rehearsal's word": (_frame("rehearsed"), "hang()", "output_invalid"),
    "a probe's word": (_frame("probed", []), "hang()", "output_invalid"),
    "a tag that is a number": (_frame(1, _json()), "hang()", "output_invalid"),
    "a member more": (_frame("result", _json(), 1), "hang()", "output_invalid"),
    "a member less": (_frame("result"), "hang()", "output_invalid"),
    "a payload of no kind": (_frame("result", {"type": "any"}), "hang()", "output_invalid"),
    "a payload that is a list": (_frame("result", [1]), "hang()", "output_invalid"),
    "data that is text": (_frame("result", _json("7")), "hang()", "output_invalid"),
    "an unknown field": (_frame("result", _json() | {"x": 1}), "hang()", "output_invalid"),
    "a field named twice, in another type": (
        _sized(b"\x92\xa6result\x83\xa4type\xa4json\xa4data\xc4\x017\xa4data\x07"), "hang()",
        "output_invalid",
    ),
    "another kind than declared": (
        _frame("result", {"type": "text", "text": "x", "media_type": "text/plain"}), "",
        "output_kind_mismatch",
    ),
    "progress beyond all": (_frame("progress", 1001, ""), "hang()", "output_invalid"),
    "progress that is text": (_frame("progress", "1", ""), "hang()", "output_invalid"),
    "a note that is bytes": (_frame("progress", 1, b""), "hang()", "output_invalid"),
    "a note that is not UTF-8": (
        _sized(b"\x93\xa8progress\x01\xa2\xff\xfe"), "hang()", "output_invalid",
    ),
    "a failure of no kind": (_frame("failed", "cancelled", ""), "hang()", "output_invalid"),
    "a failure with a strange class": (
        _frame("failed", "plugin_error", "", "passwd"), "hang()", "output_invalid",
    ),
    "nested a hundred deep": (_sized(_nested(100)), "hang()", "output_invalid"),
    "nested deeper than a stack": (_sized(_nested(8000)), "hang()", "output_invalid"),
    "nested in a payload": (
        _sized(b"\x92\xa6result\x82\xa4type\xa4json\xa4data" + _nested(8000)), "hang()",
        "output_invalid",
    ),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_bytes_cost_their_own_call_only(one: Worker, name: str) -> None:
    """Each has its code, and the same worker answers the next call."""
    sent, then, code = HOSTILE[name]
    end = one.call(f"{sent.hex()} {then}")

    assert isinstance(end, CallFailure), end
    assert end.code == code
    assert one.value(" 6 * 7") == 42
    assert one.process.poll() is None
    one.others.clear()


@pytest.mark.parametrize(
    ("then", "what"),
    [
        ("", "the method's own answer comes second"),
        ("forever(b'x' * 4096)", "endless bytes follow"),
        ("os.write(3, bytes(range(256)))", "garbage follows"),
        ("hang()", "nothing follows"),
    ],
    ids=["twice", "late flood", "late garbage", "silence"],
)
def test_the_first_answer_is_the_only_one(one: Worker, then: str, what: str) -> None:
    """A plugin that answers early has only answered itself; what comes later is not read."""
    end = one.call(f"{FORGED.hex()} {then}")

    assert isinstance(end, CallResult), what
    assert end.payload == JSONPayload(b"[]")
    assert one.value(" 6 * 7") == 42


def test_a_late_answer_of_an_ended_call_is_nobodys(one: Worker) -> None:
    """A call that ended by its deadline is killed; nothing of it is taken for another's answer."""
    end = one.call(" hang() or 1", timeout_ms=100)
    assert isinstance(end, CallFailure)
    assert end.code == "deadline_exceeded"

    calls = {one.start(f" {number}"): number for number in range(8)}
    for _ in range(len(calls)):
        report = one.receive()
        while isinstance(report, CallProgress):
            report = one.receive()
        assert isinstance(report, CallResult), report
        assert isinstance(report.payload, JSONPayload)
        assert report.payload.data == str(calls.pop(report.call)).encode()
    assert not calls


SOURCE = '''
from sandbox_worker.sdk import method


@method()
def main(ctx, text):
    return 7
'''


def _finally(levels: int) -> str:
    """Nested `finally` blocks: the compiler writes each of them twice."""
    lines = [f"{' ' * at}try: pass\n{' ' * at}finally:" for at in range(levels)]
    return "\n".join([*lines, " " * levels + "pass"]) + "\n"


REFUSED = {
    "nested parentheses": "x = " + "(" * 5000 + ")" * 5000,
    "nested lists": "x = " + "[" * 50_000,
    "nested calls": "x = " + "f(" * 5000 + ")" * 5000,
    "nested minus": "x = " + "-" * 200_000 + "1",
    "nested lambdas": "x = " + "lambda: " * 30_000 + "1",
    "nested blocks": "".join(" " * at + "if 1:\n" for at in range(200)) + " " * 200 + "pass\n",
    "nested functions": "".join(" " * at + "def f():\n" for at in range(99)) + "pass\n",
    "a number of many digits": "x = " + "9" * 5000,
    "a null byte": "x = 1\0\n",
    "a null byte in a text": "x = 'a\0b'\n",
    "an unterminated text": "x = '''" + "a" * 100_000,
    "a strange letter": "x = \N{RIGHT-TO-LEFT OVERRIDE}1\n",
    "bad indentation": "if 1:\n\tx = 1\n        y = 2\n",
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_source_that_does_not_compile_is_its_plugins_failure(tmp_path: Path, name: str) -> None:
    """The refusal says what is wrong: nothing crashed, and the jail is not blamed."""
    refusal = refusal_of(tmp_path, REFUSED[name] + SOURCE)

    assert refusal is not None
    assert "the plugin does not compile: " in str(refusal)


def test_a_source_that_would_compile_for_hours_is_ended(tmp_path: Path) -> None:
    """The compiler has a bound of processor time, and the refusal says so, from a real worker."""
    nested = "\n ".join(["def f():", *_finally(17).splitlines()]) + "\n"
    bundle = make_bundle(tmp_path, nested * 4 * COMPILE_CPU_S, methods=text_to_json())
    started = Worker(tmp_path, bundle)
    try:
        report = started.receive()
        assert isinstance(report, Bye), report
        assert report.reason == "plugin_load_failed"
        assert f"more than {COMPILE_CPU_S} s of processor time" in report.detail
        assert started.process.wait(PATIENCE_S) == 5
    finally:
        started.close()


COMPILED = {
    "a coding cookie": "# coding: rot13\n",
    "a cookie of no codec": "# -*- coding: no-such-codec -*-\n",
    "a cookie of another width": "# coding: utf-16\n",
    "a mark before the text": "\ufeff# utf-8\n",
    "a huge number in hex": "x = 0x" + "f" * 100_000 + "\n",
    "a power that is not folded": "def late(): return 9 ** 9 ** 9\n",
    "a repetition that is not folded": "def late(): return 'x' * 10 ** 12\n",
    "a warning of the compiler": "x = '\\d'\ny = 1 is 1\n",
    "many constants": "x = [" + ", ".join(map(str, range(30_000))) + "]\n",
}


@pytest.mark.parametrize("name", sorted(COMPILED))
def test_a_strange_source_that_compiles_is_served(tmp_path: Path, name: str) -> None:
    """Cookies look no codec up, warnings go nowhere, and what could be large is not made early."""
    assert refusal_of(tmp_path, COMPILED[name] + SOURCE) is None


@pytest.mark.parametrize(
    ("start", "code"),
    [
        ("x = 9 ** 9 ** 9\n", "cpu_limit_exceeded"),
        ("x = 'x' * 10 ** 12\n", "memory_limit_exceeded"),
        ("import os\nos._exit(0)\n", "plugin_crashed"),
        ("raise SystemExit\n", "plugin_load_failed"),
    ],
    ids=["time", "memory", "end", "error"],
)
def test_what_a_source_does_when_it_is_loaded_ends_one_call(
    tmp_path: Path, start: str, code: str
) -> None:
    """What explodes at its top level does so in a call, by that call's limits, again and again."""
    with worker(tmp_path, start + SOURCE, limits=QUICK, pool_size=1) as running:
        for _ in range(2):
            end = running.call()
            assert isinstance(end, CallFailure)
            assert end.code == code
