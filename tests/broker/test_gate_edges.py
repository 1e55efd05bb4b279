"""The gate of a TCP front at its edges: no descriptor left, numbers passed on, who may join."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from collections.abc import Iterator

import pytest

from broker.gate import Gate, _address
from broker.handshakes import Admission
from broker.stations import FrontStation
from broker.transport import TransportLimits
from tests.broker.sockets_kit import House, house

TCP = "tcp://127.0.0.1:*"
NOBODY = 65534


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Let this process open nothing: it has its first three. With less poll(2) would fail too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def station(home: House) -> FrontStation:
    """OMEGA's front."""
    return home.transport._fronts["front.omega"]


def gate_of(home: House) -> Gate:
    """Its gate."""
    gate = station(home)._gate
    assert gate is not None
    return gate


def stranger(home: House, source: str = "127.0.0.1") -> socket.socket:
    """Connect from an address, and say nothing."""
    host, _, port = station(home).endpoint[6:].rpartition(":")
    return socket.create_connection((host, int(port)), 10, (source, 0))


def read_to_the_end(peer: socket.socket) -> None:
    """Wait until a connection was ended by the other side."""
    with contextlib.suppress(ConnectionResetError):
        while peer.recv(100):
            pass


def test_without_a_descriptor_who_was_turned_away_waits() -> None:
    """When this process can open nothing, the gate ends nobody and does not fail; afterwards it
    ends whoever waits."""
    with house(endpoint=TCP) as home:
        gate = gate_of(home)
        gate._steer(Admission("nobody", (), ()))
        with stranger(home) as peer:
            with no_descriptor_left():
                assert gate._end_waiting() == 0

            assert gate._end_waiting() == 1
            read_to_the_end(peer)


def test_without_a_descriptor_strangers_are_still_ended() -> None:
    """A crowd that took the last descriptor is ended all the same, and not because its time was
    over."""
    limits = TransportLimits(handshake_ms=60_000)
    with house(endpoint=TCP, limits=limits) as home, stranger(home) as peer:
        home.pump(lambda _: station(home).monitor.connections() == 1)
        with no_descriptor_left():
            assert station(home).monitor.end_strangers() == 1

        read_to_the_end(peer)


def test_a_number_that_stands_for_no_socket_by_now_costs_nothing() -> None:
    """Whether an address is asked or a connection is ended by it, no descriptor stays open."""
    with house(endpoint=TCP) as home:
        other, end = os.pipe()
        before = os.listdir("/proc/self/fd")
        for _ in range(3):
            assert _address(other) == ""
            station(home).monitor._end({other})
            station(home).monitor._ended.clear()

        assert os.listdir("/proc/self/fd") == before
        os.close(other)
        os.close(end)


def test_whose_number_an_earlier_connection_had_does_not_pay_for_it() -> None:
    """Many come and go between two looks; who has their number when we look pays for himself."""
    with house(endpoint=TCP, handshakes_per_s_max=40) as home:
        for _ in range(60):
            with stranger(home, "127.0.0.2") as gone:
                gone.sendall(b"GET / HTTP/1.1" * 8)
                read_to_the_end(gone)
        with stranger(home, "127.0.0.3") as honest:
            assert honest.recv(1) == b"\xff"
            gate = gate_of(home)
            home.pump(lambda _: "127.0.0.3" in gate._budget._addresses)

            assert gate._admission.taken != "everybody"
            assert gate._admission.refused == ()


def test_who_was_reset_still_has_an_address() -> None:
    """A sender that hangs up at once pays for itself while its connection is not closed here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname(), 10, ("127.0.0.2", 0))
        with listener.accept()[0] as taken:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes((1,)).ljust(8, b"\0"))
            peer.close()
            with pytest.raises(ConnectionResetError):
                taken.recv(1)

            assert _address(taken.fileno()) == "127.0.0.2"


def test_only_this_user_can_share_the_port() -> None:
    """Another user's socket cannot come beside ours, on our address or on all of them, and one of
    this user's not by taking up the address. Whose a socket is only root can change."""
    options = [socket.SO_REUSEADDR] if os.geteuid() else [socket.SO_REUSEADDR, socket.SO_REUSEPORT]
    with house(endpoint=TCP) as home:
        port = int(station(home).endpoint.rpartition(":")[2])
        for host in ("127.0.0.1", ""):
            for option in options:
                with socket.socket() as thief:
                    os.fchown(thief.fileno(), os.geteuid() or NOBODY, -1)
                    thief.setsockopt(socket.SOL_SOCKET, option, 1)
                    with pytest.raises(OSError, match="Address already in use"):
                        thief.bind((host, port))
