"""One client's connection: a DEALER, its monitor, and the promise that nothing waits for ever.

Rules this file keeps:
- Nothing is sent before the handshake succeeded. After a refused handshake libzmq would let a send
  block without end; here it is an exception.
- A connection that is lost loses the requests in flight, and that is said at once: the gateway
  answers nothing of an earlier connection.
- One thread at a time owns the socket: libzmq aborts the process otherwise.

It leaves requests and replies to `broker.client_session`. Source: zmq_socket_monitor(3).
"""

from __future__ import annotations

import struct
import time
from typing import Final

import zmq

from broker.client_errors import NotAuthorised, Unreachable
from broker.client_profile import Profile
from schemas.names import FRAME_BYTES_MAX_ADMIN

SLICE_MS: Final = 100
"""How long one send or receive waits before the connection is looked at, in ms."""

_CURVE_OVERHEAD_BYTES: Final = 33
_EVENTS: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)
_EVENT: Final = struct.Struct("=HI")
_NOBLOCK: Final = int(zmq.NOBLOCK)
_POLLIN: Final = int(zmq.POLLIN)


class Link:
    """The connection of one client; made unconnected, used after `open`."""

    def __init__(self, profile: Profile, connect_s: float) -> None:
        """Remember where to connect; `connect_s` is the longest handshake, in seconds."""
        self._profile = profile
        self._connect_s = connect_s
        self._failures = 0
        self._connected = False
        self._refused = False
        self.lost = False
        """Whether the connection went away while requests were in flight."""
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self.socket: zmq.Socket[bytes]
        self.monitor: zmq.Socket[bytes]

    def open(self) -> None:
        """Connect and finish the handshake; does nothing when it is open.

        Raises:
            NotAuthorised: the gateway does not admit the key.
            Unreachable: no handshake within the time.
        """
        if self._context is not None:
            return
        self._context = zmq.Context()
        self._prepare(self._context)
        try:
            self.socket.connect(self._endpoint)
            self._finish_handshake(time.monotonic() + self._connect_s)
        except zmq.ZMQError as error:
            self.close()
            raise Unreachable(f"{self._endpoint}: {error.strerror}") from None
        except BaseException:
            self.close()
            raise

    def _finish_handshake(self, deadline: float) -> None:
        while not self._connected:
            wait_ms = int((deadline - time.monotonic()) * 1000)
            if wait_ms <= 0 or not self.monitor.poll(wait_ms):
                raise Unreachable(self.nobody_sentence())
            self.look()

    def _prepare(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        settings, pair = self._profile.settings, self._profile.pair
        self.socket = socket = context.socket(zmq.DEALER)
        socket.linger = 0
        socket.setsockopt(zmq.CURVE_SERVERKEY, settings.server_key.encode())
        socket.setsockopt(zmq.CURVE_PUBLICKEY, pair.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, pair.secret.encode())
        socket.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX_ADMIN + _CURVE_OVERHEAD_BYTES)
        # Nothing is queued for a gateway that is not there: it would be sent to its successor.
        socket.setsockopt(zmq.IMMEDIATE, 1)
        socket.setsockopt(zmq.SNDTIMEO, SLICE_MS)
        socket.setsockopt(zmq.RCVTIMEO, SLICE_MS)
        socket.setsockopt(zmq.HEARTBEAT_IVL, 2_000)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 6_000)
        self.monitor = socket.get_monitor_socket(_EVENTS)
        self.monitor.linger = 0

    def send(self, frame: bytes, *, in_flight: bool) -> None:
        """Send one frame; `in_flight` says whether earlier requests still wait for replies.

        Raises:
            NotAuthorised: the key was taken away.
            Unreachable: the gateway does not take it within the time.
        """
        if int(self.monitor.get(zmq.EVENTS)) & _POLLIN:
            self.look()
        if not in_flight:
            # A connection that was lost while nothing waited has cost nothing.
            self.lost = False
        deadline = 0.0
        while True:
            try:
                self.socket.send(frame)
            except zmq.Again:
                self.look()
                deadline = deadline or time.monotonic() + self._connect_s
                if time.monotonic() > deadline:
                    raise Unreachable(self.nobody_sentence()) from None
            else:
                return

    def send_now(self, frame: bytes) -> bool:
        """Send one frame without waiting; False when the queue is full or nobody is there."""
        if self._context is None:
            return False
        try:
            self.socket.send(frame, _NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> bytes | None:
        """Give the next frame, or None when none came within `SLICE_MS`.

        Raises:
            NotAuthorised: the key was taken away.
            Unreachable: the connection is lost, and with it all that was in flight.
        """
        try:
            return self._whole(self.socket.recv())
        except zmq.Again:
            self.look()
            if self.lost:
                raise Unreachable(self.lost_sentence()) from None
            return None

    def receive_now(self) -> bytes | None:
        """Give the next frame if one is there."""
        try:
            return self._whole(self.socket.recv(_NOBLOCK))
        except zmq.Again:
            return None

    def look(self) -> None:
        """Read what the monitor says; sets `lost` when the connection went away.

        Raises:
            NotAuthorised: the gateway does not admit the key.
        """
        while not self._refused:
            try:
                frames = self.monitor.recv_multipart(_NOBLOCK)
            except zmq.Again:
                return
            event, _ = _EVENT.unpack(frames[0])
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._connected = True
            elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self._refused = True
            elif event == zmq.EVENT_DISCONNECTED:
                self.lost = self.lost or self._connected
                self._connected = False
            else:
                self._failures += 1
        # libzmq does not try again after such a refusal, so this stays true until the close.
        raise NotAuthorised(
            f"the gateway at {self._endpoint} does not admit this key; an operator can admit it "
            "with `omega-gateway keys new`"
        )

    def lost_sentence(self) -> str:
        """Say what became of requests in flight on a lost connection."""
        return (
            f"the connection to {self._endpoint} was lost; `show_request` tells what became of "
            "requests in flight"
        )

    def close(self) -> None:
        """Close everything; what was not sent is dropped."""
        if self._context is not None:
            self.socket.disable_monitor()
            self.monitor.close()
            self._context.destroy(linger=0)
            self._context = None
            self._connected = self._refused = self.lost = False

    @property
    def is_open(self) -> bool:
        """Whether `open` was called and `close` was not."""
        return self._context is not None

    @property
    def _endpoint(self) -> str:
        return self._profile.settings.endpoint

    def _whole(self, frame: bytes) -> bytes:
        """Read a message whole: one frame is right, several become one that does not decode."""
        while self.socket.get(zmq.RCVMORE):
            frame = b""
            self.socket.recv(_NOBLOCK)
        return frame

    def nobody_sentence(self) -> str:
        """Say that there is no connection, and why as far as it is known."""
        if self._failures:
            return (
                f"{self._endpoint}: {self._failures} handshakes failed; compare the server key of "
                "the profile with the gateway's"
            )
        return f"no gateway answers at {self._endpoint}"
