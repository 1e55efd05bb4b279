"""A worker and the one peer it has: bundles, launch documents and a broker's end of the socket.

Everything is real: the worker is a process of its own, started as the launcher starts it, and
speaks CURVE over an ipc socket. Nothing here is a stand-in for a part that decides something.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import rfc8785
import zmq

from schemas import codec
from schemas.launch import LaunchDocument
from schemas.manifest import (
    BundleFile,
    Envelope,
    Limits,
    Method,
    PayloadSpec,
    PluginManifest,
    pre_authentication_encoding,
)
from schemas.messages import (
    Bye,
    CallFailure,
    CallResult,
    FromWorker,
    Ready,
    Run,
    ToWorker,
)
from schemas.names import Domain
from schemas.payloads import JSONPayload, Payload, TextPayload

ROOT = Path(__file__).resolve().parents[2]
LIMITS = Limits(
    cpu_ms=2000, wall_ms=5000, memory_mb=256, output_bytes=256 * 1024, concurrency=8
)
PATIENCE_S = 20.0
"""How long a test waits for anything before it fails."""


def make_bundle(
    folder: Path,
    source: str,
    *,
    methods: dict[str, Method],
    limits: Limits = LIMITS,
    modules: tuple[str, ...] = (),
    resources: dict[str, bytes] | None = None,
    grants: tuple[str, ...] = (),
    domain: Domain = "development",
) -> Path:
    """Write a bundle as packing does. The signature is nobody's: the worker does not check it."""
    files = {"plugin.py": source.encode(), **(resources or {})}
    manifest = PluginManifest(
        format="omega-manifest/1",
        id="plugin-under-test",
        version="1.0.0",
        api_version="1.0.0",
        domain=domain,
        publisher="tests",
        description="",
        entry="plugin.py",
        methods=methods,
        schemas={},
        capabilities=grants,
        limits=limits,
        modules=modules,
        resources=tuple(resources or {}),
        files=tuple(
            BundleFile(name, len(data), hashlib.sha256(data).hexdigest())
            for name, data in files.items()
        ),
    )
    payload = rfc8785.dumps(msgspec.to_builtins(manifest))
    kind = "application/vnd.omega.plugin-manifest.v1.development+json"
    assert pre_authentication_encoding(kind, payload)
    envelope = Envelope(base64.b64encode(payload).decode(), kind, ())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("manifest.dsse.json", _unsigned(envelope))
        for name, data in files.items():
            archive.writestr(name, data)
    path = folder / "plugin-under-test-1.0.0.omegaplugin"
    path.write_bytes(buffer.getvalue())
    path.chmod(0o644)
    return path


def _unsigned(envelope: Envelope) -> bytes:
    document = msgspec.to_builtins(envelope)
    document["signatures"] = [{"keyid": "", "sig": ""}]
    return msgspec.json.encode(document)


def text_to_json(name: str = "main") -> dict[str, Method]:
    """One method that takes a text and gives JSON."""
    return {name: Method(PayloadSpec("text"), PayloadSpec("json"))}


class Worker:
    """A running worker and the broker's end of its socket."""

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        *,
        limits: Limits = LIMITS,
        grants: tuple[str, ...] = (),
        grant_values: dict[str, str] | None = None,
        pool_size: int = 2,
        changes: dict[str, object] | None = None,
        stderr: int | None = None,
    ) -> None:
        """Start it; `changes` replaces fields of the launch document."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        server_public, server_secret = zmq.curve_keypair()
        _, worker_secret = zmq.curve_keypair()
        self._socket.curve_server = True
        self._socket.curve_secretkey = server_secret
        self._socket.linger = 0
        endpoint = f"ipc://{folder}/{uuid.uuid4().hex[:8]}"
        self._socket.bind(endpoint)
        self.launch = LaunchDocument(
            format="omega-launch/1",
            incarnation=uuid.uuid4().hex,
            plugin="plugin-under-test",
            version="1.0.0",
            plugin_digest=hashlib.sha256(bundle.read_bytes()).hexdigest(),
            bundle=str(bundle),
            endpoint=endpoint,
            server_key=server_public.decode(),
            worker_secret_key=worker_secret.decode(),
            limits=limits,
            grants=grants,
            expires_at_us=int((time.time() + 60) * 1_000_000),
            grant_values=grant_values or {},
            pool_size=pool_size,
        )
        self.launch = msgspec.structs.replace(self.launch, **(changes or {}))
        launch_read, launch_write = os.pipe()
        life_read, self.life = os.pipe()
        self.process = subprocess.Popen(
            [
                sys.executable, "-s", "-m", "sandbox_worker",
                "--launch-fd", str(launch_read), "--life-fd", str(life_read),
            ],
            pass_fds=(launch_read, life_read),
            cwd=ROOT,
            stderr=stderr,
            env={"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
                 "PYTHONDONTWRITEBYTECODE": "1"},
        )  # fmt: skip
        os.close(launch_read)
        os.close(life_read)
        with os.fdopen(launch_write, "wb") as pipe:
            pipe.write(msgspec.json.encode(self.launch))
        self._calls = 0
        self.zygote = 0
        self.others: list[FromWorker] = []

    def send(self, order: ToWorker) -> None:
        """Send one order."""
        self._socket.send(codec.encode(order))

    def receive(self, patience_s: float = PATIENCE_S) -> FromWorker:
        """The next report; fails the test when none comes."""
        if not self._socket.poll(int(patience_s * 1000)):
            raise AssertionError(f"no report; worker exit code {self.process.poll()}")
        return codec.from_worker.decode(self._socket.recv())

    def ready(self) -> Ready:
        """The first report, which must be `ready`."""
        report = self.receive()
        assert isinstance(report, Ready), report
        self.zygote = report.attestation.zygote_pid
        return report

    def start(
        self, payload: Payload | str, method: str = "main", timeout_ms: int = 4000
    ) -> int:
        """Send one call and give its number."""
        self._calls += 1
        if isinstance(payload, str):
            payload = TextPayload(payload)
        self.send(
            Run(call=self._calls, method=method, payload=payload, timeout_ms=timeout_ms,
                request_id=str(uuid.uuid4()))
        )  # fmt: skip
        return self._calls

    def end_of(self, call: int) -> CallResult | CallFailure:
        """The end of one call; other reports are kept in `others`."""
        while True:
            report = self.receive()
            if isinstance(report, (CallResult, CallFailure)) and report.call == call:
                return report
            self.others.append(report)
            assert not isinstance(report, Bye), report

    def call(
        self, payload: Payload | str = "", method: str = "main", timeout_ms: int = 4000
    ) -> CallResult | CallFailure:
        """One call, to its end."""
        return self.end_of(self.start(payload, method, timeout_ms))

    def value(self, payload: Payload | str = "", method: str = "main") -> object:
        """The JSON value of one call that must succeed."""
        end = self.call(payload, method)
        assert isinstance(end, CallResult), end
        assert isinstance(end.payload, JSONPayload), end
        return msgspec.json.decode(end.payload.data)

    def close(self) -> None:
        """Let the broker's end vanish, and see the worker end with it."""
        with contextlib.suppress(OSError):
            os.close(self.life)
        try:
            self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()
            self._socket.close()
            self._context.term()


@contextlib.contextmanager
def worker(
    folder: Path,
    source: str,
    *,
    methods: dict[str, Method] | None = None,
    limits: Limits = LIMITS,
    modules: tuple[str, ...] = (),
    resources: dict[str, bytes] | None = None,
    grants: tuple[str, ...] = (),
    grant_values: dict[str, str] | None = None,
    pool_size: int = 2,
    changes: dict[str, object] | None = None,
) -> Iterator[Worker]:
    """A ready worker for one plugin source, ended and reaped afterwards."""
    methods = methods or text_to_json()
    bundle = make_bundle(
        folder, source, methods=methods, limits=limits, modules=modules, resources=resources,
        grants=grants,
    )  # fmt: skip
    one = Worker(
        folder, bundle, limits=limits, grants=grants, grant_values=grant_values,
        pool_size=pool_size, changes=changes,
    )  # fmt: skip
    try:
        one.ready()
        yield one
    finally:
        one.close()
