"""A real worker without a gateway: its supervisor, zygote and call processes, driven by a stub.

Rules this file keeps: the worker is started as the launcher starts it, by the same command and
environment, and gets a launch document as from a gateway; only the bench's end of its socket
stands where the broker would. What is counted is read from /proc, never from what the worker says.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import zmq

from benchmarks.document import DOCUMENT
from benchmarks.measure import REPLY_MS_MAX, BenchFailed
from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.launchers.process import worker_command, worker_environment
from schemas import codec
from schemas.launch import LaunchDocument
from schemas.messages import Ready, Run
from schemas.packages import PackageFolder
from schemas.payloads import JSONPayload, Payload

CONCURRENCY: Final = 64
END_S: Final = 5.0
_TICK_US: Final = 1e6 / os.sysconf("SC_CLK_TCK")
_PUBLISHER_KEY: Final = bytes(range(32))


@dataclass(frozen=True)
class Plan:
    """A worker to start, and the call that is made again and again.

    Attributes:
        plugin: the plugin's folder beside this file.
        method: what is called.
        payload: with what.
        answer: the JSON that must come back.
        pool_size: how many call processes may wait.
        grants: capabilities with what they open.
        packages: the folder of approved packages, and its modules.
    """

    plugin: str = "plugin"
    method: str = "echo"
    payload: Payload = field(default_factory=lambda: JSONPayload(DOCUMENT))
    answer: bytes = DOCUMENT
    pool_size: int = 4
    grants: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[PackageFolder, tuple[str, ...]] | None = None


class _CallResult(msgspec.Struct, tag_field="type", tag="call_result"):
    """A worker's answer, as much of it as a bench looks at."""

    call: int
    payload: JSONPayload


class _CallFailure(msgspec.Struct, tag_field="type", tag="call_failure"):
    call: int
    code: str


class RunTraffic:
    """Orders to run one method, and their results.

    Attributes:
        sent: how many there were.
    """

    def __init__(self, plan: Plan) -> None:
        """Begin at zero."""
        self._plan = plan
        self.sent = 0
        self._decoder = msgspec.msgpack.Decoder(_CallResult | _CallFailure)
        self._id = str(uuid.uuid4())

    def request(self) -> tuple[int, bytes]:
        """Give the next number and its frame."""
        self.sent += 1
        order = Run(
            call=self.sent, method=self._plan.method, payload=self._plan.payload,
            timeout_ms=10_000, request_id=self._id,
        )  # fmt: skip
        return self.sent, codec.encode(order)

    def accept(self, reply: bytes) -> int:
        """Take a reply, which must be the plan's answer."""
        message = self._decoder.decode(memoryview(reply)[4:])
        if isinstance(message, _CallFailure):
            raise BenchFailed(f"the worker failed a call: {message.code}")
        if message.payload.data != self._plan.answer:
            raise BenchFailed("the worker returned another document than it should")
        return message.call


class Counts(NamedTuple):
    """What the processes of a worker have used so far: processor time in us, and page faults."""

    supervisor_us: float
    zygote_us: float
    calls_us: float
    zygote_faults: float
    call_faults: float

    def since(self, before: Counts, calls: int) -> Counts:
        """What was used since an earlier reading, for each of a number of calls."""
        return Counts(*((now - then) / calls for now, then in zip(self, before, strict=True)))


class RunningWorker(NamedTuple):
    """A ready worker: the bench's end of its socket, and its pids."""

    socket: zmq.Socket[bytes]
    supervisor: int
    zygote: int

    def counts(self) -> Counts:
        """Read /proc, see proc_pid_stat(5)."""
        supervisor, zygote = _stat(self.supervisor), _stat(self.zygote)
        return Counts(
            (supervisor[11] + supervisor[12]) * _TICK_US,
            (zygote[11] + zygote[12]) * _TICK_US,
            (zygote[13] + zygote[14]) * _TICK_US,
            zygote[7],
            zygote[8],
        )

    def cpu_us(self) -> float:
        """Processor time of all three kinds of process so far."""
        return sum(self.counts()[:3])


def _stat(pid: int) -> list[int]:
    """The numbers of /proc/PID/stat behind the state, from the parent's pid on, at 1."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return [0, *map(int, fields[1:])]


def write_bundle(root: str, folder: str, plan: Plan) -> LaunchDocument:
    """Pack the plan's plugin and write the orders for a worker of it.

    Args:
        root: the project's folder.
        folder: an existing folder for bundle and socket.
        plan: what to run.
    """
    source = read_folder(os.path.join(root, "scripts", "benchmarks", plan.plugin))
    data = sign(pack(source, "development").data, [_PUBLISHER_KEY]).data
    name = uuid.uuid4().hex
    bundle = os.path.join(folder, f"{name}.omegaplugin")
    with open(bundle, "wb") as file:
        file.write(data)
    packages, modules = plan.packages or (None, ())
    limits = source.source.limits
    return msgspec.convert(
        {
            "format": "omega-launch/1", "incarnation": name, "plugin": source.source.id,
            "version": source.source.version, "plugin_digest": hashlib.sha256(data).hexdigest(),
            "bundle": bundle, "endpoint": f"ipc://{folder}/{name[:8]}", "server_key": "0" * 40,
            "worker_secret_key": "0" * 40,
            "limits": {**msgspec.to_builtins(limits), "concurrency": CONCURRENCY},
            "grants": tuple(plan.grants), "grant_values": dict(plan.grants),
            "expires_at_us": int((time.time() + 3600) * 1_000_000), "pool_size": plan.pool_size,
            "modules": modules, "packages": packages and msgspec.to_builtins(packages),
        },
        LaunchDocument,
    )  # fmt: skip


@contextlib.contextmanager
def worker(root: str, folder: str, plan: Plan) -> Iterator[RunningWorker]:
    """Run a worker until the block ends.

    Raises:
        BenchFailed: it did not become ready.
    """
    server_public, server_secret = zmq.curve_keypair()
    _, secret = zmq.curve_keypair()
    launch = msgspec.structs.replace(
        write_bundle(root, folder, plan), server_key=server_public.decode(),
        worker_secret_key=secret.decode(),
    )
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.curve_server = True
        socket.curve_secretkey = server_secret
        socket.sndtimeo = socket.rcvtimeo = REPLY_MS_MAX
        socket.bind(launch.endpoint)
        with _started(launch) as supervisor:
            try:
                ready = codec.from_worker.decode(socket.recv())
            except zmq.Again:
                raise BenchFailed("the worker did not become ready within 15 s") from None
            if not isinstance(ready, Ready):
                raise BenchFailed(f"the worker did not start: {ready}")
            running = RunningWorker(socket, supervisor, ready.attestation.zygote_pid)
            below = [running.zygote, _stat(running.zygote)[1]]
            yield running
    _wait_gone(below)


def _wait_gone(pids: list[int]) -> None:
    """Wait for the zygote and the process that waits for it: they end when their worker has."""
    deadline = time.monotonic() + END_S
    while any(os.path.exists(f"/proc/{pid}") for pid in pids):
        if time.monotonic() > deadline:
            raise BenchFailed("a zygote outlived its worker")
        time.sleep(0.001)


@contextlib.contextmanager
def _started(launch: LaunchDocument) -> Iterator[int]:
    """Start the worker's process; it ends with its life pipe, so with the bench."""
    document_read, document_write = os.pipe()
    life_read, life_write = os.pipe()
    with subprocess.Popen(
        worker_command(document_read, life_read), pass_fds=(document_read, life_read),
        env=worker_environment(), cwd="/",
    ) as process:  # fmt: skip
        os.close(document_read)
        os.close(life_read)
        with os.fdopen(document_write, "wb") as pipe:
            pipe.write(msgspec.json.encode(launch))
        try:
            yield process.pid
        finally:
            os.close(life_write)
