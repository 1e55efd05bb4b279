"""The determinism oracle: an answer waits until a second run gave the same, or could not.

Rules this file keeps:
- A replica follows an answer of an accepted invocation of a deterministic method, at most one each,
  and nothing else starts one. It runs in an incarnation of its own role, under another hash seed.
- The answer leaves when both agree, or as unverified; when they differ neither does.
- A replica has what its call has left of time and budget, and ends with it in every race.
- Whether a call has one is decided when it is accepted, by what the ledger says of the method and
  by a keyed hash of the request id, so that nobody can foresee it.

It leaves ends of calls to `broker.invocations` and lives of workers to `broker.supervision`.
Source: specification INV-PNP-03; docs/decisions/0028-replicas-have-workers-of-their-own.md.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, Literal

from broker.orchestrator.calls import Answer, Call, Replica, checked_output, fingerprint
from broker.orchestrator.determinism import surface_of
from broker.orchestrator.fleet import Pool
from broker.orchestrator.keyed import Keyed
from broker.state import State
from schemas.events import DeterminismMismatch
from schemas.messages import Abort, CallFailure, CallResult, Run, Usage
from schemas.payloads import preimage
from schemas.refusals import RefusalCode

ANOTHER_ANSWER: Final = frozenset({
    "plugin_error", "invalid_input", "cannot_answer", "output_limit_exceeded", "output_invalid",
    "output_kind_mismatch",
})
"""Failures that are an answer of the plugin's own: where there was an output, a different one."""


def drawn(key: bytes, request_id: str, share_permille: int) -> bool:
    """Say whether a request is among those whose answers are held against a second run.

    Args:
        key: the home's determinism key.
        request_id: the invocation's.
        share_permille: how many of a thousand are.
    """
    digest = _drawing(key).sha256(request_id.encode())
    return int(digest[:16], 16) % 1000 < share_permille


@functools.lru_cache(maxsize=1)
def _drawing(key: bytes) -> Keyed:
    return Keyed(key, b"replica\x00")


class Replicas:
    """Decides about replicas. `start` and `foresee` ask for a worker, `release` lets an answer
    leave, `withhold` ends a call without one."""

    def __init__(
        self, state: State, *, start: Callable[[Pool], None], foresee: Callable[[Pool], None],
        release: Callable[[Call, Answer], None], withhold: Callable[[Call, RefusalCode], None],
    ) -> None:
        """Share the core's memory."""
        self._state = state
        self._start = start
        self._foresee = foresee
        self._release = release
        self._withhold = withhold
        self._leaving: dict[str, Call] = {}

    def accepted(self, call: Call) -> None:
        """Decide whether a call has a replica, and have its worker come up meanwhile."""
        state, config = self._state, self._state.config.determinism
        if call.input_fingerprint is None:
            return
        surface = surface_of(call.plugin, call.version, call.method)
        call.replicate = state.inventory.history.compared[surface] < config.first_calls or drawn(
            state.edge.determinism_key, call.request_id, config.share_permille
        )
        if call.replicate:
            self._foresee(self._pool(call))

    def hold(self, call: Call, answer: Answer) -> bool:
        """Keep an answer until its replica has run; False when it may leave at once."""
        state = self._state
        if not call.replicate:
            return False
        primary = state.fleet.by_incarnation[call.incarnation or ""]
        del primary.calls[call.number]
        # Half a margin before the call's own end, so that the answer is out by then.
        until_us = call.deadline_us - state.config.times.reply_margin_ms * 500
        call.replica = Replica(state.next_call, answer, state.now, until_us, primary.terms)
        state.next_call += 1
        state.later(until_us, "call", call.request_id)
        pool = self._pool(call)
        pool.queue.append(call)
        self.dispatch(pool)
        if pool.queue:
            self._start(pool)
        return True

    def dispatch(self, pool: Pool) -> None:
        """Give waiting replicas to workers that have room."""
        state = self._state
        margin_us = state.config.times.reply_margin_ms * 1000
        while pool.queue:
            call = pool.queue[0]
            replica = call.replica
            assert replica is not None
            worker = pool.best()
            left_ms = (call.deadline_us - state.now - margin_us) // 1000
            cpu_ms_max = None
            if call.step is not None:
                cpu_ms_max = call.step.cpu_ms_max - replica.answer.usage.cpu_ms
            over = left_ms <= 0 or (cpu_ms_max is not None and cpu_ms_max < 1)
            if over or (worker is not None and worker.terms != replica.terms):
                self._let_go(call, replica)
                continue
            if worker is None:
                return
            pool.queue.popleft()
            replica.incarnation = worker.incarnation
            worker.step("run")
            worker.calls[replica.number] = call
            worker.called_us = state.now
            state.order(
                worker.incarnation,
                Run(call=replica.number, method=call.method, payload=call.payload,
                    timeout_ms=left_ms, request_id=call.request_id, purpose="replica",
                    cpu_ms_max=cpu_ms_max,
                    output_bytes_max=call.step.output_bytes_max if call.step else None),
            )

    # --- comparing ---

    def contradicts(self, call: Call, output_fingerprint: str) -> bool:
        """Say, also to the ledger, whether an input gave something else before."""
        seen = self._state.inventory.history.contradiction(call.request_id, output_fingerprint)
        if seen is not None:
            self._mismatch(call, "history", output_fingerprint, seen.output_fingerprint, seen.seq)
            return True
        # Several answers may leave in one turn, before any is in the ledger.
        for other in self._leaving.values():
            before = other.replica.answer.output_fingerprint if other.replica else None
            if before is not None and before != output_fingerprint and (
                _question(other) == _question(call)
            ):
                self._mismatch(call, "history", output_fingerprint, before)
                return True
        return False

    def _mismatch(
        self, call: Call, against: Literal["replica", "history"], found: str, other: str,
        other_seq: int | None = None,
    ) -> None:
        self._state.append(DeterminismMismatch(
            request_id=call.request_id, plugin=call.plugin, version=call.version,
            method=call.method, against=against, input_fingerprint=call.input_fingerprint or "",
            output_fingerprint=found, other_output_fingerprint=other, other_seq=other_seq,
        ))

    def answered(self, call: Call, message: CallResult | CallFailure) -> None:
        """Compare what a replica said with the answer that waits for it."""
        replica, state = call.replica, self._state
        assert replica is not None
        worker = state.fleet.by_incarnation.get(replica.incarnation or "")
        if worker is not None:
            worker.calls.pop(replica.number, None)
        replica.usage = message.usage
        if isinstance(message, CallResult):
            said = preimage(checked_output(call, message.payload)[0])
        elif message.code in ANOTHER_ANSWER:
            said = b"failure\x00" + message.code.encode()
        else:
            self._let_go(call, replica)
            return
        other = fingerprint(
            state.edge.determinism_key, call.plugin, call.version, call.method, said
        )
        if other == replica.answer.output_fingerprint:
            replica.verdict = "agreed"
            self._let_go(call, replica)
            return
        replica.verdict = "differed"
        self._mismatch(call, "replica", replica.answer.output_fingerprint or "", other)
        self._withhold(call, RefusalCode.NONDETERMINISTIC_OUTPUT)

    # --- ends ---

    def lost(self, call: Call, replica: Replica, code: RefusalCode) -> None:
        """No worker can run a replica any more: its answer leaves, unless the version fell."""
        if code is RefusalCode.PLUGIN_QUARANTINED:
            self._withhold(call, code)
        else:
            self._let_go(call, replica)

    def due(self, call: Call) -> None:
        """The answer can wait no longer for its replica."""
        if call.replica is not None and call.replica.until_us <= self._state.now:
            self._let_go(call, call.replica)

    def _let_go(self, call: Call, replica: Replica) -> None:
        """Let an answer leave that waited, unless another has left meanwhile that contradicts."""
        if self.contradicts(call, replica.answer.output_fingerprint or ""):
            self._withhold(call, RefusalCode.NONDETERMINISTIC_OUTPUT)
            return
        self._leaving[call.request_id] = call
        self._release(call, replica.answer)

    def recorded(self, request_id: str) -> None:
        """The end of a call is in the ledger, and in the history that is made of it."""
        self._leaving.pop(request_id, None)

    def left(self, call: Call, replica: Replica) -> None:
        """Its call has ended, whatever way: nobody waits for the replica any more."""
        state = self._state
        worker = state.fleet.by_incarnation.get(replica.incarnation or "")
        pool = self._pool(call)
        if replica.incarnation is None and call in pool.queue:
            pool.queue.remove(call)
        elif worker is not None and worker.calls.pop(replica.number, None) is not None:
            worker.aborted[replica.number] = state.now + state.config.times.abort_ms * 1000
            state.later(worker.aborted[replica.number], "abort", worker.incarnation)
            state.order(worker.incarnation, Abort(call=replica.number))

    def _pool(self, call: Call) -> Pool:
        fleet = self._state.fleet
        pool = fleet.pool(call.plugin, call.version, "replica")
        pool.retiring = fleet.pool(call.plugin, call.version).retiring
        return pool


def _question(call: Call) -> tuple[str | None, ...]:
    return call.plugin, call.version, call.method, call.input_fingerprint


def spent(call: Call, usage: Usage | None) -> Usage | None:
    """Say what an invocation used: one run's figures, and with them the replica's processor time.

    Args:
        call: the invocation.
        usage: the run that is told of; None means the answer's that waited, if one did.
    """
    if call.replica is None:
        return usage
    own, second = usage or call.replica.answer.usage, call.replica.usage
    if second is None:
        return own
    return Usage(
        cpu_ms=own.cpu_ms + second.cpu_ms, wall_ms=max(own.wall_ms, second.wall_ms),
        max_rss_kb_upper_bound=max(own.max_rss_kb_upper_bound, second.max_rss_kb_upper_bound),
        output_bytes=own.output_bytes,
    )
