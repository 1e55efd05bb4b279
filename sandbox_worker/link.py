"""The worker's end of its own ZeroMQ socket: one DEALER, one key, one connection.

Rules: the key is used once, so the socket never reconnects; what does not decode as an order ends
the worker; sends never block. The socket is opened after the seal, because its threads inherit
it. Source: docs/WIRE.md, section "Workers"; ZMTP 3.1, CURVE.
"""

from __future__ import annotations

from collections.abc import Iterator

import zmq

from schemas import codec
from schemas.launch import LaunchDocument
from schemas.messages import FromWorker, ToWorker
from schemas.names import FRAME_BYTES_MAX_WORKER

_MESSAGES_MAX = 1024
_LINGER_MS = 500


class Link:
    """An open connection to the broker."""

    def __init__(self, launch: LaunchDocument) -> None:
        """Connect with the launch document's endpoint and keys."""
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        secret = launch.worker_secret_key.encode()
        self._socket.curve_secretkey = secret
        self._socket.curve_publickey = zmq.curve_public(secret)
        self._socket.curve_serverkey = launch.server_key.encode()
        # A second handshake ends the incarnation, so there must not be one.
        self._socket.reconnect_ivl = -1
        self._socket.maxmsgsize = FRAME_BYTES_MAX_WORKER + 33
        self._socket.sndhwm = self._socket.rcvhwm = _MESSAGES_MAX
        self._socket.linger = _LINGER_MS
        self._socket.connect(launch.endpoint)
        self.descriptor: int = self._socket.fileno()

    def orders(self) -> Iterator[ToWorker]:
        """Everything that has arrived.

        Raises:
            WireError: the broker sent something that is not an order.
        """
        # The descriptor is edge-triggered: only this state says that nothing is left.
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            yield codec.to_worker.decode(self._socket.recv(zmq.NOBLOCK))

    def send(self, message: FromWorker) -> None:
        """Send one report.

        Raises:
            zmq.Again: the broker has not taken a thousand of them; the worker ends with it.
        """
        self._socket.send(codec.encode(message), zmq.NOBLOCK)

    def close(self) -> None:
        """Give what was sent a moment to leave, then close."""
        self._socket.close()
        self._context.term()
