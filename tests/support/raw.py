"""A client that sends whatever bytes it is told, with a real profile's key."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from broker.keys import curve_pair, read_secret
from schemas import codec
from schemas.messages import Refusal, Reply
from schemas.profile import KEY_FILE, PROFILE_FILE, ClientProfile

PATIENCE_MS = 10_000


class RawClient:
    """One DEALER with CURVE; frames go out as they are."""

    def __init__(self, profile: Path) -> None:
        settings = msgspec.toml.decode((profile / PROFILE_FILE).read_bytes(), type=ClientProfile)
        pair = curve_pair(read_secret(str(profile / KEY_FILE)).strip())
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_serverkey = settings.server_key.encode()
        self.socket.curve_publickey = pair.public.encode()
        self.socket.curve_secretkey = pair.secret.encode()
        self.socket.sndtimeo = self.socket.rcvtimeo = PATIENCE_MS
        self.socket.connect(settings.endpoint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.context.destroy(linger=0)

    def send(self, *frames: bytes) -> None:
        """Send one message of these frames."""
        self.socket.send_multipart(frames)

    def reply(self) -> Reply:
        """Wait for whatever comes next."""
        reply = codec.decode_reply(self.socket.recv())
        assert reply is not None
        return reply

    def receive(self) -> Refusal:
        """Wait for a refusal."""
        reply = self.reply()
        assert isinstance(reply, Refusal), reply
        return reply
