"""The real gateway as a contestant: its own home, its own process, a signed and enabled plugin.

Rules this file keeps: nothing of the gateway is switched off or bent; only what an operator could
write in `gateway.toml` differs between rows. The load speaks the wire as a client must, with a
fresh id and a fresh commitment key for each request and the checkpoint it last saw, but joins
bytes instead of encoding messages.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from typing import Literal

import msgspec
import zmq

from benchmarks.document import DOCUMENT
from benchmarks.measure import BenchFailed
from benchmarks.plain import client_socket
from benchmarks.processes import Child
from broker.authoring.pack import pack, sign
from broker.authoring.source import read_folder
from broker.client import AdminClient, GatewayError
from broker.client_profile import read_profile
from broker.home import PUBLISHER_KEY, create_home
from broker.keys import read_secret
from schemas import codec
from schemas.messages import Invoke
from schemas.names import Durability
from schemas.payloads import JSONPayload

Worker = Literal["stub", "sandbox"]

PLUGIN = "bench-echo"
VERSION = "1.0.0"
CONNECT_S = 20.0
STUB_CONCURRENCY = 64
_KEYS_AT_ONCE = 1024
_PLACEHOLDER_ID = "00000000-0000-4000-8000-000000000000"
_PLACEHOLDER_KEY = bytes(range(0xC0, 0xE0))


class _Receipt(msgspec.Struct):
    checkpoint: str | None = None


class _Result(msgspec.Struct, tag_field="type", tag="result"):
    request_id: str
    payload: JSONPayload
    receipt: _Receipt


class _Refusal(msgspec.Struct, tag_field="type", tag="refusal"):
    code: str
    message: str


class InvokeTraffic:
    """Invocations of the echo method, and their results."""

    def __init__(self, timeout_ms: int = 10_000, plugin: str = PLUGIN) -> None:
        """Cut one encoded invocation at the places that change."""
        self._timeout_ms = timeout_ms
        self._plugin = plugin
        self._sent = 0
        self._known_size = 0
        self._keys: list[bytes] = []
        # The rest of a version 4 UUID; the number of the request makes it unique.
        tail = secrets.token_hex(12)
        self._tail = f"-{tail[:4]}-4{tail[4:7]}-8{tail[7:10]}-{tail[10:22]}"
        self._decoder = msgspec.msgpack.Decoder(_Result | _Refusal)
        self._parts = self._cut()

    def _cut(self) -> tuple[bytes, bytes, bytes]:
        frame = codec.encode(Invoke(
            request_id=_PLACEHOLDER_ID, known_size=self._known_size, plugin=self._plugin,
            method="echo",
            payload=JSONPayload(DOCUMENT), timeout_ms=self._timeout_ms,
            commitment_key=_PLACEHOLDER_KEY,
        ))
        head, rest = frame.split(_PLACEHOLDER_ID.encode())
        middle, end = rest.split(_PLACEHOLDER_KEY)
        return head, middle, end

    def request(self) -> tuple[int, bytes]:
        """Give the next number and its frame."""
        self._sent += 1
        head, middle, end = self._parts
        identifier = self.identifier(self._sent).encode()
        if not self._keys:
            fresh = os.urandom(32 * _KEYS_AT_ONCE)
            self._keys = [fresh[at : at + 32] for at in range(0, len(fresh), 32)]
        return self._sent, b"".join((head, identifier, middle, self._keys.pop(), end))

    def identifier(self, number: int) -> str:
        """Give the request id of a number."""
        return f"{number:08x}{self._tail}"

    def accept(self, reply: bytes) -> int:
        """Take a reply, which must be the document."""
        message = self._decoder.decode(memoryview(reply)[4:])
        if isinstance(message, _Refusal):
            raise BenchFailed(f"the gateway refused: {message.code}: {message.message}")
        if message.payload.data != DOCUMENT:
            raise BenchFailed("the gateway returned another document than it was given")
        if message.receipt.checkpoint is not None:
            self._known_size = int(message.receipt.checkpoint.split("\n")[1])
            self._parts = self._cut()
        return int(message.request_id[:8], 16)


@contextlib.contextmanager
def gateway(
    root: str,
    folder: str,
    *,
    durability: Durability,
    worker: Worker,
    settings: str = "",
    policy: str = "",
) -> Iterator[tuple[zmq.Socket[bytes], int]]:
    """Run a gateway with the echo plugin enabled and a worker that serves it.

    Args:
        root: the project's folder.
        folder: an existing folder for the home.
        durability: how the ledger is flushed.
        worker: `stub` gives payloads back without running anything, `sandbox` is the real one.
        settings: more lines of `gateway.toml`.
        policy: more lines of `policy.toml`.

    Yields:
        A client connected as OMEGA, and the broker's pid.
    """
    home = create_home(os.path.join(folder, f"home-{worker}-{durability}"), "development", None)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, home.run_directory, ignore_errors=True)
        log = os.path.join(folder, f"broker-{worker}-{durability}.log")
        with open(os.path.join(home.path, "gateway.toml"), "a", encoding="utf-8") as file:
            file.write(f'\n[ledger]\ndurability = "{durability}"\n{settings}')
            if worker == "stub":
                file.write(f'\n[workers]\nexternal = ["{PLUGIN}"]\ncalls_max = 1000000\n')
                # As many calls at the worker as are in flight, as with the relay.
                policy += f"\n[limits]\nconcurrency_max = {STUB_CONCURRENCY}\n"
        with open(os.path.join(home.path, "policy.toml"), "a", encoding="utf-8") as file:
            file.write(policy)
        broker = stack.enter_context(
            Child(root, "broker", {"home": home.path, "log": log}, wait=False)
        )
        try:
            install(root, home.path, concurrency=STUB_CONCURRENCY if worker == "stub" else None)
        except GatewayError as error:
            raise BenchFailed(f"the gateway cannot be used: {error}\n{_end_of(log)}") from None
        if worker == "stub":
            settings = {"run_directory": home.run_directory, "plugin": PLUGIN}
            stack.enter_context(Child(root, "stub", settings, wait=False))
        context = stack.enter_context(zmq.Context())
        profile = read_profile(os.path.join(home.path, "profiles", "omega"))
        pair = (profile.pair.public.encode(), profile.pair.secret.encode())
        server_key = profile.settings.server_key.encode()
        socket = client_socket(context, profile.settings.endpoint, server_key, pair)
        yield stack.enter_context(socket), broker.pid


def install(
    root: str, home: str, plugin: str = "plugin", *, concurrency: int | None = None
) -> None:
    """Pack, sign, register and enable a plugin of the benches, as author and operator would."""
    folder = read_folder(os.path.join(root, "scripts", "benchmarks", plugin))
    if concurrency is not None:
        limits = msgspec.structs.replace(folder.source.limits, concurrency=concurrency)
        source = msgspec.structs.replace(folder.source, limits=limits)
        folder = folder._replace(source=source)
    key = bytes.fromhex(read_secret(os.path.join(home, PUBLISHER_KEY)))
    bundle = sign(pack(folder, "development").data, [key])
    profile = os.path.join(home, "profiles", "operator")
    with AdminClient(profile, connect_timeout=CONNECT_S) as operator:
        registered = operator.register_plugin(bundle.data)
        operator.enable_plugin(registered.plugin, registered.version)


def _end_of(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return "".join(file.readlines()[-12:])
    except OSError:
        return ""
