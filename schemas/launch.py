"""The launch document `omega-launch/1`: all that a worker is told before its socket opens.

Rules this file keeps: it is one bounded JSON document, strictly decoded; it carries the one-shot
secret key, so it travels only through an inherited pipe or a 0600 file that is unlinked when read,
never in arguments or environment.

It leaves to the worker to read the manifest out of the bundle and to compare the bundle's digest.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.manifest import Limits
from schemas.names import (
    CapabilityName,
    Count,
    Incarnation,
    Microseconds,
    ModuleName,
    PluginId,
    Purpose,
    Sha256,
    VersionText,
)
from schemas.packages import PackageFolder

LAUNCH_BYTES_MAX: Final = 64 * 1024

CurveKey = Annotated[
    str, Meta(min_length=40, max_length=40, description="A CURVE key in Z85, 40 characters.")
]


class LaunchDocument(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One incarnation's orders.

    `bundle` is the absolute path of the bundle file, `plugin_digest` the SHA-256 of its bytes;
    `endpoint` is the ipc address to connect to; `grants` are the effective capabilities;
    `expires_at_us` is wall time in microseconds, after which the document must not be used.
    `grant_values` are the value of a granted `env.read` and the folder of an `fs.read` or
    `artifact.read`. `modules` are those of the manifest that an operator approved, `packages` is
    where they lie.
    `pool_size` is how many call processes may wait ahead of their calls. A worker whose `role` is
    `replica` runs what a primary has answered, under another hash seed.
    """

    format: Literal["omega-launch/1"]
    incarnation: Incarnation
    plugin: PluginId
    version: VersionText
    plugin_digest: Sha256
    bundle: Annotated[str, Meta(min_length=1, max_length=4096)]
    endpoint: Annotated[str, Meta(min_length=1, max_length=120)]
    server_key: CurveKey
    worker_secret_key: CurveKey
    limits: Limits
    grants: Annotated[tuple[CapabilityName, ...], Meta(max_length=32)]
    expires_at_us: Microseconds
    grant_values: Annotated[dict[CapabilityName, str], Meta(max_length=32)] = {}
    calls_max: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    minutes_max: Annotated[int, Meta(ge=1, le=10_080)] = 60
    pool_size: Annotated[int, Meta(ge=0, le=64)] = 4
    role: Purpose = "primary"
    artifact_bytes_max: Count = 64 * 1024 * 1024
    modules: Annotated[tuple[ModuleName, ...], Meta(max_length=64)] = ()
    packages: PackageFolder | None = None
