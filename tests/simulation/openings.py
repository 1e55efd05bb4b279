"""The events with which a process begins, as `broker.serve` appends them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from broker.core import Core
from schemas.events import (
    Event,
    EventFields,
    KeyChange,
    LedgerClose,
    LedgerOpen,
    LedgerRecovery,
    PolicyChange,
    TrustChange,
)
from schemas.names import API_VERSION
from tests.simulation.clients import KEYS


def opening(events: Sequence[Event], core: Core) -> Iterator[EventFields]:
    """Say how the ledger was found, under what the process runs and what the home changed."""
    state = core.state
    if events and not isinstance(events[-1].fields, LedgerClose):
        yield LedgerRecovery(torn_bytes=0, checkpoint_size=0, events_after_checkpoint=0)
    yield LedgerOpen(
        gateway_version="0", api_version=API_VERSION, domain=state.config.domain,
        durability="power", python_version="3", zmq_version="4", kernel="6", verifier_key="key",
        trust_sha256=state.trust_sha256, trust_version=state.trust.version,
        policy_sha256=state.policy_sha256,
    )
    if not state.inventory.trust_sha256:
        yield TrustChange(version=state.trust.version, sha256=state.trust_sha256, actor="home")
    if state.inventory.policy_sha256 != state.policy_sha256:
        yield PolicyChange(sha256=state.policy_sha256, actor="home",
                           previous_sha256=state.inventory.policy_sha256 or None)
    for key, role in KEYS.items():
        if state.inventory.known_keys.get(key) != role:
            yield KeyChange(action="added", role=role, key_id=key, actor="home")
