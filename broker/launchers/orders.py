"""What the broker and its launcher say to each other: five small messages, one per packet.

Rules this file keeps: each side has its own decoder, strict and bounded, so that a sealed broker
that has been taken over can ask for a worker and for its end, and for nothing else. It leaves the
launch document itself to the worker that reads it.
"""

from __future__ import annotations

import socket
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.launch import LAUNCH_BYTES_MAX
from schemas.names import Incarnation, ShortText

PACKET_BYTES_MAX: Final = LAUNCH_BYTES_MAX + 1024


class Start(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start"):
    """Start a worker and hand it this launch document."""

    incarnation: Incarnation
    document: Annotated[bytes, Meta(min_length=1, max_length=LAUNCH_BYTES_MAX)]


class Kill(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="kill"):
    """End a worker at once; unknown incarnations have ended already."""

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


class StartFailed(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="start_failed"):
    """No process was started, and why."""

    incarnation: Incarnation
    reason: ShortText


class Exited(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exited"):
    """A worker ended: with an exit `status`, or killed by `signal` (the other one is 0)."""

    incarnation: Incarnation
    status: Annotated[int, Meta(ge=0, le=255)]
    signal: Annotated[int, Meta(ge=0, le=64)]


Order = Start | Kill
Report = Started | StartFailed | Exited

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
