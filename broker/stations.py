"""One socket under watch: whose it is, its connections, and its messages, bounded.

Rules this file keeps: a turn takes a bounded number of messages and, over all sockets, of bytes,
but at least one message of each; a message of too many frames is thrown away over as many turns as
it needs and told as one fact; a front's frame without the user id that ZAP gave its connection is
not handed on; that a worker went is told after everything it had sent. It leaves meaning to
`broker.core` and waiting to `broker.transport`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

import zmq

from broker.arrivals import (
    FRAMES_MAX,
    Arrival,
    FrontFrames,
    HandshakesRefused,
    OversizedMessage,
    WorkerConnected,
    WorkerDisconnected,
    WorkerFrames,
)
from broker.effects import Front, Origin
from broker.gate import FLOODED, Gate
from broker.monitor import OVERRUN, ConnectionMonitor
from broker.sockets import TransportRefused, ZmqSocket, bind, ipc_path, unlink_socket
from broker.transport_setup import OldFront
from broker.zap import FrontDoor, WorkerDoor
from schemas.events import Plane
from schemas.refusals import RefusalCode

MESSAGES_PER_TURN: Final = 32
FRAMES_DROPPED_PER_TURN: Final = 1024
COPIED_BYTES_MAX: Final = 64 * 1024
BYTES_PER_TURN: Final = 1024 * 1024
CLOSE_MS: Final = 1_000
"""How long libzmq may take to close a socket after its last message, in ms."""
NO_USER_ID: Final = "frame without an authenticated key"

_NOBLOCK: Final = int(zmq.NOBLOCK)
_SRCFD: Final = int(zmq.SRCFD)
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")


class TurnBudget:
    """How many bytes all sockets together may still take in this turn."""

    def __init__(self) -> None:
        """Begin with a whole turn's."""
        self.bytes_left = BYTES_PER_TURN


class Station:
    """A bound server socket with its monitor."""

    rank = 3

    def __init__(
        self, socket: ZmqSocket, plane: Plane, name: str, endpoint: str, budget: TurnBudget
    ) -> None:
        """Attach a monitor to `socket`, which is not bound yet.

        Raises:
            zmq.ZMQError: no descriptor is left.
        """
        self.socket = socket
        # Past the layer that handles arguments which nobody gives here.
        self.send: Callable[[bytes, int], object] = super(zmq.Socket, socket).send
        self.budget = budget
        self.plane: Plane = plane
        self.name = name
        self.endpoint = endpoint
        self._bound = False
        self.monitor = ConnectionMonitor(socket, name)
        self._dropping: OversizedMessage | None = None

    def bind(self) -> None:
        """Begin to listen.

        Raises:
            TransportRefused: the endpoint is in use, too long, or the system refused.
        """
        bind(self.socket, self.endpoint)
        self._bound = True
        # A port that the system chose stands only here.
        self.endpoint = self.socket.get_string(zmq.LAST_ENDPOINT).rstrip("\x00")

    def drain(self, arrivals: list[Arrival]) -> bool:
        """Take waiting messages, a bounded number; True when there may be more."""
        try:
            for _ in range(MESSAGES_PER_TURN):
                if self._dropping is not None:
                    self._drop(self._dropping, arrivals)
                    return True
                self._receive(arrivals)
                if self.budget.bytes_left <= 0:
                    return True
        except zmq.Again:
            return False
        return True

    def report_connections(self, arrivals: list[Arrival]) -> bool:
        """Tell what the monitor counted; True when there may be more."""
        more = self.monitor.drain()
        if self.monitor.refused:
            arrivals.extend(
                HandshakesRefused(self.plane, count, reason)
                for reason, count in self.monitor.refused.items()
            )
            self.monitor.refused.clear()
        return more

    def close(self, linger_ms: int) -> None:
        """Close socket and monitor and remove the file, if it is ours."""
        self.monitor.close()
        self.socket.close(linger=linger_ms)
        if self._bound:
            unlink_socket(self.endpoint)

    def _receive(self, arrivals: list[Arrival]) -> None:
        """Take one message. Raises zmq.Again when none waits."""
        raise NotImplementedError

    def _whole(self, first: zmq.Frame, peer: str) -> list[bytes | memoryview] | None:
        """Give all frames of a message; None when there are too many and it is dropped.

        A large one is not copied: most that is wrong with it shows in its first bytes.
        """
        frames: list[bytes | memoryview] = [_seen(first)]
        size = len(frames[0])
        frame = first
        while frame.more:
            if len(frames) == FRAMES_MAX:
                self._dropping = OversizedMessage(self.plane, peer, len(frames), size)
                return None
            frame = self.socket.recv(_NOBLOCK, copy=False)
            frames.append(_seen(frame))
            size += len(frames[-1])
        self.budget.bytes_left -= size
        return frames

    def _drop(self, so_far: OversizedMessage, arrivals: list[Arrival]) -> None:
        """Throw away more frames of a message, and tell of it when it is over."""
        frames, size = so_far.frames, so_far.bytes
        for _ in range(FRAMES_DROPPED_PER_TURN):
            # Not copied: a frame that is thrown away costs half as much so.
            frame = self.socket.recv(_NOBLOCK, copy=False)
            size += len(frame)
            frames += 1
            if not frame.more:
                arrivals.append(OversizedMessage(self.plane, so_far.peer, frames, size))
                self._dropping = None
                return
        self._dropping = OversizedMessage(self.plane, so_far.peer, frames, size)


def _seen(frame: zmq.Frame) -> bytes | memoryview:
    """Give a frame's bytes, or a view of them where a copy would take a while."""
    return frame.bytes if len(frame) <= COPIED_BYTES_MAX else frame.buffer


class MonitorStation:
    """A station's monitor as a socket of its own; drained before everything else."""

    rank = 0

    def __init__(self, station: Station) -> None:
        """Watch the connections of `station`."""
        self.socket = station.monitor.socket
        self.drain = station.report_connections


class FrontStation(Station):
    """A front's ROUTER. OMEGA's is drained before the operators'."""

    def __init__(
        self, socket: ZmqSocket, front: Front, endpoint: str, door: FrontDoor, budget: TurnBudget,
        crowd_max: int, handshakes_per_s_max: int, old: OldFront | None = None,
    ) -> None:
        """Let `door` count this front's connections; `old` makes it the one with the old key."""
        name = front if old is None else f"{front}.old"
        super().__init__(socket, front, name, endpoint, budget)
        self.old = old is not None
        self.key_id, self.until_us = ("", 0) if old is None else (old.key_id, old.until_us)
        self._crowd_max = crowd_max
        self._handshakes_per_s_max = handshakes_per_s_max
        self._gate: Gate | None = None
        self.ajar = False
        """Whether the gate turns somebody away and must be looked at again soon."""
        self.rank = 3 if front == "front.omega" else 4
        self.front: Front = front
        self.door = door
        door.connections = self.monitor.authenticated

    def bind(self) -> None:
        """Begin to listen; on TCP, where strangers are, behind a gate."""
        super().bind()
        if ipc_path(self.endpoint) is None:
            self.monitor.drain()
            try:
                self._gate = Gate(self.monitor.listener, self._handshakes_per_s_max)
            except OSError as error:
                raise TransportRefused(
                    RefusalCode.MACHINE_UNSUPPORTED,
                    f"{self.endpoint}: no gate can be put before it ({error.strerror})",
                ) from None
            self.monitor.accepted = self._gate.came

    def report_connections(self, arrivals: list[Arrival]) -> bool:
        """Send away the strangers that overrun a TCP front, before they have all descriptors."""
        more = super().report_connections(arrivals)
        crowded = self.monitor.connections() > self._crowd_max
        if crowded and ipc_path(self.endpoint) is None and self.monitor.end_strangers():
            arrivals.append(HandshakesRefused(self.front, 1, OVERRUN))
        self.look_at_gate(arrivals)
        return more

    def look_at_gate(self, arrivals: list[Arrival]) -> None:
        """Let the gate, if there is one, turn newcomers away or take them again."""
        if self._gate is not None:
            if count := self._gate.look():
                arrivals.append(HandshakesRefused(self.front, count, FLOODED))
            self.ajar = self._gate.ajar

    def disconnect(self, key_id: str) -> None:
        """End what connections a key may have: those it spoke by, and those nobody spoke by yet.

        Whoever said nothing waits for nothing, and connects anew without losing anything.
        """
        self.monitor.end_key(key_id)

    def close_among_crowds(self, linger_ms: int, answer: Callable[[], object]) -> None:
        """Close the socket first and read its monitor to the end: a crowd may fill it meanwhile."""
        if self._gate is not None:
            self._gate.close()
            self.monitor.accepted = int
        self.socket.close(linger=linger_ms)
        self.monitor.close_after_socket(linger_ms + CLOSE_MS, answer)
        if self._bound:
            unlink_socket(self.endpoint)

    def _receive(self, arrivals: list[Arrival]) -> None:
        route = self.socket.recv(_NOBLOCK)
        # A ROUTER puts the route before every message; each frame tells of its connection.
        first = self.socket.recv(_NOBLOCK, copy=False)
        try:
            user_id = first.get("User-Id")
        except zmq.ZMQError:
            user_id = ""
        key_id = user_id if isinstance(user_id, str) and _KEY_ID.fullmatch(user_id) else ""
        descriptor = int(first.get(_SRCFD))
        self.monitor.spoke(descriptor, key_id)
        if self._gate is not None and key_id:
            self._gate.heard(descriptor)
        frames = self._whole(first, key_id or "unknown")
        if frames is None:
            return
        if key_id:
            arrivals.append(FrontFrames(Origin(self.front, key_id, route, self.old), frames))
        else:
            # Every connection gets a key id from our handler; this one came past it.
            arrivals.append(HandshakesRefused(self.front, 1, NO_USER_ID))


class WorkerStation(Station):
    """One incarnation's DEALER; connected at most once in its life."""

    rank = 2

    def __init__(
        self, socket: ZmqSocket, endpoint: str, door: WorkerDoor, budget: TurnBudget
    ) -> None:
        """Serve the incarnation of `door`."""
        super().__init__(socket, "worker", door.incarnation, endpoint, budget)
        self.door = door
        self.state: Literal["awaited", "connected", "gone"] = "awaited"

    def report_connections(self, arrivals: list[Arrival]) -> bool:
        """Tell also when the worker came and went."""
        more = super().report_connections(arrivals)
        if self.monitor.succeeded:
            self._came(arrivals)
        if self.monitor.lost and self.state == "connected":
            # What it had sent lies in the socket, and results among it count.
            if self.drain(arrivals):
                return True
            self.state = "gone"
            arrivals.append(WorkerDisconnected(self.name))
        return more

    def _receive(self, arrivals: list[Arrival]) -> None:
        first = self.socket.recv(_NOBLOCK, copy=False)
        # A frame may be seen before the monitor's word; the connection is told first.
        self._came(arrivals)
        frames = self._whole(first, self.name)
        if frames is not None:
            arrivals.append(WorkerFrames(self.name, frames))

    def _came(self, arrivals: list[Arrival]) -> None:
        if self.state == "awaited":
            self.state = "connected"
            arrivals.append(WorkerConnected(self.name))
