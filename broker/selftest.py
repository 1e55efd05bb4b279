"""The door is tried before it is opened: a stranger's key must be refused, or nobody gets in.

Rules this file keeps: the very socket that will serve is bound to a private path first, a client
with a random key connects, and only an authentication failure counts as refusal. Silence, a
success or anything else stops the start. It leaves the options to `broker.sockets`.

Source: ZeroMQ RFC 26 and 27. An empty ZAP domain, a missing handler or a missing mechanism each let
strangers in without a word; all of them show here.
"""

from __future__ import annotations

import os
import secrets
import struct
import time
from collections.abc import Callable
from typing import Final

import zmq

from broker.keys import new_curve_pair
from broker.sockets import TransportRefused, ZmqSocket, bind, unlink_socket
from schemas.refusals import RefusalCode

_SECONDS_MAX: Final = 5.0
_OUTCOMES: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def require_refusal(
    socket: ZmqSocket, *, name: str, server_key: str, directory: str, answer: Callable[[], object]
) -> None:
    """Connect to a server socket with a random key and require that it is turned away.

    Args:
        socket: the server socket, not bound yet.
        name: the socket's name for the sentence.
        server_key: its CURVE public key in Z85.
        directory: a folder of mode 0700 for the private path.
        answer: lets the ZAP handler answer what waits.

    Raises:
        TransportRefused: the stranger was not refused.
    """
    endpoint = f"ipc://{os.path.join(directory, secrets.token_hex(4))}.try"
    bind(socket, endpoint)
    try:
        event, value = _outcome(socket.context, endpoint, server_key, answer)
    finally:
        socket.unbind(endpoint)
        unlink_socket(endpoint)
    if event != zmq.EVENT_HANDSHAKE_FAILED_AUTH or value != 400:
        found = f"event {event:#x}, value {value}" if event else "nothing happened"
        raise TransportRefused(
            RefusalCode.HANDSHAKE_REFUSED,
            f"{name}: a stranger's key was not refused in the self-test ({found})",
        )


def _outcome(
    context: zmq.Context[ZmqSocket], endpoint: str, server_key: str, answer: Callable[[], object]
) -> tuple[int, int]:
    """Say what the stranger's handshake came to: an event and its value, or two zeros."""
    stranger = new_curve_pair()
    with context.socket(zmq.DEALER) as client:
        client.linger = 0
        client.setsockopt(zmq.CURVE_PUBLICKEY, stranger.public.encode())
        client.setsockopt(zmq.CURVE_SECRETKEY, stranger.secret.encode())
        client.setsockopt(zmq.CURVE_SERVERKEY, server_key.encode())
        monitor = client.get_monitor_socket(_OUTCOMES)
        client.connect(endpoint)
        deadline = time.monotonic() + _SECONDS_MAX
        try:
            while time.monotonic() < deadline:
                answer()
                if monitor.poll(10):
                    event, value = struct.unpack("=HI", monitor.recv_multipart()[0])
                    return event, value
        finally:
            client.disable_monitor()
    return 0, 0
