"""Attacks by who has a key: routing ids, metadata, forged names, spoilt and endless traffic."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
import uuid

import zmq
from nacl.bindings import crypto_box_open_afternm

from schemas import codec
from schemas.messages import DisablePlugin, Refusal, Status
from tests.hostile.attack import Attack, attack
from tests.hostile.clients import PLUGIN
from tests.hostile.siege import Siege
from tests.hostile.wire import DEALER, MORE, Peer, framed, metadata

INNER_COMMAND = 2


def status() -> bytes:
    """Give a good request's frame."""
    return codec.encode(Status(request_id=str(uuid.uuid4())))


def answered(peer: zmq.Socket[bytes]) -> None:
    """Send a good request and wait for its answer."""
    peer.send(status())
    assert not isinstance(codec.decode_reply(peer.recv()), Refusal)


@attack("chosen routing ids")
def chosen_ids(siege: Siege) -> None:
    """The ids that a ROUTER would give next, unseeded; then others connect, and it lives."""
    libc = ctypes.CDLL(None)
    libc.srand(1)
    low, high = libc.rand(), libc.rand()
    first = (low | (high << 31)) & 0xFFFFFFFF
    with contextlib.ExitStack() as stack:
        for guess in range(first - 4, first + 12):
            name = b"\x00" + struct.pack(">I", guess & 0xFFFFFFFF)
            answered(stack.enter_context(siege.dealer(routing_id=name)))
        for _ in range(8):
            answered(stack.enter_context(siege.dealer()))


@attack("stolen routing ids")
def stolen_ids(siege: Siege) -> None:
    """A second connection takes the first one's id: it gets nothing, the first keeps its own."""
    with siege.dealer(routing_id=b"mine") as owner:
        answered(owner)
        with siege.dealer(routing_id=b"mine") as thief:
            for _ in range(50):
                thief.send(status())
            for _ in range(20):
                answered(owner)
            assert not thief.poll(50)
    for length in (1, 255):
        with siege.dealer(routing_id=b"x" * length) as odd:
            answered(odd)


@attack("odd metadata")
def odd_metadata(siege: Siege) -> None:
    """Three thousand properties, 50 KB of them, 5,000 bytes of identity, no type, another type."""
    many = b"".join(metadata(**{f"X_{number}": b"v" * 8}) for number in range(3000))
    for properties in (
        DEALER + many, DEALER + metadata(X_Large=b"x" * 50_000), b"",
        metadata(Socket_Type=b"DEALER", Identity=b"i" * 5000),
        metadata(Socket_Type=b"PUB"), metadata(Socket_Type=b"NONSENSE"),
        metadata(Socket_Type=b"DEALER") * 2,
    ):
        with siege.peer(siege.hostile.pair) as peer:
            peer.welcomed()
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                peer.send(peer.initiate(properties))
                if peer.frame()[:6] == b"\x05READY":
                    peer.send(peer.message(status()))
                    peer.frame()


@attack("a forged user id")
def forged_user(siege: Siege) -> None:
    """An auditor who writes another name into the handshake stays an auditor."""
    with siege.peer(siege.spy.pair, admin=True) as peer:
        peer.ready(metadata(Socket_Type=b"DEALER", User_Id=b"0" * 16) + DEALER)
        ask = DisablePlugin(request_id=str(uuid.uuid4()), plugin=PLUGIN)
        peer.send(peer.message(codec.encode(ask)))
        refusal = codec.decode_reply(opened(peer))
        assert isinstance(refusal, Refusal)
        assert refusal.code == "role_not_allowed"


def opened(peer: Peer) -> bytes:
    """Read one message and decrypt it."""
    frame = peer.frame()
    assert frame[:8] == b"\x07MESSAGE", frame[:20]
    nonce = b"CurveZMQMESSAGES" + frame[8:16]
    return crypto_box_open_afternm(frame[16:], nonce, peer.shared)[1:]


@attack("spoilt messages")
def spoilt(siege: Siege) -> None:
    """Replayed, old, last and repeated numbers, bad boxes, cut, plain, unknown, handshake again."""
    def variants(peer: Peer) -> list[bytes]:
        good = peer.message(status())
        return [
            good + good, good + peer.message(status(), number=(1).to_bytes(8, "big")),
            peer.message(status(), number=b"\xff" * 8) + peer.message(status()),
            good[:-1] + bytes([good[-1] ^ 1]), framed(good[2:30]), framed(b"\x07MESSAGE"),
            framed(status()), framed(b"\x07UNKNOWN" + bytes(40)), framed(b""), peer.hello(),
            peer.initiate(), peer.message(b"\x04PING\x00\x10" + b"p" * 60_000, INNER_COMMAND),
            peer.message(b"\x09SUBSCRIBE" + b"x" * 20, INNER_COMMAND),
            peer.message(b"\x04JUNK", INNER_COMMAND), peer.message(b"", INNER_COMMAND),
            peer.message(b"", 0xFC), good[:40],
        ]
    for _ in range(6):
        for place in range(17):
            with siege.peer(siege.hostile.pair) as peer:
                data = variants(peer.ready())[place]
                with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                    peer.send(data)


@attack("floods that hang up")
def hung_up(siege: Siege) -> None:
    """More messages than a queue takes, and then a reset, eight times."""
    for _ in range(8):
        with siege.peer(siege.hostile.pair) as peer:
            peer.ready()
            frames = b"".join(peer.message(b"\x00" * 50) for _ in range(2000))
            peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                peer.send(frames)


@attack("a client that reads nothing")
def deaf(siege: Siege) -> None:
    """Thousands of requests whose answers are never read: its queue fills and nobody waits."""
    with siege.peer(siege.hostile.pair) as peer:
        peer.ready()
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _ in range(1500):
            peer.send(peer.message(status()))


@attack("an endless message")
def endless(siege: Siege) -> None:
    """A message whose last frame never comes, 30 MB of it; it is gone when its sender is."""
    before = siege.memory_mb()
    with siege.peer(siege.hostile.pair) as peer:
        peer.ready()
        frame = bytes(512)
        for _ in range(60):
            peer.send(b"".join(peer.message(frame, MORE) for _ in range(1000)))
    assert siege.memory_mb() < before + 250


KEYS: tuple[Attack, ...] = (
    chosen_ids, stolen_ids, odd_metadata, forged_user, spoilt, hung_up, deaf, endless,
)
