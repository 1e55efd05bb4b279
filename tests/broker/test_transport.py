"""The fronts over real sockets: who gets in, what arrives, what leaves, and what strangers get."""

from __future__ import annotations

import os
import time

import pytest
import zmq

from broker.arrivals import FrontFrames, HandshakesRefused, OversizedMessage, Readable
from broker.keys import curve_key_id, new_curve_pair
from broker.monitor import CROWDED, NOT_AUTHORISED, NOT_CURVE, UNFINISHED
from broker.stations import MESSAGES_PER_TURN
from broker.transport import TransportLimits
from tests.broker.sockets_kit import BYTES_MAX, House, house


def refusals(arrivals: list[object]) -> dict[str, int]:
    """Sum refused handshakes by reason."""
    sums: dict[str, int] = {}
    for one in arrivals:
        if isinstance(one, HandshakesRefused):
            sums[one.where] = sums.get(one.where, 0) + one.count
    return sums


def first_frames(home: House) -> FrontFrames:
    """Give the next message of a front."""
    return next(one for one in home.pump_for(FrontFrames) if isinstance(one, FrontFrames))


def test_a_frame_arrives_with_the_id_of_its_key_and_the_reply_goes_back():
    """The origin is the front and the key that ZAP named, and its route leads back."""
    with house() as home:
        peer = home.dealer()
        peer.send(b"question")

        message = first_frames(home)

        assert message.frames == [b"question"]
        assert message.origin.front == "front.omega"
        assert message.origin.key_id == curve_key_id(home.omega.public)
        assert home.transport.send(message.origin, b"answer") == "sent"
        assert peer.recv() == b"answer"


def test_each_front_admits_its_own_keys_only():
    """An operator's key is a stranger on OMEGA's front, and OMEGA's on the operators'."""
    with house() as home:
        home.dealer(home.operator)
        home.dealer(
            home.omega,
            endpoint=home.transport.endpoint("front.admin"),
            server=home.admin_server.public,
        )

        arrivals = home.pump_for(HandshakesRefused, 2)

        assert {(one.plane, one.where) for one in arrivals} == {
            ("front.omega", NOT_AUTHORISED), ("front.admin", NOT_AUTHORISED),
        }


def test_an_operator_speaks_on_the_admin_front():
    """The admin front names the operator's key."""
    with house() as home:
        peer = home.dealer(
            home.operator,
            endpoint=home.transport.endpoint("front.admin"),
            server=home.admin_server.public,
        )
        peer.send(b"hello")

        message = first_frames(home)

        assert message.origin.front == "front.admin"
        assert message.origin.key_id == curve_key_id(home.operator.public)


def null_peer(home: House) -> None:
    """Connect without any mechanism."""
    peer = home.context.socket(zmq.DEALER)
    peer.linger = 0
    peer.connect(home.transport.endpoint("front.omega"))
    peer.send(b"let me in")
    home.kept.append(peer)


def plain_peer(home: House) -> None:
    """Connect with a user name and a password."""
    peer = home.context.socket(zmq.DEALER)
    peer.linger = 0
    peer.plain_username, peer.plain_password = b"OMEGA", b"secret"
    peer.connect(home.transport.endpoint("front.omega"))
    peer.send(b"let me in")
    home.kept.append(peer)


def wrong_server_key(home: House) -> None:
    """Connect with a good key to a server that is another."""
    home.dealer(server=new_curve_pair().public).send(b"let me in")


def wrong_key(home: House) -> None:
    """Connect with a key that nobody knows."""
    home.dealer(new_curve_pair()).send(b"let me in")


def http_peer(home: House) -> None:
    """Speak HTTP."""
    peer = home.raw()
    peer.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100)
    home.kept.append(peer)


def random_peer(home: House) -> None:
    """Send bytes that mean nothing."""
    peer = home.raw()
    peer.sendall(b"\x01\x00" + os.urandom(200))
    home.kept.append(peer)


def half_peer(home: House) -> None:
    """Send half a greeting and say no more; the descriptor stays open until the house closes."""
    peer = home.raw()
    peer.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03")
    home.kept.append(peer)


@pytest.mark.parametrize(
    ("stranger", "reason"),
    [
        (null_peer, NOT_CURVE),
        (plain_peer, NOT_CURVE),
        (wrong_server_key, NOT_CURVE),
        (wrong_key, NOT_AUTHORISED),
        (http_peer, NOT_CURVE),
        (random_peer, NOT_CURVE),
        (half_peer, UNFINISHED),
    ],
)
def test_a_stranger_gets_nothing_is_told_of_and_costs_nobody_else(stranger, reason):
    """The refusal is counted under its reason, no frame comes through, and OMEGA is served.

    A client that sees first that the mechanisms differ hangs up in the middle of its handshake.
    """
    with house(limits=TransportLimits(handshake_ms=1_500)) as home:
        honest = home.dealer()
        honest.send(b"before")
        assert first_frames(home).frames == [b"before"]

        stranger(home)
        reasons = {reason, UNFINISHED} if reason == NOT_CURVE else {reason}
        arrivals = home.pump(lambda all_: refusals(all_).keys() & reasons)
        honest.send(b"after")
        arrivals += home.pump_for(FrontFrames)

        assert [one.frames for one in arrivals if isinstance(one, FrontFrames)] == [[b"after"]]
        assert refusals(arrivals).keys() <= reasons


def test_many_strangers_are_one_fact_with_a_count():
    """Refusals that come together are summed, and the sum is right."""
    with house() as home:
        for _ in range(20):
            with home.raw() as peer:
                peer.sendall(b"GET / HTTP/1.1\r\n\r\n" + b"x" * 100)

        arrivals = home.pump(lambda all_: refusals(all_).get(NOT_CURVE, 0) >= 20)

        assert refusals(arrivals) == {NOT_CURVE: 20}
        assert len(arrivals) <= 20


def test_a_silent_connection_does_not_hide_or_end_an_honest_one():
    """A handshake that never ends is one refusal; the connection beside it is not counted lost."""
    with house(limits=TransportLimits(handshake_ms=1_500)) as home:
        half_peer(home)
        honest = home.dealer()
        honest.send(b"one")

        arrivals = home.pump(
            lambda all_: UNFINISHED in refusals(all_)
            and any(isinstance(one, FrontFrames) for one in all_)
        )
        honest.send(b"two")
        arrivals += home.pump_for(FrontFrames)
        honest.close()
        arrivals += home.quiet()

        assert refusals(arrivals) == {UNFINISHED: 1}


@pytest.mark.parametrize("count", [0, 2, 4])
def test_a_message_of_few_frames_is_handed_on_as_it_is(count):
    """An empty frame and up to four frames arrive unchanged; judging them is the core's."""
    frames = [b""] if count == 0 else [b"%d" % number for number in range(count)]
    with house() as home:
        home.dealer().send_multipart(frames)

        assert first_frames(home).frames == frames


@pytest.mark.parametrize("count", [5, 10_000])
def test_a_message_of_too_many_frames_is_dropped_counted_and_costs_nobody_else(count):
    """The whole message becomes one fact; messages before, after and beside it arrive."""
    with house() as home:
        noisy, honest = home.dealer(), home.dealer()
        noisy.send(b"before")
        noisy.send_multipart([b"ab"] * count)
        noisy.send(b"after")
        honest.send(b"beside")

        arrivals = home.pump_for(FrontFrames, 3)

        dropped = [one for one in arrivals if isinstance(one, OversizedMessage)]
        assert dropped == [
            OversizedMessage("front.omega", curve_key_id(home.omega.public), count, 2 * count)
        ]
        assert {one.frames[0] for one in arrivals if isinstance(one, FrontFrames)} == {
            b"before", b"after", b"beside"
        }


def test_a_frame_of_exactly_the_limit_passes_and_one_byte_more_ends_the_connection():
    """The limit is that of the plain frame; what is larger never reaches the broker."""
    with house() as home:
        peer = home.dealer()
        peer.send(b"x" * BYTES_MAX)
        assert len(first_frames(home).frames[0]) == BYTES_MAX

        peer.send(b"x" * (BYTES_MAX + 1))
        assert home.quiet() == []


def test_more_messages_than_a_turn_takes_all_arrive_without_another_signal():
    """What a turn leaves is found by the next one, though nothing new comes."""
    count = 5 * MESSAGES_PER_TURN
    with house() as home:
        peer = home.dealer()
        for number in range(count):
            peer.send(b"%d" % number)
        turns: list[int] = []
        total = 0
        deadline = time.monotonic() + 10
        while total < count and time.monotonic() < deadline:
            turns.append(len(home.transport.poll(1000)))
            total += turns[-1]

        assert total == count
        assert max(turns) <= MESSAGES_PER_TURN


def test_no_wake_up_is_lost_between_sends_and_receives():
    """Ping-pong with a long poll never waits for the poll's end."""
    with house() as home:
        peer = home.dealer()
        begin = time.monotonic()
        for number in range(300):
            peer.send(b"%d" % number)
            message = first_frames(home)
            home.transport.send(message.origin, message.frames[0])
            assert peer.recv() == b"%d" % number
        assert time.monotonic() - begin < 300 * 0.020


def test_a_reply_to_a_peer_that_left_is_gone():
    """The outcome of sending to a closed connection is `gone`, and nothing is queued."""
    with house() as home:
        peer = home.dealer()
        peer.send(b"question")
        message = first_frames(home)
        peer.close()
        deadline = time.monotonic() + 10
        while home.transport.send(message.origin, b"answer") != "gone":
            assert time.monotonic() < deadline
            home.transport.poll(10)


def test_replies_to_a_peer_that_does_not_read_end_as_full():
    """A queue has a length, and beyond it a send says so instead of blocking."""
    with house(high_water_mark=10) as home:
        peer = home.dealer()
        peer.setsockopt(zmq.RCVHWM, 1)
        peer.send(b"question")
        message = first_frames(home)

        outcomes = [home.transport.send(message.origin, b"x" * 100_000) for _ in range(2000)]

        assert outcomes[0] == "sent"
        assert outcomes[-1] == "full"


def test_keys_can_be_replaced_while_serving():
    """A new key gets in, and a key that was taken out cannot connect again."""
    with house() as home:
        fresh = new_curve_pair()
        home.transport.set_keys("front.omega", {fresh.public: curve_key_id(fresh.public)})
        home.dealer(fresh).send(b"fresh")
        home.dealer(home.omega).send(b"old")

        arrivals = home.pump(
            lambda all_: NOT_AUTHORISED in refusals(all_)
            and any(isinstance(one, FrontFrames) for one in all_)
        )

        assert [one.frames for one in arrivals if isinstance(one, FrontFrames)] == [[b"fresh"]]


def test_connections_beyond_the_bound_wait_until_there_is_room():
    """The bound refuses for the moment only: the client comes in when another leaves."""
    with house(connections_max=1) as home:
        first = home.dealer()
        first.send(b"first")
        assert first_frames(home).frames == [b"first"]
        second = home.dealer()
        second.send(b"second")
        home.pump(lambda all_: CROWDED in refusals(all_))

        first.close()

        assert first_frames(home).frames == [b"second"]


def test_another_descriptor_can_be_watched():
    """A readable pipe is told as long as it is readable, and not after it is unwatched."""
    with house() as home:
        reading, writing = os.pipe()
        home.transport.watch(reading)
        os.write(writing, b"x")

        assert Readable(reading) in home.pump_for(Readable)
        assert Readable(reading) in home.pump_for(Readable)
        home.transport.unwatch(reading)
        assert home.transport.poll(0) == []
        os.close(reading)
        os.close(writing)


def test_a_poll_ends_with_its_time():
    """With nothing to tell, a poll gives an empty turn after its time and not before."""
    with house() as home:
        home.quiet()
        begin = time.monotonic()

        assert home.transport.poll(60) == []
        assert 0.055 <= time.monotonic() - begin < 5


def test_what_was_sent_before_the_close_still_leaves():
    """Closing waits a bounded time for replies in the queue."""
    with house() as home:
        peer = home.dealer()
        peer.send(b"question")
        message = first_frames(home)
        for _ in range(50):
            home.transport.send(message.origin, b"x" * 1000)
        home.transport.close()

        assert [len(peer.recv()) for _ in range(50)] == [1000] * 50
        assert os.listdir(home.directory) == []
