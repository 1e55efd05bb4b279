"""Attacks by peers without a key: garbage, half and endless handshakes, forgeries, crowds."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

import zmq

from broker.client import AdminClient
from broker.config import AdminFrontConfig
from broker.gate import FLOODED
from broker.keys import new_curve_pair
from tests.hostile.attack import Attack, attack
from tests.hostile.floods import Flood
from tests.hostile.siege import FILES_MAX, Siege
from tests.hostile.wire import COMMAND, DEALER, Peer, framed, greeting, metadata

REFUSED = "handshake_refused"
FLOOD_S = 1.0
BETWEEN_LOOKS = 250
"""How many connections libzmq may take before the broker looks: what its listener's queue holds."""
SIGNATURE = b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f"
GARBAGE = (
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" + b"x" * 100,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"\x01\x00" + bytes(range(256)),
    b"\xff" * 200,
    b"",
    SIGNATURE + b"\x01\x05" + b"\x00" * 60,
    SIGNATURE + b"\x00\x00",
    b"\x06\x00hello" * 20,
    greeting() + b"\xff" * 64,
    greeting() + framed(b"\x05HELLO", 0x78),
    greeting() + b"\x06" + (2**63).to_bytes(8, "big"),
    greeting() + b"\x02" + (2**40).to_bytes(8, "big") + b"x" * 1000,
)
"""HTTP, TLS, noise, no byte, ZMTP 1 and 2, reserved flags, impossible and enormous lengths."""


def told(peer: socket.socket, data: bytes) -> None:
    """Send and hang up, whatever the other side does meanwhile."""
    with peer, contextlib.suppress(OSError):
        peer.sendall(data)
        peer.shutdown(socket.SHUT_WR)


@attack("garbage", REFUSED)
def garbage(siege: Siege) -> None:
    """Bytes of other protocols and of none, on both fronts."""
    for front in (False, True):
        for data in GARBAGE:
            told(siege.stranger(admin=front), data)


@attack("empty connections", REFUSED)
def knocks(siege: Siege) -> None:
    """Connect and hang up, two hundred times."""
    for _ in range(200):
        siege.stranger().close()


@contextlib.contextmanager
def many(siege: Siege, count: int, data: bytes, *, admin: bool = False) -> Iterator[
    list[socket.socket]
]:
    """Hold connections open that said the same few bytes."""
    with contextlib.ExitStack() as stack:
        peers = [stack.enter_context(siege.stranger(admin=admin)) for _ in range(count)]
        for peer in peers:
            peer.sendall(data)
        yield peers


@attack("slow handshakes by the hundred", REFUSED)
def slow(siege: Siege) -> None:
    """A hundred greetings that come byte by byte and never end; more than clients may be."""
    with many(siege, 100, b"\xff") as peers:
        for byte in greeting()[1:40]:
            for peer in peers:
                # Who was sent away, because it is one of too many, notices by this.
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    peer.send(bytes([byte]))
        assert select.select(peers, [], [], 20)[0], "nobody was greeted"


@attack("half handshakes", REFUSED)
def half(siege: Siege) -> None:
    """Stop after each step of the handshake, forty times, and hang up."""
    for _ in range(10):
        with siege.peer() as peer:
            peer.send(greeting()[:32])
        with siege.peer() as peer:
            peer.send(greeting())
        with siege.peer() as peer:
            peer.send(greeting() + peer.hello())
        with siege.peer() as peer:
            peer.welcomed()


@attack("other mechanisms", REFUSED)
def mechanisms(siege: Siege) -> None:
    """NULL and PLAIN, spoken by hand and by the library, and mechanisms that nobody has."""
    for mechanism in (b"NULL", b"PLAIN", b"GSSAPI", b"", b"curve", b"CURVE\x00\x00x"):
        for _ in range(3):
            ready = framed(b"\x05READY" + DEALER, COMMAND)
            told(siege.stranger(), greeting(mechanism) + ready + framed(b"OPG1"))
    for plain in (False, True):
        with siege.context.socket(zmq.DEALER) as peer:
            peer.linger = 0
            if plain:
                peer.plain_username, peer.plain_password = b"omega", b"omega"
            peer.connect(siege.hostile.settings.endpoint)
            peer.send(b"OPG1")
            assert not peer.poll(50)


@attack("wrong keys", REFUSED)
def wrong_keys(siege: Siege) -> None:
    """Keys that nobody let in, and a good key to another server."""
    with contextlib.ExitStack() as stack:
        peers = []
        for _ in range(20):
            peer = stack.enter_context(siege.dealer(pair=new_curve_pair()))
            peer.send(b"OPG1")
            peers.append(peer)
        other = siege.hostile._replace(settings=siege.spy.settings)
        crossed = stack.enter_context(siege.dealer(other))
        crossed.send(b"OPG1")
        before = siege.drops().copy()
        siege.raised(REFUSED, before, 5)
        assert not any(peer.poll(0) for peer in (*peers, crossed))


def hellos(peer: Peer) -> Iterator[bytes]:
    """Give HELLO commands that are wrong in one thing, and what comes instead of one."""
    right = peer.hello()
    yield framed(right[2:60], COMMAND)
    yield framed(b"\x05HELLO" + bytes(194), COMMAND)
    yield framed(right[2:8] + b"\x09\x00" + right[10:], COMMAND)
    yield right[:-1] + bytes([right[-1] ^ 1])
    yield right + right
    yield right + framed(b"OPG1 data")
    yield framed(right[2:])
    yield framed(b"\x08INITIATE" + bytes(300), COMMAND)
    yield framed(b"\x07UNKNOWN", COMMAND)
    yield framed(b"", COMMAND)


@attack("wrong HELLO", REFUSED)
def wrong_hello(siege: Siege) -> None:
    """Short, empty, of another version, damaged, twice, followed by data, not a command."""
    for place in range(10):
        with siege.peer() as peer:
            data = list(hellos(peer))[place]
            told(peer.socket, greeting() + data)


@attack("wrong INITIATE", REFUSED)
def wrong_initiate(siege: Siege) -> None:
    """A forged and a foreign cookie, a bad vouch, bad and truncated metadata, no box at all."""
    with siege.peer() as first, siege.peer() as second:
        first.welcomed()
        second.welcomed()
        first.cookie = second.cookie
        told(first.socket, first.initiate())
    for change in range(6):
        with siege.peer(siege.hostile.pair) as peer:
            peer.welcomed()
            if change == 0:
                peer.cookie = os.urandom(96)
            data = peer.initiate(
                {2: b"\x0bSocket-Type\xff\xff\xff\xff", 3: b"\xff"}.get(change, DEALER),
                vouch=os.urandom(96) if change == 1 else b"",
            )
            if change == 4:
                data = data[:-40]
            if change == 5:
                data = framed(b"\x08INITIATE" + peer.cookie + bytes(20), COMMAND)
            told(peer.socket, data)
    with siege.peer() as peer:
        peer.welcomed()
        told(peer.socket, peer.initiate(metadata(Socket_Type=b"DEALER", User_Id=b"omega")))


@attack("a crowd on a port", REFUSED)
def crowd(siege: Siege) -> None:
    """More silent connections than the front bears: descriptors stay, clients stay connected."""
    host, _, port = siege.hostile.settings.endpoint[6:].rpartition(":")
    before = siege.drops().copy()
    with contextlib.ExitStack() as stack:
        for _ in range(500):
            peer = stack.enter_context(socket.socket())
            peer.setblocking(False)
            peer.connect_ex((host, int(port)))
        # They say nothing and stay, so whoever is counted was sent away.
        siege.raised(REFUSED, before, 200)
        assert siege.files() < FILES_MAX - 100


@attack("a flood of handshakes", REFUSED)
def flood(siege: Siege) -> None:
    """Ask the operators' front for handshakes without end: it goes into as many as it is told to,
    answers who is inside, and takes one more from another address."""
    before, spy = siege.drops().copy(), str(siege.gateway.home / "profiles" / "spy")
    share = AdminFrontConfig().handshakes_per_s_max / 2
    settings = siege.spy.settings
    with (
        AdminClient(spy) as inside,
        Flood(settings.endpoint, settings.server_key, ("127.0.0.2",)) as attack,
    ):
        began_s = time.monotonic()
        while time.monotonic() < began_s + FLOOD_S:
            attack.step()
            inside.status()
        with AdminClient(spy) as newcomer:
            newcomer.status()
        lasted_s = time.monotonic() - began_s
        assert attack.welcomed <= share + share * lasted_s + BETWEEN_LOOKS
    siege.raised(f"{REFUSED}: {FLOODED}", before)


STRANGERS: tuple[Attack, ...] = (
    garbage, knocks, slow, half, mechanisms, wrong_keys, wrong_hello, wrong_initiate, crowd,
    flood,
)
