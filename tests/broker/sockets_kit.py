"""What tests of real sockets share: a short run folder, an open transport, honest and odd peers."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import zmq

from broker.arrivals import Arrival
from broker.keys import CurvePair, curve_key_id, new_curve_pair
from broker.transport import FrontSetup, Transport, TransportLimits

SECONDS_MAX = 10.0
BYTES_MAX = 4096

Socket = zmq.Socket[bytes]


@contextmanager
def run_directory() -> Iterator[str]:
    """Make a private folder whose path is short enough for socket files."""
    path = tempfile.mkdtemp(prefix="omega-")
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class House:
    """An open transport with one key for each front, and the peers that a test makes."""

    def __init__(self, directory: str, **changes: object) -> None:
        """Open it; `changes` replace fields of the omega front's setup or `limits`."""
        self.directory = directory
        self.omega_server, self.admin_server = new_curve_pair(), new_curve_pair()
        self.omega, self.operator = new_curve_pair(), new_curve_pair()
        limits = changes.pop("limits", TransportLimits())
        assert isinstance(limits, TransportLimits)
        omega = FrontSetup(
            endpoint=f"ipc://{directory}/omega",
            server_secret_z85=self.omega_server.secret,
            keys={self.omega.public: curve_key_id(self.omega.public)},
            bytes_max=BYTES_MAX,
            high_water_mark=1000,
            connections_max=256,
            crowd_max=4096,
            handshakes_per_s_max=100_000,
        )._replace(**changes)
        admin = omega._replace(
            endpoint=f"ipc://{directory}/admin",
            server_secret_z85=self.admin_server.secret,
            keys={self.operator.public: curve_key_id(self.operator.public)},
        )
        self.context: zmq.Context[Socket] = zmq.Context()
        self.kept: list[object] = []
        self.transport = Transport.open(
            omega=omega, admin=admin, run_directory=directory, limits=limits
        )
        self.transport.listen()

    def dealer(self, pair: CurvePair | None = None, *, endpoint: str = "", server: str = "",
               routing_id: bytes = b"") -> Socket:
        """Connect a CURVE client; by default OMEGA to its front."""
        pair = pair or self.omega
        peer = self.context.socket(zmq.DEALER)
        peer.linger = 0
        peer.rcvtimeo = peer.sndtimeo = int(SECONDS_MAX * 1000)
        peer.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        peer.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        peer.setsockopt(zmq.CURVE_SERVERKEY, (server or self.omega_server.public).encode())
        if routing_id:
            peer.setsockopt(zmq.ROUTING_ID, routing_id)
        peer.connect(endpoint or self.transport.endpoint("front.omega"))
        # A socket that nobody names is closed at once.
        self.kept.append(peer)
        return peer

    def raw(self) -> socket.socket:
        """Connect a bare stream to OMEGA's front."""
        peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        peer.settimeout(SECONDS_MAX)
        peer.connect(self.transport.endpoint("front.omega").removeprefix("ipc://"))
        return peer

    def pump(self, done: Callable[[list[Arrival]], bool]) -> list[Arrival]:
        """Turn until `done` likes what has arrived so far; gives all of it."""
        arrivals: list[Arrival] = []
        deadline = time.monotonic() + SECONDS_MAX
        while not done(arrivals):
            assert time.monotonic() < deadline, f"only this arrived: {arrivals}"
            arrivals.extend(self.transport.poll(20))
        return arrivals

    def pump_for(self, kind: type[Arrival], count: int = 1) -> list[Arrival]:
        """Turn until `count` arrivals of one kind are there; gives all that came."""
        return self.pump(lambda all_: sum(isinstance(one, kind) for one in all_) >= count)

    def quiet(self) -> list[Arrival]:
        """Turn for a short while in which nothing is awaited; gives what came."""
        return [arrival for _ in range(10) for arrival in self.transport.poll(20)]

    def close(self) -> None:
        """Close peers and transport."""
        self.context.destroy(linger=0)
        self.transport.close(linger_ms=0)


@contextmanager
def house(**changes: object) -> Iterator[House]:
    """Open a transport in a folder of its own."""
    with run_directory() as directory:
        home = House(directory, **changes)
        try:
            yield home
        finally:
            home.close()


def incarnation() -> str:
    """Make a worker's name."""
    return secrets.token_hex(16)


def own_ids() -> tuple[int, int]:
    """Give this process's pid and uid, as the kernel tells them to a listening socket."""
    return os.getpid(), os.geteuid()
