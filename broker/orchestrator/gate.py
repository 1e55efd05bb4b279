"""The gate: whether one more call is taken now, and what is counted while it is open.

Rules this file keeps: everything that waits is bounded; a plugin may hold only a share of what is
free, so that a slow one leaves room for the others; a call whose deadline cannot be met by the
present estimate is refused at once; quotas belong to keys and breakers to methods; each refusal
says when to try again.

It leaves counting to `broker.orchestrator.quotas` and `broker.orchestrator.breaker`, and the
refusal's form to `broker.invocations`. Source: specification section 4, layer 3.
"""

from __future__ import annotations

from broker.effects import Origin
from broker.orchestrator.breaker import Change
from broker.orchestrator.calls import Call, Misfit
from broker.orchestrator.fleet import Pool
from broker.orchestrator.quotas import QuotaBook
from broker.state import State
from schemas.events import BreakerChange, QuotaRefuse
from schemas.messages import Usage
from schemas.refusals import REFUSALS, RefusalCode


class Gate:
    """Decides about load. It counts every call from its acceptance to its end."""

    def __init__(self, state: State) -> None:
        """Share the core's memory."""
        self._state = state
        self._quotas = QuotaBook()
        self._held: dict[str, int] = {}

    # --- before ---

    def misfit(
        self, origin: Origin, pool: Pool, method: str, timeout_ms: int, concurrency: int
    ) -> Misfit | None:
        """Say why a call is not taken now, or None.

        Args:
            origin: who asks.
            pool: the workers and the queue of the version that would serve it.
            method: which method.
            timeout_ms: the time the call would have.
            concurrency: calls at the same time that the plugin's manifest declares.
        """
        state, limits = self._state, self._state.config.limits
        rest_ms = state.breakers.retry_after_ms(
            (pool.plugin, method), pool.version, state.now
        )
        if rest_ms is not None:
            return Misfit(RefusalCode.CIRCUIT_OPEN, "", "$.method", retry_after_ms=rest_ms)
        quotas = state.policy.quotas
        exceeded = self._quotas.exceeded(quotas, origin.key_id, pool.plugin, self._steady_us())
        if exceeded is not None:
            state.append(QuotaRefuse(
                peer=origin.key_id, quota=exceeded.quota, used=exceeded.used,
                allowed=exceeded.allowed, window_begin_us=exceeded.window_begin_us,
                window_end_us=exceeded.window_end_us, plugin=exceeded.plugin,
            ))
            return Misfit(
                RefusalCode.QUOTA_EXCEEDED,
                f"{exceeded.quota}: used {exceeded.used}, allowed {exceeded.allowed}",
                used=exceeded.used, allowed=exceeded.allowed,
                retry_after_ms=exceeded.retry_after_ms,
            )
        if len(pool.queue) >= limits.queue_max:
            return Misfit(
                RefusalCode.QUEUE_FULL, f"{len(pool.queue)} calls wait",
                retry_after_ms=self._wait_ms(pool, concurrency) or None,
            )
        if self.crowded(pool.plugin):
            return Misfit(
                RefusalCode.IN_FLIGHT_LIMIT,
                f"{self._held.get(pool.plugin, 0)} of {len(state.calls)} calls in flight are of "
                "this plugin, others must find room",
            )
        if not pool.queue:
            return None
        wait_ms = self._wait_ms(pool, concurrency)
        if wait_ms > timeout_ms:
            return Misfit(
                RefusalCode.DEADLINE_UNREACHABLE,
                f"{len(pool.queue)} calls wait, an answer is expected in {wait_ms} ms",
                "$.timeout_ms", retry_after_ms=wait_ms - timeout_ms,
            )
        return None

    def crowded(self, plugin: str) -> bool:
        """Say whether a plugin holds its share of the places, seen from how many are free."""
        state = self._state
        free = state.config.limits.in_flight_max - len(state.calls)
        weight = self._quotas.weight_of(state.policy.quotas, plugin)
        return self._held.get(plugin, 0) >= max(1, weight * free)

    def _wait_ms(self, pool: Pool, concurrency: int) -> int:
        """Estimate when a call's answer would come: moving service time times queue length."""
        if not pool.queue:
            return 0
        serving = sum(one.concurrency for one in pool.workers.values() if one.state == "ready")
        rounds = (len(pool.queue) + 1) / max(serving, concurrency)
        return int((rounds + 1) * pool.service_us / 1000)

    # --- while it is open ---

    def began(self, call: Call) -> None:
        """Count a call that was accepted."""
        state = self._state
        self._held[call.plugin] = self._held.get(call.plugin, 0) + 1
        call.counted = self._quotas.began(
            state.policy.quotas, call.origin.key_id, call.plugin, self._steady_us()
        )
        call.trying, change = state.breakers.let_through(
            (call.plugin, call.method), call.version, state.now
        )
        self._tell(call, change)

    def dispatched(self, call: Call) -> None:
        """Count a call that a worker was given."""
        call.dispatched_us = self._state.now
        self._quotas.waits(call.counted, -1)

    def requeued(self, call: Call) -> None:
        """Count a call that waits again."""
        self._quotas.waits(call.counted, 1)

    def left(
        self, call: Call, code: RefusalCode | None, usage: Usage | None, *, queued: bool
    ) -> None:
        """Count a call that ended; `code` is None when it was answered."""
        state = self._state
        held = self._held[call.plugin] - 1
        if held:
            self._held[call.plugin] = held
        else:
            del self._held[call.plugin]
        self._quotas.left(
            call.counted, self._steady_us(), queued=queued, cpu_ms=usage.cpu_ms if usage else 0,
            output_bytes=usage.output_bytes if usage and code is None else 0,
        )
        failed: bool | None = None
        if code is not None and REFUSALS[code].blame == "plugin":
            failed = True
        if code is None:
            failed = False
            pool = call.pool
            answered_us = call.replica.held_us if call.replica else state.now
            took_us = answered_us - call.dispatched_us
            pool.service_us += (took_us - pool.service_us) // 8 if pool.service_us else took_us
        method = call.plugin, call.method
        if not failed and method not in state.breakers:
            return
        enabled = state.inventory.enabled(call.plugin)
        if enabled is None or enabled.version != call.version:
            # What an older version still does says nothing about the one that is called now.
            failed = None
        self._tell(call, state.breakers.ended(
            method, call.version, state.now, failed=failed,
            trying=call.trying, at_once=code is RefusalCode.NONDETERMINISTIC_OUTPUT,
        ))

    def _tell(self, call: Call, change: Change | None) -> None:
        if change is not None:
            self._state.append(BreakerChange(
                plugin=call.plugin, method=call.method, before=change.before, after=change.after,
                reason=change.reason, retry_after_ms=change.retry_after_ms,
            ))

    def _steady_us(self) -> int:
        """Wall time without its steps: a quota's window must not jump with the clock."""
        return self._state.now + self._state.steady_offset_us
