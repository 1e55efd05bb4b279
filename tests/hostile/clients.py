"""Ten good clients: `python -m tests.hostile.clients HOME`, watched while others attack.

Each has one request in flight and waits a moment after each answer, so what is measured is what a
client notices and not how fast the broker is. A line on stdin asks for what happened since the
last one; the answer is one line of JSON. Anything but the right answer is an error: a refusal, a
wrong payload, a lost reply.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import zmq

from broker.client_profile import read_profile
from schemas import codec
from schemas.messages import Invoke, LedgerHead, Result, Status, StatusReport
from schemas.payloads import JSONPayload

PLUGIN = "bench-echo"
DOCUMENT = (
    b'{"id":"one","kind":"estimate","labels":[],"measures":[],"note":"good","valid":true}'
)
THINK_S = 0.02
LOST_S = 20.0


def invoke(request_id: str) -> msgspec.Struct:
    """Ask for the document back."""
    return Invoke(request_id=request_id, plugin=PLUGIN, method="echo", timeout_ms=10_000,
                  payload=JSONPayload(DOCUMENT), commitment_key=secrets.token_bytes(32))


def status(request_id: str) -> msgspec.Struct:
    """Ask how the gateway is."""
    return Status(request_id=request_id)


def head(request_id: str) -> msgspec.Struct:
    """Ask for the ledger's head."""
    return LedgerHead(request_id=request_id)


WORK: tuple[tuple[str, Callable[[str], msgspec.Struct]], ...] = (
    *[("omega", invoke)] * 5, *[("omega", head)] * 3, ("operator", status), ("auditor", status),
)


class Client:
    """One of the ten."""

    def __init__(self, context: zmq.Context, home: Path, role: str, ask) -> None:
        profile = read_profile(str(home / "profiles" / role))
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_serverkey = profile.settings.server_key.encode()
        self.socket.curve_publickey = profile.pair.public.encode()
        self.socket.curve_secretkey = profile.pair.secret.encode()
        self.socket.connect(profile.settings.endpoint)
        self.ask = ask
        self.request_id = ""
        self.sent = 0.0
        self.next = 0.0
        self.taken_us: list[float] = []
        self.errors: list[str] = []

    def turn(self, now: float) -> None:
        """Take an answer, give up a lost one, ask again when the moment is over."""
        while self.socket.get(zmq.EVENTS) & zmq.POLLIN:
            self.take(codec.decode_reply(self.socket.recv()), now)
        if self.request_id and now - self.sent > LOST_S:
            self.errors.append("lost")
            self.request_id = ""
        if not self.request_id and now >= self.next:
            self.request_id, self.sent = str(uuid.uuid4()), now
            self.socket.send(codec.encode(self.ask(self.request_id)), zmq.NOBLOCK)

    def take(self, reply: object, now: float) -> None:
        """Count one answer."""
        right = getattr(reply, "request_id", "") == self.request_id and (
            isinstance(reply, StatusReport) if self.ask is status
            else reply.payload.data == DOCUMENT if isinstance(reply, Result)
            else self.ask is head and getattr(reply, "code", None) is None
        )
        if not right:
            self.errors.append(repr(reply)[:300])
        self.taken_us.append((now - self.sent) * 1e6)
        self.request_id, self.next = "", now + THINK_S


def told(clients: list[Client]) -> dict[str, object]:
    """Say what happened since the last time, and begin anew."""
    taken = sorted(time for client in clients for time in client.taken_us)
    line = {
        "answers": [len(client.taken_us) for client in clients],
        "errors": [error for client in clients for error in client.errors],
        "p50_us": taken[len(taken) // 2] if taken else None,
        "p99_us": taken[min(len(taken) - 1, len(taken) * 99 // 100)] if taken else None,
    }
    for client in clients:
        client.taken_us, client.errors = [], []
    return line


def main(home: Path) -> None:
    """Work until stdin ends."""
    context = zmq.Context()
    clients = [Client(context, home, role, ask) for role, ask in WORK]
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    for client in clients:
        poller.register(client.socket, zmq.POLLIN)
    while True:
        ready = dict(poller.poll(5))
        now = time.perf_counter()
        for client in clients:
            client.turn(now)
        if sys.stdin.fileno() in ready:
            if not os.read(sys.stdin.fileno(), 4096):
                break
            print(json.dumps(told(clients)), flush=True)
    context.destroy(linger=0)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
