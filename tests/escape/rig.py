"""Jails with layers missing: the production steps, composed without some of them.

    python -c "from tests.escape.rig import main; main()"

Reads from standard input, marshalled, a folder and a list of jobs, each a set of layers and groups
of attempts to make under it, and writes the outcomes of each job. Three kinds of process, as in a
worker: this one plays the supervisor and stays outside, a zygote closes its layers and forks, and
each group is tried in a call process of its own, beside a sibling that waits.

Rules: every step is the jail's own; nothing here exists in a worker. It keeps the order of
`sandbox_worker/zygote.py` and `call.py`.
"""

from __future__ import annotations

import array
import gc
import marshal
import os
import select
import signal
import socket
import struct
import sys
import time
from typing import Any, NoReturn

from sandbox_worker.jail import (
    attest,
    clock,
    identity,
    landlock,
    linux,
    mounts,
    namespaces,
    policy,
    rlimits,
    seccomp,
)
from tests.escape.runner import RUNNER

JOB, CONTROL, DOMAIN, LEFT_FOLDER, LEFT_DEVICE = 3, 60, 61, 62, 63
"""Descriptors of a rig's zygote; the two that were left open are there to be found."""
MEMORY_MB, CPU_MS, ROUNDS = 256, 50, 6_000_000
"""The last is how often an endless loop goes round where nothing ends it: longer than `CPU_MS`."""
PATIENCE_S = 10.0
"""Longest attempt before it counts as hung."""
UNJAILED = 70
"""Exit status of a process that could not put its layers on."""


class Zygote:
    """One jail: closes its layers, then makes what it is sent, one at a time. Never returns."""

    def __init__(self, layers: set[str], scope: dict[str, Any], control: int) -> None:
        self.layers = layers
        self.runner: dict[str, Any] = {}
        self.pages = clock.time_pages()
        self.filters = [
            policy.base_filter(),
            policy.call_filter(clock=False, random=False),
        ]
        for source, number in ((control, CONTROL), (os.open("/etc", os.O_RDONLY), LEFT_FOLDER),
                               (os.open("/dev/zero", os.O_RDONLY), LEFT_DEVICE)):  # fmt: skip
            os.dup2(source, number)
        if "identity" in layers:
            identity.become_sandbox_user()
        if "namespaces" in layers:
            namespaces.unshare_all()
            child = os.fork()
            if child:
                os.close(CONTROL)
                os.waitpid(child, 0)
                os._exit(0)
            namespaces.close_inner()
        self.scope = {**scope, "PARENT": os.getpid()}
        self.socket = socket.socket(fileno=CONTROL)
        self._close()
        self._serve()

    def _close(self) -> None:
        layers = self.layers
        if "root" in layers:
            mounts.enter_empty_root()
        if "privileges" in layers:
            owner = "namespaces" in layers or os.geteuid() == 0
            # Only who has rights over some namespace has a bounding set to empty.
            identity.drop_capabilities() if owner else identity.set_capabilities(0)
        if layers & {"privileges", "landlock", "seccomp"}:
            identity.no_new_privileges()
        if "limits" in layers:
            rlimits.limit_zygote()
        if "hidden" in layers:
            identity.hide()
        if "landlock" in layers:
            domain = landlock.ruleset(files=True)
            landlock.restrict(domain)
            os.dup2(domain, DOMAIN)
        if "time" in layers:
            clock.hide_time(self.pages)
        # As in a worker's zygote the job's number is taken, so that a new job lands elsewhere.
        os.dup2(LEFT_DEVICE, JOB)
        os.closerange(JOB + 1, CONTROL)
        os.closerange(LEFT_DEVICE + 1, 256)
        self.steps = self._prepared()
        self.seal: tuple[linux.Prepared, ...] = ()
        if "seccomp" in layers:
            self.seal = (seccomp.prepared_install(self.filters[1]),)
            seccomp.install(self.filters[0])

    def _prepared(self) -> tuple[linux.Prepared, ...]:
        """What each call process does before its filter."""
        steps = [linux.prepared(linux.CLOSE_RANGE, 0, JOB - 1, 0)]
        if "landlock" in self.layers:
            steps.insert(0, landlock.prepared_restrict(DOMAIN))
        if "descriptors" in self.layers:
            steps.append(linux.prepared(linux.CLOSE_RANGE, JOB + 1, 0xFFFFFFFF, 0))
        if "limits" in self.layers:
            steps += [*rlimits.call_limits(MEMORY_MB, CPU_MS, JOB + 1), *rlimits.cpu_timer(CPU_MS)]
        return tuple(steps)

    def _serve(self) -> NoReturn:
        # Compiled and frozen once, so that a fork costs little.
        exec(RUNNER, self.runner)
        gc.freeze()
        gc.disable()
        siblings: list[int] = []
        scope = {**self.scope, "SIBLINGS": siblings}
        while True:
            message, jobs = self._receive()
            if not message:
                os._exit(0)
            if not siblings or os.waitpid(siblings[0], os.WNOHANG)[0]:
                siblings[:] = [self._sibling()]
            pid = os.fork()
            if pid == 0:
                self._attempt(jobs[0], marshal.loads(message), scope)
            os.close(jobs[0])
            _, status = os.waitpid(pid, 0)
            os.write(CONTROL, struct.pack("=i", os.waitstatus_to_exitcode(status)))

    def _attempt(self, job: int, codes: list[str], scope: dict[str, Any]) -> NoReturn:
        """Become a call process and make attempts, a line of outcome each."""
        attempt = self.runner["attempt"]
        os.dup2(job, JOB, inheritable=False)
        if not linux.succeeds(self.steps + self.seal):
            os._exit(UNJAILED)
        for code in codes:
            os.write(JOB, repr(attempt(code, linux, scope)).encode() + b"\n")
            # What an attempt that succeeded left open would count against the next one's limit.
            os.closerange(JOB + 1, CONTROL)
            os.closerange(0, JOB)
        os._exit(0)

    def _receive(self) -> tuple[bytes, list[int]]:
        numbers = array.array("i")
        message, ancillary, _, _ = self.socket.recvmsg(1 << 18, socket.CMSG_SPACE(4))
        for _, _, data in ancillary:
            numbers.frombytes(data)
        return message, list(numbers)

    def _sibling(self) -> int:
        """Another call process, which waits."""
        pid = os.fork()
        if pid == 0:
            linux.succeeds(self.steps)
            select.poll().poll()
            os._exit(0)
        return pid


class Supervisor:
    """The outside of one jail: hands attempts in and reads what became of them."""

    def __init__(self, layers: set[str], scope: dict[str, Any]) -> None:
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            try:
                Zygote(layers, scope, theirs.fileno())
            finally:
                sys.excepthook(*sys.exc_info())
                os._exit(UNJAILED)
        theirs.close()

    def attempts(self, codes: list[str]) -> tuple[int | None, str]:
        """Exit status of the process that made them, and what it wrote to its job socket."""
        job, theirs = socket.socketpair()
        socket.send_fds(self.control, [marshal.dumps(codes)], [theirs.fileno()])
        theirs.close()
        written, ended = b"", b""
        waiter = select.poll()
        waiter.register(self.control, select.POLLIN)
        waiter.register(job, select.POLLIN)
        until = time.monotonic() + PATIENCE_S
        with job:
            while not ended and (left := until - time.monotonic()) > 0:
                for number, _ in waiter.poll(left * 1000):
                    if number == self.control.fileno():
                        ended = self.control.recv(4)
                        assert ended, "the rig's zygote is gone"
                    elif not (data := self._read(job)):
                        waiter.unregister(job)
                    else:
                        written += data
            while data := self._read(job):
                written += data
        status: int | None = struct.unpack("=i", ended)[0] if ended else None
        return status, written.decode(errors="replace")

    @staticmethod
    def _read(job: socket.socket) -> bytes:
        try:
            return job.recv(1 << 16, socket.MSG_DONTWAIT)
        except (BlockingIOError, ConnectionError):
            return b""

    def close(self) -> None:
        """End everything in the jail."""
        self.control.close()
        os.killpg(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


def main() -> None:
    """Serve the jobs on standard input."""
    place, jobs = marshal.loads(sys.stdin.buffer.read())
    if os.getuid() == 0:
        # Root as in a container, so that hard limits bind it on every machine. What an attempt of
        # root changes without a jail stays within this process's family.
        identity.set_capabilities(int(attest.status("self")["CapEff"], 16) & ~(1 << 24))
        linux.call(linux.UNSHARE, 0x04020000)
        linux.call(linux.MOUNT, 0, linux.Memory(b"/\0"), 0, 0x44000, 0)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as abstract,
    ):
        named.bind(f"{place}/unix")
        os.chmod(f"{place}/unix", 0o777)
        label = f"omega-escape-{os.getpid()}".encode()
        abstract.bind(b"\0" + label)
        for one in (named, abstract):
            one.listen(64)
        scope = {"PLACE": place, "PORT": listener.getsockname()[1], "ABSTRACT": label,
                 "OTHERS": [LEFT_FOLDER, LEFT_DEVICE], "ROUNDS": ROUNDS}  # fmt: skip
        outcomes = [_outcomes(set(layers), scope, groups) for layers, groups in jobs]
    sys.stdout.buffer.write(marshal.dumps(outcomes))


def _outcomes(
    layers: set[str], scope: dict[str, Any], groups: list[dict[str, str]]
) -> dict[str, list[Any]]:
    """Attempts by name to exit status and line; one process per group, and one more per death."""
    found: dict[str, list[Any]] = {}
    supervisor = Supervisor(layers, scope)
    for group in groups:
        left = dict(group)
        while left:
            status, written = supervisor.attempts(list(left.values()))
            lines = written.splitlines()
            for name, line in zip(list(left), [*lines, ""], strict=False):
                # The line that is missing is that of the attempt in which the process ended.
                found[name] = [0, line] if line else [status, ""]
                del left[name]
            if status is None:
                supervisor.close()
                supervisor = Supervisor(layers, scope)
    supervisor.close()
    return found
