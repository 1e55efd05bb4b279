"""Sockets that cannot be opened weakly: options set, read back, and paths looked at before a bind.

Rules this file keeps:
- A server socket speaks CURVE and has a ZAP domain that is not empty, and libzmq is told to enforce
  it: with an empty domain that very option switches authentication off. Both are read back.
- A size limit holds for each frame; CURVE adds 33 bytes to it.
- An ipc path is looked at before it is bound, because libzmq replaces whatever lies there. A socket
  file is removed only when nobody answers on it; asking needs a connection, which the broker gives
  up before it serves, so `clear_endpoint` and `stale_sockets` come at the start.
- Nobody but the owner may enter the folder of an ipc socket.

Who is admitted is left to `broker.zap`. Source: zmq_setsockopt(3); unix(7); ZeroMQ RFC 27.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket as system_socket
import stat
from collections.abc import Iterator
from typing import Final

import zmq

from schemas.refusals import RefusalCode

CURVE_OVERHEAD_BYTES: Final = 33
IPC_PATH_BYTES_MAX: Final = 107
_ZAP_ENFORCE_DOMAIN: Final = 93
"""A draft option that every libzmq since 4.3.0 compiles in; pyzmq's wheels have no name for it."""

_KEEPALIVE: Final = (
    (zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 10), (zmq.TCP_KEEPALIVE_INTVL, 5),
    (zmq.TCP_KEEPALIVE_CNT, 3),
)
"""A peer whose machine is gone is noticed after 25 s of silence."""

ZmqSocket = zmq.Socket[bytes]
ZmqContext = zmq.Context[ZmqSocket]


class TransportRefused(Exception):
    """The sockets cannot be opened as they must be; the sentence says which and why."""

    def __init__(self, code: RefusalCode, sentence: str) -> None:
        """Remember the refusal code beside the sentence."""
        super().__init__(sentence)
        self.code = code


def server_socket(
    context: ZmqContext,
    kind: int,
    *,
    domain: str,
    secret_key: str,
    bytes_max: int,
    high_water_mark: int,
    handshake_ms: int,
    io_thread: int,
) -> ZmqSocket:
    """Make a ROUTER or DEALER that admits nobody whom the ZAP handler did not name.

    Args:
        context: the one context of the process, with the ZAP handler already bound.
        kind: `zmq.ROUTER` or `zmq.DEALER`.
        domain: the ZAP domain; not empty.
        secret_key: the server's CURVE secret in Z85.
        bytes_max: largest frame in bytes.
        high_water_mark: messages queued for each peer and direction.
        handshake_ms: how long a handshake may take.
        io_thread: which of libzmq's threads serves it.

    Raises:
        TransportRefused: an option does not read back as it was set.
    """
    socket = context.socket(kind)
    socket.linger = 0
    # One thread for all of a socket: its monitor's events would not keep their order otherwise.
    socket.setsockopt(zmq.AFFINITY, 1 << io_thread)
    socket.curve_server = 1
    socket.setsockopt(zmq.CURVE_SECRETKEY, secret_key.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
    socket.setsockopt(_ZAP_ENFORCE_DOMAIN, 1)
    socket.setsockopt(zmq.HANDSHAKE_IVL, handshake_ms)
    socket.setsockopt(zmq.MAXMSGSIZE, bytes_max + CURVE_OVERHEAD_BYTES)
    socket.set_hwm(high_water_mark)
    # No heartbeats: libzmq 4.3.5 aborts when one is due on a connection that ended while its
    # messages waited. The kernel finds dead peers; stuck ones are found by what they are asked.
    socket.setsockopt(zmq.HEARTBEAT_IVL, 0)
    for option, value in _KEEPALIVE:
        socket.setsockopt(option, value)
    if kind == zmq.ROUTER:
        # Without MANDATORY a reply to a peer that is gone or full would vanish without a word.
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.ROUTER_HANDOVER, 0)
    require_enforcement(socket)
    return socket


def require_enforcement(socket: ZmqSocket) -> None:
    """Read back what keeps strangers out of a server socket.

    Raises:
        TransportRefused: the socket would let somebody in whom the ZAP handler did not name.
    """
    for what, holds in (
        ("CURVE", socket.get(zmq.MECHANISM) == zmq.CURVE),
        ("the CURVE server role", socket.get(zmq.CURVE_SERVER) == 1),
        ("a ZAP domain", socket.get_string(zmq.ZAP_DOMAIN).rstrip("\x00") != ""),
        ("ZAP enforcement", socket.get(_ZAP_ENFORCE_DOMAIN) == 1),
        ("a frame limit", socket.get(zmq.MAXMSGSIZE) not in {-1, 0}),
    ):
        if not holds:
            raise TransportRefused(
                RefusalCode.SANDBOX_UNAVAILABLE, f"a server socket came up without {what}"
            )


def require_private_directory(path: str) -> None:
    """Refuse a folder for sockets that is not the owner's alone.

    Raises:
        TransportRefused: it is missing, a link, of another owner or open to others.
    """
    try:
        status = os.lstat(path)
    except OSError as error:
        raise TransportRefused(
            RefusalCode.HOME_INVALID, f"{path}: the run folder cannot be used ({error.strerror})"
        ) from None
    private = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
    if not stat.S_ISDIR(status.st_mode) or not private:
        raise TransportRefused(
            RefusalCode.HOME_INVALID,
            f"{path}: the run folder must be a folder of user {os.geteuid()} with mode 0700",
        )


def clear_endpoint(endpoint: str) -> None:
    """Remove the socket file that a broker left behind at an ipc endpoint.

    Raises:
        TransportRefused: somebody answers there, no socket lies there, or the path is too long.
    """
    path = ipc_path(endpoint)
    if path is not None and _lies_at(path):
        if not _nobody_answers(path):
            raise TransportRefused(
                RefusalCode.SOCKET_IN_USE, f"{path}: another process serves this endpoint"
            )
        os.unlink(path)


def stale_sockets(directory: str, suffixes: tuple[str, ...]) -> list[str]:
    """Give the socket files in a folder with such names, on which nobody answers."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(suffixes))
    return [path for path in (os.path.join(directory, name) for name in names)
            if _nobody_answers(path)]


def bind(socket: ZmqSocket, endpoint: str) -> None:
    """Bind a server socket; for ipc, look at the path first and keep others out of the file.

    Raises:
        TransportRefused: the endpoint is in use, its path is too long, or the system refused.
    """
    path = ipc_path(endpoint)
    if path is not None and _lies_at(path):
        raise TransportRefused(
            RefusalCode.SOCKET_IN_USE, f"{path}: another process serves this endpoint"
        )
    mask = os.umask(0o077)
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        in_use = error.errno == errno.EADDRINUSE
        raise TransportRefused(
            RefusalCode.SOCKET_IN_USE if in_use else RefusalCode.CONFIG_INVALID,
            f"{endpoint}: {'another process serves this endpoint' if in_use else error.strerror}",
        ) from None
    finally:
        os.umask(mask)


@contextlib.contextmanager
def borrowed(descriptor: int) -> Iterator[system_socket.socket]:
    """Use a descriptor of libzmq's as a socket, and leave it to libzmq.

    It is not copied: there may be no number left for a copy, and the copy of one that stands for
    no socket by now would stay open.

    Raises:
        OSError: it stands for no socket.
    """
    stream = system_socket.socket(fileno=descriptor)
    try:
        yield stream
    finally:
        stream.detach()


def ipc_path(endpoint: str) -> str | None:
    """Give the file of an ipc endpoint, None for another transport."""
    return endpoint.removeprefix("ipc://") if endpoint.startswith("ipc://") else None


def unlink_socket(endpoint: str) -> None:
    """Remove an ipc endpoint's file, which libzmq leaves behind."""
    path = ipc_path(endpoint)
    if path is not None:
        try:
            os.unlink(path)
        except FileNotFoundError:
            return


def _lies_at(path: str) -> bool:
    """Say whether a socket lies at a path; anything else there is refused."""
    if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
        raise TransportRefused(
            RefusalCode.CONFIG_INVALID,
            f"{path}: a socket path may have {IPC_PATH_BYTES_MAX} bytes",
        )
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise TransportRefused(RefusalCode.SOCKET_IN_USE, f"{path}: is there and is no socket")
    return True


def _nobody_answers(path: str) -> bool:
    """Say whether a socket file has no listener; what is no socket has none to ask."""
    with system_socket.socket(system_socket.AF_UNIX, system_socket.SOCK_STREAM) as probe:
        probe.settimeout(0)
        refused = probe.connect_ex(path) == errno.ECONNREFUSED
    return refused and stat.S_ISSOCK(os.lstat(path).st_mode)
