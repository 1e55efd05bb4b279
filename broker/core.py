"""The core: told what arrived and what happened, it answers with effects. Pure.

Rules this file keeps:
- For any bytes from anyone it returns effects; any exception is a bug.
- Every frame is an event, in or out or dropped. Only OMEGA's invocations start anything; what a
  worker starts is refused and costs the worker its life.
- An accepted invocation ends exactly once, by the first end that `broker.lifecycle` allows.
- Time in us, ids and nonces come in from the shell; the core never asks.

It leaves workers' lives to `broker.supervision`, operators' requests and reads to
`broker.administration`, payloads to `broker.orchestrator.calls`, and every socket, file and process
to `broker.gateway`. Source: specification sections 4, 5, 7; the race table of docs/WIRE.md.
"""

from __future__ import annotations

from collections.abc import Iterable

from broker.administration import Administration
from broker.effects import Effect, Origin, StoreTrust
from broker.folded import Folded, restore
from broker.inventory import Inventory
from broker.invocations import Ending, Invocations
from broker.lifecycle import GATEWAY, MAY_SEND
from broker.orchestrator.calls import Call, StepOf, note_commitment
from broker.orchestrator.fleet import Pool, Worker
from broker.orchestrator.pipelines import Pipelines
from broker.orchestrator.upgrades import Upgrades
from broker.reload import Settings, take_settings
from broker.state import State
from broker.supervision import Supervision
from broker.trusting import Trusting
from schemas import codec
from schemas.events import (
    Event,
    EventFields,
    FrameIn,
    GatewayDegraded,
    InvokeAccept,
    InvokeEnd,
    InvokeRefuse,
    KeyChange,
    Plane,
    PluginQuarantine,
)
from schemas.messages import (
    CallFailure,
    CallProgress,
    CallResult,
    Cancel,
    FromAdmin,
    FromOmega,
    FromWorker,
    Invoke,
    InvokePipeline,
    Pong,
    ProbeReport,
    Ready,
    SetTrust,
    StepResult,
    type_name,
)
from schemas.names import PLUGIN_MESSAGE_BYTES_MAX
from schemas.refusals import RefusalCode
from schemas.request_ids import request_id_of

RECORDED = Inventory.CONCERNS | {InvokeEnd, InvokeRefuse}
"""The events that the core must be told of when they are in the ledger."""


class Core:
    """The gateway's decisions. Every public method takes the time and returns effects in order."""

    def __init__(self, state: State) -> None:
        """Take the memory that the shell filled from the home and the ledger."""
        self.state = state
        self._invocations = Invocations(
            state, start=self._start, foresee=self._foresee, step_ended=self._step_ended
        )
        self._pipelines = Pipelines(state, self._invocations)
        self._workers = Supervision(
            state, lost=self._invocations.lost, room=self._room, left=self._left,
        )
        self._upgrades = Upgrades(state, self._workers)
        self._administration = Administration(
            state, self._workers, self._upgrades, self._invocations.end_revoked
        )
        self._trusting = Trusting(state, self._workers, self._invocations.end_revoked)

    def _start(self, pool: Pool) -> None:
        self._workers.ensure(pool)

    def _room(self, pool: Pool) -> None:
        self._upgrades.came(pool)
        self._invocations.dispatch(pool)

    def _left(self, worker: Worker, reason: str) -> None:
        self._upgrades.left(worker, reason)
    def _foresee(self, pool: Pool) -> None:
        self._workers.foresee(pool)

    def _step_ended(self, step_of: StepOf, result: StepResult) -> None:
        self._pipelines.step_ended(step_of, result)

    # --- starting ---

    def restore(self, event: Event) -> None:
        """Take in one event of the ledger's past: the inventory, and request ids in the window."""
        state = self.state
        fields = event.fields
        state.inventory.apply(fields, event.seq)
        if isinstance(fields, InvokeEnd):
            self._invocations.recorded(fields, event.seq)
        if event.ts_us < state.wall_us - state.config.limits.request_window_ms * 1000:
            return
        if isinstance(fields, FrameIn) and fields.request_id is not None:
            if fields.plane != "worker":
                state.admit(fields.peer, fields.request_id, event.ts_us)
        elif isinstance(fields, InvokeAccept):
            state.admit(fields.peer, fields.request_id, event.ts_us)
            self._invocations.accepted(fields.request_id, fields.peer)

    def take_up(self, folded: Folded) -> None:
        """Begin with the state that the ledger vouches for, instead of the events before it."""
        restore(self.state, folded)
        for request_id, peer in folded.open_invocations.items():
            self._invocations.accepted(request_id, peer)

    def begin(self, damaged: Iterable[tuple[str, str]], now: int) -> list[Effect]:
        """Begin to serve: nobody is adopted, so every call left open ends as abandoned.

        Args:
            damaged: plugin and version of each bundle that is not what was registered.
            now: monotonic time, us.
        """
        state = self._at(now)
        state.began_us = now
        state.steady_offset_us = state.wall_us - now
        # A crash may have kept the witness's word and lost what follows from it.
        escapes = state.inventory.escapes
        for plugin, version in sorted({*damaged, *escapes}):
            record = state.inventory.record(plugin, version)
            if record is not None and state.inventory.may(record, "quarantine"):
                state.append(PluginQuarantine(
                    plugin=plugin, version=version, reason="probe_succeeded"
                    if (plugin, version) in escapes else "bundle_damaged",
                ))
        self._invocations.abandon_all()
        return state.take()

    # --- time ---

    def next_deadline(self) -> int | None:
        """Say when `tick` must be called at the latest, in monotonic us, or None."""
        return self.state.next_deadline()

    def tick(self, now: int) -> list[Effect]:
        """Do what is due by now: deadlines, back-offs, silences, counts of bad frames."""
        state = self._at(now)
        for drop in state.drops.settle(now):
            state.append(drop)
        while (due := state.due()) is not None:
            kind, key = due
            if kind == "call":
                self._invocations.deadline(key)
            elif kind == "presence":
                if not self._invocations.presence_due(key):
                    self._pipelines.presence_due(key)
            elif kind == "pipeline":
                self._pipelines.due(key)
            elif kind == "backoff":
                self._workers.ensure(state.fleet.named(key))
            elif kind == "trial":
                self._administration.registrations.due(key)
            elif kind == "stop":
                self._stop()
            else:
                self._workers.due(kind, key)
        return state.take()

    def _at(self, now: int) -> State:
        self.state.now = now
        return self.state

    # --- the shell speaks back ---

    def trust_kept(self, proposed: StoreTrust, failure: str, now: int) -> list[Effect]:
        """A trust root lies durably in the home, or could not be kept: then nothing changes."""
        self._at(now)
        self._trusting.kept(proposed, failure)
        return self.state.take()

    def recorded(self, fields: EventFields, seq: int) -> None:
        """Take in an event that the shell has put into the ledger; the inventory is their fold."""
        state = self.state
        state.take_in(fields, seq)
        if isinstance(fields, InvokeEnd):
            self._invocations.recorded(fields, seq)
        if isinstance(fields, (InvokeEnd, InvokeRefuse)):
            self._pipelines.recorded(fields.request_id, seq)

    # --- clients ---

    def from_omega(self, origin: Origin, frame: codec.Frame, now: int) -> list[Effect]:
        """Take one frame from front.omega."""
        return self._from_client(origin, frame, now, codec.from_omega)

    def from_admin(self, origin: Origin, frame: codec.Frame, now: int) -> list[Effect]:
        """Take one frame from front.admin."""
        reads = self.state.holds(origin.key_id, "auditor")
        decoder = codec.from_reader if reads else codec.from_admin
        return self._from_client(origin, frame, now, decoder)

    def _from_client(
        self,
        origin: Origin,
        frame: codec.Frame,
        now: int,
        decoder: codec.Decoder[FromOmega] | codec.Decoder[FromAdmin],
    ) -> list[Effect]:
        state = self._at(now)
        if not state.knows(origin.key_id):
            if state.drop(origin.front, origin.key_id, RefusalCode.KEY_REVOKED, len(frame)):
                state.refuse(
                    origin, request_id_of(frame), RefusalCode.KEY_REVOKED, receipt=True
                )
            return state.take()
        try:
            request = decoder.decode(frame)
        except codec.WireError as error:
            self._refuse_frame(origin, frame, error)
            return state.take()
        kind = type_name(request)
        state.append(
            FrameIn(plane=origin.front, peer=origin.key_id, type=kind, bytes=len(frame),
                    request_id=request.request_id)
        )
        code = self._forbidden(origin, kind)
        # An id that was refused is used too: the fold of the ledger cannot tell them apart.
        if not state.admit(origin.key_id, request.request_id) and code is None:
            code = RefusalCode.DUPLICATE_REQUEST
        if code is not None:
            self._refuse_request(origin, request, code)
        elif isinstance(request, Invoke):
            self._invocations.invoke(origin, request)
            return state.take()
        elif isinstance(request, InvokePipeline):
            self._pipelines.accept(origin, request)
        elif isinstance(request, Cancel):
            self._pipelines.cancel(origin, request)
        elif isinstance(request, SetTrust):
            self._trusting.propose(origin, request)
        else:
            self._administration.handle(origin, request)
        return state.take_answer(origin, request.known_size)

    def _forbidden(self, origin: Origin, kind: str) -> RefusalCode | None:
        key = self.state.keys[origin.key_id]
        fits = (key.role == "omega") == (origin.front == "front.omega")
        if not fits or (key.role, kind) not in MAY_SEND:
            return RefusalCode.ROLE_NOT_ALLOWED
        return None

    def _refuse_frame(self, origin: Origin, frame: codec.Frame, error: codec.WireError) -> None:
        state = self.state
        if not state.drop(origin.front, origin.key_id, error.code, len(frame), error.where):
            return
        state.refuse(origin, request_id_of(frame), error.code, str(error),
                     where=error.where, hint=error.hint, receipt=True)

    def _refuse_request(
        self, origin: Origin, request: FromOmega | FromAdmin, code: RefusalCode
    ) -> None:
        state = self.state
        end = state.end_of(origin.key_id, request.request_id)
        duplicate = code is RefusalCode.DUPLICATE_REQUEST
        hint = f"the first one ended at event {end}" if duplicate and end is not None else ""
        if isinstance(request, Invoke | InvokePipeline):
            invoke = request if isinstance(request, Invoke) else None
            state.append(
                InvokeRefuse(request_id=request.request_id, peer=origin.key_id, code=code,
                             plugin=invoke.plugin if invoke else None,
                             method=invoke.method if invoke else None,
                             first_end_seq=end if duplicate else None)
            )
            state.refuse(origin, request.request_id, code, hint=hint, receipt=True,
                         known_size=request.known_size)
            return
        state.refuse(origin, request.request_id, code, hint=hint)

    # --- workers ---

    def from_worker(self, incarnation: str, frame: codec.Frame, now: int) -> list[Effect]:
        """Take one frame from one worker's socket."""
        state = self._at(now)
        worker = state.fleet.by_incarnation.get(incarnation)
        if worker is None:
            state.drop("worker", incarnation, RefusalCode.WORKER_PROTOCOL_VIOLATION, len(frame))
            return state.take()
        try:
            message = codec.from_worker.decode(frame)
        except codec.WireError as error:
            code = error.code
            if codec.is_client_request(frame):
                code = RefusalCode.PLUGIN_ORIGIN_ROUTING
            self._violation(worker, code, len(frame), error.where)
            return state.take()
        number = getattr(message, "call", None)
        known = worker.calls.get(number) if number is not None else None
        state.append(
            FrameIn(plane="worker", peer=incarnation, type=type_name(message),
                    bytes=len(frame), call=number,
                    request_id=known.request_id if known else None,
                    note_commitment=note_commitment(message, known))
        )
        worker.heard_us = now
        if not self._from_known_worker(worker, message, known):
            self._violation(worker, RefusalCode.WORKER_PROTOCOL_VIOLATION, len(frame),
                            type_name(message))
        return state.take()

    def _from_known_worker(
        self, worker: Worker, message: FromWorker, call: Call | None
    ) -> bool:
        """Handle a decoded message; False when the worker had no business sending it."""
        words = None
        if isinstance(message, CallFailure):
            words = message.plugin_message
        elif isinstance(message, CallProgress):
            words = message.note
        if words is not None and len(words.encode()) > PLUGIN_MESSAGE_BYTES_MAX:
            return False
        if isinstance(message, (CallResult, CallFailure)):
            late = worker.aborted.pop(message.call, None) is not None
            if call is None and not late:
                return False
            worker.served += 1
            if call is not None and isinstance(message, CallResult):
                self._invocations.result(call, message)
            elif call is not None and isinstance(message, CallFailure):
                self._invocations.failure(call, message)
            if message.fault is not None:
                self._workers.struck(worker)
            self._served(worker, clean=isinstance(message, CallResult))
            return True
        if isinstance(message, CallProgress):
            if call is None:
                return message.call in worker.aborted
            self._invocations.progress(call, message)
            return True
        if isinstance(message, Ready):
            return self._workers.ready(worker, message)
        if isinstance(message, ProbeReport):
            return self._workers.probed(worker, message)
        if isinstance(message, Pong):
            return self._workers.pong(worker, message)
        return self._workers.bye(worker, message)

    def _served(self, worker: Worker, *, clean: bool) -> None:
        pool = self.state.fleet.pool_of(worker)
        if clean:
            pool.failures = 0
        self._invocations.dispatch(pool)
        self._workers.settle(pool)
        self._workers.renew(worker)

    def _violation(self, worker: Worker, code: RefusalCode, size: int, where: str) -> None:
        self.state.drop("worker", worker.incarnation, code, size, where)
        self._workers.kill(worker, str(code))

    # --- what the shell saw ---

    def worker_started(self, incarnation: str, pid: int | None, now: int) -> list[Effect]:
        """A worker's process exists."""
        worker = self._at(now).fleet.by_incarnation.get(incarnation)
        if worker is not None:
            worker.pid = pid
        return self.state.take()

    def worker_exited(
        self, incarnation: str, status: int | None, signal: int | None, now: int
    ) -> list[Effect]:
        """A worker's process is gone."""
        worker = self._at(now).fleet.by_incarnation.get(incarnation)
        if worker is not None:
            self._workers.gone(worker, "exit", "exit", status=status, signal=signal)
        return self.state.take()

    def client_gone(self, request_id: str | None, now: int) -> list[Effect]:
        """A sign of life could not be delivered: from now on its client is taken to be gone."""
        state = self._at(now)
        open_one = state.calls.get(request_id or "") or state.pipelines.get(request_id or "")
        if open_one is not None and open_one.client_gone_us is None:
            open_one.client_gone_us = now
        return state.take()

    def spawn_failed(self, incarnation: str, reason: str, now: int) -> list[Effect]:
        """A process could not be made: a worker's, or one that tries schemas."""
        worker = self._at(now).fleet.by_incarnation.get(incarnation)
        if self._administration.registrations.failed(incarnation, reason):
            return self.state.take()
        if worker is not None:
            worker.exit_detail = codec.printable(reason)
            self._workers.gone(worker, "start_failed", "start_failed")
        return self.state.take()

    def schemas_tried(self, trial: str, end: tuple[int, int, bytes], now: int) -> list[Effect]:
        """The prober of some schemas ended: what waited for it is registered, or refused."""
        self._at(now)
        self._administration.registrations.tried(trial, *end)
        return self.state.take()

    def worker_intruded(self, incarnation: str, now: int) -> list[Effect]:
        """A second handshake came for a worker's socket: the incarnation ends."""
        state = self._at(now)
        state.drop("worker", incarnation, RefusalCode.CONNECTION_REFUSED, 0)
        worker = state.fleet.by_incarnation.get(incarnation)
        if worker is not None:
            self._workers.kill(worker, str(RefusalCode.CONNECTION_REFUSED))
        return state.take()

    def connections_refused(
        self, plane: Plane, count: int, where: str, now: int
    ) -> list[Effect]:
        """Connections ended before they were authenticated; they got nothing."""
        state = self._at(now)
        state.drop(plane, "unknown", RefusalCode.HANDSHAKE_REFUSED, 0, where, count)
        return state.take()

    def endpoint_ended(self, key_id: str, now: int) -> list[Effect]:
        """A server key that was replaced is not served any more."""
        state = self._at(now)
        state.append(KeyChange(action="removed", role="server", key_id=key_id, actor="home"))
        return state.take()

    def miscounted(
        self, plane: Plane, peer: str, origin: Origin | None, frames: int, size: int, now: int
    ) -> list[Effect]:
        """A message did not have exactly one body frame."""
        state = self._at(now)
        worker = state.fleet.by_incarnation.get(peer)
        if worker is not None:
            self._violation(worker, RefusalCode.FRAME_COUNT, size, f"{frames} frames")
        elif state.drop(plane, peer, RefusalCode.FRAME_COUNT, size, f"{frames} frames") and origin:
            state.refuse(origin, None, RefusalCode.FRAME_COUNT, f"found {frames} frames",
                         receipt=True)
        return state.take()

    # --- room, settings, and stopping ---

    def space(self, now: int, *, low: bool) -> list[Effect]:
        """The ledger's volume has little room left, or enough again: what is new is refused."""
        state = self._at(now)
        if low != (RefusalCode.LOW_SPACE in state.degraded):
            state.degraded ^= {RefusalCode.LOW_SPACE}
            state.append(GatewayDegraded(degraded=low, reason=RefusalCode.LOW_SPACE))
        return state.take()

    def reload(self, settings: Settings, now: int) -> list[Effect]:
        """Go on under other settings; every fixed section must be the same."""
        state = self._at(now)
        take_settings(state, settings, self._workers, self._invocations.end_revoked)
        return state.take()

    def drain(self, now: int) -> list[Effect]:
        """Begin to stop: take no new call, let those in flight finish within `drain_ms`."""
        state = self._at(now)
        after = GATEWAY.get((state.gateway, "drain"))
        if after is not None:
            state.gateway = after
            self._upgrades.stop()
            for pool in list(state.fleet.pools.values()):
                self._workers.ensure(pool)
            state.later(now + state.config.times.drain_ms * 1000, "stop", "")
        return state.take()

    def stop(self, now: int) -> list[Effect]:
        """Stop now: what is still in flight ends as abandoned, every worker is ended."""
        self._at(now)
        self._stop()
        return self.state.take()

    def _stop(self) -> None:
        state = self.state
        after = GATEWAY.get((state.gateway, "stop"))
        if after is None:
            return
        self._pipelines.end_all("abandon")
        self._administration.registrations.stop()
        for call in list(state.calls.values()):
            self._invocations.finish(call, "abandon", "abandoned", Ending(RefusalCode.ABANDONED))
        for worker in list(state.fleet.by_incarnation.values()):
            self._workers.kill(worker, "stopped", failed=False)
        state.gateway = after

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight, so that a drain may end."""
        return not self.state.calls and not self.state.pipelines
