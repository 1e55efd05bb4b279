"""Pipelines: judged before anything runs, run step by step, answered once.

Rules this file keeps:
- Nothing runs before the whole graph was held against the inventory; a refusal names the step.
- Each step is an invocation of its own, under the pipeline's deadline and its share of the budget.
- No plugin addresses another: an output becomes an input here, and is checked on both sides.
- A step is started only by a timer, never within a decision about something else: what was just
  revoked or disabled is in the inventory by then.

It leaves invocations to `broker.invocations`, graphs to `schemas.pipelines` and the budget's shares
to `broker.orchestrator.graph`. Source: specification section 4; docs/WIRE.md, section "Pipelines".
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from broker.effects import Origin
from broker.invocations import Ending, Invocations, Outcome
from broker.lifecycle import PIPELINE, STEP, CallEvent, PipelineEvent, StepEvent
from broker.orchestrator.calls import LoadedPlugin, Misfit, StepOf, input_misfit
from broker.orchestrator.graph import Pipeline, StepRun
from broker.orchestrator.selection import serving_version
from broker.orchestrator.windows import request_key
from broker.state import State, refusal
from schemas.canonical import InvalidJson, JsonValue, document_bytes
from schemas.codec import printable
from schemas.events import InvokeRefuse
from schemas.messages import (
    Cancel,
    Cancelled,
    Invoke,
    InvokePipeline,
    KeepAlive,
    PipelineResult,
    Progress,
    Refusal,
    Step,
    StepOutput,
    StepResult,
)
from schemas.payloads import JSONPayload, Payload, TextPayload
from schemas.pipelines import (
    graph_flaw,
    resolve_pointer,
    step_commitment_key,
    step_request_id,
)
from schemas.refusals import RefusalCode

_ENDINGS: Final[dict[PipelineEvent, tuple[CallEvent, Outcome, RefusalCode]]] = {
    "step_failed": ("cancel", "cancelled", RefusalCode.PIPELINE_STEP_FAILED),
    "cancel": ("cancel", "cancelled", RefusalCode.CANCELLED),
    "deadline": ("deadline", "deadline", RefusalCode.DEADLINE_EXCEEDED),
    "revoke": ("revoke", "revoked", RefusalCode.REVOKED),
    "abandon": ("abandon", "abandoned", RefusalCode.ABANDONED),
}
"""How the steps that still run end when their pipeline does, and what its caller is told."""


class Pipelines:
    """Decides about pipelines."""

    def __init__(self, state: State, invocations: Invocations) -> None:
        """Share the core's memory; steps go through `invocations` like every call."""
        self._state = state
        self._invocations = invocations
        self._last_of: dict[str, tuple[str, str]] = {}

    def recorded(self, request_id: str, seq: int) -> None:
        """Remember where a pipeline's last event lies, so that a duplicate can be told."""
        ended = self._last_of.pop(request_id, None)
        if ended is not None:
            self._state.ended(*ended, seq)

    # --- accepting ---

    def accept(self, origin: Origin, request: InvokePipeline) -> None:
        """Take a pipeline whose every step could run, or refuse it as a whole."""
        state = self._state
        misfit = self._invocations.full() or self._flaw(request)
        if misfit is None and len(state.pipelines) >= state.config.limits.in_flight_max:
            misfit = Misfit(
                RefusalCode.IN_FLIGHT_LIMIT, f"{len(state.pipelines)} pipelines are in flight"
            )
        if misfit is not None:
            self._invocations.refuse(origin, request, misfit)
            return
        timeout_ms = min(request.timeout_ms, state.policy.limits.timeout_ms_max)
        pipeline = Pipeline(request, origin, state.now, state.now + timeout_ms * 1000)
        state.pipelines[request.request_id] = pipeline
        state.later(pipeline.deadline_us, "pipeline", request.request_id)
        self._wake(request.request_id)
        if request.keep_alive:
            state.later(state.now + state.config.times.presence_ms * 1000, "presence",
                        request.request_id)

    def _flaw(self, request: InvokePipeline) -> Misfit | None:
        """Say why a pipeline cannot run as a whole, or None."""
        if request.budget.calls < len(request.steps):
            return Misfit(
                RefusalCode.BUDGET_EXCEEDED,
                f"{len(request.steps)} steps, and a budget of {request.budget.calls} calls",
                "$.budget.calls",
            )
        flaw = graph_flaw(request.steps)
        if flaw is not None:
            return Misfit(RefusalCode.PIPELINE_INVALID, *flaw)
        found: dict[str, tuple[Step, LoadedPlugin]] = {}
        for index, step in enumerate(request.steps):
            serves = serving_version(self._state, step.plugin, step.version, step.method)
            misfit = serves if isinstance(serves, Misfit) else None
            if not isinstance(serves, Misfit):
                found[step.name] = step, serves[1]
                if not isinstance(step.input, StepOutput):
                    declared = serves[1].manifest.methods[step.method]
                    misfit = input_misfit(step.input, declared, serves[1])
            if misfit is not None:
                return _at(index, misfit)
        for index, step in enumerate(request.steps):
            if isinstance(step.input, StepOutput):
                sentence = _arrow_flaw(step.input, found[step.input.step], found[step.name])
                if sentence:
                    return Misfit(
                        RefusalCode.PIPELINE_INVALID, sentence, f"$.steps[{index}].input"
                    )
        return None

    # --- running ---

    def due(self, request_id: str) -> None:
        """A timer rang: the deadline, or a step may be able to start."""
        state = self._state
        pipeline = state.pipelines.get(request_id)
        if pipeline is None:
            return
        if pipeline.deadline_us <= state.now:
            self.end(pipeline, "deadline")
        elif not state.holds(pipeline.origin.key_id, "omega"):
            self.end(pipeline, "revoke")
        else:
            for step in pipeline.order:
                if step.state == "waiting":
                    self._consider(pipeline, step)
                if pipeline.state == "ended":
                    return

    def _consider(self, pipeline: Pipeline, step: StepRun) -> None:
        """Start one waiting step if what it takes is there and there is room."""
        state, limits = self._state, self._state.config.limits
        source = pipeline.steps[step.source] if step.source else None
        if source is not None and source.state != "ended":
            return
        if sum(1 for _ in pipeline.running()) >= limits.pipeline_parallel_max:
            return
        if self._invocations.crowded(step.declared.plugin):
            state.starving.add(pipeline.request.request_id)
            return
        begun = self._begin(pipeline, step, source.result if source else None)
        if begun is not None:
            self._refuse_step(pipeline, step, begun)

    def _begin(
        self, pipeline: Pipeline, step: StepRun, taken: StepResult | None
    ) -> Misfit | None:
        """Make a step's invocation; a misfit when it cannot be, None too when it must wait."""
        state, request, declared = self._state, pipeline.request, step.declared
        found = serving_version(
            state, declared.plugin, declared.version, declared.method
        )
        if isinstance(found, Misfit):
            return found
        manifest = found[1].manifest
        share = pipeline.share(manifest.limits)
        if share is None:
            return None
        if share.cpu_ms < 1 or share.output_bytes < 1:
            budget = request.budget
            return Misfit(
                RefusalCode.BUDGET_EXCEEDED,
                f"used {pipeline.used.cpu_ms} of {budget.cpu_ms} ms and "
                f"{pipeline.used.output_bytes} of {budget.output_bytes} bytes", "$",
            )
        payload = _input(declared, taken, manifest.methods[declared.method].input.kind)
        if isinstance(payload, Misfit):
            return payload
        left_ms = max(1, (pipeline.deadline_us - state.now) // 1000)
        invoke = Invoke(
            request_id=step_request_id(request.request_id, declared.name),
            known_size=request.known_size, plugin=declared.plugin, method=declared.method,
            payload=payload, timeout_ms=min(declared.timeout_ms or left_ms, left_ms),
            commitment_key=step_commitment_key(request.commitment_key, declared.name),
            version=declared.version,
        )
        if state.used(invoke.request_id):
            return Misfit(RefusalCode.DUPLICATE_REQUEST, "", "$.name")
        step.share = share
        method_ms = manifest.methods[declared.method].timeout_ms
        step.to_the_end = left_ms <= min(declared.timeout_ms or left_ms, method_ms)
        self._step(step, "start")
        misfit = self._invocations.begin(
            pipeline.origin, invoke, StepOf(request.request_id, declared.name, *share)
        )
        if misfit is None:
            # Used from its acceptance on, as in the fold of the ledger.
            now_us = state.now + state.steady_offset_us
            state.window(pipeline.origin.key_id).admit(request_key(invoke.request_id), now_us)
        if misfit is None and step.state == "running":
            self._tell(pipeline, step, 0)
        return misfit

    def _refuse_step(self, pipeline: Pipeline, step: StepRun, misfit: Misfit) -> None:
        """End a step that could not be begun."""
        request, declared = pipeline.request, step.declared
        placed = _at(step.index, misfit)
        self._state.append(InvokeRefuse(
            request_id=step_request_id(request.request_id, declared.name),
            peer=pipeline.origin.key_id, code=placed.code, where=placed.where,
            plugin=declared.plugin, method=declared.method, pipeline=request.request_id,
            step=declared.name,
        ))
        told = refusal(
            step_request_id(request.request_id, declared.name), placed.code, placed.sentence,
            where=placed.where, hint=placed.hint,
        )
        self._ended(pipeline, step, "fail", StepResult(
            step=declared.name, outcome="refused", refusal=told
        ))

    def presence_due(self, request_id: str) -> None:
        """Tell a client that its pipeline goes on; end it when the client is gone for long."""
        state, times = self._state, self._state.config.times
        pipeline = state.pipelines.get(request_id)
        if pipeline is None:
            return
        gone_us = pipeline.client_gone_us
        if gone_us is not None and state.now - gone_us >= times.presence_grace_ms * 1000:
            self.end(pipeline, "cancel")
            return
        state.send(pipeline.origin, KeepAlive(request_id=request_id))
        state.later(state.now + times.presence_ms * 1000, "presence", request_id)

    # --- ends ---

    def step_ended(self, step_of: StepOf, result: StepResult) -> None:
        """Take in how a step's invocation ended; a pipeline that has ended takes nothing more."""
        pipeline = self._state.pipelines.get(step_of.pipeline)
        if pipeline is not None:
            pipeline.charge(result.usage)
            event: Literal["result", "fail"] = "result" if result.outcome == "result" else "fail"
            self._ended(pipeline, pipeline.steps[step_of.name], event, result)

    def _ended(
        self, pipeline: Pipeline, step: StepRun, event: StepEvent, result: StepResult
    ) -> None:
        self._step(step, event)
        step.result = result
        self._tell(pipeline, step, 1000)
        told = result.refusal
        if told is not None and told.code is RefusalCode.DEADLINE_EXCEEDED and step.to_the_end:
            self.end(pipeline, "deadline")
            return
        if told is not None and pipeline.request.on_error == "abort":
            self.end(pipeline, "step_failed", step, told)
            return
        for other in pipeline.order:
            taken = pipeline.steps[other.source].result if other.source else None
            if other.state == "waiting" and taken is not None and taken.outcome != "result":
                self._step(other, "skip")
                other.result = StepResult(step=other.declared.name, outcome="skipped")
        if all(other.state == "ended" for other in pipeline.order):
            self._complete(pipeline, step)
        else:
            self._wake(pipeline.request.request_id)

    def _complete(self, pipeline: Pipeline, last: StepRun) -> None:
        """Answer with what became of each step, in declared order."""
        request_id = pipeline.request.request_id
        if not self._leave(
            pipeline, "complete", step_request_id(request_id, last.declared.name)
        ):
            return
        elapsed_ms = (self._state.now - pipeline.arrived_us) // 1000
        self._state.send(
            pipeline.origin,
            PipelineResult(
                request_id=request_id,
                steps=tuple(step.result for step in pipeline.steps.values() if step.result),
                usage=msgspec.structs.replace(pipeline.used, wall_ms=elapsed_ms),
            ),
            receipt=True, known_size=pipeline.request.known_size,
        )

    def end(
        self, pipeline: Pipeline, event: PipelineEvent, step: StepRun | None = None,
        told: Refusal | None = None,
    ) -> None:
        """End a pipeline without a result, and every step of it that still runs."""
        state, request = self._state, pipeline.request
        if not self._leave(pipeline, event, request.request_id):
            return
        call_event, outcome, code = _ENDINGS[event]
        for one in list(pipeline.running()):
            call = state.calls.get(step_request_id(request.request_id, one.declared.name))
            if call is not None:
                self._invocations.finish(call, call_event, outcome, Ending(code))
        where = f"$.steps[{step.index}]" if step else ""
        state.append(InvokeRefuse(
            request_id=request.request_id, peer=pipeline.origin.key_id, code=code, where=where,
        ))
        sentence = f"step {step.declared.name}: {told.message}" if step and told else ""
        state.refuse(
            pipeline.origin, request.request_id, code, sentence, where=where,
            hint=told.hint if told else "", plugin_message=told.plugin_message if told else None,
            usage=pipeline.used, receipt=True, known_size=request.known_size,
        )

    def cancel(self, origin: Origin, request: Cancel) -> None:
        """End a pipeline or a call of the same key, or say that it had ended before."""
        state = self._state
        pipeline = state.pipelines.get(request.target)
        if pipeline is None or pipeline.origin.key_id != origin.key_id:
            self._invocations.cancel(origin, request)
            return
        found = {
            call.state for call in state.calls.values()
            if call.step is not None and call.step.pipeline == request.target
        } - {"queued"}
        reached: Literal["queued", "dispatched", "running"] = "queued"
        if found:
            reached = "running" if "running" in found else "dispatched"
        self.end(pipeline, "cancel")
        state.send(
            origin,
            Cancelled(request_id=request.request_id, outcome="cancelled",
                      reached=reached),
            receipt=True, known_size=request.known_size,
        )

    def end_all(self, event: PipelineEvent) -> None:
        """End every pipeline."""
        for pipeline in list(self._state.pipelines.values()):
            self.end(pipeline, event)

    def _leave(self, pipeline: Pipeline, event: PipelineEvent, last: str) -> bool:
        """Take a pipeline out of the memory, if the table lets it end this way.

        `last` is the request id of the event that its reply points at.
        """
        after = PIPELINE.get((pipeline.state, event))
        if after is None:
            return False
        pipeline.state = after
        request_id = pipeline.request.request_id
        del self._state.pipelines[request_id]
        self._state.starving.discard(request_id)
        self._last_of[last] = pipeline.origin.key_id, request_id
        return True

    # --- small things ---

    def _step(self, step: StepRun, event: StepEvent) -> None:
        step.state = STEP[step.state, event]

    def _wake(self, request_id: str) -> None:
        self._state.later(self._state.now, "pipeline", request_id)

    def _tell(self, pipeline: Pipeline, step: StepRun, permille: int) -> None:
        """Tell the caller that a step began or ended."""
        self._state.send(
            pipeline.origin,
            Progress(request_id=pipeline.request.request_id, permille=permille,
                     step=step.declared.name),
            receipt=True,
        )


def _at(index: int, misfit: Misfit) -> Misfit:
    """Say of which step a misfit is."""
    inner = misfit.where.removeprefix("$").replace(".payload", ".input", 1)
    return misfit._replace(where=printable(f"$.steps[{index}]{inner}"))


def _arrow_flaw(
    taken: StepOutput, source: tuple[Step, LoadedPlugin], target: tuple[Step, LoadedPlugin]
) -> str:
    """Say why an output cannot become an input, by what both methods declare; empty if it can."""
    gives = source[1].manifest.methods[source[0].method].output.kind
    takes = target[1].manifest.methods[target[0].method].input.kind
    if not taken.pointer and gives != takes:
        return f"{source[0].name} gives {gives}, {target[0].name} takes {takes}"
    if taken.pointer and (gives != "json" or takes not in ("json", "text")):
        return f"a pointer leads from json to json or text, not from {gives} to {takes}"
    return ""


def _input(step: Step, taken: StepResult | None, kind: str) -> Payload | Misfit:
    """Make a step's input: as it was sent, or from the output of the step it names."""
    if not isinstance(step.input, StepOutput):
        return step.input
    assert taken is not None
    assert taken.payload is not None
    pointer, payload = step.input.pointer, taken.payload
    if not pointer:
        # The schema that the output was held against need not be the one of the input.
        return JSONPayload(payload.data) if isinstance(payload, JSONPayload) else payload
    assert isinstance(payload, JSONPayload)
    where = "$.input.pointer"
    try:
        document: JsonValue = msgspec.json.decode(payload.data)
        value = resolve_pointer(document, pointer)
        if kind == "json":
            return JSONPayload(document_bytes(value))
    except (LookupError, InvalidJson) as error:
        sentence = f"the output of {step.input.step} at {pointer}: {error}"
        return Misfit(RefusalCode.PIPELINE_INVALID, printable(sentence, 400), where)
    if isinstance(value, str):
        return TextPayload(value)
    sentence = f"the output of {step.input.step} at {pointer} is no text"
    return Misfit(RefusalCode.PIPELINE_INVALID, printable(sentence, 400), where)
