"""The launcher: a process of its own that starts and ends workers for a broker that cannot.

    python -m broker.launchers.process CHANNEL LIFE WORKER_STDERR

CHANNEL is the descriptor of a packet socket to the broker; LIFE the read end of a pipe that only
the broker holds open for writing, handed on to every worker, which ends when the pipe does;
WORKER_STDERR is `terminal` or `null`.

Rules this file keeps: it runs one program, `python -m sandbox_worker`, with fixed arguments and an
environment written here whole; it reads no path and no option out of an order; it has one thread,
its own Landlock layer, and waits on descriptors only; when the broker is gone, or says what it may
not, it kills every worker and ends.

It leaves what a document means to the worker, and back-off to the core. Sources: pidfd_open(2),
unix(7), posix_spawn(3).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.util
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Final, NoReturn

from broker.launchers import orders
from broker.launchers.orders import Exited, Kill, Order, Start, Started, StartFailed
from broker.seal import SealUnavailable, seal_launcher

INTERPRETER: Final = (sys.executable, "-s", "-S", "-P", "-X", "disable-remote-debug")
"""No user site, no site packages, no current folder; the environment below names both roots."""
WORKERS_MAX: Final = 256


def worker_command(document: int, life: int | None) -> list[str]:
    """The command line of a worker that reads its launch document from a descriptor."""
    command = [*INTERPRETER, "-m", "sandbox_worker", "--launch-fd", str(document)]
    return command if life is None else [*command, "--life-fd", str(life)]


def worker_environment() -> dict[str, str]:
    """The whole environment of the launcher and of every worker; nothing is inherited."""
    roots: list[str] = []
    for package in ("broker", "msgspec", "zmq"):
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
    """A running worker and the descriptor that becomes readable when it ends."""

    incarnation: str
    pid: int
    pidfd: int


class _Launcher:
    """The loop over the broker's socket and the pidfds of workers."""

    def __init__(self, channel: socket.socket, life: int, *, terminal: bool) -> None:
        self._channel = channel
        self._life = life
        self._terminal = terminal
        self._environment = worker_environment()
        self._workers: dict[str, _Worker] = {}
        self._poll = select.poll()
        self._poll.register(channel, select.POLLIN)

    def run(self) -> None:
        """Serve until the broker is gone."""
        while True:
            ready = {descriptor for descriptor, _ in self._poll.poll()}
            for worker in [one for one in self._workers.values() if one.pidfd in ready]:
                self._reap(worker)
            if self._channel.fileno() in ready:
                packet = orders.receive(self._channel)
                if not packet:
                    return
                self._obey(orders.decode_order(packet))

    def end(self) -> None:
        """Kill every worker. Init reaps what this process no longer can."""
        for worker in self._workers.values():
            signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)

    def _obey(self, order: Order) -> None:
        worker = self._workers.get(order.incarnation)
        if isinstance(order, Kill):
            if worker is not None:
                signal.pidfd_send_signal(worker.pidfd, signal.SIGKILL)
            return
        if worker is not None or len(self._workers) >= WORKERS_MAX:
            reason = "this incarnation runs already" if worker else f"{WORKERS_MAX} workers run"
            self._report(StartFailed(order.incarnation, reason))
            return
        try:
            worker = self._spawn(order)
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            self._report(StartFailed(order.incarnation, f"cannot start a process: {reason}"))
            return
        self._workers[worker.incarnation] = worker
        self._poll.register(worker.pidfd, select.POLLIN)
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
            null = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_RDWR, 0) for number in (0, 1)]
            if not self._terminal:
                null.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_RDWR, 0))
            # A descriptor duplicated onto itself is the only kind that outlives the exec.
            kept = [(os.POSIX_SPAWN_DUP2, number, number) for number in (read, self._life)]
            command = worker_command(read, self._life)
            pid = os.posix_spawn(
                command[0], command, self._environment, file_actions=[*null, *kept]
            )
        finally:
            for descriptor in (read, write):
                if descriptor >= 0:
                    os.close(descriptor)
        try:
            return _Worker(order.incarnation, pid, os.pidfd_open(pid))
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
        self._report(Exited(worker.incarnation, max(code, 0), max(-code, 0)))

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
