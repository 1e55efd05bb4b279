"""The loop: drain, decide, ledger, commit, send. The only place where effects happen.

Rules this file keeps:
- Persist, then speak: what a turn decided is appended in the order of the decisions, committed by
  one write and one flush, and only then sent, spawned or killed.
- Nothing but the commit may block. Starts and exits of workers come back as arrivals.
- A worker's end is told to the core after everything it had sent, with its exit status if there is
  one: connection and process end in either order, and the second is waited for a moment.
- When the ledger fails, everything queued is dropped, without a reply, and the process ends with
  74.

It leaves decisions to `broker.core`, sockets to `broker.transport`, bytes on disk to
`broker.ledger`, reads of them to `broker.answers` and start-up to `broker.serve`. Source:
specification INV-PNP-07, INV-PNP-10; docs/ARCHITECTURE.md.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from broker.answers import UNREADABLE, Answers
from broker.arrivals import (
    Arrival,
    EndpointEnded,
    FrontFrames,
    HandshakesRefused,
    OversizedMessage,
    Readable,
    WorkerDisconnected,
    WorkerFrames,
    WorkerIntruder,
)
from broker.core import RECORDED, Core
from broker.effects import (
    Append,
    Effect,
    Evidence,
    Kill,
    Order,
    Origin,
    Send,
    SetKeys,
    Spawn,
    StoreBundle,
    StoreTrust,
    TrySchemas,
)
from broker.folded import Folded
from broker.keeping import Keeper
from broker.launchers.external import ExternalLauncher
from broker.launchers.local import Exited, LocalLauncher, Report, Started, StartFailed, Tried
from broker.launching import Surroundings, launch_document
from broker.ledger.commit import Appended, Ledger
from broker.registration import not_stored
from broker.shell import BundleStore, Clock, SignalSource, StateStore, TrustStore
from broker.sockets import TransportRefused
from broker.transport import SendOutcome, Transport
from schemas import codec
from schemas.events import (
    Event,
    EventFields,
    FrameOut,
    GatewayDegraded,
    LedgerClose,
    ReplyUndeliverable,
)
from schemas.messages import Refusal, Run, Validation, type_name

TURN_MS_MAX: Final = 1_000
KEEP_ALIVE: Final = "keep_alive"
SETTLE_MS: Final = 250
"""How long the second of a worker's two ends, connection and process, is waited for."""


class _Leaving(NamedTuple):
    """A worker of whose end one half was seen: until when the other is waited for; its status."""

    until_us: int
    status: int | None = None
    signal: int | None = None


class Gateway:
    """The running broker. Call `run` once; it returns the process's exit status."""

    def __init__(
        self,
        *,
        core: Core,
        ledger: Ledger,
        transport: Transport,
        launcher: LocalLauncher,
        external: ExternalLauncher,
        bundles: BundleStore,
        trust: TrustStore,
        states: StateStore,
        artifacts: str,
        signals: SignalSource,
        clock: Clock,
    ) -> None:
        """Take every part, already open; `artifacts` is the folder of the artifact store."""
        self._core = core
        self._ledger = ledger
        self._transport = transport
        self._launcher = launcher
        self._external = external
        self._bundles = bundles
        self._trust = trust
        self._artifacts = artifacts
        self._signals = signals
        self._clock = clock
        self._last = Appended(0, "")
        self._outbox: list[tuple[Origin | str, bytes, FrameOut]] = []
        self._after: list[Spawn | Kill | SetKeys | StoreTrust | TrySchemas] = []
        self._asked: dict[str, Appended] = {}
        self._answers = Answers(ledger, self._unreadable)
        self._keeper = Keeper(core.state, self._answers, ledger, states, self.append)
        self._leaving: dict[str, _Leaving] = {}
        transport.watch(launcher.fd)
        transport.watch(signals.fd)

    # --- the loop ---

    def run(self) -> int:
        """Serve until drained. Returns 0; raises `LedgerFailure` when the ledger latched."""
        core = self._core
        while core.state.gateway != "stopped":
            self.turn(self._transport.poll(self._timeout_ms()))
            if core.state.gateway == "draining" and core.idle:
                self.perform(core.stop(self._clock.tick()))
                self._conclude()
        self.append(LedgerClose(reason="drained"))
        self._ledger.commit()
        return 0

    def _timeout_ms(self) -> int:
        if self._ledger.pending:
            return 0
        longest_ms = SETTLE_MS if self._leaving else TURN_MS_MAX
        deadline = self._core.next_deadline()
        if deadline is None:
            return longest_ms
        # Rounded up, so that a turn does not come a moment before what it waits for.
        return max(0, min(longest_ms, (deadline - self._clock.tick()) // 1000 + 1))

    def turn(self, arrivals: list[Arrival]) -> None:
        """Take what arrived, decide all of it, commit once, then act."""
        self._clock.tick()
        state = self._core.state
        state.wall_us = self._clock.wall_us()
        state.ledger_size = self._ledger.size
        low = self._ledger.space_low()
        self.perform(self._core.space(self._clock.tick(), low=low))
        for arrival in arrivals:
            self.perform(self._decide(arrival, self._clock.tick()))
        now = self._clock.tick()
        for incarnation, leaving in list(self._leaving.items()):
            if leaving.until_us <= now:
                self.perform(self._left(incarnation, now))
        deadline = self._core.next_deadline()
        if deadline is not None and deadline <= now:
            self.perform(self._core.tick(now))
        self._conclude()

    def _decide(self, arrival: Arrival, now: int) -> list[Effect]:
        core = self._core
        if isinstance(arrival, WorkerFrames):
            if len(arrival.frames) == 1:
                return core.from_worker(arrival.incarnation, arrival.frames[0], now)
            size = sum(map(len, arrival.frames))
            return core.miscounted(
                "worker", arrival.incarnation, None, len(arrival.frames), size, now
            )
        if isinstance(arrival, FrontFrames):
            origin, frames = arrival.origin, arrival.frames
            if len(frames) != 1:
                return core.miscounted(
                    origin.front, origin.key_id, origin, len(frames), sum(map(len, frames)), now
                )
            if origin.front == "front.omega":
                return core.from_omega(origin, frames[0], now)
            return core.from_admin(origin, frames[0], now)
        if isinstance(arrival, Readable):
            return self._readable(arrival.fd, now)
        if isinstance(arrival, HandshakesRefused):
            return core.connections_refused(arrival.plane, arrival.count, arrival.where, now)
        if isinstance(arrival, OversizedMessage):
            return core.miscounted(
                arrival.plane, arrival.peer, None, arrival.frames, arrival.bytes, now
            )
        if isinstance(arrival, EndpointEnded):
            return core.endpoint_ended(arrival.key_id, now)
        if isinstance(arrival, WorkerIntruder):
            return core.worker_intruded(arrival.incarnation, now)
        if isinstance(arrival, WorkerDisconnected):
            if not self._launcher.runs(arrival.incarnation):
                return self._left(arrival.incarnation, now)
            self._leaving[arrival.incarnation] = _Leaving(now + SETTLE_MS * 1000)
        return []

    def _left(self, incarnation: str, now: int) -> list[Effect]:
        """Both halves of a worker's end were seen, or the second did not come in time."""
        _, status, signal = self._leaving.pop(incarnation, _Leaving(now))
        return self._core.worker_exited(incarnation, status, signal, now)

    def _readable(self, fd: int, now: int) -> list[Effect]:
        """A signal came, or the launcher has something to tell."""
        core = self._core
        effects: list[Effect] = []
        if fd == self._signals.fd:
            signalled = self._signals.take()
            if signalled.settings is not None:
                effects += core.reload(signalled.settings, now)
                self._transport.keep_old(dict(signalled.settings.old_until_us))
            for _ in range(signalled.stops):
                draining = core.state.gateway != "serving"
                effects += core.stop(now) if draining else core.drain(now)
        else:
            for report in self._launcher.receive():
                self.perform(self._reported(report, now))
        return effects

    def _reported(self, report: Report, now: int) -> list[Effect]:
        """Tell the core; what waited for a trial has the receipt of its own arrival."""
        name = report.incarnation
        self._last = self._asked.pop(name, self._last)
        if isinstance(report, Started):
            self._transport.admit_worker(name, report.pid, os.getuid())
            return self._core.worker_started(name, report.pid, now)
        if isinstance(report, Tried):
            end = report.status, report.signal, report.said
            return self._core.schemas_tried(name, end, now)
        if isinstance(report, Exited):
            self._leaving[name] = _Leaving(now + SETTLE_MS * 1000, report.status, report.signal)
            return [] if self._transport.holds(name) else self._left(name, now)
        return self._core.spawn_failed(name, report.reason, now)

    # --- performing ---

    def append(self, fields: EventFields) -> Appended:
        """Put one event into the ledger's present batch and tell the core where it lies."""
        appended = self._ledger.append(fields)
        if type(fields) in RECORDED:
            self._core.recorded(fields, appended.seq)
        self._answers.remember(fields, appended.seq)
        return appended

    def restore(self, event: Event) -> None:
        """Take in one event of the ledger's past."""
        self._core.restore(event)
        self._answers.remember(event.fields, event.seq)

    def take_up(self, folded: Folded) -> None:
        """Begin with a state that the ledger vouches for, instead of the events before it."""
        self._core.take_up(folded)
        self._answers.take_up(folded)

    def snapshot(self) -> None:
        """Write the folded state down before anybody is served."""
        self._keeper.at_once()

    def perform(self, effects: list[Effect]) -> None:
        """Do what the core decided, in order; what leaves the process waits for the commit."""
        for effect in effects:
            if isinstance(effect, Append):
                self._last = self.append(effect.fields)
            elif isinstance(effect, Send):
                self._send(effect)
            elif isinstance(effect, Order):
                self._order(effect)
            elif isinstance(effect, StoreBundle):
                try:
                    self._bundles.store(effect.bundle_sha256, effect.data)
                except OSError as error:
                    # Nothing that this bundle's registration would bring about happens.
                    self.perform(not_stored(self._core.state, effects, error))
                    return
            elif isinstance(effect, StoreTrust):
                self._store_trust(effect)
            elif isinstance(effect, Evidence):
                answer = self._answers.evidence(effect)
                self._send(Send(effect.to, answer, receipt=True, known_size=effect.known_size))
            else:
                if isinstance(effect, TrySchemas):
                    self._asked[effect.trial] = self._last
                self._after.append(effect)

    def _store_trust(self, effect: StoreTrust) -> None:
        """Keep a root before its event; it is laid in place once that event is durable."""
        failure = ""
        try:
            self._trust.keep(effect.request.envelope, effect.root.trust.version)
        except OSError as error:
            failure = error.strerror or str(error)
        else:
            self._after.append(effect)
        self.perform(self._core.trust_kept(effect, failure, self._clock.tick()))

    def _unreadable(self) -> None:
        """Say once that the stored ledger cannot be read back."""
        degraded = self._core.state.degraded
        if UNREADABLE not in degraded:
            degraded.add(UNREADABLE)
            self.append(GatewayDegraded(reason=UNREADABLE))

    def _send(self, effect: Send) -> None:
        message = effect.message
        if isinstance(message, Validation) and message.request_id is not None:
            self._last = self._asked.pop(message.request_id.replace("-", ""), self._last)
        if effect.receipt:
            receipt = self._answers.receipt(self._last, effect.known_size)
            message = msgspec.structs.replace(message, receipt=receipt)
        frame = codec.encode(message)
        event = FrameOut(
            plane=effect.to.front, peer=effect.to.key_id,
            type=type_name(message), bytes=len(frame), request_id=message.request_id,
            code=message.code if isinstance(message, Refusal) else None,
        )
        self.append(event)
        self._outbox.append((effect.to, frame, event))

    def _order(self, effect: Order) -> None:
        message = effect.message
        frame = codec.encode(message)
        run = message if isinstance(message, Run) else None
        event = FrameOut(
            plane="worker", peer=effect.incarnation, type=type_name(message),
            bytes=len(frame), request_id=run.request_id if run else None,
            call=getattr(message, "call", None), purpose=run.purpose if run else None,
        )
        self.append(event)
        self._outbox.append((effect.incarnation, frame, event))

    def _conclude(self) -> None:
        """Make the turn durable, then let out what it decided."""
        ledger = self._ledger
        if ledger.pending:
            ledger.commit()
        outbox, self._outbox = self._outbox, []
        after, self._after = self._after, []
        for to, frame, event in outbox:
            outcome = (
                self._transport.send_worker(to, frame) if isinstance(to, str)
                else self._transport.send(to, frame)
            )
            if outcome != "sent":
                self._undeliverable(to, event, outcome)
        for effect in after:
            if isinstance(effect, Spawn):
                self._spawn(effect)
            elif isinstance(effect, Kill):
                self._transport.close_worker(effect.incarnation)
                self._launcher.kill(effect.incarnation)
                self._external.withdraw(effect.incarnation)
            elif isinstance(effect, StoreTrust):
                self._trust.install()
            elif isinstance(effect, TrySchemas):
                self._try_schemas(effect)
            else:
                self._transport.set_keys(effect.front, effect.keys, disconnect=effect.disconnect)
        if ledger.roll_due:
            ledger.roll()
            self._keeper.rolled()
        self._keeper.go_on()
        if ledger.checkpoint_due():
            ledger.checkpoint()

    def _undeliverable(self, to: Origin | str, event: FrameOut, outcome: SendOutcome) -> None:
        """Say in the ledger that a frame did not leave; a worker that does not read is lost.

        Of a worker that went, the transport tells by itself, after what it had sent.
        """
        self.append(ReplyUndeliverable(
            plane=event.plane, peer=event.peer, type=event.type,
            reason="full" if outcome == "full" else "gone",
            request_id=event.request_id, call=event.call,
        ))
        if event.type == KEEP_ALIVE and outcome == "gone":
            self.perform(self._core.client_gone(event.request_id, self._clock.tick()))
        if isinstance(to, str) and outcome == "full":
            self.perform(self._core.worker_exited(to, None, None, self._clock.tick()))

    def _try_schemas(self, effect: TrySchemas) -> None:
        try:
            self._launcher.try_schemas(effect.trial, effect.schemas)
        except OSError as error:
            self.perform(self._reported(StartFailed(effect.trial, str(error)), self._clock.tick()))

    def _spawn(self, effect: Spawn) -> None:
        """Start one worker; where the machine does not let us, the core hears of it."""
        try:
            self._launch(effect)
        except (TransportRefused, OSError) as error:
            self._transport.close_worker(effect.incarnation)
            now = self._clock.tick()
            self.perform(self._core.spawn_failed(effect.incarnation, str(error), now))

    def _launch(self, effect: Spawn) -> None:
        at = self._transport.open_worker(effect.incarnation)
        data = launch_document(effect, self._core.state, Surroundings(
            at.endpoint, at.server_key, at.worker_secret_key,
            self._bundles.path(effect.bundle_sha256), self._artifacts, self._clock.wall_us(),
        ))
        if effect.launcher == "external":
            self._transport.admit_worker(effect.incarnation, None, os.getuid())
            self._external.launch(effect.incarnation, effect.plugin, data)
        else:
            self._launcher.launch(effect.incarnation, data)
