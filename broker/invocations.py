"""Invocations: accepted or refused, given to a worker, and ended exactly once.

Rules this file keeps: nothing runs that OMEGA did not ask for and the inventory does not serve; the
first end that `broker.lifecycle.CALL` allows is the only one; every refusal and every end is an
event, and its reply carries that event's receipt; when a call ends, its commitment key is
forgotten.

It leaves frames to `broker.core`, workers' lives to `broker.supervision` and payloads to
`broker.orchestrator.calls`. Source: specification sections 4 and 7; the race table of docs/WIRE.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import msgspec

from broker.effects import Origin
from broker.lifecycle import CALL, GATEWAY, CallEvent
from broker.orchestrator.calls import (
    Answer,
    Call,
    Misfit,
    StepOf,
    checked_output,
    commitment,
    failure_words,
    fingerprint,
    input_misfit,
    of_budget,
    output_digest,
    payload_bytes,
)
from broker.orchestrator.fleet import Pool
from broker.orchestrator.gate import Gate
from broker.orchestrator.replicas import Replicas, spent
from broker.orchestrator.selection import serving_version
from broker.state import State, refusal
from schemas.codec import printable
from schemas.denials import denied_hint
from schemas.events import InvokeAccept, InvokeEnd, InvokeRefuse
from schemas.messages import (
    Abort,
    CallFailure,
    CallProgress,
    CallResult,
    Cancel,
    Cancelled,
    Invoke,
    InvokePipeline,
    KeepAlive,
    Progress,
    Result,
    Run,
    StepResult,
    Usage,
)
from schemas.payloads import PAYLOAD_KINDS, preimage
from schemas.refusals import RefusalCode

Outcome = Literal["result", "refused", "cancelled", "revoked", "deadline", "lost", "abandoned"]


class Ending(NamedTuple):
    """Why a call has no result; `used` and `allowed` are in the unit of the limit that ended it."""

    code: RefusalCode
    sentence: str = ""
    where: str = ""
    plugin_message: str | None = None
    denied: str | None = None
    used: int | None = None
    allowed: int | None = None
    usage: Usage | None = None


class Invocations:
    """Decides about calls. `start` asks for a worker, `foresee` for one that will be wanted,
    `step_ended` hears how steps ended."""

    def __init__(
        self, state: State, *, start: Callable[[Pool], None], foresee: Callable[[Pool], None],
        step_ended: Callable[[StepOf, StepResult], None],
    ) -> None:
        """Share the core's memory."""
        self._state = state
        self._start = start
        self._gate = Gate(state)
        self._replicas = Replicas(
            state, start=start, foresee=foresee, release=self._answer, withhold=self._withhold
        )
        self._step_ended = step_ended
        self._key_of_end: dict[str, str] = {}

    def accepted(self, request_id: str, peer: str) -> None:
        """Remember whose call it is that the ledger's past accepted."""
        self._key_of_end[request_id] = peer

    def abandon_all(self) -> None:
        """End every call that the ledger's past left open."""
        for request_id, peer in self._state.inventory.open_invocations.items():
            self._key_of_end[request_id] = peer
            self._state.append(
                InvokeEnd(request_id=request_id, outcome="abandoned", reached="queued",
                          code=RefusalCode.ABANDONED)
            )

    def recorded(self, end: InvokeEnd, seq: int) -> None:
        """Remember where an end lies, so that a duplicate can be told."""
        self._replicas.recorded(end.request_id)
        key_id = self._key_of_end.pop(end.request_id, None)
        if key_id is not None:
            self._state.ended(key_id, end.request_id, seq)

    # --- invocations ---

    def invoke(self, origin: Origin, request: Invoke) -> None:
        """Accept one invocation and give it to a worker or a queue, or refuse it."""
        misfit = self.full() or self.begin(origin, request)
        if misfit is not None:
            self.refuse(origin, request, misfit)

    def begin(
        self, origin: Origin, request: Invoke, step: StepOf | None = None
    ) -> Misfit | None:
        """Accept what may be called and give it to a worker or a queue, or say why not.

        Args:
            origin: who asked.
            request: the invocation; of a step, the one that the pipeline makes for it.
            step: of which pipeline it is a step.
        """
        state = self._state
        found = serving_version(state, request.plugin, request.version, request.method)
        if isinstance(found, Misfit):
            return found
        version, loaded, pool = found
        declared = loaded.manifest.methods[request.method]
        misfit = input_misfit(request.payload, declared, loaded)
        if misfit is not None:
            return misfit
        timeout_ms = min(
            request.timeout_ms, declared.timeout_ms, state.policy.limits.timeout_ms_max
        )
        misfit = self._gate.misfit(
            origin, pool, request.method, timeout_ms, loaded.manifest.limits.concurrency
        )
        if misfit is not None:
            return misfit
        plain = preimage(request.payload)
        call = Call(
            number=state.next_call, request_id=request.request_id, origin=origin,
            known_size=request.known_size, plugin=request.plugin, version=version,
            method=request.method, loaded=loaded, pool=pool, payload=request.payload,
            commitment_key=request.commitment_key, arrived_us=state.now,
            deadline_us=state.now + timeout_ms * 1000, step=step,
        )
        state.next_call += 1
        if declared.deterministic:
            call.input_fingerprint = fingerprint(
                state.edge.determinism_key, call.plugin, version, call.method, plain
            )
        state.calls[call.request_id] = call
        state.append(
            InvokeAccept(
                request_id=call.request_id, peer=origin.key_id, plugin=call.plugin,
                version=version, bundle_sha256=loaded.bundle_sha256, method=call.method,
                input_kind=PAYLOAD_KINDS[type(request.payload)],
                input_bytes=payload_bytes(request.payload),
                input_commitment=commitment(request.commitment_key, "input", plain),
                timeout_ms=timeout_ms, input_fingerprint=call.input_fingerprint,
                pipeline=step.pipeline if step else None, step=step.name if step else None,
            )
        )
        state.later(call.deadline_us, "call", call.request_id)
        self._gate.began(call)
        if request.keep_alive:
            state.later(state.now + state.config.times.presence_ms * 1000, "presence",
                        call.request_id)
        pool.queue.append(call)
        self.dispatch(pool)
        if pool.queue:
            self._start(pool)
        self._replicas.accepted(call)
        return None

    def full(self) -> Misfit | None:
        """Say why nothing new is taken from a client now, or None."""
        state = self._state
        if (state.gateway, "accept") not in GATEWAY:
            return Misfit(RefusalCode.DRAINING, "")
        if state.degraded and RefusalCode.LOW_SPACE in state.degraded:
            return Misfit(RefusalCode.LOW_SPACE, "")
        if len(state.calls) >= state.config.limits.in_flight_max:
            return Misfit(RefusalCode.IN_FLIGHT_LIMIT, f"{len(state.calls)} calls are in flight")
        return None

    def crowded(self, plugin: str) -> bool:
        """Say whether one more call of a plugin has to wait for a place."""
        state = self._state
        full = len(state.calls) >= state.config.limits.in_flight_max
        return full or self._gate.crowded(plugin)

    def refuse(
        self, origin: Origin, request: Invoke | InvokePipeline, misfit: Misfit
    ) -> None:
        """Refuse an invocation or a pipeline: an event, and the reply that points at it."""
        state = self._state
        invoke = request if isinstance(request, Invoke) else None
        retry_after_ms = misfit.retry_after_ms
        if misfit.code in (RefusalCode.IN_FLIGHT_LIMIT, RefusalCode.DRAINING):
            retry_after_ms = state.config.times.backoff_ms_min
        if misfit.code in (RefusalCode.WORKER_CRASH_LOOP, RefusalCode.LOW_SPACE):
            retry_after_ms = state.config.times.backoff_ms_max
        where = printable(misfit.where)
        state.append(
            InvokeRefuse(request_id=request.request_id, peer=origin.key_id, code=misfit.code,
                         where=where, plugin=invoke.plugin if invoke else None,
                         method=invoke.method if invoke else None, retry_after_ms=retry_after_ms)
        )
        state.refuse(origin, request.request_id, misfit.code, misfit.sentence, where=where,
                     hint=misfit.hint, retry_after_ms=retry_after_ms, receipt=True,
                     known_size=request.known_size)

    def dispatch(self, pool: Pool) -> None:
        """Give waiting calls to workers that have room."""
        if pool.role == "replica":
            self._replicas.dispatch(pool)
            return
        state = self._state
        while pool.queue:
            worker = pool.best()
            if worker is None:
                return
            call = pool.queue.popleft()
            margin_us = state.config.times.reply_margin_ms * 1000
            left_ms = (call.deadline_us - state.now - margin_us) // 1000
            if left_ms <= 0:
                pool.queue.appendleft(call)
                self.finish(call, "deadline", "deadline", _TOO_LATE)
                continue
            call.state = CALL[call.state, "dispatch"]
            self._gate.dispatched(call)
            call.incarnation = worker.incarnation
            worker.step("run")
            worker.calls[call.number] = call
            worker.called_us = state.now
            state.order(
                worker.incarnation,
                Run(call=call.number, method=call.method, payload=call.payload,
                    timeout_ms=left_ms, request_id=call.request_id,
                    cpu_ms_max=call.step.cpu_ms_max if call.step else None,
                    output_bytes_max=call.step.output_bytes_max if call.step else None),
            )

    # --- ends ---

    def finish(self, call: Call, event: CallEvent, outcome: Outcome, ending: Ending) -> bool:
        """End a call without a result; False when the table knows no such end any more."""
        reached = call.reached
        if not self._leave(call, event):
            return False
        state = self._state
        message, usage = ending.plugin_message, spent(call, ending.usage)
        self._gate.left(call, ending.code, usage, queued=reached == "queued")
        state.append(
            InvokeEnd(
                request_id=call.request_id, outcome=outcome, reached=reached, code=ending.code,
                incarnation=call.incarnation, used=ending.used, allowed=ending.allowed,
                message_commitment=None if message is None
                else commitment(call.commitment_key, "output", message.encode()),
                cpu_ms=usage.cpu_ms if usage else None,
                wall_ms=usage.wall_ms if usage else None,
                max_rss_kb_upper_bound=usage.max_rss_kb_upper_bound if usage else None,
                duration_us=state.now - call.arrived_us,
                replica=call.replica.verdict if call.replica else None,
            )
        )
        told = refusal(
            call.request_id, ending.code, ending.sentence, where=ending.where,
            plugin_message=message, hint=denied_hint(ending.denied), usage=usage,
        )
        if call.step is None:
            state.send(call.origin, told, receipt=True, known_size=call.known_size)
        else:
            self._step_ended(call.step, StepResult(
                step=call.step.name, outcome="refused", refusal=told, usage=usage
            ))
        return True

    def _leave(self, call: Call, event: CallEvent) -> bool:
        """Take a call out of every place it is in, if the table lets it end this way."""
        if CALL.get((call.state, event)) != "ended":
            return False
        state = self._state
        if call.state == "queued":
            call.pool.queue.remove(call)
        else:
            worker = state.fleet.by_incarnation.get(call.incarnation or "")
            if worker is not None and worker.calls.pop(call.number, None) is not None and (
                event in ("cancel", "deadline", "revoke", "abandon")
            ):
                worker.aborted[call.number] = state.now + state.config.times.abort_ms * 1000
                state.later(worker.aborted[call.number], "abort", worker.incarnation)
                state.order(worker.incarnation, Abort(call=call.number))
        call.state = "ended"
        if call.replica is not None:
            self._replicas.left(call, call.replica)
        state.call_over(call.request_id)
        for waiting in state.starving:
            state.later(state.now, "pipeline", waiting)
        state.starving.clear()
        self._key_of_end[call.request_id] = call.origin.key_id
        return True

    def lost(self, call: Call, code: RefusalCode, sentence: str) -> None:
        """End a call that no worker can answer any more, or try an idempotent one once more."""
        if call.replica is not None:
            self._replicas.lost(call, call.replica, code)
            return
        if code is RefusalCode.WORKER_LOST and self._tried_again(call):
            return
        outcome: Outcome = "lost" if code is RefusalCode.WORKER_LOST else "refused"
        self.finish(call, "worker_lost", outcome, Ending(code, sentence))

    def _tried_again(self, call: Call) -> bool:
        """Put a call back in front of its queue; once, and where the manifest says idempotent."""
        state = self._state
        after = CALL.get((call.state, "requeue"))
        if after is None or call.retried or not call.declared.idempotent or (
            (state.gateway, "accept") not in GATEWAY
        ):
            return False
        worker = state.fleet.by_incarnation.get(call.incarnation or "")
        if worker is not None:
            worker.calls.pop(call.number, None)
        call.state, call.incarnation, call.retried = after, None, True
        call.number = state.next_call
        state.next_call += 1
        self._gate.requeued(call)
        call.pool.queue.appendleft(call)
        return True

    def _withhold(self, call: Call, code: RefusalCode) -> None:
        self.finish(call, "failure", "refused", Ending(code))

    def end_revoked(self, call: Call) -> None:
        """End a call whose plugin, key or grant was taken back."""
        self.finish(call, "revoke", "revoked", Ending(RefusalCode.REVOKED))

    def deadline(self, request_id: str) -> None:
        """End a call whose time is over, if it is still open."""
        call = self._state.calls.get(request_id)
        if call is not None and call.deadline_us <= self._state.now:
            self.finish(call, "deadline", "deadline", _TOO_LATE)
        elif call is not None:
            self._replicas.due(call)

    def presence_due(self, request_id: str) -> bool:
        """Tell a client that its call goes on; end the call when the client is gone for long.

        Returns:
            Whether there is such a call.
        """
        state, times = self._state, self._state.config.times
        call = state.calls.get(request_id)
        if call is None:
            return False
        gone_us = call.client_gone_us
        if gone_us is not None and state.now - gone_us >= times.presence_grace_ms * 1000:
            self.finish(call, "cancel", "cancelled", CLIENT_GONE)
            return True
        state.send(call.origin, KeepAlive(request_id=request_id))
        state.later(state.now + times.presence_ms * 1000, "presence", request_id)
        return True

    def cancel(self, origin: Origin, request: Cancel) -> None:
        """End a call of the same key, or say that it had ended before."""
        state = self._state
        call = state.calls.get(request.target)
        if call is not None and call.origin.key_id == origin.key_id:
            reached = call.reached
            self.finish(call, "cancel", "cancelled", Ending(RefusalCode.CANCELLED))
            state.send(
                origin,
                Cancelled(request_id=request.request_id, outcome="cancelled", reached=reached),
                receipt=True, known_size=request.known_size,
            )
        elif state.end_of(origin.key_id, request.target) is not None:
            state.send(
                origin,
                Cancelled(request_id=request.request_id, outcome="too_late", reached="answered"),
                receipt=True, known_size=request.known_size,
            )
        else:
            state.refuse(origin, request.request_id, RefusalCode.REQUEST_UNKNOWN, where="$.target")

    def result(self, call: Call, message: CallResult) -> None:
        """Hold a worker's output against the manifest and answer OMEGA, or wait for a replica."""
        if message.call != call.number:
            self._replicas.answered(call, message)
            return
        state = self._state
        payload, misfit = checked_output(call, message.payload)
        if misfit is not None:
            code = of_budget(call.step, call, misfit.code) if call.step else misfit.code
            self.finish(call, "failure", "refused", Ending(
                code, misfit.sentence, misfit.where, used=misfit.used,
                allowed=misfit.allowed, usage=message.usage,
            ))
            return
        plain = preimage(payload)
        output_fingerprint = None if call.input_fingerprint is None else fingerprint(
            state.edge.determinism_key, call.plugin, call.version, call.method, plain
        )
        if output_fingerprint is not None and self._replicas.contradicts(call, output_fingerprint):
            self.finish(call, "failure", "refused", Ending(
                RefusalCode.NONDETERMINISTIC_OUTPUT, usage=message.usage
            ))
            return
        usage, size = message.usage, payload_bytes(payload)
        if usage.output_bytes != size:
            usage = msgspec.structs.replace(usage, output_bytes=size)
        answer = Answer(payload, plain, usage, output_fingerprint)
        if not self._replicas.hold(call, answer):
            self._answer(call, answer)

    def _answer(self, call: Call, answer: Answer) -> None:
        """Let an answer leave, if the table lets the call end this way."""
        if not self._leave(call, "result"):
            return
        state, payload, plain = self._state, answer.payload, answer.plain
        usage = spent(call, answer.usage) or answer.usage
        self._gate.left(call, None, usage, queued=False)
        state.append(
            InvokeEnd(
                request_id=call.request_id, outcome="result", reached="answered",
                incarnation=call.incarnation, output_kind=PAYLOAD_KINDS[type(payload)],
                output_bytes=usage.output_bytes,
                output_commitment=commitment(call.commitment_key, "output", plain),
                output_fingerprint=answer.output_fingerprint,
                replica=call.replica.verdict if call.replica else None,
                cpu_ms=usage.cpu_ms, wall_ms=usage.wall_ms,
                max_rss_kb_upper_bound=usage.max_rss_kb_upper_bound,
                duration_us=state.now - call.arrived_us,
            )
        )
        digest = output_digest(plain)
        if call.step is not None:
            self._step_ended(call.step, StepResult(
                step=call.step.name, outcome="result", payload=payload, usage=usage,
                output_sha256=digest,
            ))
            return
        state.send(
            call.origin,
            Result(request_id=call.request_id, payload=payload, usage=usage,
                   output_sha256=digest, plugin=call.plugin, version=call.version),
            receipt=True, known_size=call.known_size,
        )

    def failure(self, call: Call, message: CallFailure) -> None:
        """End a call as its worker says it failed."""
        if message.call != call.number:
            self._replicas.answered(call, message)
            return
        code = RefusalCode(message.code)
        if call.step is not None and message.allowed is not None:
            code = of_budget(call.step, call, code)
        outcome: Outcome = "deadline" if code is RefusalCode.DEADLINE_EXCEEDED else "refused"
        sentence, where = failure_words(code, message.used, message.allowed)
        self.finish(call, "failure", outcome, Ending(
            code, sentence, where, plugin_message=message.plugin_message, denied=message.denied,
            used=message.used, allowed=message.allowed, usage=message.usage,
        ))

    def progress(self, call: Call, message: CallProgress) -> None:
        """Pass a running call's word on how far it is."""
        state = self._state
        if message.call != call.number:
            return
        call.state = CALL[call.state, "progress"]
        spacing_us = 1_000_000 // state.config.limits.progress_per_s_max
        if call.told_us is not None and state.now - call.told_us < spacing_us:
            # It is in the ledger as a frame of the worker; OMEGA is not told more often than this.
            return
        call.told_us = state.now
        step = call.step
        state.send(
            call.origin,
            Progress(request_id=step.pipeline if step else call.request_id,
                     permille=message.permille, note=message.note,
                     step=step.name if step else None),
            receipt=True,
        )


_TOO_LATE = Ending(RefusalCode.DEADLINE_EXCEEDED)
CLIENT_GONE = Ending(RefusalCode.CANCELLED, "its client is gone")
