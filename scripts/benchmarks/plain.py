"""The floors of the bus: the same hops without a gateway, in C and in Python.

All carry a document of about a kilobyte from a DEALER through a process of its own to a worker and
back, over ipc with CURVE on both sides. Nothing is decoded, checked or recorded: what a gateway
costs is the distance to them. `relay` admits two keys by ZAP and reads on every message whose it
is, because without that it could stand in for no gateway; `relay_bare` and the proxy let anybody
in.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Final

import zmq

from benchmarks.child import say_ready
from benchmarks.document import DOCUMENT
from benchmarks.measure import REPLY_MS_MAX, BenchFailed
from benchmarks.processes import Child
from broker.keys import curve_bytes

MESSAGES_A_TURN: Final = 64
Settings = dict[str, str]


class DocumentTraffic:
    """The bare document, out and back. One worker answers in order, so a number is a count."""

    def __init__(self) -> None:
        """Begin at zero."""
        self._sent = 0
        self._received = 0

    def request(self) -> tuple[int, bytes]:
        """Give the next number and the document."""
        self._sent += 1
        return self._sent, DOCUMENT

    def accept(self, reply: bytes) -> int:
        """Take a reply, which must be the document."""
        if reply != DOCUMENT:
            raise BenchFailed("a floor returned another document than it was given")
        self._received += 1
        return self._received


def client_socket(
    context: zmq.Context[zmq.Socket[bytes]], endpoint: str, server_key: bytes,
    pair: tuple[bytes, bytes],
) -> zmq.Socket[bytes]:
    """Connect a DEALER under CURVE; `pair` is the public and the secret key in Z85."""
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.curve_serverkey = server_key
    socket.curve_publickey, socket.curve_secretkey = pair
    socket.sndtimeo = socket.rcvtimeo = REPLY_MS_MAX
    socket.connect(endpoint)
    return socket


@contextlib.contextmanager
def floor(root: str, role: str, folder: str) -> Iterator[tuple[zmq.Socket[bytes], list[int]]]:
    """Run `proxy`, `relay` or `relay_bare` with one echoing worker.

    Yields:
        A connected client, and the process in the middle.
    """
    front, back, own, other = (zmq.curve_keypair() for _ in range(4))
    settings = {
        "client_public": own[0].decode(), "echo_public": other[0].decode(),
        "echo_secret": other[1].decode(),
        "front": f"ipc://{folder}/{role}-front", "back": f"ipc://{folder}/{role}-back",
        "front_secret": front[1].decode(), "back_secret": back[1].decode(),
        "back_public": back[0].decode(),
    }  # fmt: skip
    with (
        Child(root, role, settings) as middle,
        Child(root, "echo", settings),
        zmq.Context() as context,
        client_socket(context, settings["front"], front[0], own) as client,
    ):
        yield client, [middle.pid]


def _server(
    context: zmq.Context[zmq.Socket[bytes]], kind: int, endpoint: str, secret: str, domain: str
) -> zmq.Socket[bytes]:
    socket = context.socket(kind)
    socket.linger = 0
    if domain:
        socket.zap_domain = domain.encode()
    socket.curve_server = True
    socket.curve_secretkey = secret.encode()
    socket.bind(endpoint)
    return socket


def _pair(
    settings: Settings, context: zmq.Context[zmq.Socket[bytes]], domain: str = ""
) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    os.umask(0o077)
    front = _server(context, zmq.ROUTER, settings["front"], settings["front_secret"], domain)
    back = _server(context, zmq.DEALER, settings["back"], settings["back_secret"], domain)
    # A signal that only ends the process needs no clean-up here: the folder goes as a whole.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say_ready()
    return front, back


def proxy(settings: Settings) -> None:
    """Forward in C: zmq_proxy(3)."""
    zmq.proxy(*_pair(settings, zmq.Context()))


def relay(settings: Settings) -> None:
    """Forward in Python, for two known keys, reading on every message whose it is."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    zap = context.socket(zmq.REP)
    zap.bind("inproc://zeromq.zap.01")
    known = {
        curve_bytes(settings["client_public"]): b"client",
        curve_bytes(settings["echo_public"]): b"worker",
    }
    front, back = _pair(settings, context, "relay")
    admitted: set[bytes] = set()
    while len(admitted) < len(known):
        # Both before the first message: a socket without a peer would block, and the door with it.
        _, request, *_, key = zap.recv_multipart()
        user = known.get(key, b"")
        status = [b"200", b"OK"] if user else [b"400", b"unknown key"]
        zap.send_multipart([b"1.0", request, *status, user, b""])
        admitted |= {user} - {b""}
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    other = {front: back, back: front}
    users = {front: "client", back: "worker"}
    while True:
        for source, _ in poller.poll():
            for _ in range(MESSAGES_A_TURN):
                if not source.getsockopt(zmq.EVENTS) & zmq.POLLIN:
                    break
                _forward(source, other[source], users[source])


def _forward(source: zmq.Socket[bytes], target: zmq.Socket[bytes], user: str) -> None:
    """Pass one message on if it is of the key that it must be of."""
    first = source.recv(copy=False)
    frames = [first.bytes]
    while source.getsockopt(zmq.RCVMORE):
        frames.append(source.recv())
    if first.get("User-Id") == user:
        target.send_multipart(frames)


def relay_bare(settings: Settings) -> None:
    """Forward in Python, as short as it can be written, for anybody."""
    front, back = _pair(settings, zmq.Context())
    poller = zmq.Poller()
    poller.register(front, zmq.POLLIN)
    poller.register(back, zmq.POLLIN)
    other = {front: back, back: front}
    while True:
        for source, _ in poller.poll():
            target = other[source]
            for _ in range(MESSAGES_A_TURN):
                try:
                    target.send_multipart(source.recv_multipart(zmq.NOBLOCK))
                except zmq.Again:
                    break


def echo(settings: Settings) -> None:
    """The worker of both: give back what comes."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server_key = settings["back_public"].encode()
    pair = (settings["echo_public"].encode(), settings["echo_secret"].encode())
    socket = client_socket(context, settings["back"], server_key, pair)
    socket.rcvtimeo = -1
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    say_ready()
    while True:
        socket.send_multipart(socket.recv_multipart())
