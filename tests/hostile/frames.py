"""Attacks by frames: wrong counts and sizes, wrong msgpack, wrong JSON, and floods of them."""

from __future__ import annotations

import contextlib
import time
import uuid

import msgspec
import zmq

from schemas import codec
from schemas.messages import Cancel, Invoke, Refusal, Run, Status
from schemas.names import FRAME_BYTES_MAX_ADMIN, FRAME_BYTES_MAX_OMEGA
from schemas.payloads import JSONPayload, TextPayload
from tests.hostile.attack import Attack, attack
from tests.hostile.clients import PLUGIN
from tests.hostile.keys import status
from tests.hostile.siege import Siege

CONFIG_DROPS_PER_S = 20


def fresh() -> str:
    """Make a request id."""
    return str(uuid.uuid4())


def invocation(**changes: object) -> bytes:
    """Encode an invocation with fields changed or added behind the types' back."""
    message = Invoke(request_id=fresh(), plugin=PLUGIN, method="echo", payload=TextPayload("x"),
                     timeout_ms=1000, commitment_key=b"k" * 32)
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    return codec.MAGIC + msgspec.msgpack.encode({**fields, **changes})


def twice() -> bytes:
    """Name a key twice in an otherwise good request, first its type."""
    good = status()
    body = good[5:]
    return good[:4] + bytes([good[4] + 1]) + b"\xa4type" + msgspec.msgpack.encode("invoke") + body


NESTED = {"x": 1}
for _ in range(200):
    NESTED = {"x": NESTED}

def all_looked_at(peer: zmq.Socket[bytes]) -> None:
    """Wait for the answer to a good request: bad ones beyond a rate are counted, not answered."""
    last = Status(request_id=fresh())
    peer.send(codec.encode(last))
    while getattr(codec.decode_reply(peer.recv()), "request_id", "") != last.request_id:
        continue


MALFORMED = (
    b"", b"\x00" * 32, b"OPG1", b"OPG2" + status()[4:], b"\xef\xbb\xbf" + status(),
    b"OPG1\xc1\xc1", b"OPG1" + b"\x91" * 100_000, b"OPG1" + b"\x81\xa1x" * 50_000,
    status() + b"x", status()[:-3], twice(),
    b"OPG1\xdd\xff\xff\xff\xff", b"OPG1\xdf\xff\xff\xff\xff\xa1x", b"OPG1\xdb\xff\xff\xff\xffabc",
    codec.encode(Run(call=1, method="m", payload=TextPayload("x"), timeout_ms=1,
                     request_id=fresh())),
    invocation(type="nothing"), invocation(type=7), invocation(extra=1),
    invocation(request_id="not a uuid"), invocation(request_id=b"bytes"),
    invocation(timeout_ms=-1), invocation(timeout_ms=True), invocation(timeout_ms=1.0),
    invocation(timeout_ms=float("nan")), invocation(timeout_ms=float("inf")),
    invocation(timeout_ms=2**63), invocation(commitment_key=b"short"),
    invocation(plugin="../etc"), invocation(method="__init__"), invocation(known_size=-1),
    invocation(payload={"type": "json", "data": "text"}), invocation(payload=NESTED),
    invocation(payload=msgspec.msgpack.Ext(1, b"x")),
    invocation(payload=msgspec.msgpack.Ext(-1, b"\x00\x00\x00\x00")),
    invocation(**{"\ud7ff": 1}), b"OPG1" + msgspec.msgpack.encode({b"type": "status"}),
    b"OPG1" + msgspec.msgpack.encode({1: 2, 2: 3}),
    codec.MAGIC + msgspec.msgpack.encode(["status", fresh()]),
    status().replace(b"status", b"stat\xff\xfe"),
    codec.MAGIC + msgspec.msgpack.encode({str(number): number for number in range(50_000)}),
    codec.MAGIC + msgspec.msgpack.encode({"type": "status", "list": list(range(200_000))}),
)
"""Every payload of the list that a front must refuse: each is one refusal or one dropped frame."""


@attack("malformed frames")
def malformed(siege: Siege) -> None:
    """Everything that is not one good message, each answered by one refusal or counted."""
    before = siege.drops().copy()
    with siege.dealer() as peer:
        for frame in MALFORMED:
            peer.send(frame)
        # Answers come in order, so the last tells that all were looked at.
        last = Cancel(request_id=fresh(), target=fresh())
        peer.send(codec.encode(last))
        while (reply := codec.decode_reply(peer.recv())) is not None:
            assert isinstance(reply, Refusal)
            if reply.request_id == last.request_id:
                break
    def told() -> int:
        now = siege.drops()
        codes = {"frame_malformed", "message_invalid", "message_unknown", "frame_too_large"}
        return sum(now[code] - before[code] for code in codes)
    siege.until("every malformed frame to be counted", lambda: told() >= len(MALFORMED))


@attack("wrong numbers of frames", "frame_count")
def frame_counts(siege: Siege) -> None:
    """Two empty frames, a delimiter, a hundred and thousands of frames."""
    with siege.dealer() as peer:
        for frames in ([b"", b""], [b"", status()], [status(), b""], [b"a"] * 4, [b"b"] * 100,
                       [b"c" * 100] * 1000, [b""] * 5000):
            peer.send_multipart(frames)
        all_looked_at(peer)


@attack("a message of very many frames", "frame_count")
def very_many_frames(siege: Siege) -> None:
    """Two hundred thousand frames in one message, all of them in one queue before the first."""
    with siege.dealer() as peer:
        peer.send_multipart([b""] * 200_000)
        peer.send(status())
        # Whoever sent it waits for it, and nobody else does.
        assert peer.recv()


@attack("frames above the limit")
def oversized(siege: Siege) -> None:
    """A frame that is too large ends its sender's connection, on both fronts."""
    for profile, limit in (
        (siege.hostile, FRAME_BYTES_MAX_OMEGA), (siege.spy, FRAME_BYTES_MAX_ADMIN),
    ):
        with siege.dealer(profile) as peer:
            peer.reconnect_ivl = -1
            peer.send(b"OPG1" + bytes(limit))
            assert not peer.poll(100)


@attack("frames of the largest size", "frame_malformed")
def largest(siege: Siege) -> None:
    """Noise of exactly the limit, and millions of nothings where a message's type should be, again
    and again, on both fronts."""
    for profile, size, count in (
        (siege.hostile, FRAME_BYTES_MAX_OMEGA, 8), (siege.spy, FRAME_BYTES_MAX_ADMIN, 3),
    ):
        with siege.dealer(profile) as peer:
            head = b"OPG1\x81\xa1x\xdd" + (size - 12).to_bytes(4, "big")
            nothings = head + b"\xc0" * (size - 12)
            for number in range(count):
                peer.send(nothings if number % 2 else bytes(size))
            all_looked_at(peer)


@attack("a flood of bad frames", "frame_malformed")
def flood(siege: Siege) -> None:
    """Thousands of bad frames a second: the ledger tells of so many of them and counts the rest."""
    began, events = time.monotonic(), siege.drop_events()
    before = siege.drops().copy()
    count = 4000
    with siege.dealer() as peer:
        peer.sndtimeo = 20_000
        for _ in range(count):
            peer.send(b"\x00" * 200)
        siege.raised("frame_malformed", before, count)
    seconds = time.monotonic() - began + 2
    assert siege.drop_events() - events <= seconds * (CONFIG_DROPS_PER_S + 2)


WRONG_JSON = (
    b"", b"{", b'{"a":1}x', b"\xef\xbb\xbf{}", b"[NaN]", b"[Infinity]", b"[1e999]", b"[1.0]",
    b'{"b":1,"a":2}', b'{"a":1,"a":2}', b'{ "a":1}', b'["\xff"]', b'["\\ud800"]', b"[01]",
    b"[" * 2000 + b"]" * 2000, b"[" * 100_000, b"[" + b"9" * 400 + b"]", b"[" + b"9" * 5000 + b"]",
    b"[" + b" " * 200_000 + b"]", b'["' + b"x" * 300_000 + b'"]',
    b"{" + b",".join(b'"%06d":1' % number for number in range(20_000)) + b"}",
    b"[" + b"0," * 100_000 + b"0]", b'{"id":1}', b"null", b"[-0]", b"[9007199254740993]",
)
"""JSON in no canonical spelling, too deep, too large, or of another shape than the method takes."""


@attack("wrong JSON")
def wrong_json(siege: Siege) -> None:
    """Everything that is no canonical document of the method: refused, and no worker sees it."""
    with siege.dealer() as peer:
        for data in WRONG_JSON:
            message = Invoke(request_id=fresh(), plugin=PLUGIN, method="echo", timeout_ms=1000,
                             payload=JSONPayload(data), commitment_key=b"k" * 32)
            peer.send(codec.encode(message))
            reply = codec.decode_reply(peer.recv())
            assert isinstance(reply, Refusal), data[:40]
            assert reply.request_id in (message.request_id, None)


@attack("requests that come twice")
def duplicates(siege: Siege) -> None:
    """One request id a thousand times: one answer, and refusals."""
    frame = codec.encode(Status(request_id=fresh()))
    with siege.dealer() as peer, contextlib.suppress(zmq.Again):
        refused = 0
        for _ in range(200):
            peer.send(frame)
        for _ in range(200):
            refused += isinstance(codec.decode_reply(peer.recv()), Refusal)
        assert refused == 199


FRAMES: tuple[Attack, ...] = (
    malformed, frame_counts, very_many_frames, oversized, largest, flood, wrong_json, duplicates,
)
