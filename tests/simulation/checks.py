"""The invariants, checked on every event as it is appended. Shares no transition with the core.

Each check is a sentence of the specification turned into bookkeeping of its own over the ledger.
"""

from __future__ import annotations

import hmac
from collections import Counter
from dataclasses import dataclass, field

from broker.config import GatewayConfig
from schemas.events import (
    BreakerChange,
    DeterminismMismatch,
    Event,
    FrameIn,
    FrameOut,
    GatewayDegraded,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    InvokeRefuse,
    PluginApprove,
    PluginDisable,
    PluginEnable,
    PluginQuarantine,
    PluginRegister,
    Revoke,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
    ZygoteRecycle,
)
from schemas.payloads import Payload
from tests.simulation.clients import WIDER, difference_digest
from tests.simulation.fakes import require
from tests.simulation.rights import Rights
from tests.simulation.settings import KEY

OPERATOR_EVENTS = (
    PluginRegister, PluginEnable, PluginDisable, PluginApprove, GrantChange, Revoke,
)


DOOR_CODES = frozenset({
    "duplicate_request", "frame_malformed", "message_invalid", "message_unknown", "frame_too_large",
    "role_not_allowed", "key_revoked",
})
"""Refusals of a frame as such, which may carry any request id its sender wrote."""


@dataclass
class _Open:
    plugin: str
    version: str
    method: str
    peer: str
    input_fingerprint: str | None = None
    runs: dict[str, int] = field(default_factory=dict)
    replicas: dict[str, int] = field(default_factory=dict)
    answered: set[str] = field(default_factory=set)
    outputs: dict[str, Payload | None] = field(default_factory=dict)
    mismatched: bool = False
    compared: bool = False


    @property
    def surface(self) -> tuple[str, str, str]:
        return self.plugin, self.version, self.method


@dataclass
class _Worker:
    plugin: str
    version: str
    grants: frozenset[str] = frozenset()
    attested: bool = False
    witnessed: bool = False
    gone: bool = False
    draining: bool = False
    successor: str | None = None
    switched: bool = False
    asked_us: int | None = None
    heard_us: int = 0
    purpose: str = ""
    calls: dict[int, str] = field(default_factory=dict)


@dataclass
class Checks:
    """One ledger's history as the checks see it."""

    rights: Rights
    config: GatewayConfig
    open: dict[str, _Open] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    workers: dict[str, _Worker] = field(default_factory=dict)
    registered: set[tuple[str, str]] = field(default_factory=set)
    asked: dict[tuple[str, str], frozenset[str]] = field(default_factory=dict)
    enabled: dict[str, str] = field(default_factory=dict)
    last_enabled: dict[str, str] = field(default_factory=dict)
    approved: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    dead: set[tuple[str, str]] = field(default_factory=set)
    answers_due: dict[str, int] = field(default_factory=dict)
    untold: set[str] = field(default_factory=set)
    escaped: set[tuple[str, str]] = field(default_factory=set)
    named: set[str] = field(default_factory=set)
    pipelines: dict[str, set[str]] = field(default_factory=dict)
    callers: dict[str, str] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    idle: set[str] = field(default_factory=set)
    outputs: dict[tuple[str, str, str], str | None] = field(default_factory=dict)
    struck_us: dict[tuple[str, str], int] = field(default_factory=dict)
    resting: dict[tuple[str, str], int] = field(default_factory=dict)
    low: bool = False
    upgrading: set[str] = field(default_factory=set)
    said: dict[tuple[str, int], Payload] = field(default_factory=dict)
    compared: Counter[tuple[str, str, str]] = field(default_factory=Counter)

    def take(self, event: Event) -> None:
        """Hold one event against everything before it."""
        fields = event.fields
        self.rights.take(event)
        if isinstance(fields, InvokeAccept):
            self._accept(fields)
            rests_until = self.resting.get((fields.plugin, fields.method), 0)
            require(event.mono_us >= rests_until, "a method was called while it had its rest")
        elif isinstance(fields, BreakerChange):
            self.resting.pop((fields.plugin, fields.method), None)
            if fields.after == "open":
                self.resting[fields.plugin, fields.method] = (
                    event.mono_us + (fields.retry_after_ms or 0) * 1000
                )
        elif isinstance(fields, InvokeRefuse) and fields.code == "circuit_open":
            key = (fields.plugin or "", fields.method or "")
            require(event.mono_us < self.resting.get(key, event.mono_us + 1),
                    "a method was refused after its rest")
        elif isinstance(fields, InvokeEnd):
            self._end(fields)
        elif isinstance(fields, DeterminismMismatch):
            self.open[fields.request_id].mismatched = True
        elif isinstance(fields, FrameOut):
            self._out(fields, event.mono_us)
        elif isinstance(fields, FrameIn):
            self._in(fields)
        elif isinstance(fields, WorkerStart):
            require((fields.plugin, fields.version) in self.registered, "unregistered worker")
            require((fields.plugin, fields.version) not in self.dead, "a dead version was started")
            require(fields.plugin in self.rights.trusted, "a worker was started that nobody trusts")
            grants = frozenset(fields.grants)
            effective = {one for one in self.asked[fields.plugin, fields.version]
                         if self.rights.may(fields.plugin, one)}
            require(grants == effective, "a worker holds other capabilities than the effective")
            self.workers[fields.incarnation] = _Worker(fields.plugin, fields.version, grants)
            living = sum(not worker.gone for worker in self.workers.values())
            require(living <= self.config.limits.workers_max + 1, "more workers than allowed")
        elif isinstance(fields, WorkerAttest):
            self.workers[fields.incarnation].attested = fields.accepted
        elif isinstance(fields, WorkerProbe):
            self._witness(fields, event.mono_us)
        elif isinstance(fields, WorkerExit):
            self._exit(fields)
        elif isinstance(fields, ZygoteRecycle):
            self._recycle(fields, event.mono_us)
        else:
            self._registry(event)

    def _registry(self, event: Event) -> None:
        fields = event.fields
        if isinstance(fields, GatewayDegraded):
            require(fields.degraded != self.low, "said twice that room is short, or is not")
            self.low = fields.degraded
        elif isinstance(fields, PluginRegister | PluginEnable):
            require(not self.low, "something was added where room is short")
        if isinstance(fields, OPERATOR_EVENTS):
            require(self.rights.roles.get(fields.actor) == "operator",
                    f"{fields.EVENT_TYPE} by {self.rights.roles.get(fields.actor)}")
        if isinstance(fields, PluginRegister):
            key = (fields.plugin, fields.version)
            require(key not in self.registered, "a version was registered twice")
            self.registered.add(key)
            self.asked[key] = frozenset(fields.capabilities)
        elif isinstance(fields, PluginEnable):
            key = (fields.plugin, fields.version)
            require(key in self.registered and key not in self.dead, "enabled what may not be")
            self._widening(fields)
            require(self.enabled.get(fields.plugin) == fields.previous, "another version served")
            require(fields.previous is None or any(
                (one.plugin, one.version) == key and one.witnessed and not one.gone
                for one in self.workers.values()
            ), "switched before a worker of the new version was witnessed")
            self.last_enabled[fields.plugin] = self.enabled[fields.plugin] = fields.version
            for method in [key for key in self.resting if key[0] == fields.plugin]:
                del self.resting[method]
        elif isinstance(fields, PluginApprove):
            self._widening(fields)
        elif isinstance(fields, PluginDisable):
            self.enabled.pop(fields.plugin, None)
        elif isinstance(fields, PluginQuarantine):
            self._kill(fields.plugin, fields.version)
        elif isinstance(fields, Revoke) and fields.kind == "plugin_version":
            plugin, _, version = fields.id.partition("@")
            self._kill(plugin, version)

    def _widening(self, fields: PluginEnable | PluginApprove) -> None:
        """Only the present difference is approved, and what widens was approved before."""
        before = self.last_enabled.get(fields.plugin, WIDER)
        widens = fields.version == WIDER != before
        present = difference_digest(fields.plugin, before, WIDER) if widens else None
        if isinstance(fields, PluginApprove):
            require(fields.diff_sha256 == present,
                    "another difference was approved than the present one")
            self.approved.setdefault((fields.plugin, fields.diff_sha256), set()).add(fields.actor)
            return
        require(fields.diff_sha256 == present, "enabled for another difference")
        count = sum(self.rights.holds(key, "operator")
                    for key in self.approved.get((fields.plugin, present or ""), ()))
        require(not widens or count >= self.rights.policy.operators_required,
                "a version that widens was enabled before its difference was approved")

    def _kill(self, plugin: str, version: str) -> None:
        self.dead.add((plugin, version))
        if self.enabled.get(plugin) == version:
            del self.enabled[plugin]

    def _accept(self, fields: InvokeAccept) -> None:
        require(self.rights.holds(fields.peer, "omega"),
                f"an invocation of {self.rights.roles.get(fields.peer)} was accepted")
        require(fields.request_id not in self.open and fields.request_id not in self.ended,
                "a request id was accepted twice")
        require(self.enabled.get(fields.plugin) == fields.version, "accepted what is not enabled")
        require(fields.plugin in self.rights.trusted, "accepted what nobody trusts")
        require(not self.low or fields.pipeline is not None, "accepted where room is short")
        call = self.open[fields.request_id] = _Open(
            fields.plugin, fields.version, fields.method, fields.peer, fields.input_fingerprint
        )
        if fields.input_fingerprint is not None:
            drawn = hmac.new(KEY, b"replica\0" + fields.request_id.encode(), "sha256").digest()
            determinism = self.config.determinism
            first = self.compared[call.surface] < determinism.first_calls
            share = int.from_bytes(drawn[:8], "big") % 1000
            call.compared = first or share < determinism.share_permille
        if fields.pipeline is not None:
            require(fields.pipeline in self.pipelines, "a step of a pipeline that does not run")
            self.pipelines[fields.pipeline].add(fields.request_id)
            self.steps[fields.request_id] = fields.pipeline
        require(len(self.open) <= self.config.limits.in_flight_max,
                "more calls in flight than allowed")

    def _end(self, fields: InvokeEnd) -> None:
        call = self.open.pop(fields.request_id, None)
        require(call is not None, "an end without an open invocation")
        assert call is not None
        self.ended.add(fields.request_id)
        require(fields.outcome != "result" or call.plugin in self.rights.trusted,
                "a result was given after its trust was gone")
        if fields.outcome == "result" and call.input_fingerprint is not None:
            key = (call.plugin, call.version, call.input_fingerprint)
            before = self.outputs.setdefault(key, fields.output_fingerprint)
            require(before == fields.output_fingerprint, "one input gave two outputs")
        if fields.outcome == "result":
            require(fields.incarnation in call.answered,
                    "a result that the worker with the call did not give")
        self._compare(fields, call)
        pipeline = self.steps.get(fields.request_id)
        if pipeline is not None:
            # The pipeline is answered, not its steps; a restart leaves nobody to tell.
            self.pipelines.get(pipeline, set()).discard(fields.request_id)
            return
        self.answers_due[fields.request_id] = 1
        if fields.outcome == "abandoned":
            # A gateway that stops tells the caller; one that starts again has nobody to tell.
            self.untold.add(fields.request_id)

    def _compare(self, fields: InvokeEnd, call: _Open) -> None:
        """An answer leaves when a second run gave the same, or could not be had."""
        outputs, verdict = call.outputs, fields.replica
        if fields.outcome == "result":
            require(verdict is not None or not call.compared,
                    "an answer left without its second run")
            require(not call.mismatched and verdict != "differed",
                    "an answer left although two differ")
            self.compared[call.surface] += verdict is not None
        if verdict == "agreed":
            require(outputs.get("replica") is not None
                    and outputs["replica"] == outputs.get("primary"),
                    "two answers are said to agree and do not")
        elif verdict == "differed":
            require(call.mismatched, "a difference without evidence")
            require("replica" in outputs and outputs["replica"] != outputs.get("primary"),
                    "two answers are said to differ and do not")
        elif outputs.get("replica") is not None:
            # A crash may have kept the answer and lost what it was for.
            require(fields.outcome == "abandoned", "a second answer was not looked at")

    def _witness(self, fields: WorkerProbe, now_us: int) -> None:
        worker = self.workers[fields.incarnation]
        require(worker.asked_us is not None, "a report that nobody asked for")
        worker.witnessed, worker.asked_us, worker.heard_us = fields.passed, None, now_us
        if any(fields.outcomes.get(name) == "allowed" for name in fields.failed):
            self.escaped.add((worker.plugin, worker.version))
        for old in self.workers.values():
            if old.successor == fields.incarnation and fields.passed and not old.draining:
                old.switched = True

    def _recycle(self, fields: ZygoteRecycle, now_us: int) -> None:
        old = self.workers[fields.incarnation]
        require(old.witnessed and not old.gone, "replaced what does not serve")
        if fields.reason == "upgrade":
            # It serves its own version to the end: nobody takes its place.
            return
        old.successor = fields.successor
        if fields.reason == "killed":
            times, key = self.config.times, (old.plugin, old.version)
            since_us = now_us - self.struck_us.get(key, -(10**9))
            require(since_us >= times.recycle_interval_ms * 1000,
                    "a version has its workers replaced too fast")
            since_us = now_us - max(self.struck_us.values(), default=-(10**9))
            require(since_us >= times.recycle_spacing_ms * 1000,
                    "the host replaces workers too fast")
            self.struck_us[key] = now_us

    def _exit(self, fields: WorkerExit) -> None:
        worker = self.workers[fields.incarnation]
        worker.gone = True
        if worker.switched and fields.reason == "drain_timeout":
            require(not any(fields.incarnation in call.runs and not call.answered
                            for call in self.open.values()),
                    "a call was lost because its worker was replaced")

    def _out(self, fields: FrameOut, now_us: int) -> None:
        if fields.plane == "front.admin":
            self.upgrading.discard(fields.request_id or "")
        if fields.type == "run":
            self._run(fields)
        elif fields.type == "probe":
            self.workers[fields.peer].asked_us = now_us
        elif fields.type == "drain":
            self.workers[fields.peer].draining = True
        elif fields.plane != "worker" and fields.type in (
            "result", "refusal", "pipeline_result",
        ):
            if fields.code in DOOR_CODES:
                request_id = fields.request_id or ""
                own = self.callers.get(request_id) == fields.peer
                if fields.code == "key_revoked" and own and not self.pipelines.get(request_id):
                    # It was taken in one turn with the revocation of its key, and never began.
                    self.pipelines.pop(request_id, None)
                return
            if fields.request_id in self.pipelines:
                require(fields.type != "result", "a pipeline was answered as a call")
                require(not self.pipelines.pop(fields.request_id),
                        "a pipeline was answered before its steps had ended")
                return
            require(fields.type != "pipeline_result", "a pipeline was answered twice")
            if fields.request_id in self.answers_due:
                self.answers_due[fields.request_id] -= 1
                require(self.answers_due[fields.request_id] >= 0,
                        "an invocation was answered twice")
            else:
                require(fields.type == "refusal", "a result for nothing")
                require(fields.request_id not in self.open, "answered before its end")
                require(fields.request_id not in self.ended, "an invocation was answered twice")

    def _run(self, fields: FrameOut) -> None:
        worker = self.workers[fields.peer]
        call = self.open.get(fields.request_id or "")
        require(call is not None, "a run without an open invocation")
        assert call is not None
        assert fields.call is not None
        assert fields.request_id is not None
        require((worker.plugin, worker.version) == (call.plugin, call.version),
                "a call was routed to a worker of another plugin")
        require(worker.attested and worker.witnessed and not worker.gone,
                "a call was routed to a worker that may not serve")
        require((worker.plugin, worker.version) not in self.dead, "a dead version was given a call")
        require(all(self.rights.may(worker.plugin, one) for one in worker.grants),
                "a call was given to a worker that holds what was taken back")
        require(worker.purpose in ("", fields.purpose), "one incarnation ran both runs' work")
        worker.purpose = fields.purpose or ""
        worker.calls[fields.call] = fields.request_id
        if fields.purpose == "replica":
            require(call.answered, "a replica ran before there was an answer")
            require(call.input_fingerprint, "a replica of a method that promises nothing")
            require(not call.replicas, "one invocation had two replicas")
            call.replicas[fields.peer] = fields.call
            return
        require(not call.answered, "what was answered ran again")
        again = [self.workers[incarnation].gone for incarnation in call.runs]
        require(not again or (again == [True] and call.method == "read"),
                "one invocation was run twice")
        call.runs[fields.peer] = fields.call

    def _in(self, fields: FrameIn) -> None:
        if fields.type == "enable_plugin" and fields.request_id is not None:
            self.upgrading.add(fields.request_id)
        if fields.plane != "worker" and fields.request_id is not None:
            omega = self.rights.roles.get(fields.peer) == "omega"
            # Whoever used an id first used it, also one who was refused.
            if fields.request_id not in self.named:
                self.named.add(fields.request_id)
                if omega and fields.plane == "front.omega" and fields.type == "invoke_pipeline":
                    self.pipelines[fields.request_id] = set()
                    self.callers[fields.request_id] = fields.peer
        if fields.plane == "worker" and fields.call is not None:
            worker = self.workers[fields.peer]
            call = self.open.get(worker.calls.get(fields.call, ""))
            if call is None or fields.type not in ("call_result", "call_failure"):
                return
            purpose = "replica" if fields.call in call.replicas.values() else "primary"
            said = self.said.get((fields.peer, fields.call))
            call.outputs.setdefault(purpose, said if fields.type == "call_result" else None)
            if fields.type == "call_result" and purpose == "primary":
                call.answered.add(fields.peer)

    def settled(self, now_us: int) -> None:
        """After each turn: nothing waits for a worker that is gone, nothing is left unanswered,
        and no worker lives on without its witness."""
        require(self.escaped <= self.dead, "a probe got through and nothing was quarantined")
        for worker in self.workers.values():
            if not worker.gone:
                require(worker.plugin in self.rights.trusted,
                        "a worker lives on that nobody trusts")
                require(all(self.rights.may(worker.plugin, one) for one in worker.grants),
                        "a worker lives on that holds what was taken back")
                require(not worker.attested or worker.plugin not in self.rights.policy.unloaded,
                        "a worker lives on with a module that nobody approves")
                self._witnessed(worker, now_us)
        for request_id, call in self.open.items():
            require(self.rights.holds(call.peer, "omega"), "a call goes on whose key is gone")
            runs = call.replicas if call.answered else call.runs
            gone = [incarnation for incarnation in runs if self.workers[incarnation].gone]
            # An idempotent call may be tried once more, and waits for that.
            require(not gone or (call.method == "read" and len(gone) == 1 and not call.answered),
                    f"{request_id} waits for a worker that is gone")
        for request_id, count in self.answers_due.items():
            told = count == 0 or (count == 1 and request_id in self.untold)
            require(told, f"{request_id} ended {1 - count} times answered")
        self.answers_due.clear()
        # What ends while a turn's frames leave is taken up by the next turn.
        room = len(self.open) <= self.config.limits.in_flight_max // 3
        idle = {name for name, steps in self.pipelines.items() if room and not steps}
        for request_id in idle & self.idle:
            require(False, f"{request_id} is a pipeline that waits for nothing")
        self.idle = idle

    def _witnessed(self, worker: _Worker, now_us: int) -> None:
        times = self.config.times
        if worker.asked_us is not None:
            require(now_us - worker.asked_us < times.witness_ms * 1000,
                    "a worker lives on without the report it owes")
        elif worker.witnessed and not worker.draining:
            require(now_us - worker.heard_us < times.witness_interval_ms * 1000,
                    "a worker serves on without another witness")

    def restarted(self) -> None:
        """A new process begins: no worker survives."""
        for worker in self.workers.values():
            worker.gone = True
        self.low = False
        self.upgrading.clear()
        self.struck_us.clear()
        self.answers_due.clear()
        self.pipelines.clear()
        self.resting.clear()
        self.idle.clear()
