"""What the transport is told when it is opened, and what a worker's launch document needs of it.

Rules this file keeps: plain values; sizes in bytes, times in ms, queues in messages. It leaves
sockets to `broker.transport`.
"""

from __future__ import annotations

from typing import NamedTuple

from broker.effects import Front
from schemas.names import FRAME_BYTES_MAX_WORKER


class FrontSetup(NamedTuple):
    """One front: where it listens, its secret, whom it admits (Z85 key to key id), its limits.

    `connections_max` is of authenticated clients; with `crowd_max` others connected beside them
    a TCP front ends those that are not authenticated. `handshakes_per_s_max` is a TCP front's too.
    """

    endpoint: str
    server_secret_z85: str
    keys: dict[str, str]
    bytes_max: int
    high_water_mark: int
    connections_max: int
    crowd_max: int
    handshakes_per_s_max: int


class WorkerEndpoint(NamedTuple):
    """What a launch document needs to reach one worker's socket; both keys are Z85."""

    endpoint: str
    server_key: str
    worker_secret_key: str


class TransportLimits(NamedTuple):
    """Bounds of all sockets: times in ms, sizes in bytes, queues in messages."""

    handshake_ms: int = 2_000
    worker_handshake_ms: int = 10_000
    worker_bytes_max: int = FRAME_BYTES_MAX_WORKER
    worker_high_water_mark: int = 256
    memory_mb_max: int = 4_096


class OldFront(NamedTuple):
    """A front's endpoint with the key that is being replaced, and until when: wall us."""

    front: Front
    setup: FrontSetup
    key_id: str
    until_us: int
