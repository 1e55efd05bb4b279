"""Handshakes without end, from as many addresses as one likes, for the price of one.

Rules this file keeps: every connection says the same greeting and HELLO at once, which costs its
sender nothing and a server that reads it three Curve25519 operations; who got a WELCOME hangs up,
and who got no connection at all soon tries with another.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from itertools import cycle
from typing import NamedTuple, Self

from tests.hostile.wire import Peer, greeting

WELCOME_BYTES = 64 + 170
GIVEN_UP_S = 0.2


class _Asking(NamedTuple):
    stream: socket.socket
    since_s: float


class Flood:
    """One sender of handshakes; goes on for as long as `step` is called."""

    def __init__(
        self, endpoint: str, server_key: str, sources: tuple[str, ...], *, width: int = 100
    ) -> None:
        """Prepare the one HELLO; `sources` are local addresses, `width` connections at a time."""
        host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
        self.welcomed = 0
        """How many handshakes the server went into."""
        self.asked = 0
        """How many connections were begun."""
        self._target = (host, int(port))
        self._width = width
        self._sources = cycle(sources)
        self._asking: dict[int, _Asking] = {}
        self._heard: dict[int, int] = {}
        self._epoll = select.epoll()
        with Peer(endpoint, server_key) as peer:
            self._bytes = greeting() + peer.hello()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in list(self._asking):
            self._end(descriptor)
        self._epoll.close()

    def step(self) -> None:
        """Begin what there is room for, and take what came."""
        while len(self._asking) < self._width:
            self._begin()
        for descriptor, _ in self._epoll.poll(0.005):
            try:
                self._go_on(descriptor)
            except OSError:
                self._end(descriptor)
        now_s = time.monotonic()
        for descriptor, asking in list(self._asking.items()):
            if descriptor not in self._heard and now_s - asking.since_s > GIVEN_UP_S:
                self._end(descriptor)

    def _begin(self) -> None:
        stream = socket.socket()
        stream.setblocking(False)
        stream.bind((next(self._sources), 0))
        with contextlib.suppress(BlockingIOError):
            stream.connect(self._target)
        self._asking[stream.fileno()] = _Asking(stream, time.monotonic())
        self._epoll.register(stream.fileno(), select.EPOLLOUT)
        self.asked += 1

    def _go_on(self, descriptor: int) -> None:
        """Say everything once there is a connection, and count what comes back."""
        stream = self._asking[descriptor].stream
        if descriptor not in self._heard:
            stream.send(self._bytes)
            self._heard[descriptor] = 0
            self._epoll.modify(descriptor, select.EPOLLIN)
            return
        came = len(stream.recv(4096))
        self._heard[descriptor] += came
        if self._heard[descriptor] >= WELCOME_BYTES:
            self.welcomed += 1
        if self._heard[descriptor] >= WELCOME_BYTES or not came:
            self._end(descriptor)

    def _end(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        self._asking.pop(descriptor).stream.close()
        self._heard.pop(descriptor, None)
