"""ZMTP 3.1 with CURVE, byte for byte, so that a test can also send what no library would.

Rules this file keeps: it is a peer's side only, on a plain socket; every step can be replaced or
left out by who uses it. Source: ZeroMQ RFC 23 (ZMTP), RFC 26 (CurveZMQ).
"""

from __future__ import annotations

import os
import socket
import struct
from typing import Self

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_open_afternm

from broker.keys import CurvePair, curve_bytes, new_curve_pair

WAIT_S = 20.0
MORE, LARGE, COMMAND = 1, 2, 4


def greeting(mechanism: bytes = b"CURVE", version: bytes = b"\x03\x01") -> bytes:
    """Give the 64 bytes that a ZMTP 3 peer begins with."""
    signature = b"\xff" + bytes(8) + b"\x7f"
    return signature + version + mechanism.ljust(20, b"\x00") + bytes(32)


def framed(body: bytes, flags: int = 0) -> bytes:
    """Put a ZMTP frame's head before its body."""
    if len(body) > 255:
        return struct.pack(">BQ", flags | LARGE, len(body)) + body
    return struct.pack(">BB", flags, len(body)) + body


def metadata(**properties: bytes) -> bytes:
    """Write handshake properties; an underscore in a name stands for a hyphen."""
    pieces = []
    for name, value in properties.items():
        raw = name.replace("_", "-").encode()
        pieces.append(bytes([len(raw)]) + raw + struct.pack(">I", len(value)) + value)
    return b"".join(pieces)


DEALER = metadata(Socket_Type=b"DEALER", Identity=b"")


class Peer:
    """One connection to a CURVE server, as far into its handshake as the test takes it."""

    def __init__(self, endpoint: str, server_key: str, pair: CurvePair | None = None) -> None:
        """Connect; `server_key` is Z85, `pair` the client's long-term key, else a stranger's."""
        if endpoint.startswith("ipc://"):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(WAIT_S)
            self.socket.connect(endpoint.removeprefix("ipc://"))
        else:
            host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
            self.socket = socket.create_connection((host, int(port)), timeout=WAIT_S)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server = curve_bytes(server_key)
        self.long_term = pair or new_curve_pair()
        self.short_term = new_curve_pair()
        self.number = 0
        self.cookie = b""
        self.shared = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def nonce(self) -> bytes:
        """Count one message further."""
        self.number += 1
        return self.number.to_bytes(8, "big")

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def receive(self, count: int) -> bytes:
        """Read exactly so many bytes; fewer where the other side ended."""
        data = b""
        while len(data) < count and (piece := self.socket.recv(count - len(data))):
            data += piece
        return data

    def frame(self) -> bytes:
        """Read one frame's body; empty where the other side ended."""
        head = self.receive(2)
        if len(head) == 2 and head[0] & LARGE:
            head += self.receive(7)
        return self.receive(int.from_bytes(head[1:], "big")) if len(head) >= 2 else b""

    # --- the handshake ---

    def hello(self) -> bytes:
        """Give a HELLO command's frame."""
        number = self.nonce()
        key = crypto_box_beforenm(self.server, curve_bytes(self.short_term.secret))
        box = crypto_box_afternm(bytes(64), b"CurveZMQHELLO---" + number, key)
        public = curve_bytes(self.short_term.public)
        return framed(b"\x05HELLO\x01\x00" + bytes(72) + public + number + box, COMMAND)

    def initiate(self, properties: bytes = DEALER, *, vouch: bytes = b"") -> bytes:
        """Give an INITIATE command's frame; `vouch` replaces the right 96 bytes."""
        secret, public = curve_bytes(self.long_term.secret), curve_bytes(self.long_term.public)
        if not vouch:
            salt = os.urandom(16)
            box = crypto_box_afternm(
                curve_bytes(self.short_term.public) + self.server, b"VOUCH---" + salt,
                crypto_box_beforenm(self.server_short, secret),
            )
            vouch = salt + box
        number = self.nonce()
        box = crypto_box_afternm(
            public + vouch + properties, b"CurveZMQINITIATE" + number, self.shared
        )
        return framed(b"\x08INITIATE" + self.cookie + number + box, COMMAND)

    def welcomed(self) -> Self:
        """Exchange greetings, HELLO and WELCOME."""
        self.send(greeting())
        self.receive(64)
        self.send(self.hello())
        welcome = self.frame()
        assert welcome[:8] == b"\x07WELCOME", welcome[:20]
        key = crypto_box_beforenm(self.server, curve_bytes(self.short_term.secret))
        plain = crypto_box_open_afternm(welcome[24:], b"WELCOME-" + welcome[8:24], key)
        self.server_short, self.cookie = plain[:32], plain[32:]
        self.shared = crypto_box_beforenm(self.server_short, curve_bytes(self.short_term.secret))
        return self

    def ready(self, properties: bytes = DEALER) -> Self:
        """Finish the handshake."""
        self.welcomed()
        self.send(self.initiate(properties))
        answer = self.frame()
        assert answer[:6] == b"\x05READY", answer[:20]
        return self

    # --- traffic ---

    def message(self, body: bytes, flags: int = 0, *, number: bytes = b"") -> bytes:
        """Give a MESSAGE's frame; `flags` are those inside, 1 more and 2 command."""
        number = number or self.nonce()
        box = crypto_box_afternm(bytes([flags]) + body, b"CurveZMQMESSAGEC" + number, self.shared)
        return framed(b"\x07MESSAGE" + number + box)

    def closed(self) -> bool:
        """Wait until the other side hangs up; False when it sent something or nothing."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
