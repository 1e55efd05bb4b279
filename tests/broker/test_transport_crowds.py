"""Many strangers, large frames, no descriptor left: what each costs, and whom."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import socket
import time
from collections.abc import Iterator

import pytest

from broker.arrivals import FrontFrames, HandshakesRefused, WorkerConnected
from broker.monitor import EVENTS_WAITING_MAX, OVERRUN
from broker.stations import BYTES_PER_TURN
from broker.transport import TransportLimits, TransportRefused
from tests.broker.sockets_kit import House, house, incarnation, own_ids
from tests.broker.test_transport_workers import connect
from tests.support.gateway import PATIENCE_S

TCP = "tcp://127.0.0.1:*"
PATIENT = TransportLimits(handshake_ms=30_000)
MEBIBYTE = 1 << 20
CROWDED_AFTER_MS = 4000


@contextlib.contextmanager
def descriptors(soft: int) -> Iterator[None]:
    """Allow this process so many open files for a moment."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, before[1]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextlib.contextmanager
def strangers(home: House, count: int) -> Iterator[list[socket.socket]]:
    """Begin so many silent connections to OMEGA's front, all of which may or may not come."""
    port = int(home.transport.endpoint("front.omega").rpartition(":")[2])
    with contextlib.ExitStack() as stack:
        peers, crowded = [], False
        for _ in range(count):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex(("127.0.0.1", port))
            # The kernel drops what comes faster than it is accepted, and who was dropped knocks
            # again only seconds later: each is greeted before the next comes, as long as anybody is
            # greeted at all. A completed connection is not yet an accepted one.
            if not crowded:
                greeting = select.poll()
                greeting.register(peer, select.POLLIN)
                crowded = not greeting.poll(CROWDED_AFTER_MS)
            peers.append(peer)
        yield peers


def connections(home: House) -> int:
    """How many connections OMEGA's front has, as its monitor counts them."""
    return home.transport._fronts["front.omega"].monitor.connections()


def test_silent_strangers_do_not_take_the_places_of_clients():
    """Half-open connections beyond the clients' bound leave an authenticated client its place."""
    with house(endpoint=TCP, limits=PATIENT, connections_max=1) as home, strangers(home, 20):
        home.pump(lambda _: connections(home) == 20)

        home.dealer().send(b"hello")

        assert any(isinstance(one, FrontFrames) for one in home.pump_for(FrontFrames))


def test_a_front_that_is_overrun_sends_strangers_away_and_keeps_its_clients():
    """The crowd is ended and told as one fact; a client that was heard stays connected, whoever
    came before it, and the next one comes in."""
    with house(endpoint=TCP, limits=PATIENT, connections_max=4, crowd_max=50) as home:
        with strangers(home, 1):
            # The monitor takes the first stranger for the client, which must not cost the client.
            home.pump(lambda _: connections(home) == 1)
            inside = home.dealer()
            inside.send(b"before")
            way_back = home.pump_for(FrontFrames)[-1].origin
            with strangers(home, 70) as peers:
                told = [one for one in home.pump(
                    lambda all_: any(isinstance(one, HandshakesRefused) for one in all_)
                ) if isinstance(one, HandshakesRefused)]
                assert told[0] == HandshakesRefused("front.omega", 1, OVERRUN)
                home.pump(lambda _: connections(home) <= 2)
                peers[0].settimeout(10)
                with contextlib.suppress(ConnectionResetError):
                    assert peers[0].recv(1000)[10:] == b""
            station = home.transport._fronts["front.omega"]
            assert station.monitor.lost == 0
            home.transport.send(way_back, b"still here")
            assert inside.recv() == b"still here"
        home.dealer().send(b"hello")

        assert any(isinstance(one, FrontFrames) for one in home.pump_for(FrontFrames))


def test_a_busy_loop_takes_in_a_bounded_number_of_strangers():
    """While nobody looks at the monitor, libzmq accepts about a thousand connections and waits."""
    own = len(os.listdir("/proc/self/fd"))
    with (
        descriptors(4000), house(endpoint=TCP, limits=PATIENT) as home,
        strangers(home, EVENTS_WAITING_MAX + 400) as peers,
    ):
        # Whoever is accepted is greeted.
        waiting = select.poll()
        for peer in peers:
            waiting.register(peer, select.POLLIN)
        count, deadline = 0, time.monotonic() + PATIENCE_S
        # Those that came faster than they were accepted knock again after a second or three; who
        # comes after the bound must not get in, so a while without anybody is waited for.
        while (greeted := waiting.poll(1000)) or (
            count <= EVENTS_WAITING_MAX - 100 and time.monotonic() < deadline
        ):
            count += len(greeted)
            for descriptor, _ in greeted:
                waiting.unregister(descriptor)
        assert EVENTS_WAITING_MAX - 100 < count <= EVENTS_WAITING_MAX
        accepted = len(os.listdir("/proc/self/fd")) - own - len(peers)
        assert accepted < EVENTS_WAITING_MAX + 60


def test_a_worker_without_a_descriptor_is_a_refusal_and_nothing_is_left_open():
    """At each point where descriptors run out, opening is refused; with room it works again."""
    with house() as home:
        home.quiet()
        before = len(os.listdir("/proc/self/fd"))
        for spare in range(6):
            highest = max(int(name) for name in os.listdir("/proc/self/fd"))
            with descriptors(highest + 1), contextlib.ExitStack() as full:
                for _ in range(highest + 1 - len(os.listdir("/proc/self/fd")) - spare):
                    full.callback(os.close, os.dup(0))
                name = incarnation()
                with contextlib.suppress(TransportRefused):
                    home.transport.open_worker(name)
            home.transport.close_worker(name)
        with descriptors(3), pytest.raises(TransportRefused, match="Too many open files"):
            home.transport.open_worker(incarnation())
        home.pump(lambda _: len(os.listdir("/proc/self/fd")) <= before)

        name = incarnation()
        orders = home.transport.open_worker(name)
        home.transport.admit_worker(name, *own_ids())
        connect(home, orders)
        assert home.pump_for(WorkerConnected) == [WorkerConnected(name)]


def test_a_turn_takes_a_bounded_number_of_bytes_and_omegas_first():
    """Large frames of one client fill no memory, and OMEGA's message does not wait behind them."""
    with house(bytes_max=8 * MEBIBYTE) as home:
        flooder = home.dealer(
            home.operator, endpoint=home.transport.endpoint("front.admin"),
            server=home.admin_server.public,
        )
        omega = home.dealer()
        omega.send(b"first")
        home.pump_for(FrontFrames)
        for _ in range(20):
            flooder.send(b"x" * (7 * MEBIBYTE))
        omega.send(b"second")
        station = home.transport._fronts["front.omega"]
        # The descriptor alone: asking the socket would use up its signal.
        assert select.select([station.socket.fileno()], [], [], 10)[0]

        turns = [home.transport.poll(1000)]
        assert turns[0][0].origin.front == "front.omega"
        while sum(len(turn) for turn in turns) < 21:
            turns.append(home.transport.poll(1000))

        sizes = [sum(len(one.frames[0]) for one in turn) for turn in turns]
        assert max(sizes) <= BYTES_PER_TURN + 7 * MEBIBYTE
        assert sum(sizes) == 20 * 7 * MEBIBYTE + len(b"second")
        # What is large was not copied, what is small was.
        assert {type(one.frames[0]) is bytes for turn in turns for one in turn
                if len(one.frames[0]) < MEBIBYTE} == {True}
        assert {type(one.frames[0]) for turn in turns for one in turn
                if len(one.frames[0]) > MEBIBYTE} == {memoryview}
