"""What a launcher needs to be tried: a bundle, launch documents, a broker's end of the socket.

As a program it is a broker that does nothing but hold a launcher, so that a test can kill it:

    python -m tests.broker.launched FOLDER NUMBER

It starts NUMBER workers, waits until each said `ready`, prints their pids and sleeps for ever.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import select
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import zmq

from broker.launchers.local import Exited, LocalLauncher, Report, Started
from schemas import codec
from schemas.launch import LaunchDocument
from schemas.messages import FromWorker, Ready
from tests.sandbox_worker.harness import LIMITS, make_bundle, text_to_json

SOURCE = """
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def main(ctx: Context, text: TextPayload) -> dict[str, int]:
    return {"length": len(text.text)}
"""
PATIENCE_S = 20.0


def wait_for(what: Callable[[], bool], patience_s: float = PATIENCE_S) -> float:
    """Wait for a condition and give the seconds it took; fails when it does not come."""
    begin = time.monotonic()
    waiter = select.poll()
    while not what():
        assert time.monotonic() - begin < patience_s, "the condition did not come"
        waiter.poll(2)
    return time.monotonic() - begin


def alive(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped does not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def descendants(pid: int) -> set[int]:
    """Every process below one."""
    below: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1]
                below.setdefault(int(parent), []).append(int(entry))
    found: set[int] = set()
    waiting = [pid]
    while waiting:
        for child in below.get(waiting.pop(), []):
            found.add(child)
            waiting.append(child)
    return found


class Incarnation:
    """One launch document and the socket that its worker will connect to."""

    def __init__(self, folder: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        bundle = folder / "plugin-under-test-1.0.0.omegaplugin"
        if not bundle.exists():
            make_bundle(folder, SOURCE, methods=text_to_json())
        self.name = uuid.uuid4().hex
        self.socket = context.socket(zmq.DEALER)
        server_public, server_secret = zmq.curve_keypair()
        _, worker_secret = zmq.curve_keypair()
        self.socket.curve_server = True
        self.socket.curve_secretkey = server_secret
        self.socket.linger = 0
        self.socket.bind(f"ipc://{folder}/{self.name[:8]}")
        self.document = msgspec.json.encode(
            LaunchDocument(
                format="omega-launch/1", incarnation=self.name, plugin="plugin-under-test",
                version="1.0.0", bundle=str(bundle), endpoint=f"ipc://{folder}/{self.name[:8]}",
                plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(),
                server_key=server_public.decode(), worker_secret_key=worker_secret.decode(),
                limits=LIMITS, grants=(), expires_at_us=int((time.time() + 60) * 1_000_000),
                pool_size=1,
            )
        )  # fmt: skip

    def receive(self) -> FromWorker:
        """The worker's next report."""
        assert self.socket.poll(int(PATIENCE_S * 1000)), "no report from the worker"
        return codec.from_worker.decode(self.socket.recv())

    def ready(self) -> Ready:
        """The worker's first report, which must be `ready`."""
        report = self.receive()
        assert isinstance(report, Ready), report
        return report


class Launched:
    """A running launcher with everything it reported."""

    def __init__(self) -> None:
        self.launcher = LocalLauncher.start(worker_stderr=True)
        self.reports: list[Report] = []

    def wait(self, kind: type[Report], incarnation: str) -> Report:
        """Wait for one report."""

        def found() -> Report | None:
            return next(
                (one for one in self.reports
                 if isinstance(one, kind) and one.incarnation == incarnation), None,
            )  # fmt: skip

        waiter = select.poll()
        waiter.register(self.launcher.fd, select.POLLIN)
        while (report := found()) is None:
            assert waiter.poll(PATIENCE_S * 1000), f"no {kind} among {self.reports}"
            self.reports += self.launcher.receive()
        return report

    def started(self, incarnation: str) -> int:
        """Wait until a worker was started and give its pid."""
        report = self.wait(Started, incarnation)
        assert isinstance(report, Started)
        return report.pid

    def exited(self, incarnation: str) -> Exited:
        """Wait until a worker ended."""
        report = self.wait(Exited, incarnation)
        assert isinstance(report, Exited)
        return report


@contextlib.contextmanager
def zmq_context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    """A context whose sockets are closed with it."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        yield context
    finally:
        context.destroy(linger=0)


def main(folder: str, number: str) -> None:
    """Be a broker that only holds a launcher."""
    launched = Launched()
    with zmq_context() as context:
        incarnations = [Incarnation(Path(folder), context) for _ in range(int(number))]
        for one in incarnations:
            launched.launcher.launch(one.name, one.document)
        for one in incarnations:
            one.ready()
        workers = [launched.started(one.name) for one in incarnations]
        print(json.dumps({"launcher": launched.launcher.pid, "workers": workers}), flush=True)
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
