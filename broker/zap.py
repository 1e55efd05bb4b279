"""The doorkeeper: answers every handshake, and is the only place that admits a key (RFC 27).

Rules this file keeps:
- A domain that is not registered, a mechanism other than CURVE, a shape that is not ZAP: refused.
- A front admits the keys of its set. A worker's domain admits its one-shot key once, from the user
  and process that the launcher reported; an earlier handshake waits for that report.
- `decide` is a total function: whatever the frames are, it gives a verdict and never raises.
- The socket is a ROUTER, because a REP cannot hold one reply back while others go on.

The peer chooses the key and nothing else; address and domain come from our own libzmq. Revoking is
not done here: ZAP runs once per connection, so the core checks the key of every message. Source:
ZeroMQ RFC 27; unix(7), SO_PEERCRED.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, Literal

import zmq

from broker.arrivals import Arrival, WorkerIntruder

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
_REQUESTS_PER_TURN: Final = 64
_IPC_ADDRESS: Final = re.compile(rb"localhost:([0-9]{1,10}):[0-9]{1,10}:([0-9]{1,10})")

Verdict = tuple[Literal[b"200", b"300", b"400", b"500"], bytes, bytes]
"""Status code, status text and user id of a reply."""

_MALFORMED: Final[Verdict] = (b"500", b"not a ZAP request", b"")
_REFUSED: Final[Verdict] = (b"400", b"not admitted", b"")
_CROWDED: Final[Verdict] = (b"300", b"too many connections", b"")


class FrontDoor:
    """Who may connect to one front: raw public keys with their ids, and how many at once."""

    def __init__(self, keys: dict[bytes, str], connections_max: int) -> None:
        """Remember the keys and the bound."""
        self.keys = keys
        self.connections: Callable[[], int] = int
        """Counts the authenticated connections; the front's station sets it."""
        self._connections_max = connections_max

    def decide(self, key: bytes) -> Verdict:
        """Admit a known key while there is room."""
        identifier = self.keys.get(key)
        if identifier is None:
            return _REFUSED
        # A temporary refusal: an honest client tries again by itself.
        if self.connections() >= self._connections_max:
            return _CROWDED
        return b"200", b"", identifier.encode()


class WorkerDoor:
    """Who may connect to one worker's socket: one key, one process, once."""

    def __init__(self, incarnation: str, key: bytes) -> None:
        """Remember the one-shot public key; nobody is admitted before `expect`."""
        self.incarnation = incarnation
        self.held: list[bytes] | None = None
        self.intruded = False
        self.used = False
        self._key = key
        self._reported = False
        self._uid = -1
        self._pid: int | None = None

    def expect(self, pid: int | None, uid: int) -> None:
        """Take the launcher's report; `pid` None means a worker that an operator starts."""
        self._reported, self._pid, self._uid = True, pid, uid

    def decide(self, key: bytes, address: bytes) -> Verdict | None:
        """Admit the first handshake if it is the reported process; None holds it for the report."""
        if key != self._key:
            return _REFUSED
        if not self._reported:
            if self.held is None:
                return None
            self.intruded = True
            return _REFUSED
        peer = _IPC_ADDRESS.fullmatch(address)
        if (
            self.used
            or peer is None
            or int(peer[1]) != self._uid
            or (self._pid is not None and int(peer[2]) != self._pid)
        ):
            self.intruded = True
            return _REFUSED
        self.used = True
        return b"200", b"", self.incarnation.encode()


class Doorkeeper:
    """The ZAP handler of the process."""

    rank = 1

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        """Bind the handler; must come before any other socket of the context is bound.

        Raises:
            zmq.ZMQError: the context has a handler already.
        """
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.bind(ZAP_ENDPOINT)
        self._doors: dict[bytes, FrontDoor | WorkerDoor] = {}

    def register(self, domain: str, door: FrontDoor | WorkerDoor) -> None:
        """Open a domain."""
        self._doors[domain.encode()] = door

    def unregister(self, domain: str) -> None:
        """Close a domain; handshakes of it are refused from now on."""
        self._doors.pop(domain.encode(), None)

    def drain(self, arrivals: list[Arrival]) -> bool:
        """Answer waiting requests, a bounded number; True when there may be more."""
        for _ in range(_REQUESTS_PER_TURN):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return False
            self._answer(frames, arrivals)
        return True

    def release(self, door: WorkerDoor, arrivals: list[Arrival]) -> None:
        """Decide a held handshake again, now that the report is there."""
        frames, door.held = door.held, None
        if frames is not None:
            self._answer(frames, arrivals)

    def decide(self, frames: list[bytes]) -> Verdict | None:
        """Give the verdict on one request: its frames after the routing id; None holds it."""
        if len(frames) < 7 or frames[0] != b"" or frames[1] != b"1.0":
            return _MALFORMED
        _, _, _, domain, address, _, mechanism, *credentials = frames
        door = self._doors.get(domain)
        if door is None or mechanism != b"CURVE" or len(credentials) != 1:
            return _REFUSED
        if isinstance(door, FrontDoor):
            return door.decide(credentials[0])
        return door.decide(credentials[0], address)

    def _answer(self, frames: list[bytes], arrivals: list[Arrival]) -> None:
        route, *request = frames
        verdict = self.decide(request)
        door = self._doors.get(request[3]) if len(request) > 3 else None
        if isinstance(door, WorkerDoor):
            if verdict is None:
                door.held = frames
                return
            if door.intruded:
                door.intruded = False
                arrivals.append(WorkerIntruder(door.incarnation))
        status, text, user_id = verdict or _REFUSED
        request_id = request[2] if len(request) > 2 else b""
        # Without MANDATORY a reply to a session that has gone is dropped, and nothing blocks.
        self.socket.send_multipart(
            [route, b"", b"1.0", request_id, status, text, user_id, b""], zmq.NOBLOCK
        )
