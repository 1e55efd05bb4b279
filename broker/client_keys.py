"""Which clients' keys are let in at which front, and how that changes while the gateway runs.

Rules this file keeps: pure; one front for each key, by its role; a key that the ledger says was
revoked is let in nowhere, whatever lies in the home; every change of the home's keys is an event
before it counts; a key that is gone from the home, or has another role there, ends what was running
for it, like a revoked one.

It leaves key files to `broker.keys`, handshakes to `broker.zap`, and the refusal of each frame of
an open connection to `broker.core`, because ZAP is asked once for each connection. Source: ZeroMQ
RFC 27; docs/decisions/0030-keys-change-in-steps.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from broker.effects import Front, SetKeys
from broker.orchestrator.calls import Call
from broker.state import KnownKey, State
from schemas.events import KeyChange
from schemas.names import Role


def front_of(role: Role) -> Front:
    """Name the front that a role speaks through."""
    return "front.omega" if role == "omega" else "front.admin"


def admitted(state: State, front: Front, *, without: str = "") -> dict[str, str]:
    """Give the public keys (Z85, to key id) that may connect to a front; `without` one key id."""
    revoked = state.inventory.revoked_keys
    return {
        key.public_key: key.key_id for key in state.keys.values()
        if front_of(key.role) == front and key.key_id not in revoked and key.key_id != without
    }


def key_changes(known: Mapping[str, Role], keys: Mapping[str, KnownKey]) -> Iterator[KeyChange]:
    """Say how the home's keys differ from those the ledger knows.

    Args:
        known: role by key id, as the ledger says.
        keys: the keys that lie in the home now.
    """
    for key_id, role in sorted(known.items()):
        if key_id not in keys:
            yield KeyChange(action="removed", role=role, key_id=key_id, actor="home")
    for key_id, key in sorted(keys.items()):
        if known.get(key_id) != key.role:
            yield KeyChange(action="rotated" if key.replaces else "added", role=key.role,
                            key_id=key_id, actor="home")


def take_keys(
    state: State, keys: dict[str, KnownKey], end_revoked: Callable[[Call], None]
) -> None:
    """Go on with the keys that lie in the home now.

    Args:
        state: the core's memory.
        keys: every client key of the home, by key id.
        end_revoked: ends a call whose right was taken away.
    """
    changes = list(key_changes(state.inventory.known_keys, keys))
    if not changes:
        return
    for change in changes:
        state.append(change)
    state.keys = keys
    fronts: tuple[Front, Front] = ("front.omega", "front.admin")
    for front in fronts:
        state.do(SetKeys(front, admitted(state, front)))
    for call in list(state.calls.values()):
        if not state.holds(call.origin.key_id, "omega"):
            end_revoked(call)
