"""How a call ended, from what its process said, how it died and what it used. Pure.

Rules: what the kernel says goes before what the process says; a limit that was passed comes with
the figure used and the figure allowed, in the limit's own unit. A fault is a death that only the
process's own code can bring about: it may have taught that code the zygote's layout, so the broker
replaces the incarnation. It leaves what the supervisor itself ended to the supervisor.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple

from sandbox_worker.forker import Exit
from sandbox_worker.replies import Answered, Failed, Probed, output_bytes, printable
from schemas.manifest import Limits
from schemas.messages import CallFailure, CallResult, FailureCode, Run, Usage
from schemas.names import PayloadKind
from schemas.payloads import PAYLOAD_KINDS

_FAULTS = frozenset(
    (
        signal.SIGSYS, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGABRT,
        signal.SIGTRAP,
    )
)  # fmt: skip


class Verdict(NamedTuple):
    """Why a call failed, with the figure used and the figure allowed; no code if it did not."""

    code: FailureCode | None = None
    used: int | None = None
    allowed: int | None = None


def exit_code(ending: Exit) -> int:
    """Give the exit status, or the negative of the signal that ended the process."""
    return os.waitstatus_to_exitcode(ending.status)


def fault(ending: Exit) -> int | None:
    """Give the signal by which the kernel ended a process for what its code did, or None."""
    number = -exit_code(ending)
    return number if number in _FAULTS else None


def answered(ending: Exit, used_us: int) -> Exit:
    """Give the end of a process that was killed when it had used so much, after its answer.

    Its status says nothing then. That of one that was dead by then, and only not reaped, stays.
    """
    status = 0 if exit_code(ending) == -signal.SIGKILL else ending.status
    return Exit(ending.number, status, used_us, ending.max_rss_kb)


def usage_of(ending: Exit, reply: Answered | Failed | Probed | None, wall_ms: int) -> Usage:
    """Give what a call used, as it is reported: times in whole milliseconds."""
    return Usage(
        cpu_ms=(ending.cpu_us + 999) // 1000,
        wall_ms=wall_ms,
        max_rss_kb_upper_bound=ending.max_rss_kb,
        output_bytes=output_bytes(reply.payload) if isinstance(reply, Answered) else 0,
    )


def verdict(
    ending: Exit, reply: Answered | Failed | Probed | None, usage: Usage, order: Run,
    limits: Limits, *, output_kind: PayloadKind, output_bytes_max: int, killed: bool,
) -> Verdict:  # fmt: skip
    """Judge a call that nobody ended from outside.

    Args:
        ending: how its process ended.
        reply: what it said, if anything.
        usage: what it used.
        order: what it was asked.
        limits: the manifest's.
        output_kind: what the method declares that it gives.
        output_bytes_max: the smaller of the manifest's and the order's bound.
        killed: whether the process was ended after its reply, so that SIGKILL says nothing.
    """
    code = exit_code(ending)
    if code == -signal.SIGSYS:
        return Verdict("system_call_forbidden")
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and usage.cpu_ms >= limits.cpu_ms):
        return Verdict("cpu_limit_exceeded", usage.cpu_ms, limits.cpu_ms)
    if code != 0 and not (killed and code == -signal.SIGKILL):
        return Verdict("plugin_crashed")
    if order.cpu_ms_max is not None and usage.cpu_ms > order.cpu_ms_max:
        return Verdict("cpu_limit_exceeded", usage.cpu_ms, order.cpu_ms_max)
    if isinstance(reply, Failed):
        if reply.code == "memory_limit_exceeded":
            used_kb = max(ending.widest_kb, ending.max_rss_kb)
            return Verdict(reply.code, -(-used_kb // 1024), limits.memory_mb)
        return Verdict(reply.code)
    if not isinstance(reply, Answered):
        return Verdict("plugin_crashed")
    if usage.output_bytes > output_bytes_max:
        return Verdict("output_limit_exceeded", usage.output_bytes, output_bytes_max)
    if PAYLOAD_KINDS[type(reply.payload)] != output_kind:
        return Verdict("output_kind_mismatch")
    return Verdict()


def report(
    call: int, reply: Answered | Failed | Probed | None, found: Verdict, usage: Usage,
    faulted: int | None,
) -> CallResult | CallFailure:  # fmt: skip
    """Say to the broker how a call ended.

    Args:
        call: its number.
        reply: what its process said, if anything.
        found: why it failed, if it did.
        usage: what it used.
        faulted: a fault that this report has to tell of, its own or an earlier one's.
    """
    if found.code is None and isinstance(reply, Answered):
        return CallResult(call=call, payload=reply.payload, usage=usage, fault=faulted)
    failed = reply if isinstance(reply, Failed) else None
    return CallFailure(
        call=call, code=found.code or "plugin_crashed",
        plugin_message=printable(failed.message) if failed and failed.message else None,
        denied=failed.denied if failed else None,
        used=found.used, allowed=found.allowed, usage=usage, fault=faulted,
    )  # fmt: skip
