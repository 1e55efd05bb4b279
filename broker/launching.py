"""What a worker is told when it starts: the launch document of one decision.

Rules this file keeps: limits and grants are those that were decided; everything else is read from
state and policy as they are when the worker starts. Pure: addresses, keys and times come in.

It leaves the socket and the start to `broker.gateway`. Source: docs/ARCHITECTURE.md, "Workers".
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from broker.effects import Spawn
from broker.policy import approved_modules, grant_values, package_folder
from broker.state import State
from schemas.launch import LaunchDocument

LAUNCH_VALID_US: Final = 60_000_000


class Surroundings(NamedTuple):
    """What the shell gives a worker: where it connects with which keys, and where files lie."""

    endpoint: str
    server_key: str
    worker_secret_key: str
    bundle: str
    artifacts: str
    now_us: int


def launch_document(effect: Spawn, state: State, around: Surroundings) -> bytes:
    """Write one worker's launch document.

    Args:
        effect: the decision to start it; by now its version may be forgotten and it be ended.
        state: the core's memory.
        around: `now_us` is wall time, in us since 1970.
    """
    return msgspec.json.encode(LaunchDocument(
        format="omega-launch/1",
        incarnation=effect.incarnation,
        plugin=effect.plugin,
        version=effect.version,
        plugin_digest=effect.bundle_sha256,
        bundle=around.bundle,
        endpoint=around.endpoint,
        server_key=around.server_key,
        worker_secret_key=around.worker_secret_key,
        limits=effect.limits,
        grants=effect.grants,
        grant_values=grant_values(effect.grants, state.policy, around.artifacts),
        artifact_bytes_max=state.policy.limits.artifact_bytes_max,
        modules=approved_modules(effect.plugin, effect.modules, state.policy),
        packages=package_folder(effect.plugin, state.policy),
        expires_at_us=around.now_us + LAUNCH_VALID_US,
        calls_max=state.config.workers.calls_max,
        minutes_max=state.config.workers.minutes_max,
        pool_size=effect.pool_size,
        role=effect.role,
    ))
