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
from collections.abc import Iterator
from typing import NamedTuple

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
from schemas.payloads import JSONPayload

CONCURRENCY = 64
_TICK_US = 1e6 / os.sysconf("SC_CLK_TCK")
_KEY = bytes(range(32))


class CallResult(msgspec.Struct, tag_field="type", tag="call_result"):
    """A worker's answer, as much of it as a bench looks at."""

    call: int
    payload: JSONPayload


class _CallFailure(msgspec.Struct, tag_field="type", tag="call_failure"):
    call: int
    code: str


class RunTraffic:
    """Orders to run the echo method, and their results."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._sent = 0
        self._decoder = msgspec.msgpack.Decoder(CallResult | _CallFailure)
        self._id = str(uuid.uuid4())

    def request(self) -> tuple[int, bytes]:
        """Give the next number and its frame."""
        self._sent += 1
        order = Run(
            call=self._sent, method="echo", payload=JSONPayload(DOCUMENT), timeout_ms=10_000,
            request_id=self._id,
        )  # fmt: skip
        return self._sent, codec.encode(order)

    def accept(self, reply: bytes) -> int:
        """Take a reply, which must be the document."""
        message = self._decoder.decode(memoryview(reply)[4:])
        if isinstance(message, _CallFailure):
            raise BenchFailed(f"the worker failed a call: {message.code}")
        if message.payload.data != DOCUMENT:
            raise BenchFailed("the worker returned another document than it was given")
        return message.call


class Counts(NamedTuple):
    """What the processes of a worker have used so far: page faults, and processor time in us."""

    supervisor_us: float
    zygote_us: float
    calls_us: float
    zygote_faults: int
    call_faults: int

    def per(self, before: Counts, calls: int) -> Counts:
        """The difference to an earlier reading for each of a number of calls."""
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
            (supervisor[13] + supervisor[14]) * _TICK_US,
            (zygote[13] + zygote[14]) * _TICK_US,
            (zygote[15] + zygote[16]) * _TICK_US,
            zygote[9],
            zygote[10],
        )


def _stat(pid: int) -> list[int]:
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return [0, 0, 0, *(int(field) for field in fields[1:])]


@contextlib.contextmanager
def worker(
    root: str, folder: str, *, plugin: str = "plugin", pool_size: int = 4
) -> Iterator[RunningWorker]:
    """Run a worker for the bench's plugin until the block ends.

    Args:
        root: the project's folder.
        folder: an existing folder for bundle and socket.
        plugin: the plugin's folder beside this file.
        pool_size: how many call processes wait.
    """
    source = read_folder(os.path.join(root, "scripts", "benchmarks", plugin))
    data = sign(pack(source, "development").data, [_KEY]).data
    name = uuid.uuid4().hex
    bundle = os.path.join(folder, f"{name}.omegaplugin")
    with open(bundle, "wb") as file:
        file.write(data)
    server_public, server_secret = zmq.curve_keypair()
    _, secret = zmq.curve_keypair()
    limits = msgspec.structs.replace(source.source.limits, concurrency=CONCURRENCY)
    launch = LaunchDocument(
        format="omega-launch/1", incarnation=name, plugin=source.source.id,
        version=source.source.version, plugin_digest=hashlib.sha256(data).hexdigest(),
        bundle=bundle, endpoint=f"ipc://{folder}/{name[:8]}", server_key=server_public.decode(),
        worker_secret_key=secret.decode(), limits=limits, grants=(),
        expires_at_us=int((time.time() + 60) * 1_000_000), pool_size=pool_size,
    )  # fmt: skip
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
            yield RunningWorker(socket, supervisor, ready.attestation.zygote_pid)


@contextlib.contextmanager
def _started(launch: LaunchDocument) -> Iterator[int]:
    """Start the worker's process; it ends with its life pipe, so with the bench."""
    document_read, document_write = os.pipe()
    life_read, life_write = os.pipe()
    with subprocess.Popen(
        worker_command(document_read, life_read), pass_fds=(document_read, life_read),
        env=worker_environment(), cwd="/",
    ) as process:
        os.close(document_read)
        os.close(life_read)
        with os.fdopen(document_write, "wb") as pipe:
            pipe.write(msgspec.json.encode(launch))
        try:
            yield process.pid
        finally:
            os.close(life_write)
