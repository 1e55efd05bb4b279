"""Plays a transcript's commands on the real loop and core, with the simulation's stand-ins.

Names stand for ids: `r1` is a request, `w1` the first worker. Each command gives the events it
added to the ledger and the replies that left, a line each, so that a transcript shows all that can
be known from outside.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable

import msgspec

from broker.arrivals import Arrival, FrontFrames, Readable, WorkerDisconnected, WorkerFrames
from broker.config import DeterminismConfig
from broker.core import Core
from broker.effects import Origin
from broker.gateway import Gateway
from broker.inventory import Inventory
from broker.ledger.errors import LedgerFailure
from broker.policy import policy_digest
from broker.state import Edge, KnownKey, State
from schemas import codec
from schemas.messages import (
    Abort,
    Approve,
    Budget,
    Bye,
    CallFailure,
    CallProgress,
    CallResult,
    Cancel,
    DisablePlugin,
    Drain,
    EnablePlugin,
    Grant,
    Invoke,
    InvokePipeline,
    Probe,
    ProbeOutcome,
    ProbeReport,
    Ready,
    Refusal,
    Revoke,
    Run,
    SetTrust,
    Step,
    StepOutput,
)
from schemas.payloads import JSONPayload, TextPayload
from schemas.pipelines import step_request_id
from schemas.policy import Policy, Quotas
from schemas.witness import PROBES
from tests.scenarios.keyring import Keyring
from tests.scenarios.registering import Registering
from tests.simulation.clients import KEYS, difference_digest
from tests.simulation.fakes import (
    LAUNCHER_FD,
    SIGNALS_FD,
    Exited,
    FakeBundles,
    FakeClock,
    FakeLauncher,
    FakeLedger,
    FakeSignals,
    FakeTransport,
    FakeTrust,
    Started,
    stand_ins,
)
from tests.simulation.settings import APPROVED
from tests.simulation.states import FakeStates
from tests.simulation.trusts import FIRST, OTHER_SEED, envelope
from tests.simulation.world import ATTESTATION, CONFIG, USAGE, loaded
from tests.support.bundles import PUBLISHER_SEED, ROOT_SEED, public_key_id

CONFIG = msgspec.structs.replace(
    CONFIG,
    times=msgspec.structs.replace(
        CONFIG.times, drain_ms=2_000, witness_interval_ms=2_500, witness_ms=1_200,
        recycle_interval_ms=10_000, recycle_spacing_ms=1_000),
    workers=msgspec.structs.replace(CONFIG.workers, minutes_max=1),
    limits=msgspec.structs.replace(CONFIG.limits, workers_max=2),
    # Less than a file may say: most transcripts are about something else.
    determinism=DeterminismConfig(first_calls=0, share_permille=0),
)
OMEGA, OPERATOR, SECOND = "a" * 16, "c" * 16, "9" * 16
HIDDEN = {"bytes", "plane", "bundle_sha256", "input_commitment", "output_commitment", "actor",
          "input_fingerprint", "output_fingerprint", "note_commitment", "message_commitment",
          "duration_us", "manifest_sha256", "signing_keys", "publisher", "api_version", "domain",
          "deterministic", "outcomes", "max_rss_kb_upper_bound", "cpu_ms", "wall_ms", "input_kind",
          "previous_sha256", "output_kind", "input_bytes", "output_bytes", "launcher", "probe"}


class Stage(Registering, Keyring):
    """One gateway on a stage."""

    def __init__(self) -> None:
        """Begin with an empty ledger and the two plugins' bundles at hand."""
        self.config = CONFIG
        self.policy = Policy(modules=APPROVED)
        self.clock = FakeClock()
        self.ledger = FakeLedger(self.clock)
        self.bundles = FakeBundles()
        self.trust = FakeTrust(FIRST, self.ledger)
        self.names: dict[str, str] = {OMEGA: "omega", OPERATOR: "operator", SECOND: "second"}
        self.numbers = 0
        self.workers: list[str] = []
        self.inbox: dict[str, list[msgspec.Struct]] = {}
        self.asked = 0
        self.shown = 0
        self.probers = "quick"
        self.begin()
        self.commands: dict[str, Callable[..., Arrival | None]] = {
            "register": self.register, "enable": self.enable, "disable": self.disable,
            "approve": self.approve,
            "grant": self.grant, "take-back": self.take_back, "revoke": self.revoke,
            "revoke-publisher": self.revoke_publisher, **self.keyring(),
            "invoke": self.invoke, "pipeline": self.pipeline, "read": self.read,
            "leave": self.leave, "cancel": self.cancel,
            "ready": self.ready, "report": self.report, "answer": self.answer,
            "fail": self.fail, "exit": self.exit,
            "progress": self.progress, "bye": self.bye, "garbage": self.garbage,
            "request": self.request, "hang-up": self.hang_up, "terminate": self.terminate,
            "room": self.room, "trust": self.set_trust,
            "probers": self.become, "tried": self.tried,
            "validate": self.validate, "listen": lambda: Readable(LAUNCHER_FD),
        }

    def begin(self) -> None:
        """Start a process on the ledger that is there."""
        state = State(
            config=self.config, policy=self.policy, trust=FIRST.trust, trust_sha256=FIRST.sha256,
            policy_sha256=policy_digest(self.policy), inventory=Inventory(), plugins={},
            keys={key: KnownKey(key, role, key) for key, role in KEYS.items()},
            edge=Edge(new_incarnation=self.new_worker, new_nonce=lambda: b"n" * 16,
                      determinism_key=b"k" * 32, log_id=CONFIG.log_id),
        )
        state.wall_us = self.clock.wall
        self.core = Core(state)
        for event in self.ledger.events:
            self.core.restore(event)
        self.trust.settle(state)
        for record in state.inventory.plugins.values():
            for version in record.versions:
                state.plugins[record.plugin, version] = loaded(record.plugin, version)
        self.transport = FakeTransport(self.ledger, checked=len(self.ledger.events))
        self.launcher = FakeLauncher()
        self.signals = FakeSignals()
        self.gateway = Gateway(
            **stand_ins(self.ledger, self.transport, self.launcher, self.trust),
            core=self.core, bundles=self.bundles, states=FakeStates(), signals=self.signals,
            clock=self.clock,
        )
        self.gateway.perform(self.core.begin([], self.clock.mono))

    def new_worker(self) -> str:
        """Give the next incarnation a name."""
        name = f"w{len(self.workers) + 1}"
        incarnation = f"{len(self.workers) + 1:032x}"
        self.workers.append(incarnation)
        self.names[incarnation] = name
        return incarnation

    def uuid(self, name: str | None = None) -> str:
        """Make a request id; a name is remembered for it."""
        self.numbers += 1
        request_id = f"00000000-0000-4000-a000-{self.numbers:012d}"
        self.names[request_id] = name or f"q{self.numbers}"
        return request_id

    def id_of(self, name: str) -> str:
        """Give the id that a name stands for."""
        return next(key for key, value in self.names.items() if value == name)

    # --- playing ---

    def play(self, line: str) -> list[str]:
        """Do one command and give what it produced."""
        command, *arguments = shlex.split(line)
        if command == "restart":
            return self.restart()
        if command == "times":
            # Before anything else: other times than those of most transcripts.
            changes = {key: int(value) for key, value in (one.split("=") for one in arguments)}
            times = msgspec.structs.replace(self.config.times, **changes)
            self.config = msgspec.structs.replace(self.config, times=times)
            return self.restart()
        if command == "compare":
            # Before anything else: first calls, or a share of all, wait for a second run.
            changes = {key: int(value) for key, value in (one.split("=") for one in arguments)}
            changed = msgspec.structs.replace(self.config.determinism, **changes)
            self.config = msgspec.structs.replace(self.config, determinism=changed)
            return self.restart()
        if command == "latch":
            self.ledger.fail_at = self.ledger.commits + 1
            return []
        if command == "advance":
            self.clock.mono += int(arguments[0]) * 1000
            self.clock.wall += int(arguments[0]) * 1000
            return self.turn([])
        if command == "quota":
            state = self.core.state
            quotas = msgspec.convert(
                {key: int(value) for key, _, value in (word.partition("=") for word in arguments)},
                Quotas,
            )
            state.policy = msgspec.structs.replace(state.policy, quotas=quotas)
            return []
        if command == "operators":
            # Policy wants as many operators' approvals, also after a restart.
            self.policy = msgspec.structs.replace(
                self.policy, operators_required=int(arguments[0]))
            self.core.state.policy = self.policy
            return []
        if command == "together":
            # Several arrivals of one turn, in this order.
            parts = " ".join(arguments).split(" then ")
            arrivals = [self.arrival(part) for part in parts]
            return self.turn([arrival for arrival in arrivals if arrival is not None])
        arrival = self.arrival(line)
        return self.turn([] if arrival is None else [arrival])

    def arrival(self, line: str) -> Arrival | None:
        """Turn a command into what arrives."""
        command, *arguments = shlex.split(line)
        return self.commands[command](*arguments)

    def restart(self) -> list[str]:
        """The process dies and another begins; what was not durable is gone."""
        self.ledger.cut(self.ledger.durable)
        self.shown = len(self.ledger.events)
        self.begin()
        return self.turn([])

    def turn(self, arrivals: list[Arrival]) -> list[str]:
        """Let the gateway take a turn and show what it did."""
        told: list[str] = []
        try:
            self.gateway.turn(arrivals)
        except LedgerFailure:
            told.append("the ledger failed: nothing was sent, the process ends with 74")
            del self.ledger.events[self.ledger.durable :]
        else:
            if self.probers == "quick" and self.launcher.trials:
                self.launcher.tried()
                self.gateway.turn([Readable(LAUNCHER_FD)])
        events = self.ledger.events[self.shown :]
        self.shown = len(self.ledger.events)
        told += [self.show(event.fields) for event in events]
        for to, reply in self.transport.replies:
            words = [f"-> {self.names[to.key_id]}: {reply.__struct_config__.tag}",
                     self.names.get(reply.request_id or "", "-")]
            if isinstance(reply, Refusal):
                words.append(str(reply.code))
            told.append(" ".join(words + ([] if reply.receipt is None
                                          else [f"(event {reply.receipt.seq})"])))
        for incarnation, order in self.transport.orders:
            self.inbox.setdefault(incarnation, []).append(order)
            told.append(f"-> {self.names[incarnation]}: {order.__struct_config__.tag}")
        killed = sorted(self.launcher.killed)
        told += [f"killed {self.names[incarnation]}" for incarnation in killed]
        self.launcher.killed.clear()
        self.transport.replies.clear()
        self.transport.orders.clear()
        return told

    def show(self, fields: msgspec.Struct) -> str:
        """Show one event: its type and what tells it apart."""
        values = msgspec.to_builtins(fields)
        words = [str(getattr(fields, "EVENT_TYPE", "?"))]
        for key, value in values.items():
            if key in HIDDEN or isinstance(value, dict):
                continue
            text = self.names.get(value, value) if isinstance(value, str) else value
            words.append(f"{key}={text}")
        return " ".join(words[:1] + [word for word in words[1:] if len(word) < 90][:7])

    # --- what clients do ---

    def from_omega(self, message: msgspec.Struct) -> Arrival:
        """Put a message on front.omega."""
        return FrontFrames(Origin("front.omega", OMEGA, b"o"), [codec.encode(message)])

    def from_operator(self, message: msgspec.Struct, key: str = OPERATOR) -> Arrival:
        """Put a message on front.admin."""
        return FrontFrames(Origin("front.admin", key, b"p"), [codec.encode(message)])

    def enable(self, plugin: str, version: str) -> Arrival:
        """An operator enables a version."""
        return self.from_operator(
            EnablePlugin(request_id=self.uuid(), plugin=plugin, version=version))

    def disable(self, plugin: str) -> Arrival:
        """An operator disables a plugin."""
        return self.from_operator(DisablePlugin(request_id=self.uuid(), plugin=plugin))

    def approve(
        self, plugin: str, version: str, against: str, who: str = "operator"
    ) -> Arrival:
        """An operator, or the `second`, approves the difference of a version to another one."""
        return self.from_operator(key=self.id_of(who), message=Approve(
            request_id=self.uuid(), plugin=plugin, version=version,
            diff_digest=difference_digest(plugin, against, version)))

    def revoke(self, subject: str) -> Arrival:
        """An operator revokes a version."""
        return self.from_operator(Revoke(request_id=self.uuid(), kind="plugin_version", id=subject,
                                         reason="found wanting"))

    def grant(self, plugin: str, capability: str) -> Arrival:
        """An operator grants a capability."""
        return self.from_operator(
            Grant(request_id=self.uuid(), plugin=plugin, capability=capability))

    def take_back(self, plugin: str, capability: str) -> Arrival:
        """An operator takes a grant back."""
        return self.from_operator(Revoke(request_id=self.uuid(), kind="grant",
                                         id=f"{plugin} {capability}", reason="not needed"))

    def revoke_publisher(self, key_id: str) -> Arrival:
        """An operator revokes a publisher's key; `house` is the key of all bundles here."""
        if key_id == "house":
            key_id = public_key_id(PUBLISHER_SEED)
        return self.from_operator(Revoke(request_id=self.uuid(), kind="publisher_key", id=key_id,
                                         reason="lost"))

    def set_trust(self, version: str, form: str, signer: str = "root") -> Arrival:
        """An operator sends a trust root of a form of `tests.simulation.trusts`; `signer` is `root`
        or `next`, the key that it is rotated to."""
        seed = ROOT_SEED if signer == "root" else OTHER_SEED
        return self.from_operator(SetTrust(
            request_id=self.uuid(), envelope=envelope(int(version), form, (seed,))))

    def leave(self) -> Arrival | None:
        """OMEGA's connection goes: nothing can be sent to it any more."""
        self.transport.gone.add(b"o")
        return None

    def invoke(self, name: str, plugin: str, value: str = "1", timeout_ms: str = "1000") -> Arrival:
        """OMEGA invokes the method `work`; a name that was used before repeats its request id."""
        known = name in self.names.values()
        return self.from_omega(Invoke(
            request_id=self.id_of(name) if known else self.uuid(name), plugin=plugin, method="work",
            payload=JSONPayload(b'{"value":%b}' % value.encode()), timeout_ms=int(timeout_ms),
            commitment_key=b"c" * 32))

    def pipeline(self, name: str, on_error: str, *steps: str) -> Arrival:
        """OMEGA sends a pipeline; each step is `name=plugin` or `name=plugin<source[pointer]`.

        Further words set its bounds: `cpu=MS`, `bytes=N`, `calls=N`, `timeout=MS`.
        """
        bounds = {"cpu": 9000, "bytes": 900_000, "calls": 9, "timeout": 1000}
        made: list[Step] = []
        request_id = self.uuid(name)
        for word in steps:
            step, _, what = word.partition("=")
            if step in bounds:
                bounds[step] = int(what)
                continue
            plugin, _, source = what.partition("<")
            taken, slash, pointer = source.partition("/")
            self.names[step_request_id(request_id, step)] = f"{name}.{step}"
            made.append(Step(
                name=step, plugin=plugin, method="work",
                input=StepOutput(step=taken, pointer=slash + pointer) if source
                else JSONPayload(b'{"value":1}'),
            ))
        return self.from_omega(InvokePipeline(
            request_id=request_id, steps=tuple(made), commitment_key=b"c" * 32,
            timeout_ms=bounds["timeout"], on_error=on_error,
            budget=Budget(calls=bounds["calls"], cpu_ms=bounds["cpu"],
                          output_bytes=bounds["bytes"]),
        ))

    def read(
        self, name: str, plugin: str, timeout_ms: str = "1000", keep_alive: str = ""
    ) -> Arrival:
        """OMEGA invokes the method `read`, which may take long and be tried again."""
        return self.from_omega(Invoke(
            request_id=self.uuid(name), plugin=plugin, method="read",
            payload=TextPayload("some text"), timeout_ms=int(timeout_ms), commitment_key=b"c" * 32,
            keep_alive=bool(keep_alive)))

    def cancel(self, target: str) -> Arrival:
        """OMEGA cancels a call."""
        return self.from_omega(Cancel(request_id=self.uuid(), target=self.id_of(target)))

    def garbage(self) -> Arrival:
        """OMEGA's key sends bytes that are no frame."""
        return FrontFrames(Origin("front.omega", OMEGA, b"o"), [b"GET / HTTP/1.1"])

    def terminate(self) -> Arrival:
        """The operator's shell sends SIGTERM."""
        self.signals.waiting += 1
        return Readable(SIGNALS_FD)

    def room(self, word: str) -> None:
        """The ledger's volume becomes `short` of room, or has `enough` again."""
        self.ledger.low = word == "short"

    # --- what workers do ---

    def says(self, worker: str, message: msgspec.Struct) -> Arrival:
        """Put a message on a worker's socket."""
        return WorkerFrames(self.id_of(worker), [codec.encode(message)])

    def ready(self, worker: str) -> Arrival | None:
        """A worker comes up: it attests; asked again, it answers its probe."""
        incarnation = self.id_of(worker)
        for order in self.inbox.pop(incarnation, []):
            if isinstance(order, Probe):
                return self.says(worker, ProbeReport(
                    probe=order.probe, nonce=order.nonce, outcomes=tuple(
                        ProbeOutcome(name, "allowed" if name == "control" else "denied")
                        for name in PROBES)))
        self.launcher.reports.append(Started(incarnation, 4711))
        return self.says(worker, Ready(pid=4711, attestation=ATTESTATION, concurrency=2))

    def report(self, worker: str, *changes: str) -> Arrival:
        """A worker reports on the probe it was asked last; `NAME=allowed`, `NAME=missing` change
        what a good jail gives, `NAME=twice` says it again."""
        asked = [order for order in self.inbox[self.id_of(worker)] if isinstance(order, Probe)][-1]
        outcomes = dict.fromkeys(PROBES, "denied") | {"control": "allowed"}
        outcomes.update(change.split("=") for change in changes)
        names = [(name, outcome) for name, outcome in outcomes.items() if outcome != "missing"]
        names += [(name, "denied") for name, outcome in names if outcome == "twice"]
        return self.says(worker, ProbeReport(
            probe=asked.probe, nonce=asked.nonce, outcomes=tuple(
                ProbeOutcome(name, "allowed" if outcome == "allowed" else "denied")
                for name, outcome in names)))

    def call_of(self, worker: str, name: str) -> int:
        """Find the number under which a worker was given a request."""
        request_id = self.id_of(name)
        return next(order.call for order in self.inbox.get(self.id_of(worker), [])
                    if isinstance(order, Run) and order.request_id == request_id)

    def answer(
        self, worker: str, name: str, value: str = "7", fault: str = "0"
    ) -> Arrival:
        """A worker answers a call it was given, or the number another worker was given."""
        holders = [self.names[incarnation] for incarnation, orders in self.inbox.items()
                   if any(isinstance(order, Run) and order.request_id == self.id_of(name)
                          for order in orders)]
        holder = worker if worker in holders else holders[0]
        return self.says(worker, CallResult(
            call=self.call_of(holder, name), usage=USAGE, fault=int(fault) or None,
            payload=JSONPayload(b'{"value":%b}' % value.encode())))

    def fail(self, worker: str, name: str, code: str, *more: str) -> Arrival:
        """A worker says that a call failed; `fault=11`, `used=3`, `allowed=2` say more."""
        number = self.call_of(worker, name)
        failure: dict[str, object] = {"type": "call_failure", "call": number, "code": code}
        failure.update((key, int(value)) for key, value in (one.split("=") for one in more))
        return self.says(worker, msgspec.convert(failure, CallFailure))

    def progress(self, worker: str, name: str, permille: str) -> Arrival:
        """A worker passes a call's progress on."""
        return self.says(worker, CallProgress(call=self.call_of(worker, name),
                                              permille=int(permille)))

    def bye(self, worker: str) -> Arrival:
        """A worker leaves in order."""
        return self.says(worker, Bye())

    def request(self, worker: str) -> Arrival:
        """A worker sends an invocation of its own."""
        return self.says(worker, Invoke(
            request_id=self.uuid(), plugin="alpha", method="work",
            payload=JSONPayload(b'{"value":1}'), timeout_ms=5, commitment_key=b"c" * 32))

    def exit(self, worker: str, signal: str = "9") -> Arrival:
        """A worker's process dies."""
        self.launcher.reports.append(Exited(self.id_of(worker), 0, int(signal)))
        return Readable(LAUNCHER_FD)

    def hang_up(self, worker: str) -> Arrival:
        """A worker's connection ends."""
        return WorkerDisconnected(self.id_of(worker))


__all__ = ["Abort", "Drain", "Stage"]
