"""What the transport tells the loop: the facts of one turn, as values.

Rules this file keeps: pure data. A fact carries bytes and names, never a socket. Deciding what a
fact means is left to `broker.core`, receiving to `broker.transport`.
"""

from __future__ import annotations

import msgspec

from broker.effects import Origin
from schemas.events import Plane


class FrontFrames(msgspec.Struct, frozen=True, gc=False):
    """One message of a client: its frames without the routing id, 1 to `FRAMES_MAX` of them."""

    origin: Origin
    frames: list[bytes | memoryview]


class WorkerFrames(msgspec.Struct, frozen=True, gc=False):
    """One message of a worker: its frames, 1 to `FRAMES_MAX` of them."""

    incarnation: str
    frames: list[bytes | memoryview]


class OversizedMessage(msgspec.Struct, frozen=True):
    """A message of too many frames was received and thrown away; `peer` as in `schemas.events`."""

    plane: Plane
    peer: str
    frames: int
    bytes: int


class HandshakesRefused(msgspec.Struct, frozen=True):
    """Connections of one plane that did not become peers this turn; `where` says why."""

    plane: Plane
    count: int
    where: str


class WorkerConnected(msgspec.Struct, frozen=True):
    """A worker's one handshake succeeded."""

    incarnation: str


class WorkerDisconnected(msgspec.Struct, frozen=True):
    """A worker's one connection is gone; it can never come back."""

    incarnation: str


class WorkerIntruder(msgspec.Struct, frozen=True):
    """Somebody used a worker's one-shot key again, or from another process; it was refused."""

    incarnation: str


class EndpointEnded(msgspec.Struct, frozen=True):
    """The endpoint of a server key that was replaced is closed, because its time is over."""

    key_id: str


class Readable(msgspec.Struct, frozen=True):
    """A watched descriptor is readable or hung up."""

    fd: int


Arrival = (
    FrontFrames | WorkerFrames | OversizedMessage | HandshakesRefused | WorkerConnected
    | WorkerDisconnected | WorkerIntruder | EndpointEnded | Readable
)

FRAMES_MAX = 4
"""Most frames of a message that are handed on; one is right, a few more make a good refusal."""

__all__ = [
    "FRAMES_MAX",
    "Arrival",
    "EndpointEnded",
    "FrontFrames",
    "HandshakesRefused",
    "OversizedMessage",
    "Readable",
    "WorkerConnected",
    "WorkerDisconnected",
    "WorkerFrames",
    "WorkerIntruder",
]
