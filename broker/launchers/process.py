"""The launcher: a process of its own that starts and ends workers for a broker that cannot.

    python -m broker.launchers.process CHANNEL LIFE WORKER_STDERR

CHANNEL is the descriptor of a packet socket to the broker; LIFE the read end of a pipe that only
the broker holds open for writing, handed on to every worker, which ends when the pipe does;
WORKER_STDERR is `terminal` or `null`.

Rules this file keeps: it runs two programs, `python -m sandbox_worker` and `python -m
broker.prober`, with fixed arguments and an environment written here whole; a prober is held to its
limits while it still begins; it reads no path and no option out of an order; it has one thread, its
own Landlock layer, and waits on descriptors only; when the broker is gone, or says what it may not,
it kills every worker and ends.

It leaves what a document means to the worker, and back-off to the core. Sources: pidfd_open(2),
unix(7), posix_spawn(3).
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import importlib.util
import os
import resource
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final, NoReturn

from broker.launchers import orders
from broker.launchers.orders import Exited, Kill, Order, Start, Started, StartFailed, Tried, Try
from broker.seal import SealUnavailable, seal_launcher
from broker.trust.bounds import TRIAL_CPU_S, TRIAL_MEMORY_BYTES

INTERPRETER: Final = (sys.executable, "-s", "-S", "-P", "-X", "disable-remote-debug")
"""No user site, no site packages, no current folder; the environment below names both roots."""
WORKERS_MAX: Final = 256
PROBER: Final = (*INTERPRETER, "-m", "broker.prober")
PROBER_LIMITS: Final = {
    # The hard limit kills what would wait for the soft one's signal.
    resource.RLIMIT_CPU: (TRIAL_CPU_S, TRIAL_CPU_S + 1),
    resource.RLIMIT_AS: (TRIAL_MEMORY_BYTES, TRIAL_MEMORY_BYTES),
    resource.RLIMIT_CORE: (0, 0),
}


def worker_command(document: int, life: int | None) -> list[str]:
    """The command line of a worker that reads its launch document from a descriptor."""
    command = [*INTERPRETER, "-m", "sandbox_worker", "--launch-fd", str(document)]
    return command if life is None else [*command, "--life-fd", str(life)]


def worker_environment() -> dict[str, str]:
    """The whole environment of the launcher and of every worker; nothing is inherited."""
    roots: list[str] = []
    for package in ("broker", "msgspec", "zmq", "jsonschema_rs", "rfc8785"):
        found = importlib.util.find_spec(package)
        assert found is not None
        assert found.origin is not None
        root = os.path.dirname(os.path.dirname(os.path.abspath(found.origin)))
        if root not in roots:
            roots.append(root)
    return {
        "PYTHONPATH": os.pathsep.join(roots),
        # Every symbol is bound at start, so the jail needs no lazy look-up later.
        "LD_BIND_NOW": "1",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
    }


@dataclass(frozen=True)
class _Worker:
    """A running worker and the descriptor that becomes readable when it ends.

    A prober has `answer` besides: the read end of the pipe for its verdict.
    """

    incarnation: str
    pid: int
    pidfd: int
    answer: int | None = None


class _Launcher:
    """The loop over the broker's socket and the pidfds of workers."""

    def __init__(self, channel: socket.socket, life: int, *, terminal: bool) -> None:
        self._channel = channel
        self._life = life
        self._terminal = terminal
        self._environment = worker_environment()
        self._workers: dict[str, _Worker] = {}
        self._trials: collections.deque[tuple[Try, int]] = collections.deque()
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def run(self) -> None:
        """Serve until the broker is gone."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for worker in [one for one in self._workers.values() if one.pidfd in ready]:
                self._reap(worker)
            self._next_trial()
            if self._channel.fileno() in ready:
                packet, given = orders.receive_order(self._channel)
                try:
                    if not packet:
                        return
                    self._obey(orders.decode_order(packet), given)
                finally:
                    if given is not None:
                        os.close(given)

    def end(self) -> None:
        """Kill every worker. Init reaps what this process no longer can."""
        for worker in self._workers.values():
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _obey(self, order: Order, given: int | None) -> None:
        worker = self._workers.get(order.incarnation)
        if isinstance(order, Kill):
            if worker is not None:
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            for trial in [one for one in self._trials if one[0].incarnation == order.incarnation]:
                self._trials.remove(trial)
                os.close(trial[1])
                self._report(Tried(order.incarnation, 0, signal.SIGKILL, b""))
            return
        if isinstance(order, Try) and given is not None:
            self._trials.append((order, os.dup(given)))
            self._next_trial()
            return
        self._begin(order, given)

    def _next_trial(self) -> None:
        """Start the trial that waits for longest, unless one runs: a trial takes a whole core."""
        if self._trials and not any(one.answer is not None for one in self._workers.values()):
            order, given = self._trials.popleft()
            try:
                self._begin(order, given)
            finally:
                os.close(given)

    def _begin(self, order: Start | Try, given: int | None) -> None:
        worker = self._workers.get(order.incarnation)
        if worker is not None or len(self._workers) >= WORKERS_MAX:
            reason = "this incarnation runs already" if worker else f"{WORKERS_MAX} workers run"
            self._report(StartFailed(order.incarnation, reason))
            return
        try:
            worker = self._spawn(order) if isinstance(order, Start) else self._probe(order, given)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._report(StartFailed(order.incarnation, f"cannot start a process: {reason}"))
            return
        self._workers[worker.incarnation] = worker
        self._poll.register(worker.pidfd, select.POLLIN)
        if worker.answer is None:
            self._report(Started(worker.incarnation, worker.pid))

    def _spawn(self, order: Start) -> _Worker:
        """Start one worker; the document waits in a pipe before the process exists."""
        read, write = os.pipe()
        try:
            # Not blocking: an ordinary user near the limit of pipe pages gets a smaller pipe.
            os.set_blocking(write, False)
            if os.write(write, order.document) != len(order.document):
                raise OSError(errno.ENOBUFS, "the pipe is smaller than the document")
            os.close(write)
            write = -1
            pid = self._run(worker_command(read, self._life), (read, self._life))
        finally:
            for descriptor in (read, write):
                if descriptor >= 0:
                    os.close(descriptor)
        return self._watched(order.incarnation, pid, {}, None)

    def _probe(self, order: Try, given: int | None) -> _Worker:
        """Start one prober; it is held to its limits while its interpreter still begins."""
        if given is None:
            raise OSError(errno.EBADF, "no schemas came with the order")
        read, write = os.pipe()
        try:
            os.set_blocking(read, False)
            pid = self._run([*PROBER, str(given), str(write)], (given, write))
            return self._watched(order.incarnation, pid, PROBER_LIMITS, read)
        except OSError:
            os.close(read)
            raise
        finally:
            os.close(write)

    def _run(self, command: list[str], kept: tuple[int, ...]) -> int:
        """Run a program that holds these descriptors and the standard ones, and nothing else."""
        null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
        if not self._terminal:
            null.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0))
        # A descriptor duplicated onto itself is the only kind that outlives the exec.
        held = [(os.POSIX_SPAWN_DUP2, number, number) for number in kept]
        return os.posix_spawn(command[0], command, self._environment, file_actions=[*null, *held])

    def _watched(
        self, incarnation: str, pid: int, limits: dict[int, tuple[int, int]], answer: int | None
    ) -> _Worker:
        try:
            for limit, bounds in limits.items():
                resource.prlimit(pid, limit, bounds)
            return _Worker(incarnation, pid, os.pidfd_open(pid), answer)
        except OSError:
            # Nobody could end it any more. It is not reaped yet, so the number is still its own.
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise

    def _reap(self, worker: _Worker) -> None:
        _, status = os.waitpid(worker.pid, 0)
        self._poll.unregister(worker.pidfd)
        os.close(worker.pidfd)
        del self._workers[worker.incarnation]
        code = os.waitstatus_to_exitcode(status)
        if worker.answer is None:
            self._report(Exited(worker.incarnation, max(code, 0), max(-code, 0)))
            return
        try:
            said = os.read(worker.answer, orders.VERDICT_BYTES_MAX)
        finally:
            os.close(worker.answer)
        self._report(Tried(worker.incarnation, max(code, 0), max(-code, 0), said))

    def _report(self, report: orders.Report) -> None:
        self._channel.send(orders.encode(report))


def main(channel_fd: int, life: int, worker_stderr: str) -> NoReturn:
    """Seal this process, say so, and serve."""
    for descriptor in (channel_fd, life):
        fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    channel = socket.socket(fileno=channel_fd)
    try:
        seal_launcher()
    except SealUnavailable as error:
        channel.send(orders.encode(orders.SealFailed(error.feature, error.errno, error.hint)))
        sys.exit(5)
    channel.send(orders.encode(orders.Sealed()))
    launcher = _Launcher(channel, life, terminal=worker_stderr == "terminal")
    try:
        with contextlib.suppress(ConnectionError, *orders.MALFORMED):
            launcher.run()
    finally:
        launcher.end()
    sys.exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
