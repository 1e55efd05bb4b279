"""Ending the connections of one key: it is gone, and nobody else notices."""

from __future__ import annotations

import pytest
import zmq

from broker.arrivals import Arrival, FrontFrames
from broker.keys import curve_key_id, new_curve_pair
from tests.broker.sockets_kit import House, Socket, house


def events(peer: Socket) -> Socket:
    """Watch how a peer's connections end and begin."""
    return peer.get_monitor_socket(
        zmq.EVENT_DISCONNECTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )


def told(seen: Socket) -> list[int]:
    """Every event that a monitor has told since it was asked last."""
    found = []
    while seen.poll(0):
        found.append(int.from_bytes(seen.recv_multipart()[0][:2], "little"))
    return found


def spoken(home: House, peer: Socket, text: bytes) -> FrontFrames:
    """Let a peer say something, and give what arrived."""
    peer.send(text)
    found = next(one for one in home.pump_for(FrontFrames) if isinstance(one, FrontFrames))
    assert found.frames == [text]
    return found


@pytest.mark.parametrize("endpoint", ["", "tcp://127.0.0.1:*"])
def test_a_key_s_connections_end_and_others_stay(endpoint: str):
    """Ten clients that have spoken keep their connections; of the key's two, one of which said
    nothing yet, both end and neither comes back; a silent client of another key does."""
    changes = {"endpoint": endpoint} if endpoint else {}
    taken = new_curve_pair()
    with house(**changes) as home:
        keys = {home.omega.public: curve_key_id(home.omega.public)}
        home.transport.set_keys("front.omega", keys | {taken.public: curve_key_id(taken.public)})
        good = [home.dealer() for _ in range(10)]
        watched = [events(peer) for peer in good]
        bad = [home.dealer(taken), home.dealer(taken)]
        gone = [events(peer) for peer in bad]
        silent = home.dealer()
        quiet = events(silent)
        origins = [spoken(home, peer, b"%d" % number).origin for number, peer in enumerate(good)]
        spoken(home, bad[0], b"still here")
        seen: dict[Socket, list[int]] = {one: [] for one in (*gone, quiet)}

        def all_have(count: int) -> bool:
            for one, found in seen.items():
                found.extend(told(one))
            return all(len(found) >= count for found in seen.values())

        home.pump(lambda _: all_have(1))

        home.transport.set_keys("front.omega", keys, disconnect=curve_key_id(taken.public))

        home.pump(lambda _: all_have(3))
        came, went, refused = (zmq.EVENT_HANDSHAKE_SUCCEEDED, zmq.EVENT_DISCONNECTED,
                               zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        assert [seen[one][:3] for one in gone] == [[came, went, refused]] * 2
        assert seen[quiet] == [came, went, came]
        for peer, origin, one in zip(good, origins, watched, strict=True):
            assert home.transport.send(origin, b"your reply") == "sent"
            assert peer.recv() == b"your reply"
            assert told(one) == [came]
        spoken(home, silent, b"here again")


def test_the_other_front_notices_nothing():
    """An operator who said nothing yet stays while a connection of OMEGA's ends."""
    with house() as home:
        operator = home.dealer(home.operator, endpoint=home.transport.endpoint("front.admin"),
                               server=home.admin_server.public)
        omega = home.dealer()
        ended, seen = events(omega), events(operator)
        ends: list[int] = []
        arrived: list[int] = []

        def both(_: list[Arrival]) -> bool:
            ends.extend(told(ended))
            arrived.extend(told(seen))
            return bool(ends and arrived)

        home.pump(both)

        home.transport.set_keys("front.omega", {}, disconnect=curve_key_id(home.omega.public))

        home.pump(lambda all_: both(all_) and len(ends) >= 2)
        spoken(home, operator, b"after")
        assert arrived + told(seen) == [zmq.EVENT_HANDSHAKE_SUCCEEDED]
