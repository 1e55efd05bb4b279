"""Another configuration or policy while the gateway runs: all of it or nothing.

Rules this file keeps: a part that cannot change while sockets and ledger are open refuses the
whole; a policy that takes something away ends what runs under it at once, one that gives more or
changes a value replaces workers one after the other; a changed policy or key is an event.

It leaves reading files to `broker.home` and the signal to `broker.gateway`. Source: specification
section 6; docs/LEDGER.md, `policy.change`.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Final, NamedTuple

from broker.client_keys import take_keys
from broker.config import GatewayConfig
from broker.effects import Front
from broker.orchestrator.calls import Call
from broker.orchestrator.fleet import Worker
from broker.policy import denied_modules, effective
from broker.state import KnownKey, State
from broker.supervision import Supervision
from schemas.events import PolicyChange
from schemas.policy import Policy

FIXED: Final = (
    "format", "domain", "log_id", "omega", "admin", "process", "ledger", "log",
    "limits.request_window", "limits.request_window_ms",
)
"""What is bound when the gateway starts: sockets, files, and what `ledger.open` pins."""


class Settings(NamedTuple):
    """What a home's two files say, and the keys beside them.

    `old_until_us` says until when endpoints of replaced server keys are served, wall us.
    """

    config: GatewayConfig
    policy: Policy
    policy_sha256: str
    keys: dict[str, KnownKey]
    old_until_us: tuple[tuple[Front, int], ...] = ()


def fixed_difference(before: GatewayConfig, after: GatewayConfig) -> str | None:
    """Name a section or number that differs and needs a new start, or None."""
    for name in FIXED:
        value = attrgetter(name)
        if value(before) != value(after):
            return name
    return None


def take_settings(
    state: State, settings: Settings, workers: Supervision, end_revoked: Callable[[Call], None]
) -> None:
    """Go on under other settings.

    Args:
        state: the core's memory.
        settings: checked, and equal to the present ones in every fixed section.
        workers: ends and replaces workers.
        end_revoked: ends a call whose right was taken away.
    """
    state.reconfigure(settings.config)
    take_keys(state, settings.keys, end_revoked)
    if settings.policy_sha256 == state.policy_sha256:
        return
    state.append(PolicyChange(
        sha256=settings.policy_sha256, previous_sha256=state.policy_sha256, actor="home"
    ))
    state.policy, state.policy_sha256 = settings.policy, settings.policy_sha256
    for worker in list(state.fleet.by_incarnation.values()):
        if not _still_allowed(state, worker):
            held = [one for one in state.calls.values() if one.incarnation == worker.incarnation]
            for call in dict.fromkeys((*worker.calls.values(), *held)):
                end_revoked(call)
            workers.kill(worker, "revoked", failed=False)
        else:
            # Values and folders of a capability, and modules, are handed over at the start.
            worker.outgrown = True
            state.later(state.now, "renew", worker.incarnation)


def _still_allowed(state: State, worker: Worker) -> bool:
    """Say whether policy allows what a worker was handed: its capabilities, and its modules.

    Of a module that it imported a worker cannot be rid, and one without it would not come up, so
    that replacing it would let it serve on.
    """
    record = state.inventory.plugins.get(worker.plugin)
    loaded = state.plugins.get((worker.plugin, worker.version))
    if record is None or loaded is None:
        return False
    plugin, manifest = worker.plugin, loaded.manifest
    granted = effective(plugin, manifest.capabilities, state.policy, record.grants).granted
    denied = next(denied_modules(plugin, manifest.modules, state.policy), None)
    return denied is None and set(worker.grants) <= set(granted)
