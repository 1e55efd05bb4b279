"""The zygote at work: a call process for each that is asked for, and a word on its end.

It is loaded when the jail is closed and the plugin is compiled, see `compact.py`, and runs until
the supervisor is gone. Messages from and to the supervisor are words of 8 bytes: a kind, then call
numbers; a kind, then for each call that ended its number, wait status, processor time in us and
largest resident size in kB; a kind, a call number and an errno.

Rules: between two calls nothing is allocated that could have been made once, and the kernel is
asked by prepared calls: every page that this process writes to is copied for the next call. It
never runs plugin code, and decides nothing about calls.
"""

from __future__ import annotations

import gc
import os
import sys

from sandbox_worker import call, compact, denials, method
from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, packed, prepared, quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable
    from types import CodeType
    from typing import NoReturn

    from sandbox_worker.printing import Printer
    from sandbox_worker.zygote import Setup

CONTROL, DOMAIN, CHILDREN = 3, 4, 5
"""Descriptors of a running zygote: control socket, Landlock ruleset, signalfd for dead children."""

READY = b"R"
"""All that is said before the first message of words."""

WORD_BYTES = 8
FORK, HURRY, REHEARSE, KILL, EXITED, FORK_FAILED = range(6)
RECORD_WORDS = 4
MESSAGE_BYTES_MAX = 4096
FORKS_MAX = 32
"""Job sockets in one message."""

GARBAGE_OBJECTS = 50_000
"""New objects that make a call process look for garbage; its memory is bounded anyway."""

_HIDDEN = ("ctypes", "_ctypes", "ctypes._endian", "sandbox_worker.jail.linux", "_socket", "array")
"""Not to be imported by a plugin: a convenience for the reader of its source, not a wall."""

_kept: list[object] = []
_LARGE_BYTES = 100_000
_POLLIN, _NO_WAIT, _ANY_CHILD = 1, 1, -1
_CONTROL_HEADER_BYTES = 16
"""A `struct cmsghdr`; the descriptors follow it."""
_RECORDS_MAX = MESSAGE_BYTES_MAX // WORD_BYTES // RECORD_WORDS


def serve(setup: Setup, code: CodeType, printer: Printer | None) -> NoReturn:
    """Prepare everything that call processes have in common, then serve. Never returns.

    Args:
        setup: as the supervisor wrote it.
        code: the plugin's module, compiled and not run.
        printer: takes what the plugin prints, where anybody reads it.
    """
    jails = {
        # What a call process is handed comes behind its job socket.
        count: call.prepare(
            DOMAIN, strict_filter, range(CHILDREN + 2, CHILDREN + 2 + count),
            memory_mb=setup["memory_mb"], cpu_ms=setup["cpu_ms"],
        )
        for count, strict_filter in setup["strict_filters"].items()
    }  # fmt: skip
    method.import_quickly()
    compact.forget_code()
    call.warm_up()
    plugin = _plugin(setup, code, printer)
    for name in _HIDDEN:
        if name not in setup["modules"]:
            sys.modules.pop(name, None)
    gc.collect()
    gc.freeze()
    # Has libc merge what was freed now, and not in every call that wants a kilobyte.
    bytes(_LARGE_BYTES)
    _kept.append(compact.fill_holes())
    gc.set_threshold(GARBAGE_OBJECTS)
    os.write(CONTROL, READY)
    _loop(jails, plugin)


def _plugin(setup: Setup, code: CodeType, printer: Printer | None) -> method.Plugin:
    reseed: Callable[[], None] | None = None
    if "random" in sys.modules and not setup["random"]:
        # Its own at-fork hook would have seeded it with entropy that the call may not have.
        seed = sys.modules["random"].seed

        def reseed() -> None:
            seed(0)

    heard = bool(setup["modules"] or setup["packaged"]) or denials.worth_hearing(code)
    return method.Plugin(
        code, setup["resources"], reseed, call.progress, printer=printer, heard=heard
    )


def _loop(jails: dict[int, call.Jail], plugin: method.Plugin) -> NoReturn:
    """Fork on request, reap and report, kill on request; end when the supervisor is gone.

    Descriptors behind the job sockets of a request are what its one call process is handed.
    """
    calls: dict[int, int] = {}
    # Locals: each global or attribute looked at would be one more object that is written to.
    fork, become = os.fork, call.serve
    words, sockets, ready = _words, _sockets, _ready
    while True:
        quick(*_WAIT)
        if ready[_CHILDREN_READY]:
            quick(*_TAKE_SIGNALS)
            _reap(calls)
        if not ready[_CONTROL_READY]:
            continue
        _header_words[_ANCILLARY_SIZE] = len(_ancillary.buffer)
        count = quick(*_TAKE_MESSAGE) // WORD_BYTES
        if count <= 0:
            os._exit(0)
        kind = words[0]
        if kind == KILL:
            wanted = words[1:count].tolist()
            for pid in [pid for pid, number in calls.items() if number in wanted]:
                os.kill(pid, 9)
            continue
        given = (_ancillary_size[0] - _CONTROL_HEADER_BYTES) // 4
        jail = jails[given - count + 1]
        for at in range(1, count):
            try:
                pid = fork()
            except OSError as error:
                # One call's misfortune: too many processes, or no memory for another.
                os.write(CONTROL, packed(WORD_BYTES, FORK_FAILED, words[at], error.errno or 0))
            else:
                if pid == 0:
                    become(
                        sockets[at - 1], jail, plugin,
                        rehearsal=kind == REHEARSE, hurried=kind == HURRY,
                    )  # fmt: skip
                calls[pid] = words[at]
        for at in range(given):
            quick(linux.CLOSE, sockets[at])


def _reap(calls: dict[int, int]) -> None:
    """Report everything that ended, in as few messages as fit."""
    at = 1
    while calls and (pid := quick(*_TAKE_CHILD)) > 0:
        _report[at] = calls.pop(pid)
        _report[at + 1] = _status[0]
        _report[at + 2] = (_usage[0] + _usage[2]) * 1_000_000 + _usage[1] + _usage[3]
        _report[at + 3] = _usage[4]
        at += RECORD_WORDS
        if at + RECORD_WORDS > len(_report):
            _tell(at)
            at = 1
    if at > 1:
        _tell(at)


def _tell(count: int) -> None:
    _report[0] = EXITED
    quick(linux.WRITE, CONTROL, _REPORT_ADDRESS, count * WORD_BYTES)


# What the kernel fills and reads in the loop, at fixed addresses: see poll(2), recvmsg(2), cmsg(3),
# wait4(2) and getrusage(2).
_message, _answer = Memory(MESSAGE_BYTES_MAX), Memory(MESSAGE_BYTES_MAX)
_ancillary = Memory(_CONTROL_HEADER_BYTES + 4 * FORKS_MAX)
_iovec = Memory(packed(8, _message.address, MESSAGE_BYTES_MAX))
_header = Memory(packed(8, 0, 0, _iovec.address, 1, _ancillary.address, 0, 0))
_waiting = Memory(packed(4, CONTROL, _POLLIN, CHILDREN, _POLLIN))
_signals, _status_word, _usage_words = Memory(1024), Memory(4), Memory(144)
_words, _report = memoryview(_message.buffer).cast("Q"), memoryview(_answer.buffer).cast("Q")
_ancillary_size = memoryview(_ancillary.buffer)[:8].cast("Q")
_sockets = memoryview(_ancillary.buffer)[_CONTROL_HEADER_BYTES:].cast("i")
_header_words, _ANCILLARY_SIZE = memoryview(_header.buffer).cast("Q"), 5
_ready, _CONTROL_READY, _CHILDREN_READY = memoryview(_waiting.buffer).cast("H"), 3, 7
_status = memoryview(_status_word.buffer).cast("I")
_usage = memoryview(_usage_words.buffer).cast("q")

_WAIT = prepared(linux.POLL, _waiting, 2, -1)
_TAKE_MESSAGE = prepared(linux.RECVMSG, CONTROL, _header, 0)
_TAKE_SIGNALS = prepared(linux.READ, CHILDREN, _signals, len(_signals.buffer))
_TAKE_CHILD = prepared(linux.WAIT4, _ANY_CHILD, _status_word, _NO_WAIT, _usage_words)
(_REPORT_ADDRESS,) = prepared(_answer)
