"""Forgetting what was kept for versions that serve no more.

Rules this file keeps:
- Nothing that a later decision needs is forgotten. Records, approvals, answers seen and request ids
  are the ledger's fold and stay. A breaker stays too: it belongs to a method, rests for the version
  that failed should that one be enabled again, and its next change must follow its last.
- What goes is what a version was served with: its pools, once no worker, call or replacement that
  has to wait needs them, and its loaded bundle, which is read again should it serve again. A pool's
  failures and back-off are forgiven by enabling anyway; its estimate of an answer's time is made
  anew by the next answers.
- The next version is held against the one enabled last, whose manifest is read again for that.

It leaves what is at hand to the library and when to ask to `broker.administration`: before a
request that adds something, since nothing else brings versions. Source: docs/ARCHITECTURE.md,
section "Workers".
"""

from __future__ import annotations

from broker.orchestrator.calls import Shelf
from broker.state import State


def forget_unserved(state: State) -> None:
    """Let go of versions that left service since the last time, where nothing needs them."""
    for plugin, version in list(state.unserved):
        record = state.inventory.plugins[plugin]
        if record.enabled != version:
            pools = list(state.fleet.pools_of(plugin, version))
            if any(pool.workers or pool.queue or pool.calm_us > state.now for pool in pools):
                # Every call of a version waits in one of its queues or is one of its workers'.
                continue
            for pool in pools:
                state.fleet.forget(pool)
            if isinstance(state.plugins, Shelf):
                state.plugins.release((plugin, version))
        state.unserved.discard((plugin, version))
