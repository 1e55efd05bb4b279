"""What the core may ask the shell to do, and from whom a frame came.

Rules this file keeps: effects are values; only `broker.gateway` performs them, in order. A `Send`
leaves only after the turn's commit. With `receipt`, it has the position of the `Append` before it.

It leaves performing to `broker.gateway` and deciding to `broker.core`.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from broker.trust.roots import Root
from schemas.events import EventFields
from schemas.manifest import Limits
from schemas.messages import Reply, SetTrust, ToWorker
from schemas.names import Purpose

Front = Literal["front.omega", "front.admin"]


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Who sent a frame: the front it came through, the key that ZAP named, and the way back.

    `route` is the routing id of the connection: opaque, never logged, never echoed, never trusted.
    `old` says that it came by the endpoint whose key is being replaced.
    """

    front: Front
    key_id: str
    route: bytes
    old: bool = False


class Append(msgspec.Struct, frozen=True, gc=False):
    """Put one event into the ledger."""

    fields: EventFields


class Send(msgspec.Struct, frozen=True, gc=False):
    """Send a reply to a client once the turn is durable."""

    to: Origin
    message: Reply
    receipt: bool = False
    known_size: int | None = None


class Order(msgspec.Struct, frozen=True, gc=False):
    """Send a message to one worker once the turn is durable."""

    incarnation: str
    message: ToWorker


class Spawn(msgspec.Struct, frozen=True, gc=False):
    """Start one worker; the shell makes its socket and keys and writes the launch document."""

    incarnation: str
    plugin: str
    version: str
    bundle_sha256: str
    limits: Limits
    grants: tuple[str, ...]
    modules: tuple[str, ...]
    launcher: Literal["local", "external"]
    pool_size: int
    role: Purpose


class Kill(msgspec.Struct, frozen=True, gc=False):
    """End one worker at once and close its socket; or end a trial of schemas."""

    incarnation: str


class StoreBundle(msgspec.Struct, frozen=True, gc=False):
    """Keep a bundle's bytes under their digest, durable before the turn's commit."""

    bundle_sha256: str
    data: bytes


class StoreTrust(msgspec.Struct, frozen=True, gc=False):
    """Keep a trust root that may follow; the core goes on when it is durable, or is not."""

    to: Origin
    request: SetTrust
    root: Root


class TrySchemas(msgspec.Struct, frozen=True, gc=False):
    """Have schemas, by content id, compiled and tried in a process of its own; it comes back."""

    trial: str
    schemas: dict[str, bytes]


class Evidence(msgspec.Struct, frozen=True, gc=False):
    """Answer a read of the ledger: of what was committed before this turn, with the newest head."""

    to: Origin
    request_id: str
    query: Literal["head", "prove", "prove_consistency", "show_request"]
    number: int = 0
    target: str = ""
    size: int | None = None
    known_size: int | None = None


class SetKeys(msgspec.Struct, frozen=True, gc=False):
    """Admit exactly these public keys (Z85) on one front; end the connections of `disconnect`."""

    front: Front
    keys: dict[str, str]
    disconnect: str = ""


Stored = StoreBundle | StoreTrust
Effect = Append | Send | Order | Spawn | Kill | Stored | TrySchemas | Evidence | SetKeys
