"""The eye on one socket's connections: counts, never stories.

Rules this file keeps: libzmq's monitor is drained before anything else in a turn, because a full
monitor stops the socket's io thread. Events are counted as they come, so that a flood of
connections is a number. Only the events below are subscribed; ACCEPT_FAILED comes a hundred
thousand times a second when descriptors run out, and is not. What waits here is bounded, and so is
the number of connections that come between two turns.

What the events say (libzmq 4.3.5): an unauthorised key gives HANDSHAKE_FAILED_AUTH with ZAP's
status, a silent peer HANDSHAKE_FAILED_NO_DETAIL; what speaks another protocol, no CURVE or to
another server's key gives nothing but ACCEPTED and DISCONNECTED, so that is a refusal too.
HANDSHAKE_FAILED_PROTOCOL would tell some of these apart and must not be subscribed: libzmq sends it
also for a spoilt message of an authenticated peer, loses its own errno by sending it, takes the
message for one that has to wait, and keeps the connection's descriptor for ever. Source:
zmq_socket_monitor(3).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import Final

import zmq

from broker.sockets import borrowed

NOT_AUTHORISED: Final = "key not authorised"
CROWDED: Final = "too many connections"
OVERRUN: Final = "too many strangers at once: their handshakes were ended"
MEMORY: Final = "memory ran short, and every connection was ended"
UNFINISHED: Final = "handshake not finished in time"
NOT_CURVE: Final = "not ZeroMQ with CURVE and this server's key"

_EVENTS: Final = (
    zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_MONITOR_STOPPED
)
EVENTS_WAITING_MAX: Final = 1_001
"""How many events libzmq makes before it waits for us: its own bound of 1,000, and ours."""
_EVENT: Final = struct.Struct("=HI")
_EVENTS_PER_TURN: Final = 4096


class ConnectionMonitor:
    """Counts the connections of one bound socket and the handshakes that failed on it."""

    def __init__(self, watched: zmq.Socket[bytes], name: str) -> None:
        """Attach to `watched`, before it is bound; `name` is unique in the process."""
        self._watched = watched
        endpoint = f"inproc://monitor.{name}"
        # The reader's descriptor first: a monitor without reader would hold up its socket's end.
        self.socket = watched.context.socket(zmq.PAIR)
        self.socket.linger = 0
        self.socket.rcvhwm = EVENTS_WAITING_MAX - 1_000
        try:
            watched.monitor(endpoint, _EVENTS)
        except zmq.ZMQError:
            self.socket.close()
            raise
        self.socket.connect(endpoint)
        self.refused: dict[str, int] = {}
        self._stopped = False
        self.succeeded = 0
        self.lost = 0
        self.listener = -1
        """The descriptor that libzmq listens on; the station that binds asks for it."""
        self.accepted: Callable[[int], object] = int
        """Is told of each connection's descriptor, or -1 when that was closed by now; a front's
        gate sets it."""
        self._fresh: dict[int, None] = {}
        self._unfinished: dict[int, None] = {}
        self._finished: set[int] = set()
        self._spoken: dict[int, str] = {}
        self._ended: set[int] = set()
        self._failures_open = 0

    def connections(self) -> int:
        """How many connections are open, with those whose handshake is under way."""
        return len(self._unfinished) + len(self._finished)

    def authenticated(self) -> int:
        """How many connections have finished their handshake."""
        return len(self._finished)

    def spoke(self, descriptor: int, key_id: str) -> None:
        """Note that a message came by this connection, and under which key."""
        self._spoken[descriptor] = key_id

    def end_strangers(self) -> int:
        """End every handshake that is under way; gives how many there were.

        Who was heard is spared: which connection has finished its handshake is partly a guess.
        """
        return self._end(set(self._unfinished) - self._spoken.keys())

    def end_clients(self) -> int:
        """End every other connection; gives how many there were."""
        return self._end(self._finished | self._spoken.keys())

    def end_key(self, key_id: str) -> int:
        """End every connection that is or may be of one key; gives how many there were."""
        known = self._finished | self._spoken.keys() | self._unfinished.keys()
        return self._end({one for one in known if self._spoken.get(one, key_id) == key_id})

    def _end(self, descriptors: set[int]) -> int:
        """Shut connections down, which libzmq has no call for; once each.

        A number that stands for something else by now is that one's, at worst.
        """
        descriptors = descriptors - self._ended
        for descriptor in descriptors:
            with contextlib.suppress(OSError), borrowed(descriptor) as stream:
                stream.shutdown(socket.SHUT_RDWR)
        self._ended |= descriptors
        return len(descriptors)

    def drain(self) -> bool:
        """Count waiting events, a bounded number; True when there may be more."""
        try:
            for _ in range(_EVENTS_PER_TURN):
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
                event, value = _EVENT.unpack(frames[0])
                self._count(event, value)
        except zmq.Again:
            return False
        finally:
            # Only now: the number of one that went may have passed to somebody else.
            for descriptor in self._fresh:
                self.accepted(descriptor)
            self._fresh.clear()
        return True

    def close(self) -> None:
        """Detach; the monitor is switched off before its reader goes.

        It must not be full: switching off would wait for the io thread, which waits for us.
        """
        self._watched.disable_monitor()
        self.socket.close()

    def close_after_socket(self, wait_ms: int, answer: Callable[[], object]) -> None:
        """Detach from a socket that was just closed and many may connect to: read to the end.

        Args:
            wait_ms: the longest wait for that end.
            answer: lets the ZAP handler answer, on which handshakes and their end wait.
        """
        deadline = time.monotonic() + wait_ms / 1000
        while not self._stopped and time.monotonic() < deadline:
            answer()
            self.socket.poll(10)
            self.drain()
        self.socket.close()

    def _count(self, event: int, value: int) -> None:
        """Take one event.

        HANDSHAKE_SUCCEEDED does not say which connection it is about: the oldest unfinished one is
        taken. When that guess is wrong the mistaken connections swap places, and the sums stay
        right.
        """
        if event == zmq.EVENT_ACCEPTED:
            self._unfinished[value] = self._fresh[value] = None
        elif event == zmq.EVENT_LISTENING:
            self.listener = value
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self.succeeded += 1
            self._finish_oldest()
        elif event == zmq.EVENT_DISCONNECTED:
            self._disconnected(value)
        elif event == zmq.EVENT_MONITOR_STOPPED:
            self._stopped = True
        else:
            self._failures_open += 1
            self._refuse(_reason(event, value))

    def _finish_oldest(self) -> None:
        oldest = next(iter(self._unfinished), None)
        if oldest is not None:
            del self._unfinished[oldest]
            self._finished.add(oldest)

    def _disconnected(self, descriptor: int) -> None:
        self._spoken.pop(descriptor, None)
        self._ended.discard(descriptor)
        if descriptor in self._fresh:
            del self._fresh[descriptor]
            self.accepted(-1)
        if descriptor in self._finished:
            self._finished.discard(descriptor)
            if self._failures_open and self._unfinished:
                self._failures_open -= 1
                self._finish_oldest()
            else:
                self.lost += 1
        elif descriptor in self._unfinished:
            del self._unfinished[descriptor]
            if self._failures_open:
                self._failures_open -= 1
            else:
                self._refuse(NOT_CURVE)
        self._failures_open = min(self._failures_open, len(self._unfinished))

    def _refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1


def _reason(event: int, value: int) -> str:
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return CROWDED if value == 300 else NOT_AUTHORISED
    return UNFINISHED
