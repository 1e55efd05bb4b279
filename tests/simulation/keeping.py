"""What a running gateway keeps: nothing of what is over, and everything that a call still needs."""

from __future__ import annotations

from broker.core import Core
from tests.simulation.fakes import require


def check_kept(core: Core) -> None:
    """Hold what the core keeps along calls and versions against what there is."""
    state, calls, invocations = core.state, core.state.calls.values(), core._invocations
    for call in calls:
        require(state.fleet.pools.get((call.plugin, call.version, "primary")) is call.pool,
                "the pool of an open call was forgotten, or made anew beside it")
    needed = set(state.unserved)
    needed |= {(one.plugin, one.version) for one in state.fleet.by_incarnation.values()}
    for record in state.inventory.plugins.values():
        if record.enabled is not None:
            needed.add((record.plugin, record.enabled))
    kept = {(plugin, version) for plugin, version, _ in state.fleet.pools}
    require(kept <= needed, f"a pool is kept for ever: {kept - needed}")
    over = set(invocations._key_of_end) - set(state.calls) - set(state.inventory.open_invocations)
    require(not over, f"whose call it was is kept for ever: {over}")
    require(set(invocations._gate._held) == {call.plugin for call in calls},
            "a plugin is counted for calls that it has not, or not counted")
    require({key for key, _ in invocations._gate._quotas._open}
            == {call.origin.key_id for call in calls},
            "a key is counted for calls that it has not, or not counted")
