"""The call process: a fresh fork of the zygote that closes its own jail, serves one job and ends.

Order, as in docs/ARCHITECTURE.md: job socket to descriptor 3, own Landlock domain, what the call is
handed to the numbers from 4 on, every other descriptor closed, limits, CPU timer, filter. Only then
is the job read, and only then does plugin code run: no plugin code runs before OMEGA's call has
arrived. A step that fails ends the process with `JAIL_FAILED`.

Rules: nothing is imported or allocated that the zygote could have prepared; what leaves is one
reply, after any progress, each a length and msgpack; the supervisor trusts none of it.
"""

from __future__ import annotations

import marshal
import os

from sandbox_worker import method
from sandbox_worker import rehearsal as rehearsing
from sandbox_worker.encode import framed, pack
from sandbox_worker.jail import landlock, linux, rlimits, seccomp
from sandbox_worker.jail.linux import quick

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from typing import NoReturn

    from sandbox_worker.jail.linux import Prepared
    from sandbox_worker.method import Plugin

JOB = 3
JAIL_FAILED = 70
"""Exit status of a call process that could not close its jail; the worker ends with it."""

LENGTH_BYTES = 5
"""A marshalled int of 32 bits."""

# Names of this module: looking into another one would write to its objects in every call.
_read, _write = os.read, os.write
_loads, _reply, _practise = marshal.loads, method.reply, method.practise
_DUP3, _CLOEXEC = linux.DUP3, os.O_CLOEXEC
_POLLIN = 1
_JOB_WAITS = linux.prepared(linux.POLL, linux.Memory(linux.packed(4, JOB, _POLLIN)), 1, 0)
_NO_PID = 1 << 22
"""No pid is that large, see proc_sys_kernel(5)."""
_NO_MEMORY = framed(pack(["failed", "memory_limit_exceeded", ""]))


class Jail:
    """The prepared steps by which every call process jails itself, in order.

    Attributes:
        before: steps up to the layer that forbids signals to the outside.
        forbidden: what must fail from then on.
        after: steps from the closing of descriptors to the last before the filter.
        seal: the filter, last of all.
        order: all of these in their order, each group with whether its steps must fail.
    """

    __slots__ = ("after", "before", "cpu_ms", "end", "forbidden", "limits", "order", "seal")

    def __init__(
        self,
        before: tuple[Prepared, ...] = (),
        forbidden: tuple[Prepared, ...] = (),
        after: tuple[Prepared, ...] = (),
        seal: tuple[Prepared, ...] = (),
        *,
        limits: tuple[tuple[int, int], ...] = (),
        cpu_ms: int = 0,
        end: int = JOB + 1,
    ) -> None:
        """Hold the steps; the rest is what they must have set, `end` the end of descriptors."""
        self.before = before
        self.forbidden = forbidden
        self.after = after
        self.seal = seal
        self.order = (before, False), (forbidden, True), (after, False), (seal, False)
        self.limits = limits
        self.cpu_ms = cpu_ms
        self.end = end


def prepare(
    domain: int, strict_filter: bytes, received: range, *, memory_mb: int, cpu_ms: int
) -> Jail:
    """Convert every system call of one kind of call process once, in the zygote.

    Args:
        domain: the descriptor of a Landlock ruleset.
        strict_filter: what such a call process adds to the zygote's filter.
        received: descriptors that it is handed; they move down to the numbers behind its job when
            the ruleset is on, whose number one of them takes.
        memory_mb: address space in MiB.
        cpu_ms: processor time.
    """
    prepared, end = linux.prepared, JOB + 1 + len(received)
    return Jail(
        before=(landlock.prepared_restrict(domain),),
        # In its own Landlock domain a call process cannot signal its parent.
        forbidden=(prepared(linux.KILL, 1, 0),),
        after=(
            *(prepared(linux.DUP3, number, JOB + 1 + place, os.O_CLOEXEC)
              for place, number in enumerate(received)),
            prepared(linux.CLOSE_RANGE, 0, 2, 0),
            prepared(linux.CLOSE_RANGE, end, 0xFFFFFFFF, 0),
            *rlimits.call_limits(memory_mb, cpu_ms, end),
            *rlimits.cpu_timer(cpu_ms),
        ),
        seal=(seccomp.prepared_install(strict_filter),),
        limits=((rlimits.AS, memory_mb << 20), (rlimits.CPU, cpu_ms // 1000 + 1),
                (rlimits.NOFILE, end), (rlimits.NPROC, 0)),
        cpu_ms=cpu_ms,
        end=end,
    )  # fmt: skip


def serve(job: int, jail: Jail, plugin: Plugin, *, rehearsal: bool, hurried: bool) -> NoReturn:
    """Become a call process: close the jail, answer one job, end. Never returns.

    Args:
        job: this process's end of the job socket.
        jail: the prepared steps.
        plugin: what to run.
        rehearsal: read every effect back, and say so once the filter is on.
        hurried: its job is there or about to be, so it makes nothing ready beforehand.
    """
    try:
        if quick(_DUP3, job, JOB, _CLOEXEC) != JOB:
            os._exit(JAIL_FAILED)
        if not hurried and quick(*_JOB_WAITS) == 0:
            # Nobody waits yet, and a page that is copied now is not copied when somebody does.
            _practise()
        if rehearsal:
            _rehearse(jail)
        else:
            # Written out, as is the reading below: each function called is two pages to copy.
            for steps, must_fail in jail.order:
                for step in steps:
                    if (quick(*step) < 0) is not must_fail:
                        os._exit(JAIL_FAILED)
        try:
            # One message from the supervisor, which is trusted: its length, marshalled, and itself.
            if not (length := _read(JOB, LENGTH_BYTES)):
                # The supervisor closed the socket: there will be no job.
                os._exit(0)
            size = _loads(length)
            data = _read(JOB, size)
            while len(data) < size and (more := _read(JOB, size - len(data))):
                data += more
            frame = _reply(data, plugin)
            sent = _write(JOB, frame)
            while sent < len(frame):
                sent += _write(JOB, frame[sent:])
        except MemoryError:
            # Nothing may be left to make a frame from.
            _write(JOB, _NO_MEMORY)
        # The supervisor reads what this process used while it waits here, and ends it.
        _read(JOB, 1)
        os._exit(0)
    except MemoryError:
        os._exit(0)
    except BaseException:  # noqa: BLE001  The process ends here, whatever it was.
        os._exit(1)


def _rehearse(jail: Jail) -> None:
    """Close the jail step by step, and say whether every effect was there."""
    fault = rehearsing.close_jail(jail, JOB)
    _send(framed(pack(["unavailable", *fault] if fault else ["rehearsed"])))
    if fault:
        os._exit(JAIL_FAILED)


def warm_up() -> None:
    """Do in the zygote, before anything is forked, what a call process does and is not jailing."""
    nobody = linux.prepared(linux.KILL, _NO_PID, 0)
    for _ in range(method.WARM_ROUNDS):
        quick(*nobody)
    method.warm_up()


def progress(fraction: float, note: str) -> None:
    """Tell the supervisor how far the plugin says it is."""
    _send(framed(pack(["progress", max(0, min(1000, int(fraction * 1000))), note])))


def wrote(text: str) -> None:
    """Tell the supervisor what the plugin prints."""
    _send(framed(pack(["wrote", text])))


def _send(frame: bytes) -> None:
    sent = _write(JOB, frame)
    while sent < len(frame):
        sent += _write(JOB, frame[sent:])
