"""A TCP front under a flood of handshakes: who gets in, who waits, and what it comes to."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import zmq

from broker.arrivals import FrontFrames, HandshakesRefused
from broker.config import FrontConfig
from broker.gate import FLOODED
from broker.handshakes import KNOWN_MAX, REFUSED_MAX, Admission
from broker.stations import FrontStation
from tests.broker.sockets_kit import House, house
from tests.hostile.floods import Flood

TCP = "tcp://127.0.0.1:*"
RATE = 100
FLOOD_S = 1.0
BETWEEN_LOOKS = 250
"""How many libzmq may take before we look: its listener's queue, and what comes meanwhile."""


def station(home: House) -> FrontStation:
    """OMEGA's front."""
    return home.transport._fronts["front.omega"]


def flood(home: House, *sources: str) -> Flood:
    """Prepare a flood on OMEGA's front."""
    return Flood(station(home).endpoint, home.omega_server.public, sources)


def come(home: House, source: str = "127.0.0.1") -> zmq.Socket[bytes]:
    """Connect a client from an address and have it say something."""
    host = station(home).endpoint.removeprefix("tcp://")
    client = home.dealer(endpoint=f"tcp://{source}:0;{host}")
    client.send(b"hello")
    return client


@contextlib.contextmanager
def flooded(*sources: str) -> Iterator[tuple[House, Flood, list[HandshakesRefused]]]:
    """Give a front with a client inside, after a while of flood that goes on, and what was told.

    The client is answered all the while, and the handshakes keep to the bound.
    """
    with house(endpoint=TCP, handshakes_per_s_max=RATE) as home, flood(home, *sources) as attack:
        inside = come(home)
        way_back = home.pump_for(FrontFrames)[-1].origin
        began_s = time.monotonic()
        told: list[HandshakesRefused] = []
        answered = 0
        while (lasted_s := time.monotonic() - began_s) < FLOOD_S:
            attack.step()
            told += [
                one for one in home.transport.poll(0) if isinstance(one, HandshakesRefused)
            ]
            home.transport.send(way_back, b"still here")
            with contextlib.suppress(zmq.Again):
                answered += len(inside.recv(zmq.NOBLOCK)) > 0
        assert answered > 10
        assert station(home).monitor.lost == 0
        share = 1 if len(sources) > 1 else 0.5
        burst = (2 if len(sources) > 1 else 1) * RATE * share
        assert attack.welcomed <= burst + RATE * share * lasted_s + BETWEEN_LOOKS
        assert attack.asked > 2 * attack.welcomed
        yield home, attack, told


def test_ten_clients_at_once_and_one_that_returns_get_in() -> None:
    """With the configured default honest clients notice nothing, however they come."""
    with house(endpoint=TCP, handshakes_per_s_max=FrontConfig().handshakes_per_s_max) as home:
        clients = [come(home) for _ in range(10)]
        home.pump_for(FrontFrames, 10)
        for _ in range(10):
            clients.pop().close()
            clients.append(come(home))
            home.pump_for(FrontFrames)

        assert not station(home).ajar


def test_all_clients_of_a_front_come_back_at_once_within_seconds() -> None:
    """As many as a front has places for, all from one address, after a restart: all get in."""
    config = FrontConfig()
    with house(endpoint=TCP, handshakes_per_s_max=config.handshakes_per_s_max) as home:
        clients = [come(home) for _ in range(config.connections_max)]

        assert len(home.pump_for(FrontFrames, len(clients))) >= len(clients)


def test_a_flood_from_one_address_keeps_nobody_else_out() -> None:
    """While one address floods, a client from another gets in at once; the flood is told as a
    count now and then; and when it ends a client from that address gets in too."""
    with flooded("127.0.0.2") as (home, attack, told):
        come(home)
        def there(arrivals: list[object]) -> bool:
            attack.step()
            return any(isinstance(one, FrontFrames) for one in arrivals)
        home.pump(there)
        assert station(home).ajar
        # Those whose handshakes are overdue are told by themselves.
        refused = [one for one in told if one.where == FLOODED]
        assert 1 <= len(refused) <= FLOOD_S + 2
        attack.__exit__()

        come(home, "127.0.0.2")

        home.pump_for(FrontFrames)


def test_a_flood_from_everywhere_keeps_out_no_address_that_is_known() -> None:
    """While a hundred addresses flood, a client from one that OMEGA spoke from gets in, and when
    the flood ends one from elsewhere does."""
    sources = tuple(f"127.0.1.{number}" for number in range(1, 101))
    with flooded(*sources) as (home, attack, _):
        gate = station(home)._gate
        assert gate is not None
        assert gate._admission.known == ("127.0.0.1",)
        come(home)
        def there(arrivals: list[object]) -> bool:
            attack.step()
            return any(isinstance(one, FrontFrames) for one in arrivals)
        home.pump(there)
        attack.__exit__()

        come(home, "127.0.0.9")

        home.pump_for(FrontFrames)


def test_the_largest_program_is_one_that_the_kernel_takes() -> None:
    """With full tables whoever is named is served or not as it says."""
    with house(endpoint=TCP) as home:
        gate = station(home)._gate
        assert gate is not None
        refused = tuple(f"127.1.0.{number}" for number in range(1, REFUSED_MAX + 1))
        known = tuple(f"127.2.0.{number}" for number in range(1, KNOWN_MAX + 1))
        gate._steer(Admission("known", refused, known))
        host, _, port = station(home).endpoint[6:].rpartition(":")

        def served(source: str) -> bool:
            with socket.create_connection((host, int(port)), 10, (source, 0)) as peer:
                # libzmq greets by itself: nobody looks at the gate meanwhile, and nothing changes.
                peer.settimeout(0.02)
                for _ in range(500):
                    with contextlib.suppress(TimeoutError):
                        return peer.recv(10) != b""
                    gate._end_waiting()
                raise AssertionError("neither served nor ended")

        assert served(known[0])
        assert served(known[-1])
        assert not served(refused[0])
        assert not served(refused[-1])
        assert not served("127.0.0.1")


def test_who_shares_the_port_gets_nothing() -> None:
    """Another socket of this user that joins the port is never named by the program."""
    with house(endpoint=TCP) as home, socket.socket() as thief:
        host, _, port = station(home).endpoint[6:].rpartition(":")
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        thief.bind((host, int(port)))
        thief.listen(100)
        thief.setblocking(False)

        for _ in range(20):
            come(home)
        home.pump_for(FrontFrames, 20)

        with contextlib.suppress(BlockingIOError):
            assert not thief.accept()
