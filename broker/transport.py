"""Every socket of the broker, on one thread: what arrives becomes facts, what leaves is never lost.

Rules this file keeps:
- Start in this order: versions, libc's `rand` seeded, ZAP handler, fronts with their options read
  back, self-test; and only when all of the gateway is ready, by `listen`, the endpoints. Stop in
  the other order: fronts first, ZAP last.
- Who speaks is the socket and, on a front, the user id that ZAP gave the connection. A routing id
  is only the way back: never compared, logged or sent anywhere else.
- A turn takes a bounded number of messages from each socket and a bounded number of bytes from
  all, monitors first, then handshakes, workers, OMEGA's front and the operators', and other
  descriptors last. What is left is taken in the next turn.
- ZMQ_FD tells of changes, not of states: a socket that was touched is asked again before the loop
  sleeps, so no message waits for the next one to come.
- A send never blocks. It says whether the message left, the peer is gone, or its queue is full.

Why `rand`: a ROUTER numbers its peers from `rand()`, which libzmq does not seed; a peer that knows
the next number can take it as its own routing id, and libzmq then aborts the process. Meaning of
frames is left to `broker.core`, admission to `broker.zap`. Source: docs of zmq_getsockopt(3)
(ZMQ_FD, ZMQ_EVENTS), zmq_setsockopt(3).
"""

from __future__ import annotations

import ctypes
import os
import secrets
import select
import time
from collections.abc import Mapping, Sequence
from typing import Final, Literal, Protocol

import zmq

from broker.arrivals import (
    Arrival,
    EndpointEnded,
    FrontFrames,
    HandshakesRefused,
    OversizedMessage,
    Readable,
    WorkerConnected,
    WorkerDisconnected,
    WorkerFrames,
    WorkerIntruder,
)
from broker.effects import Front, Origin
from broker.footprint import Footprint
from broker.gate import LOOK_MS
from broker.keys import curve_bytes, curve_pair, new_curve_pair
from broker.monitor import MEMORY
from broker.selftest import require_refusal
from broker.sockets import (
    TransportRefused,
    ZmqContext,
    ZmqSocket,
    clear_endpoint,
    require_private_directory,
    server_socket,
    stale_sockets,
    unlink_socket,
)
from broker.stations import (
    BYTES_PER_TURN,
    FrontStation,
    MonitorStation,
    Station,
    TurnBudget,
    WorkerStation,
)
from broker.transport_setup import FrontSetup, OldFront, TransportLimits, WorkerEndpoint
from broker.zap import Doorkeeper, FrontDoor, WorkerDoor
from schemas.events import Plane
from schemas.refusals import RefusalCode

__all__ = [
    "Arrival",
    "FrontFrames",
    "FrontSetup",
    "HandshakesRefused",
    "OldFront",
    "OversizedMessage",
    "Readable",
    "SendOutcome",
    "Transport",
    "TransportLimits",
    "TransportRefused",
    "WorkerConnected",
    "WorkerDisconnected",
    "WorkerEndpoint",
    "WorkerFrames",
    "WorkerIntruder",
]

LIBZMQ_FLOOR: Final = (4, 3, 5)
"""Oldest libzmq whose known remote defects are all mended."""

SendOutcome = Literal["sent", "gone", "full"]

_NOBLOCK: Final = int(zmq.NOBLOCK)
_NOBLOCK_MORE: Final = int(zmq.NOBLOCK | zmq.SNDMORE)
_FRONTS: Final[tuple[Front, Front]] = ("front.omega", "front.admin")
_PLANES: Final[tuple[Plane, ...]] = (*_FRONTS, "worker")
"""Each has a thread of libzmq's: decrypting an operator's 16 MiB takes 12 ms, and OMEGA's clients
and workers do not wait for it."""


DEFAULT_LIMITS: Final = TransportLimits()


class _Watched(Protocol):
    """A socket of the loop: its place in a turn, and how it is drained."""

    rank: int
    socket: ZmqSocket

    def drain(self, arrivals: list[Arrival]) -> bool:
        """Take what waits, bounded; True when there may be more."""


class Transport:
    """The sockets of one broker; made by `open`, reachable from `listen` on; of one thread."""

    def __init__(self, run_directory: str, limits: TransportLimits) -> None:
        """Make the context and the ZAP handler; `open` does the rest."""
        self._run_directory = run_directory
        self._limits = limits
        self._context: ZmqContext = zmq.Context(len(_PLANES))
        self._epoll = select.epoll()
        self._watched: dict[int, _Watched] = {}
        self._hot: set[_Watched] = set()
        self._pending: list[Arrival] = []
        self._fronts: dict[Front, FrontStation] = {}
        self._old: dict[Front, FrontStation] = {}
        self._workers: dict[str, WorkerStation] = {}
        self._monitors: dict[Station, MonitorStation] = {}
        self._budget = TurnBudget()
        self._footprint = Footprint(limits.memory_mb_max)
        self._stale: list[str] = []
        self._doorkeeper = Doorkeeper(self._context)
        self._add(self._doorkeeper)

    @classmethod
    def open(
        cls,
        *,
        omega: FrontSetup,
        admin: FrontSetup,
        run_directory: str,
        limits: TransportLimits = DEFAULT_LIMITS,
        old: Sequence[OldFront] = (),
    ) -> Transport:
        """Make both fronts, tried and ready; nobody can connect before `listen`.

        Args:
            omega: the front of OMEGA.
            admin: the front of operators and auditors.
            run_directory: a folder of mode 0700 for the sockets of workers.
            limits: bounds of all sockets.
            old: endpoints of the fronts whose key is being replaced.

        Raises:
            TransportRefused: a socket would be weaker than it must be, or an endpoint is in use.
            ValueError: a key is malformed.
            zmq.ZMQError: no descriptor is left.
        """
        if zmq.zmq_version_info() < LIBZMQ_FLOOR or not zmq.has("curve"):
            raise TransportRefused(
                RefusalCode.MACHINE_UNSUPPORTED,
                f"libzmq {zmq.zmq_version()} cannot be used: 4.3.5 with CURVE is needed",
            )
        require_private_directory(run_directory)
        ctypes.CDLL(None).srand(secrets.randbits(32))
        transport = cls(run_directory, limits)
        try:
            for front, setup in zip(_FRONTS, (omega, admin), strict=True):
                clear_endpoint(setup.endpoint)
                transport._prepare_front(front, setup)
            for one in old:
                clear_endpoint(one.setup.endpoint)
                transport._prepare_front(one.front, one.setup, one)
            # Asked while this process may still connect, removed when it serves.
            transport._stale = stale_sockets(run_directory, (".worker", ".try"))
        except BaseException:
            transport.close(linger_ms=0)
            raise
        return transport

    def listen(self) -> None:
        """Bind both fronts: from here on clients can connect. Then remove what brokers left.

        Raises:
            TransportRefused: an endpoint is in use.
        """
        for station in (*self._fronts.values(), *self._old.values()):
            station.bind()
        for path in self._stale:
            unlink_socket(f"ipc://{path}")
        self._stale.clear()

    def endpoint(self, front: Front) -> str:
        """Give the address a front listens on, with the port the system chose for a wildcard."""
        return self._fronts[front].endpoint

    # --- The turn ---

    def poll(self, timeout_ms: int) -> list[Arrival]:
        """Wait until something arrives, and take a bounded part of it.

        Args:
            timeout_ms: the longest wait; -1 waits for ever.

        Returns:
            Facts in the order of the module's rules; none when the time is over.
        """
        arrivals, self._pending = self._pending, []
        self._budget.bytes_left = BYTES_PER_TURN
        now_s = time.monotonic()
        for front in (*self._fronts.values(), *self._old.values()):
            if front.ajar:
                front.look_at_gate(arrivals)
                timeout_ms = LOOK_MS if timeout_ms < 0 else min(timeout_ms, LOOK_MS)
        deadline = now_s + timeout_ms / 1000
        if self._old:
            self._end_old(arrivals)
        if self._footprint.excess(now_s):
            self._relieve(arrivals)
        wait_s = 0.0 if arrivals or self._hot else timeout_ms / 1000
        readable: list[Arrival] = []
        while True:
            for descriptor, _ in self._epoll.poll(wait_s):
                watched = self._watched.get(descriptor)
                if watched is None:
                    readable.append(Readable(descriptor))
                else:
                    self._hot.add(watched)
            if self._hot:
                for watched in sorted(self._hot, key=_rank):
                    if not watched.drain(arrivals):
                        self._hot.discard(watched)
            if readable or arrivals:
                # Last, so that a worker's exit is not told before what it had sent.
                return arrivals + readable
            wait_s = deadline - time.monotonic() if timeout_ms >= 0 else -1.0
            if timeout_ms >= 0 and wait_s <= 0:
                return arrivals
            if self._hot:
                wait_s = 0.0

    def _relieve(self, arrivals: list[Arrival]) -> None:
        """End the connections of one plane: the operators' first, then workers', OMEGA's last."""
        planes: tuple[list[Station], ...] = (
            [*self._stations("front.admin")], [*self._workers.values()],
            [*self._stations("front.omega")],
        )
        arrivals += [
            HandshakesRefused(station.plane, ended, MEMORY)
            for station in planes[(self._footprint.excesses - 1) % len(planes)]
            if (ended := station.monitor.end_clients())
        ]

    def watch(self, fd: int) -> None:
        """Tell of this descriptor too, with `Readable`, for as long as it is readable."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Stop telling of a descriptor; it must still be open."""
        self._epoll.unregister(fd)

    # --- Sending ---

    def send(self, to: Origin, frame: bytes) -> SendOutcome:
        """Send one frame to a client, or say why not; never blocks."""
        station = self._old.get(to.front) if to.old else self._fronts[to.front]
        if station is None:
            return "gone"
        self._hot.add(station)
        try:
            station.send(to.route, _NOBLOCK_MORE)
            station.send(frame, _NOBLOCK)
        except zmq.Again:
            return "full"
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                return "gone"
            raise
        return "sent"

    def send_worker(self, incarnation: str, frame: bytes) -> SendOutcome:
        """Send one frame to a worker, or say why not; never blocks."""
        station = self._workers.get(incarnation)
        if station is None or station.state != "connected":
            return "gone"
        self._hot.add(station)
        try:
            station.send(frame, _NOBLOCK)
        except zmq.Again:
            # A worker that went takes nothing more, like one that does not read.
            station.monitor.drain()
            self._hot.add(self._monitors[station])
            return "gone" if station.monitor.lost else "full"
        return "sent"

    def holds(self, incarnation: str) -> bool:
        """Say whether a worker was admitted and its disconnection is not told yet."""
        station = self._workers.get(incarnation)
        return station is not None and station.door.used and station.state != "gone"

    # --- Who may connect ---

    def set_keys(self, front: Front, keys: dict[str, str], *, disconnect: str = "") -> None:
        """Admit exactly these keys (Z85 to key id) at handshakes from now on.

        Args:
            front: whose keys.
            keys: all that may connect.
            disconnect: the id of a key whose open connections end too.

        Raises:
            ValueError: a key is malformed.
        """
        for station in self._stations(front):
            station.door.keys = _raw_keys(keys)
            if disconnect:
                station.disconnect(disconnect)

    def keep_old(self, until_us: Mapping[Front, int]) -> None:
        """Serve the old endpoints until these times, wall us; those not named end now."""
        for front, station in self._old.items():
            station.until_us = until_us.get(front, 0)

    def open_worker(self, incarnation: str) -> WorkerEndpoint:
        """Open one worker's socket with fresh keys; nobody is admitted before `admit_worker`.

        Raises:
            TransportRefused: the path is taken or too long, or no descriptor is left.
        """
        try:
            return self._open_worker(incarnation)
        except (zmq.ZMQError, OSError) as error:
            self.close_worker(incarnation)
            raise TransportRefused(
                RefusalCode.WORKER_START_FAILED, f"a worker's socket cannot be opened: {error}"
            ) from None

    def _open_worker(self, incarnation: str) -> WorkerEndpoint:
        server, worker = new_curve_pair(), new_curve_pair()
        endpoint = f"ipc://{os.path.join(self._run_directory, incarnation[:16])}.worker"
        socket = server_socket(
            self._context,
            zmq.DEALER,
            domain=incarnation,
            secret_key=server.secret,
            bytes_max=self._limits.worker_bytes_max,
            high_water_mark=self._limits.worker_high_water_mark,
            handshake_ms=self._limits.worker_handshake_ms,
            io_thread=_PLANES.index("worker"),
        )
        door = WorkerDoor(incarnation, curve_bytes(worker.public))
        try:
            station = WorkerStation(socket, endpoint, door, self._budget)
        except zmq.ZMQError:
            socket.close()
            raise
        try:
            station.bind()
        except (TransportRefused, zmq.ZMQError):
            station.close(linger_ms=0)
            raise
        self._doorkeeper.register(incarnation, door)
        self._workers[incarnation] = station
        self._add_station(station)
        return WorkerEndpoint(endpoint, server.public, worker.secret)

    def admit_worker(self, incarnation: str, pid: int | None, uid: int) -> None:
        """Admit one handshake of this process, also one that came before; unknown: nothing.

        Args:
            incarnation: the worker's socket.
            pid: the process that the launcher started; None for a worker of an operator's.
            uid: the user it runs as.
        """
        station = self._workers.get(incarnation)
        if station is not None:
            station.door.expect(pid, uid)
            self._doorkeeper.release(station.door, self._pending)
            self._hot.add(self._doorkeeper)

    def close_worker(self, incarnation: str) -> None:
        """Close a worker's socket and remove its file; unknown: nothing."""
        station = self._workers.pop(incarnation, None)
        if station is not None:
            self._doorkeeper.unregister(incarnation)
            self._remove_station(station)
            station.close(linger_ms=0)

    def close(self, linger_ms: int = 500) -> None:
        """Close everything, fronts first and the ZAP handler last, and remove the files.

        Args:
            linger_ms: how long sent messages may still leave.
        """
        for front in (*self._fronts.values(), *self._old.values()):
            self._remove_station(front)
            front.close_among_crowds(linger_ms, lambda: self._doorkeeper.drain([]))
        self._old.clear()
        for worker in self._workers.values():
            self._remove_station(worker)
            worker.close(linger_ms)
        self._fronts.clear()
        self._workers.clear()
        self._doorkeeper.socket.close()
        self._context.destroy(linger=0)
        self._epoll.close()

    # --- Parts ---

    def _prepare_front(
        self, front: Front, setup: FrontSetup, old: OldFront | None = None
    ) -> None:
        """Make a front's socket and try it with a stranger's key; it is not bound yet."""
        name = front if old is None else f"{front}.old"
        socket = server_socket(
            self._context,
            zmq.ROUTER,
            domain=name,
            secret_key=setup.server_secret_z85,
            bytes_max=setup.bytes_max,
            high_water_mark=setup.high_water_mark,
            handshake_ms=self._limits.handshake_ms,
            io_thread=_PLANES.index(front),
        )
        door = FrontDoor(_raw_keys(setup.keys), setup.connections_max)
        station = FrontStation(
            socket, front, setup.endpoint, door, self._budget,
            setup.connections_max + setup.crowd_max, setup.handshakes_per_s_max, old,
        )
        self._doorkeeper.register(name, door)
        (self._fronts if old is None else self._old)[front] = station
        self._add_station(station)
        ignored: list[Arrival] = []
        require_refusal(
            socket,
            name=name,
            server_key=curve_pair(setup.server_secret_z85).public,
            directory=self._run_directory,
            answer=lambda: self._doorkeeper.drain(ignored),
        )
        station.report_connections(ignored)

    def _stations(self, front: Front) -> list[FrontStation]:
        """Give a front's station, and that of its old key if there is one."""
        return [self._fronts[front], *(one for one in self._old.values() if one.front == front)]

    def _end_old(self, arrivals: list[Arrival]) -> None:
        """Close the endpoints of old keys whose time is over; what waits there is not answered."""
        now_us = time.time_ns() // 1000
        for front, station in list(self._old.items()):
            if station.until_us <= now_us:
                del self._old[front]
                self._doorkeeper.unregister(station.name)
                self._remove_station(station)
                station.close_among_crowds(0, lambda: self._doorkeeper.drain(arrivals))
                arrivals.append(EndpointEnded(station.key_id))

    def _add_station(self, station: Station) -> None:
        self._monitors[station] = MonitorStation(station)
        self._add(self._monitors[station])
        self._add(station)

    def _remove_station(self, station: Station) -> None:
        self._remove(self._monitors.pop(station))
        self._remove(station)

    def _add(self, watched: _Watched) -> None:
        descriptor = watched.socket.fileno()
        self._epoll.register(descriptor, select.EPOLLIN)
        self._watched[descriptor] = watched
        # What came before the descriptor was watched made its signal already.
        self._hot.add(watched)

    def _remove(self, watched: _Watched) -> None:
        descriptor = watched.socket.fileno()
        if self._watched.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
        self._hot.discard(watched)


def _rank(watched: _Watched) -> int:
    return watched.rank


def _raw_keys(keys: dict[str, str]) -> dict[bytes, str]:
    return {curve_bytes(key): identifier for key, identifier in keys.items()}
