"""What the broker and its launcher say to each other: seven small messages, one per packet.

Rules this file keeps: each side has its own decoder, strict and bounded, so that a sealed broker
that has been taken over can ask for a worker or a trial and for its end, and for nothing else. It
leaves the launch document itself to the worker that reads it, and schemas to the prober.
"""

from __future__ import annotations

import socket
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.launch import LAUNCH_BYTES_MAX
from schemas.names import Incarnation, ShortText

PACKET_BYTES_MAX: Final = LAUNCH_BYTES_MAX + 1024
VERDICT_BYTES_MAX: Final = 4096


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start"):
    """Start a worker and hand it this launch document."""

    incarnation: Incarnation
    document: Annotated[bytes, Meta(min_length=1, max_length=LAUNCH_BYTES_MAX)]


class Try(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="try"):
    """Start a prober on the schemas of the memory file whose descriptor comes along.

    `incarnation` names the trial.
    """

    incarnation: Incarnation


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="kill"):
    """End a worker or a trial at once; unknown ones have ended already."""

    incarnation: Incarnation


class Sealed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="sealed"):
    """The launcher has put its own layer on and waits for orders. The first report."""


class SealFailed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="seal_failed"):
    """The launcher could not seal itself and ends; the fields are those of `SealUnavailable`."""

    feature: ShortText
    errno: Annotated[int, Meta(ge=0, le=4095)]
    hint: ShortText


class Started(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="started"):
    """A worker's process exists. `pid` is what SO_PEERCRED will show of it."""

    incarnation: Incarnation
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Tried(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="tried"):
    """A prober ended: with an exit `status`, or killed by `signal`; and what it `said`."""

    incarnation: Incarnation
    status: Annotated[int, Meta(ge=0, le=255)]
    signal: Annotated[int, Meta(ge=0, le=64)]
    said: Annotated[bytes, Meta(max_length=VERDICT_BYTES_MAX)]


class StartFailed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start_failed"):
    """No process was started, neither worker nor prober, and why."""

    incarnation: Incarnation
    reason: ShortText


class Exited(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exited"):
    """A worker ended: with an exit `status`, or killed by `signal` (the other one is 0)."""

    incarnation: Incarnation
    status: Annotated[int, Meta(ge=0, le=255)]
    signal: Annotated[int, Meta(ge=0, le=64)]


Order = Start | Try | Kill
Report = Started | StartFailed | Exited | Tried

encode: Final = msgspec.msgpack.Encoder().encode
decode_order: Final = msgspec.msgpack.Decoder(Order).decode
decode_report: Final = msgspec.msgpack.Decoder(Report).decode
decode_seal: Final = msgspec.msgpack.Decoder(Sealed | SealFailed).decode

MALFORMED: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def receive(channel: socket.socket, flags: int = 0) -> bytes:
    """Take one packet; empty means that the other side is gone, as does a packet too long.

    Raises:
        BlockingIOError: with MSG_DONTWAIT, when there is none.
    """
    try:
        packet = channel.recv(PACKET_BYTES_MAX + 1, flags)
    except ConnectionError:
        return b""
    return packet if len(packet) <= PACKET_BYTES_MAX else b""


def receive_order(channel: socket.socket) -> tuple[bytes, int | None]:
    """Take one packet and the descriptor that came along with it, which is the caller's to close.

    Packets as `receive` gives them; a descriptor is not handed on to programs that are run.
    """
    try:
        packet, descriptors, _, _ = socket.recv_fds(
            channel, PACKET_BYTES_MAX + 1, 1, socket.MSG_CMSG_CLOEXEC
        )
    except ConnectionError:
        return b"", None
    came = descriptors[0] if descriptors else None
    return (packet if len(packet) <= PACKET_BYTES_MAX else b""), came
