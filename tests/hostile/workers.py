"""Attacks on the worker plane: a worker that was taken over, and others on its socket.

Each costs its incarnation its life. The plugin is one that no good client calls.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator

import msgspec
import zmq

from broker.keys import CurvePair, curve_pair
from broker.launchers.external import take_document
from schemas import codec
from schemas.launch import LaunchDocument
from schemas.messages import (
    CallFailure,
    CallResult,
    Invoke,
    Pong,
    Probe,
    ProbeOutcome,
    ProbeReport,
    Ready,
    Refusal,
    Run,
    Status,
)
from schemas.payloads import JSONPayload
from schemas.witness import CONTROL, PROBES
from tests.hostile.attack import Attack, attack
from tests.hostile.clients import DOCUMENT
from tests.hostile.siege import VICTIM, Siege
from tests.hostile.wire import DEALER, MORE, Peer
from tests.simulation.settings import ATTESTATION, USAGE
from tests.support.gateway import wait_for


class Worker:
    """A worker that an attacker plays, as far as it has come."""

    def __init__(self, siege: Siege, launch: LaunchDocument, client: zmq.Socket[bytes]) -> None:
        self.launch = launch
        self.client = client
        self.siege = siege
        self.pair: CurvePair = curve_pair(launch.worker_secret_key)
        self.run: Run | None = None

    def dealer(self, pair: CurvePair | None = None) -> zmq.Socket[bytes]:
        """Connect to the worker's socket; with its own key unless another is given."""
        pair = pair or self.pair
        socket = self.siege.context.socket(zmq.DEALER)
        socket.linger = 0
        socket.sndtimeo = socket.rcvtimeo = 20_000
        socket.curve_serverkey = self.launch.server_key.encode()
        socket.curve_secretkey, socket.curve_publickey = pair.secret.encode(), pair.public.encode()
        socket.reconnect_ivl = -1
        socket.connect(self.launch.endpoint)
        return socket

    def serve(self, socket: zmq.Socket[bytes]) -> Run:
        """Be ready, satisfy the witness, and take the call that waits."""
        socket.send(codec.encode(Ready(pid=os.getpid(), attestation=ATTESTATION, concurrency=1)))
        while True:
            order = codec.to_worker.decode(socket.recv())
            if isinstance(order, Probe):
                outcomes = tuple(
                    ProbeOutcome(name, "allowed" if name == CONTROL else "denied")
                    for name in PROBES
                )
                socket.send(codec.encode(
                    ProbeReport(probe=order.probe, nonce=order.nonce, outcomes=outcomes)
                ))
            elif isinstance(order, Run):
                return order

    def refused(self) -> str:
        """Wait for what became of the call."""
        reply = codec.decode_reply(self.client.recv())
        assert isinstance(reply, Refusal), reply
        return str(reply.code)


@contextlib.contextmanager
def worker(siege: Siege, timeout_ms: int = 30_000) -> Iterator[Worker]:
    """Ask for a call of the victim, and take the launch document of the worker it needs."""
    with siege.dealer() as client:
        client.send(codec.encode(Invoke(
            request_id=str(uuid.uuid4()), plugin=VICTIM, method="echo", timeout_ms=timeout_ms,
            payload=JSONPayload(DOCUMENT), commitment_key=os.urandom(32),
        )))
        document = wait_for("a launch document",
                            lambda: take_document(siege.run_directory, VICTIM))
        yield Worker(siege, msgspec.json.decode(document, type=LaunchDocument), client)


def results(call: int) -> bytes:
    """Answer a call well."""
    return codec.encode(CallResult(call=call, payload=JSONPayload(DOCUMENT), usage=USAGE))


WORDS: tuple[Callable[[int], list[bytes]], ...] = (
    lambda call: [results(call + 100)],
    lambda call: [codec.encode(CallFailure(call=call + 7, code="plugin_error"))],
    lambda call: [codec.encode(Invoke(
        request_id=str(uuid.uuid4()), plugin="bench-echo", method="echo", timeout_ms=1000,
        payload=JSONPayload(DOCUMENT), commitment_key=bytes(32)))],
    lambda call: [codec.encode(Status(request_id=str(uuid.uuid4())))],
    lambda call: [codec.encode(Pong(nonce=b"0" * 16))],
    lambda call: [b""],
    lambda call: [b"OPG1" + b"\x91" * 50_000],
    lambda call: [b"", b""],
    lambda call: [b"x"] * 1000,
    lambda call: [codec.encode(Run(call=1, method="echo", payload=JSONPayload(DOCUMENT),
                                   timeout_ms=1000, request_id=str(uuid.uuid4())))],
)
"""What a worker may not say while it has a call: each costs it its life."""


@attack("what a worker may not say")
def words(siege: Siege) -> None:
    """Answers to calls never given, requests, garbage, many frames: the call ends, so does it."""
    for say in WORDS:
        with worker(siege) as one, one.dealer() as socket:
            order = one.serve(socket)
            socket.send_multipart(say(order.call))
            assert one.refused() == "worker_lost"


@attack("a second peer on a worker's socket", "connection_refused")
def second_peer(siege: Siege) -> None:
    """The worker's own key again, beside it: the incarnation ends, the second gets nothing."""
    with worker(siege) as one, one.dealer() as socket:
        one.serve(socket)
        with one.dealer() as second:
            second.send(codec.encode(Pong(nonce=b"0" * 16)))
            assert one.refused() == "worker_lost"
            assert not second.poll(0)


@attack("strangers on a worker's socket")
def strangers(siege: Siege) -> None:
    """Other keys, no key and garbage on a worker's socket leave the worker and its call alone."""
    with worker(siege) as one, one.dealer() as socket:
        order = one.serve(socket)
        for pair in (siege.hostile.pair, siege.spy.pair, None):
            with Peer(one.launch.endpoint, one.launch.server_key, pair) as peer:
                peer.welcomed()
                peer.send(peer.initiate())
                assert peer.frame()[:6] != b"\x05READY"
        for data in (b"GET / HTTP/1.1\r\n\r\n", b"\xff" * 100, b""):
            with Peer(one.launch.endpoint, one.launch.server_key) as peer:
                peer.send(data)
        socket.send(results(order.call))
        assert not isinstance(codec.decode_reply(one.client.recv()), Refusal)
        # The worker goes, so that the next attack gets one of its own.
        socket.send(b"")
        siege.until("the worker to be gone",
                    lambda: not os.path.exists(one.launch.endpoint.removeprefix("ipc://")))


@attack("a worker's endless message")
def endless(siege: Siege) -> None:
    """A worker that says it is ready and then never ends its message: the call ends in time."""
    with worker(siege, 2_000) as one, Peer(
        one.launch.endpoint, one.launch.server_key, one.pair
    ) as peer:
        peer.ready(DEALER)
        ready = Ready(pid=os.getpid(), attestation=ATTESTATION, concurrency=1)
        peer.send(peer.message(codec.encode(ready)))
        for _ in range(20):
            peer.send(b"".join(peer.message(bytes(512), MORE) for _ in range(1000)))
        assert one.refused() == "deadline_exceeded"


WORKERS: tuple[Attack, ...] = (words, second_peer, strangers, endless)
