"""The supervisor: one call process per call, from a warm pool, each to its end.

It is told orders by the broker and facts by the zygote, and holds no authority of its own: it
cannot start a process, only ask for one, and a call process gets exactly one job.

Rules: a call has one end, reported once; with a complete reply it is over at once, its figures
are read from the kernel and its process runs no further; without one it is over when its process
was reaped. An exit report may overtake the reply, so the job socket is drained before a call is
called dead. Deadlines are kept on the monotonic clock and the process is killed through
the zygote, which alone knows its pid without a race. It leaves races with cancel and revoke to
the broker.
"""

from __future__ import annotations

import select
import signal
import socket
import time
from collections.abc import Callable, Sequence

import msgspec

from sandbox_worker import vitals
from sandbox_worker.bundle import Bundle
from sandbox_worker.call import JAIL_FAILED
from sandbox_worker.forker import Exit, Forker, ForkFailure
from sandbox_worker.forks import FORKS_MAX
from sandbox_worker.handing import Desk, Folders, Handing
from sandbox_worker.jobs import Job, job_bytes, run_job
from sandbox_worker.replies import (
    CALL_FRAMES,
    Answered,
    Failed,
    Inbox,
    Probed,
    ReplyError,
    Told,
    Written,
    printable,
)
from sandbox_worker.resting import Resting
from sandbox_worker.slot import NOTHING, Slot
from sandbox_worker.terminal import Terminal
from sandbox_worker.verdicts import Verdict, answered, exit_code, fault, report, usage_of, verdict
from sandbox_worker.warm import Warm
from schemas.launch import LaunchDocument
from schemas.messages import (
    Abort,
    CallFailure,
    CallProgress,
    Drain,
    FailureCode,
    FromWorker,
    Probe,
    Run,
)

LINGER_S = 1.0
"""How long a process that ended before its figures could be read may take to be reaped."""

KILL_S = 2.0
"""How long the zygote may take to end a process and say so, before it is ended itself."""

PROBE_MS = 4_000
"""How long a probe may take, whatever a plugin's own limits are."""

FORK_PAUSE_S = 0.1
"""After the kernel refused a fork: how long none is tried but for a call that needs one now."""

CROWD = 8
"""With so many other calls under way processors are what everybody waits for: nothing is done then
only to answer one call sooner."""

PROGRESS_S = 0.1
"""Progress is passed on at most this often per call."""

_RECEIVE_BYTES = 1 << 18
_FIRST_NUMBER = 64
"""Call process numbers below were used by the rehearsal."""


class WorkerEndedError(Exception):
    """The worker cannot go on; `reason` is what `bye` says."""

    def __init__(self, reason: str, detail: str) -> None:
        """Remember the reason and our own sentence."""
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


class Supervisor:
    """All call processes of one worker.

    Args:
        forker: the started zygote.
        bundle: the plugin's manifest and resources.
        launch: the limits and the pool size.
        folders: what grants open, held from before the seal.
        send: takes every report for the broker.
    """

    def __init__(
        self,
        forker: Forker,
        bundle: Bundle,
        launch: LaunchDocument,
        folders: Folders,
        send: Callable[[FromWorker], object],
    ) -> None:
        """Serve one plugin; `fill` makes the first call processes."""
        self._forker = forker
        self._methods = bundle.manifest.methods
        self._limits = launch.limits
        self._warm = Warm(min(launch.pool_size, launch.limits.concurrency))
        prefix = "env.read:"
        self._env = {
            name.removeprefix(prefix): value
            for name, value in launch.grant_values.items()
            if name.startswith(prefix) and name in launch.grants
        }
        self._send = send
        self._frames = CALL_FRAMES[bundle.manifest.domain]
        self._terminal = Terminal(bundle.manifest.id, silent=launch.role == "replica")
        self.desk = Desk(folders, launch.grants, self._begin_handed, send)
        self._buffer = bytearray(_RECEIVE_BYTES)
        self._next_number = _FIRST_NUMBER
        self._slots: dict[int, Slot] = {}
        self._idle: dict[int, Slot] = {}
        self._by_call: dict[int, Slot] = {}
        self._by_descriptor: dict[int, Slot] = {}
        self._probing = 0
        self._unforked: list[tuple[Probe, Sequence[str]]] = []
        self._fork_again = 0.0
        self._soonest = float("inf")
        self._resting = Resting()
        self._fault: int | None = None
        self.on_probe_end: Callable[[Slot, Exit], object] = lambda _slot, _exit: None
        self.draining = False
        self.poll = select.epoll()
        self.poll.register(forker.control.fileno(), select.EPOLLIN)
        # The kernel would end the zygote with its stub, but a scope of the stub's own jail forbids
        # that signal too.
        self.poll.register(forker.stub_pidfd, select.EPOLLIN)

    @property
    def busy(self) -> int:
        """Calls and probes that have not ended."""
        return len(self._by_call) + len(self._unforked) + len(self.desk.waiting)

    def open_probes(self) -> set[int]:
        """Numbers of probe orders that have a call process, or wait for one."""
        orders = [slot.order for slot in self._by_call.values()]
        orders += [order for order, _ in self._unforked]
        return {order.probe for order in orders if isinstance(order, Probe)}

    def fill(self, now: float) -> None:
        """Fork until as many call processes wait as should, unless forks fail just now."""
        missing = self._warm.target - len(self._idle)
        if missing > 0 and not self.draining and now >= self._fork_again:
            # Nobody is quicker for a process that made itself ready while others could run.
            for slot in self._fork(missing, hurried=len(self._by_call) >= CROWD):
                self._idle[slot.number] = slot

    def _fork(
        self, count: int, handed: Sequence[int] = (), *, hurried: bool = True
    ) -> list[Slot]:
        slots = []
        while count > 0:
            batch = range(self._next_number, self._next_number + min(count, FORKS_MAX))
            self._next_number = batch.stop
            count -= len(batch)
            try:
                jobs = self._forker.fork(list(batch), handed=handed, hurried=hurried)
            except ConnectionError:
                raise WorkerEndedError("recycle_killed", "the zygote ended") from None
            for number, job in zip(batch, jobs, strict=True):
                slots.append(Slot(number, job))
        self._slots.update((slot.number, slot) for slot in slots)
        return slots

    # --- Orders -----------------------------------------------------------------------------------

    def run(self, order: Run, now: float) -> None:
        """Give a call to a call process, or say at once why not."""
        method = self._methods.get(order.method)
        calls = len(self._by_call) - self._probing + len(self.desk.waiting)
        full = calls >= self._limits.concurrency
        if method is None or self.draining or full:
            code: FailureCode = "plugin_load_failed" if method is None else "call_process_failed"
            self._send(CallFailure(call=order.call, code=code))
            return
        try:
            job = run_job(order, method, self._env)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._send(CallFailure(call=order.call, code="invalid_input"))
            return
        wall_ms = min(self._limits.wall_ms, method.timeout_ms)
        allowed_ms = min(wall_ms, order.timeout_ms)
        late: FailureCode = (
            "deadline_exceeded" if order.timeout_ms < wall_ms else "wall_limit_exceeded"
        )
        if not self.desk.takes(order, method, job, now, allowed_ms, late):
            slot = self._take()
            self._warm.taken(len(self._idle), now)
            slot.allowed_ms, slot.deadline_code = allowed_ms, late
            self._assign(slot, order, order.call, (*job, ()), now)

    def _begin_handed(self, handing: Handing) -> None:
        """What a call is handed cannot reach a process that closed its jail: it gets a new one."""
        (slot,) = self._fork(1, handing.descriptors)
        slot.allowed_ms, slot.deadline_code = handing.allowed_ms, handing.late
        order, job = handing.order, (*handing.job, handing.handed)
        self._assign(slot, order, order.call, job, handing.arrived)

    def probe(self, order: Probe, names: Sequence[str], now: float) -> None:
        """Run probes in a call process of the pool; `on_probe_end` hears of its end."""
        slot = self._take()
        slot.allowed_ms, slot.probes = PROBE_MS, names
        self._probing += 1
        self._assign(slot, order, -slot.number, ("probe", names), now)

    def abort(self, order: Abort) -> None:
        """End one call; nothing happens if it has ended."""
        slot = self._by_call.get(order.call)
        if slot is not None:
            self._kill(slot, "cancelled")
        self.desk.cancel(order.call)

    def drain(self, _order: Drain) -> None:
        """Take nothing new; idle call processes end when their sockets close."""
        self.draining = True
        self._dismiss(len(self._idle))

    def _dismiss(self, count: int) -> None:
        """Let idle call processes end: they do when their sockets close."""
        for _ in range(count):
            number, slot = self._idle.popitem()
            slot.job.close()
            del self._slots[number]

    def _take(self) -> Slot:
        if not self._idle:
            return self._fork(1)[0]
        return self._idle.pop(next(iter(self._idle)))

    def _assign(
        self, slot: Slot, order: Run | Probe, key: int, job: Job, now: float
    ) -> None:
        slot.order, slot.started = order, now
        slot.deadline = now + slot.allowed_ms / 1000
        self._soonest = min(self._soonest, slot.deadline)
        slot.inbox = Inbox(self._output_bytes_max(order))
        self._by_call[key] = slot
        self._by_descriptor[slot.job.fileno()] = slot
        slot.outbox = memoryview(job_bytes(job))
        self.poll.register(slot.job.fileno(), select.EPOLLIN)
        self._push(slot)
        # With idle processes left the pool is filled when calls end, not when they begin, so that
        # a fork does not take the processor from a call.
        if not self._idle:
            self.fill(now)

    def _output_bytes_max(self, order: Run | Probe) -> int:
        asked = order.output_bytes_max if isinstance(order, Run) else None
        limit = self._limits.output_bytes
        return limit if asked is None else min(limit, asked)

    # --- Facts ------------------------------------------------------------------------------------

    def turn(self, descriptor: int, now: float) -> None:
        """Something happened on a descriptor of `poll` that belongs to the supervisor."""
        if descriptor == self._forker.control.fileno():
            self._reap(now)
        elif descriptor == self._forker.stub_pidfd:
            raise WorkerEndedError("recycle_killed", "the zygote's stub ended")
        elif (slot := self._by_descriptor.get(descriptor)) is not None:
            if slot.outbox:
                self._push(slot)
            self._pull(slot, now)

    def next_deadline(self) -> float:
        """When `expire` or the desk has something to do, on the monotonic clock."""
        if self.desk.waiting:
            return 0.0
        soonest = min(self._soonest, self._resting.due)
        return min(soonest, self._warm.due, self._fork_again or soonest)

    def expire(self, now: float) -> None:
        """Kill what is past its deadline, and try again what could not be forked."""
        if self._soonest <= now:
            # It may have been that of a call that has ended; then there is a later one now.
            self._soonest = float("inf")
            for slot in list(self._by_call.values()):
                if slot.deadline <= now:
                    self._expire(slot, now)
                self._soonest = min(self._soonest, slot.deadline)
        if self._resting.due <= now:
            self._resting.end()
        if self._fork_again and self._fork_again <= now:
            self._fork_again = 0.0
            waiting, self._unforked = self._unforked, []
            for order, names in waiting:
                self.probe(order, names, now)
            self.fill(now)
        if self._warm.due <= now:
            self._warm.settle(len(self._idle), now)
            self._dismiss(len(self._idle) - self._warm.target)

    def _expire(self, slot: Slot, now: float) -> None:
        if slot.used_us:
            # It answered and was killed, and its zygote is late: no process exceeds its limit.
            del self._slots[slot.number]
            largest_kb = self._limits.memory_mb << 10
            self._end(slot, Exit(slot.number, 0, slot.used_us, largest_kb), slot.replied)
            return
        if slot.killed:
            raise WorkerEndedError("recycle_killed", "a call outlived its own end")
        if slot.reply is None:
            slot.used, slot.allowed = _ms(now - slot.started), slot.allowed_ms
        self._kill(slot, slot.deadline_code if slot.reply is None else None)

    def _push(self, slot: Slot) -> None:
        """Write what the socket takes of the job."""
        waited = slot.waiting
        try:
            while slot.outbox:
                slot.outbox = slot.outbox[slot.job.send(slot.outbox, socket.MSG_DONTWAIT) :]
            slot.waiting = False
        except BlockingIOError:
            slot.waiting = True
        except ConnectionError:
            # It ended before it read its job; the exit report says how.
            slot.outbox, slot.waiting = NOTHING, False
        if slot.waiting != waited:
            wanted = select.EPOLLIN | (select.EPOLLOUT if slot.waiting else 0)
            self.poll.modify(slot.job.fileno(), wanted)

    def _pull(self, slot: Slot, now: float) -> bool:
        """Read what there is; whether there may be more."""
        try:
            size, slot.writer = vitals.receive(slot.job, self._buffer)
        except BlockingIOError:
            return False
        except ConnectionError:
            size = 0
        if not size:
            self._forget_descriptor(slot)
            return False
        if slot.reply is not None or slot.ended_by is not None:
            # One answer to one job; whatever follows is not read.
            return True
        replied = False
        try:
            for frame in slot.inbox.feed(memoryview(self._buffer)[:size]):
                replied = self._hear(slot, frame, now)
        except ReplyError as error:
            slot.used = error.used
            if error.code == "output_limit_exceeded" and slot.order is not None:
                slot.allowed = self._output_bytes_max(slot.order)
            self._kill(slot, error.code)
        if replied and not slot.reaped:
            self._settle(slot, now)
        return True

    def _hear(self, slot: Slot, frame: object, now: float) -> bool:
        """Take one frame: progress goes on, an end is kept. Whether there is an end."""
        expected = Probed if isinstance(slot.order, Probe) else self._frames
        if slot.reply is not None:
            return True
        if not isinstance(frame, expected):
            raise ReplyError("output_invalid")
        if isinstance(frame, Written):
            self._terminal.take(slot.number, frame.text)
            return False
        if isinstance(frame, Told):
            if now - slot.told_at >= PROGRESS_S and isinstance(slot.order, Run):
                slot.told_at = now
                note = printable(frame.note)
                report = CallProgress(call=slot.order.call, permille=frame.permille, note=note)
                self._send(report)
            return False
        assert isinstance(frame, (Answered, Failed, Probed))
        slot.reply = frame
        slot.deadline = min(slot.deadline, now + LINGER_S)
        self._soonest = min(self._soonest, slot.deadline)
        return True

    def _settle(self, slot: Slot, now: float) -> None:
        """End a call that has replied, and its process; if it is gone, its exit report does."""
        if len(self._by_call) > CROWD and isinstance(slot.reply, Answered) and not slot.killed:
            slot.used_us = vitals.end(slot.writer)
            if slot.used_us:
                # The exit report, which comes anyway, says how large it was.
                slot.killed, slot.replied = True, now
                self._close(slot)
            return
        # With more calls under way there is no better time to end a process than now.
        alone = len(self._by_call) == 1
        used = vitals.take(slot.writer, signal.SIGSTOP if alone else signal.SIGKILL)
        if used is None or slot.killed:
            return
        del self._slots[slot.number]
        if alone:
            self._forget_descriptor(slot)
            self._resting.add(slot, now)
        else:
            self._close(slot)
        self._end(slot, Exit(slot.number, 0, *used), now)

    def _kill(self, slot: Slot, code: FailureCode | None) -> None:
        """End the process; `code` None when it already answered and only lingers."""
        if slot.killed:
            return
        slot.killed, slot.ended_by, slot.deadline = True, code, monotonic() + KILL_S
        self._soonest = min(self._soonest, slot.deadline)
        self._forker.kill(slot.number)

    def _reap(self, now: float) -> None:
        """Take one report of the zygote's; the next one makes its socket readable again."""
        endings = self._forker.ended()
        if endings is None:
            raise WorkerEndedError("recycle_killed", "the zygote ended")
        for ending in endings:
            self._ended(ending, now)
        self.fill(now)

    def _ended(self, ending: Exit | ForkFailure, now: float) -> None:
        slot = self._slots.pop(ending.number, None)
        if isinstance(ending, ForkFailure):
            self._fork_again = now + FORK_PAUSE_S
        elif slot is None or isinstance(slot.order, Run):
            # A process may have answered before it died: then the next report says so.
            self._fault = fault(ending) or self._fault
        if slot is None:
            return
        # With a job given, plugin code may have chosen the exit status: it is not believed.
        failed = isinstance(ending, Exit) and exit_code(ending) == JAIL_FAILED
        if failed and not isinstance(slot.order, Run):
            raise WorkerEndedError("sandbox_unavailable", "a call process could not be jailed")
        self._idle.pop(slot.number, None)
        slot.reaped = True
        if slot.used_us and isinstance(ending, Exit):
            self._end(slot, answered(ending, slot.used_us), slot.replied)
            return
        if slot.order is not None:
            # The exit report may be here before the reply: read the socket to its end.
            while self._pull(slot, now):
                pass
            self._end(slot, ending, now)
        self._close(slot)

    def _forget_descriptor(self, slot: Slot) -> None:
        if self._by_descriptor.pop(slot.job.fileno(), None) is not None:
            self.poll.unregister(slot.job.fileno())

    def _close(self, slot: Slot) -> None:
        """Close the job socket, which nobody else holds: epoll forgets it by itself."""
        self._by_descriptor.pop(slot.job.fileno(), None)
        slot.job.close()

    def _end(self, slot: Slot, ending: Exit | ForkFailure, now: float) -> None:
        """Report the one end of a call."""
        order = slot.order
        if isinstance(order, Probe):
            del self._by_call[-slot.number]
            self._probing -= 1
            if isinstance(ending, Exit):
                self.on_probe_end(slot, ending)
            else:
                # What cannot be probed now is probed later; too late ends the worker.
                self._unforked.append((order, slot.probes))
            return
        assert order is not None
        self._terminal.end(slot.number)
        del self._by_call[order.call]
        if isinstance(ending, ForkFailure):
            self._send(CallFailure(call=order.call, code="call_process_failed"))
            return
        reply = slot.reply
        usage = usage_of(ending, reply, _ms(now - slot.started))
        found = Verdict(slot.ended_by, slot.used, slot.allowed)
        if slot.ended_by is None:
            found = verdict(
                ending, reply, usage, order, self._limits,
                output_kind=self._methods[order.method].output.kind,
                output_bytes_max=self._output_bytes_max(order), killed=slot.killed,
            )  # fmt: skip
        faulted, self._fault = self._fault, None
        self._send(report(order.call, reply, found, usage, faulted))


def _ms(seconds: float) -> int:
    return int(seconds * 1000)


def monotonic() -> float:
    """Seconds on the clock that deadlines are kept on."""
    return time.monotonic()
