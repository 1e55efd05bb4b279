"""Another trust root while the gateway runs: judged, kept, ledgered, and only then acted on. Pure.

Rules this file keeps:
- A root follows only as `broker.trust.roots` allows it; everything else changes nothing.
- The shell keeps the document durably before the core goes on, because its event holds a digest
  only: a start must find what the ledger pins.
- `trust.change` stands before anything that follows from it. What runs under a trust that is gone
  ends with it: its calls `revoked`, its workers killed; a result that was committed before stays.

It leaves the rule of succession to `broker.trust.roots`, files to the shell, and whether a version
is trusted to `State.trusts`, which every call asks. Source: docs/ARCHITECTURE.md, section "Start".
"""

from __future__ import annotations

from collections.abc import Callable

from broker.effects import Origin, StoreTrust
from broker.orchestrator.calls import Call
from broker.state import State
from broker.supervision import Supervision
from broker.trust.errors import TrustRefused
from broker.trust.roots import load_next_root
from schemas.events import TrustChange
from schemas.messages import SetTrust, Trust
from schemas.refusals import RefusalCode


class Trusting:
    """Decides about `set_trust`, in two steps with the shell's files between them."""

    def __init__(
        self, state: State, workers: Supervision, end_revoked: Callable[[Call], None]
    ) -> None:
        """Share the core's memory and its way to end a call whose right was taken back."""
        self._state = state
        self._workers = workers
        self._end_revoked = end_revoked

    def propose(self, origin: Origin, request: SetTrust) -> None:
        """Judge a root; one that may follow is kept by the shell, which then says so."""
        state = self._state
        try:
            root = load_next_root(request.envelope, state.trust)
        except TrustRefused as refused:
            state.refuse(origin, request.request_id, refused.code, refused.sentence,
                         where=refused.where, hint=refused.hint)
            return
        state.do(StoreTrust(origin, request, root))

    def kept(self, proposed: StoreTrust, failure: str) -> None:
        """Put a root into force that lies durably in the home.

        Args:
            proposed: what `propose` decided.
            failure: why it could not be kept, in words; empty when it was.
        """
        state = self._state
        root, request = proposed.root, proposed.request
        if failure:
            state.refuse(proposed.to, request.request_id, RefusalCode.LOW_SPACE,
                         f"the trust root cannot be stored ({failure})", receipt=True,
                         known_size=request.known_size)
            return
        state.append(TrustChange(
            version=root.trust.version, sha256=root.sha256, previous_sha256=state.trust_sha256,
            actor=proposed.to.key_id,
        ))
        state.trust, state.trust_sha256 = root.trust, root.sha256
        state.send(
            proposed.to,
            Trust(request_id=request.request_id, version=root.trust.version, sha256=root.sha256,
                  publishers=tuple(sorted(root.trust.publishers))),
            receipt=True, known_size=request.known_size,
        )
        for call in list(state.calls.values()):
            if not self._trusted(call.plugin, call.version):
                self._end_revoked(call)
        for pool in list(state.fleet.pools.values()):
            if pool.workers and not self._trusted(pool.plugin, pool.version):
                for worker in list(pool.workers.values()):
                    self._workers.kill(worker, "revoked", failed=False)

    def _trusted(self, plugin: str, version: str) -> bool:
        record = self._state.inventory.record(plugin, version)
        return record is not None and self._state.trusts(record)
