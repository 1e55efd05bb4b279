"""Memory that a client takes is bounded: above the bound connections are ended, OMEGA's last."""

from __future__ import annotations

import contextlib
import mmap
import select
from collections.abc import Iterator

from broker.arrivals import FrontFrames, HandshakesRefused
from broker.footprint import CALM_S, Footprint, resident_bytes
from broker.monitor import MEMORY
from broker.transport import TransportLimits
from tests.broker.sockets_kit import house
from tests.hostile.wire import MORE, Peer

MEBIBYTE = 1 << 20


@contextlib.contextmanager
def fresh_memory() -> Iterator[None]:
    """Hold 16 MiB that this process did not have: an allocator may give what was freed before."""
    with mmap.mmap(-1, 16 * MEBIBYTE) as held:
        held.write(bytes(len(held)))
        yield


def test_only_what_comes_on_top_is_another_excess():
    """The bound is passed once, not at every look; after a calm it begins anew."""
    footprint = Footprint(1)
    assert footprint.excess(10.0)
    assert footprint.excesses == 1
    assert not footprint.excess(10.1)
    assert not footprint.excess(11.0)
    with fresh_memory():
        assert footprint.excess(12.0)
        assert footprint.excesses == 2
        with fresh_memory():
            assert footprint.excess(12.0 + CALM_S)
            assert footprint.excesses == 1
    assert not Footprint(1 << 20).excess(10.0)


def test_an_endless_message_ends_with_its_connection():
    """A message that only grows is ended above the bound, operators are ended first, OMEGA last;
    everybody can come back, and memory stays near the bound."""
    bound_mb = resident_bytes() // MEBIBYTE + 48
    limits = TransportLimits(memory_mb_max=bound_mb)
    with house(limits=limits) as home:
        operator = home.dealer(
            home.operator, endpoint=home.transport.endpoint("front.admin"),
            server=home.admin_server.public,
        )
        omega = home.dealer()
        operator.send(b"one")
        omega.send(b"two")
        home.pump_for(FrontFrames, 2)
        endpoint = home.transport.endpoint("front.omega")
        with Peer(endpoint, home.omega_server.public, home.omega) as peer:
            peer.welcomed()
            peer.send(peer.initiate())
            home.pump(lambda _: bool(select.select([peer.socket], [], [], 0)[0]))
            assert peer.frame()[:6] == b"\x05READY"
            ended: list[HandshakesRefused] = []
            with contextlib.suppress(ConnectionError):
                # Memory is looked at a few times a second, and a fast sender comes far in between.
                while resident_bytes() < (bound_mb + 400) * MEBIBYTE:
                    peer.send(b"".join(peer.message(bytes(512), MORE) for _ in range(2000)))
                    ended += [one for one in home.transport.poll(0)
                              if isinstance(one, HandshakesRefused) and one.where == MEMORY]
            assert peer.closed()
            ended += [one for one in home.quiet()
                      if isinstance(one, HandshakesRefused) and one.where == MEMORY]

        assert [(one.plane, one.count) for one in ended] == [("front.admin", 1), ("front.omega", 2)]
        operator.send(b"again")
        omega.send(b"again")
        home.pump_for(FrontFrames, 2)
