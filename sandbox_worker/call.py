"""The call process: a fresh fork of the zygote that closes its own jail, serves one job and ends.

Order, as in docs/ARCHITECTURE.md: job socket to descriptor 3, own Landlock domain, what the call is
handed to the numbers from 4 on, every other descriptor closed, limits, CPU timer, filter. Only then
is the job read, and only then does plugin code run: no plugin code runs before OMEGA's call has
arrived. A step that fails ends the process with `JAIL_FAILED`.

Rules: nothing is imported or allocated that the zygote could have prepared; what leaves is one
reply, after any progress, each a length and msgpack; the supervisor trusts none of it.
"""

from __future__ import annotations

import os

from sandbox_worker import denials, method
from sandbox_worker import rehearsal as rehearsing
from sandbox_worker.encode import pack
from sandbox_worker.jail import linux

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from typing import NoReturn

    from sandbox_worker.jail.linux import Prepared
    from sandbox_worker.method import Plugin

JOB = 3
JAIL_FAILED = 70
"""Exit status of a call process that could not close its jail; the worker ends with it."""

_READ_BYTES = 4096
_read, _write = os.read, os.write
_NO_PID = 1 << 22
"""No pid is that large, see proc_sys_kernel(5)."""


class Jail:
    """The prepared steps by which every call process jails itself, in order.

    Attributes:
        before: steps up to the layer that forbids signals to the outside.
        forbidden: what must fail from then on.
        after: steps from the closing of descriptors to the last before the filter.
        seal: the filter, last of all.
    """

    __slots__ = ("after", "before", "cpu_ms", "end", "forbidden", "limits", "seal")

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
        self.limits = limits
        self.cpu_ms = cpu_ms
        self.end = end


def serve(
    take_job: tuple[Prepared, ...], jail: Jail, plugin: Plugin, *, rehearsal: bool
) -> NoReturn:
    """Become a call process: close the jail, answer one job, end. Never returns.

    Args:
        take_job: puts this process's end of the job socket at descriptor 3.
        jail: the prepared steps.
        plugin: what to run.
        rehearsal: read every effect back, and say so once the filter is on.
    """
    try:
        if plugin.reseed is not None:
            plugin.reseed()
        if not linux.succeeds(take_job):
            os._exit(JAIL_FAILED)
        _close_jail(jail, rehearsal=rehearsal)
        if plugin.heard:
            denials.listen()
        _answer(plugin)
        # The supervisor reads what this process used while it waits here, and ends it.
        _read(JOB, 1)
        os._exit(0)
    except BaseException:  # noqa: BLE001  The process ends here, whatever it was.
        os._exit(1)


def _close_jail(jail: Jail, *, rehearsal: bool) -> None:
    succeeds = linux.succeeds
    if rehearsal:
        fault = rehearsing.close_jail(jail, JOB)
        _send(pack(["unavailable", *fault] if fault else ["rehearsed"]))
        if fault:
            os._exit(JAIL_FAILED)
    elif (
        not succeeds(jail.before) or succeeds(jail.forbidden)
        or not succeeds(jail.after) or not succeeds(jail.seal)
    ):  # fmt: skip
        os._exit(JAIL_FAILED)


def _answer(plugin: Plugin) -> None:
    """Read the job and send exactly one reply."""
    try:
        frame = method.reply(_receive(), plugin)
    except MemoryError:
        frame = pack(["failed", "memory_limit_exceeded", ""])
    _send(frame)


def warm_up() -> None:
    """Do in the zygote, before anything is forked, what a call process does and is not jailing."""
    nobody = linux.prepared(linux.KILL, _NO_PID, 0)
    for _ in range(method.WARM_ROUNDS):
        _close_jail(Jail(forbidden=(nobody,)), rehearsal=False)
    method.warm_up()


def progress(fraction: float, note: str) -> None:
    """Tell the supervisor how far the plugin says it is."""
    _send(pack(["progress", max(0, min(1000, int(fraction * 1000))), note]))


def wrote(text: str) -> None:
    """Tell the supervisor what the plugin prints."""
    _send(pack(["wrote", text]))


def _receive() -> bytes:
    """One length-prefixed message from the supervisor, which is trusted."""
    data = _read(JOB, _READ_BYTES)
    size = int.from_bytes(data[:4], "big")
    parts, missing = [data[4:]], size + 4 - len(data)
    while missing > 0 and data:
        data = _read(JOB, missing)
        parts.append(data)
        missing -= len(data)
    if missing:
        # The supervisor closed the socket: there will be no job.
        os._exit(0)
    return b"".join(parts) if len(parts) > 1 else parts[0]


def _send(frame: bytes) -> None:
    """Write one length-prefixed frame."""
    data = len(frame).to_bytes(4, "big") + frame
    sent = _write(JOB, data)
    while sent < len(data):
        sent += _write(JOB, data[sent:])
