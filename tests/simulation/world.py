"""One seeded run: the real loop and core among hostile workers and clients, crashes and jumps.

Everything that happens is drawn from one `random.Random(seed)`, so a seed names a run for good.
After each turn the checks hold the ledger against the invariants; at the end everything must come
to rest.
"""

from __future__ import annotations

import functools
import random
from collections import Counter

import msgspec

from broker.administration import loaded_plugin
from broker.arrivals import (
    Arrival,
    FrontFrames,
    Readable,
    WorkerDisconnected,
    WorkerFrames,
    WorkerIntruder,
)
from broker.core import Core
from broker.effects import Effect
from broker.evidence.audit import Audit
from broker.gateway import Gateway
from broker.inventory import Inventory
from broker.ledger.errors import LedgerFailure
from broker.orchestrator.calls import LoadedPlugin
from broker.policy import policy_digest
from broker.reload import Settings
from broker.state import Edge, KnownKey, State
from broker.trust.validation import ValidationContext, validate_bundle
from schemas import codec
from schemas.events import LedgerClose
from schemas.messages import (
    Abort,
    Bye,
    CallFailure,
    CallProgress,
    CallResult,
    Cancelled,
    Drain,
    Grant,
    InvokePipeline,
    Ping,
    PipelineResult,
    Pong,
    Probe,
    ProbeOutcome,
    ProbeReport,
    Ready,
    RegisterPlugin,
    Run,
    StepOutput,
)
from schemas.payloads import JSONPayload
from schemas.witness import PROBES
from tests.simulation.answers import answer
from tests.simulation.checks import Checks
from tests.simulation.clients import GRANTED, KEYS, PLUGINS, Clients, bundle
from tests.simulation.fakes import (
    LAUNCHER_FD,
    SIGNALS_FD,
    Exited,
    FakeBundles,
    FakeClock,
    FakeLauncher,
    FakeLedger,
    FakeShelf,
    FakeSignals,
    FakeTransport,
    FakeTrust,
    Started,
    StartFailed,
    require,
    stand_ins,
)
from tests.simulation.keeping import check_kept
from tests.simulation.openings import opening
from tests.simulation.pasts import begin_with_past
from tests.simulation.peers import ENDS, Peer, end_trial
from tests.simulation.rights import Rights, meaning
from tests.simulation.settings import (
    APPROVED,
    ATTESTATION,
    CONFIG,
    KEY,
    POLICY,
    USAGE,
    other_settings,
)
from tests.simulation.states import FakeStates
from tests.simulation.trusts import FIRST


@functools.cache
def loaded(plugin: str, version: str) -> LoadedPlugin:
    """Load one bundle as a start of the gateway does."""
    context = ValidationContext(
        "development", FIRST.trust, POLICY, GRANTED, lambda _: None, set(), 1
    )
    validated = validate_bundle(bundle(plugin, version), context)
    assert validated.manifest is not None
    assert validated.bundle is not None
    return loaded_plugin(validated.manifest, validated.bundle)


def known_keys() -> dict[str, KnownKey]:
    """Give the keys that lie in the home; the second of OMEGA's replaces the first."""
    return {
        key: KnownKey(key, role, key, "a" * 16 if key == "b" * 16 else "")
        for key, role in KEYS.items()
    }


class World(Clients):
    """The run. `step` does one turn; `finish` brings everything to rest."""

    def __init__(self, seed: int, chance: random.Random | None = None, plugins=PLUGINS) -> None:
        self.random = chance or random.Random(seed)
        self.clock = FakeClock()
        self.ledger = FakeLedger(self.clock)
        self.bundles = FakeBundles()
        self.trust = FakeTrust(FIRST, self.ledger)
        self.states = FakeStates(self.random)
        self.vouched: Counter[str] = Counter()
        self.checks = Checks(Rights(dict(KEYS)), CONFIG)
        self.audit = Audit()
        self.effects: set[str] = set()
        self.crashes = 0
        self.checked = 0
        self.begin()
        for plugin, capabilities in GRANTED.items():
            for capability in capabilities:
                self.ask("c" * 16, Grant(request_id=self.uuid(), plugin=plugin,
                                         capability=capability))
        for plugin, version in plugins:
            self.ask("c" * 16, RegisterPlugin(request_id=self.uuid(),
                                              bundle=bundle(plugin, version)))
            end_trial(self)

    # --- one life of the gateway ---

    def begin(self) -> None:
        """Start a gateway on the ledger that is there, as a new process does."""
        self.signals = FakeSignals()
        self.states.die()
        self.gateway, vouched = begin_with_past(self.make, self.ledger, self.states)
        self.vouched[vouched] += 1
        state = self.core.state
        self.trust.settle(state)
        damaged = []
        for record in state.inventory.plugins.values():
            for version in record.versions:
                if self.random.random() < 0.02:
                    damaged.append((record.plugin, version))
                else:
                    state.plugins[record.plugin, version] = loaded(record.plugin, version)
        self.peers: dict[str, Peer] = {}
        self.past_peers: list[str] = []
        self.sent: list[str] = []
        self.pipelines: dict[str, InvokePipeline] = {}
        self.cancels: dict[str, str] = {}
        self.registering: dict[str, str] = {}
        self.watch()
        for fields in opening(self.ledger.events, self.core):
            self.gateway.append(fields)
        self.gateway.snapshot()
        self.gateway.perform(self.core.begin(damaged, self.clock.mono))
        self.turn([])

    def make(self) -> Gateway:
        """Make a gateway that remembers nothing yet."""
        state = State(
            config=CONFIG, policy=POLICY, trust=FIRST.trust, trust_sha256=FIRST.sha256,
            policy_sha256=policy_digest(POLICY), inventory=Inventory(), plugins={},
            keys=known_keys(),
            edge=Edge(new_incarnation=lambda: f"{self.random.getrandbits(128):032x}",
                      new_nonce=lambda: self.random.randbytes(16), determinism_key=KEY,
                      log_id=CONFIG.log_id),
        )
        state.wall_us = self.clock.wall
        state.plugins = FakeShelf(state)
        self.core = Core(state)
        self.transport = FakeTransport(self.ledger, checked=len(self.ledger.events))
        self.launcher = FakeLauncher()
        return Gateway(
            **stand_ins(self.ledger, self.transport, self.launcher, self.trust),
            core=self.core, bundles=self.bundles, states=self.states, signals=self.signals,
            clock=self.clock,
        )

    def watch(self) -> None:
        """Note which kinds of effect the run meets."""
        take = self.core.state.take

        def noting() -> list[Effect]:
            effects = take()
            self.effects.update(type(effect).__name__ for effect in effects)
            return effects

        self.core.state.take = noting

    def crash(self) -> None:
        """The process dies between turns' steps; some of what was not flushed may survive."""
        self.crashes += 1
        kept = self.random.randint(self.ledger.durable, len(self.ledger.events))
        self.ledger.cut(kept)
        self.look()
        self.checks.restarted()
        self.begin()

    def close(self) -> None:
        """The process ends in order, and the next one begins."""
        try:
            self.gateway.append(LedgerClose(reason="drained"))
            self.ledger.commit()
        except LedgerFailure:
            self.crash()
            return
        self.look()
        self.checks.restarted()
        self.begin()

    def turn(self, arrivals: list[Arrival]) -> None:
        """Do one turn of the real loop and hold what it did against the invariants."""
        try:
            self.gateway.turn(arrivals)
        except LedgerFailure:
            # The process ends; whatever it had not made durable was never said.
            self.crash()
            return
        self.look()
        self.checks.settled(self.clock.mono)
        check_kept(self.core)
        self.deliver()

    def look(self) -> None:
        """Check the events that are new."""
        for event in self.ledger.events[self.checked :]:
            self.checks.take(event)
        self.checked = len(self.ledger.events)

    def deliver(self) -> None:
        """Hand what left to the workers that are alive."""
        for incarnation in self.launcher.launched:
            document = self.launcher.documents.pop(incarnation)
            self.peers[incarnation] = Peer(
                incarnation, document.pool_size, document.role,
                loads=set(APPROVED.allowed.get(document.plugin, ())) <= set(document.modules))
        self.launcher.launched.clear()
        for incarnation in self.launcher.killed & set(self.peers):
            self.past_peers.append(incarnation)
            del self.peers[incarnation]
        require(sum(peer.pool_size for peer in self.peers.values())
                <= CONFIG.limits.warm_processes_max, "more processes may wait than the host holds")
        require(sum(peer.role == "replica" for peer in self.peers.values())
                <= CONFIG.workers.replicas_max + 1, "more replicas than allowed")
        for incarnation, message in self.transport.orders:
            peer = self.peers.get(incarnation)
            if peer is None:
                continue
            if isinstance(message, Run):
                require(message.purpose == peer.role, "a run for a worker of the other role")
                peer.runs[message.call] = message
            elif isinstance(message, Abort):
                peer.aborted.append(message.call)
            elif isinstance(message, Probe):
                peer.probes.append(message)
            elif isinstance(message, Ping):
                peer.pings.append(message)
            elif isinstance(message, Drain):
                peer.draining = True
        self.transport.orders.clear()
        for _, reply in self.transport.replies:
            self.registering.pop(reply.request_id or "", None)
            if isinstance(reply, PipelineResult):
                self.check_pipeline(reply)
            elif isinstance(reply, Cancelled) and reply.outcome == "cancelled":
                target = self.cancels[reply.request_id or ""]
                require(target not in self.checks.open, "a call goes on that was cancelled")
        self.transport.replies.clear()

    def check_pipeline(self, result: PipelineResult) -> None:
        """Hold a pipeline's answer against what was asked."""
        asked = self.pipelines[result.request_id or ""]
        require([step.step for step in result.steps] == [step.name for step in asked.steps],
                "the steps of a pipeline came in another order")
        usages = [step.usage for step in result.steps if step.usage is not None]
        require(sum(usage.cpu_ms for usage in usages) <= asked.budget.cpu_ms,
                "a pipeline used more than its budget")
        failed = {step.step for step in result.steps if step.outcome != "result"}
        for step, told in zip(asked.steps, result.steps, strict=True):
            source = step.input.step if isinstance(step.input, StepOutput) else ""
            require((told.outcome == "skipped") == (source in failed),
                    "a step ran without its input, or was skipped with it")

    # --- what may happen ---

    def step(self) -> None:
        """Let one to three things happen, then let the gateway take a turn."""
        dice = self.random.random()
        if dice > 0.8:
            self.ledger.low = False
        if dice < 0.01:
            self.ledger.fail_at = self.ledger.commits + self.random.randint(1, 3)
        elif dice < 0.015:
            self.crash()
        elif dice < (0.1 if self.core.state.gateway == "draining" else 0.0175):
            # The second request, while the first still lets calls finish, is to stop at once.
            self.signals.waiting += 1
            self.turn([Readable(SIGNALS_FD)])
        elif dice < 0.021:
            self.signals.settings = self.settings()
            self.turn([Readable(SIGNALS_FD)])
        elif dice < 0.024:
            self.ledger.low = True
        elif dice < 0.03:
            self.clock.wall += self.random.randint(-3600, 3600) * 1_000_000
        self.clock.mono += self.random.choice((10, 500, 3_000, 10_000, 60_000))
        self.clock.wall += 1_000
        if self.random.random() < 0.01:
            self.clock.mono += 4_000_000
        if self.core.state.gateway == "stopped":
            self.close()
        if self.random.random() < 0.05:
            end_trial(self, self.random.choice(ENDS))
        arrivals: list[Arrival] = []
        for _ in range(self.random.randint(1, 3)):
            arrival = (
                self.worker_acts() if self.peers and self.random.random() < 0.7
                else self.client_acts()
            )
            if arrival is not None:
                arrivals.append(arrival)
        self.turn(arrivals)

    def settings(self) -> Settings:
        """Make other settings: bounds, quotas and keys that somebody might come to write."""
        settings = other_settings(self.random, known_keys())
        self.checks.rights.policies[settings.policy_sha256] = meaning(settings.policy)
        return settings

    def ask(self, key: str, message: msgspec.Struct) -> FrontFrames:
        """Send a request at once in a turn of its own, as setup does."""
        arrival = self.framed(key, codec.encode(message))
        self.turn([arrival])
        return arrival

    def worker_acts(self) -> Arrival | None:
        """Let one worker do something, mostly what it should."""
        incarnation = self.random.choice(list(self.peers))
        peer = self.peers[incarnation]
        if self.random.random() < 0.05:
            return self.worker_misbehaves(peer)
        if not peer.said:
            return self.comes_up(peer)
        if peer.probes and self.random.random() < 0.8:
            probe = peer.probes.pop()
            if self.random.random() < 0.02:
                return None
            return self.says(peer, self.probe_report(probe))
        if peer.pings and self.random.random() < 0.7:
            return self.says(peer, Pong(nonce=peer.pings.pop().nonce))
        if peer.aborted:
            call = peer.aborted.pop()
            run = peer.runs.pop(call, None)
            if run is None:
                return None
            if self.random.random() < 0.5:
                return self.says(peer, CallFailure(call=call, code="cancelled"))
            return self.says(peer, self.answer(run))
        if peer.runs and self.random.random() < 0.7:
            call = self.random.choice(list(peer.runs))
            if call % 5 == 0 and self.random.random() < 0.97:
                # Some calls take long: their workers are due for something else meanwhile.
                return None
            if self.random.random() < 0.2:
                return self.says(peer, CallProgress(call=call, permille=500, note="half"))
            return self.says(peer, self.answer(peer.runs.pop(call)))
        if peer.draining and not peer.runs:
            return self.says(peer, Bye())
        return None

    def comes_up(self, peer: Peer) -> Arrival:
        """Let a worker say its first word."""
        peer.said = True
        if not peer.loads:
            return self.says(peer, Bye(reason="plugin_load_failed", detail="a module"))
        self.launcher.reports.append(Started(peer.incarnation, 4711))
        attestation = ATTESTATION
        if self.random.random() < 0.01:
            attestation = msgspec.structs.replace(ATTESTATION, no_new_privileges=0)
        return self.says(peer, Ready(pid=4711, attestation=attestation, concurrency=2))

    def probe_report(self, probe: Probe) -> ProbeReport:
        """Report as a good jail does; rarely, one probe gets through."""
        grants = self.core.state.fleet.by_incarnation
        allowed = {"control"}
        for worker in grants.values():
            if worker.probe == probe.probe and "clock.read" in worker.grants:
                allowed.add("clock")
        roll = self.random.random()
        if roll < 0.003:
            allowed.add("fork")
        elif roll < 0.006:
            allowed.discard("control")
        names = PROBES[:-1] if 0.01 < roll < 0.015 else PROBES
        outcomes = tuple(
            ProbeOutcome(name, "allowed" if name in allowed else "denied") for name in names
        )
        if 0.02 < roll < 0.023:
            outcomes += outcomes[:1]
        return ProbeReport(probe=probe.probe, nonce=probe.nonce, outcomes=outcomes)

    def answer(self, run: Run) -> CallResult | CallFailure:
        """Answer one call, mostly well."""
        return answer(self.random, run)

    def says(self, peer: Peer, message: msgspec.Struct) -> WorkerFrames:
        """Put a message on a worker's socket."""
        if isinstance(message, CallResult):
            self.checks.said.setdefault((peer.incarnation, message.call), message.payload)
        return WorkerFrames(peer.incarnation, [codec.encode(message)])

    def worker_misbehaves(self, peer: Peer) -> Arrival | None:
        """Let a worker do what it may not, or die."""
        roll = self.random.randint(0, 9)
        others = [run for other in self.peers.values() if other is not peer
                  for run in other.runs.values()]
        if roll == 0 and others:
            return self.says(peer, self.answer(self.random.choice(others)))
        if roll == 1:
            return self.says(peer, self.invocation())
        if roll == 2:
            return WorkerFrames(peer.incarnation, [self.random.randbytes(20)])
        if roll == 3:
            return self.says(peer, CallResult(call=self.random.randint(1, 50), usage=USAGE,
                                              payload=JSONPayload(b'{"value":1}')))
        if roll == 4:
            return WorkerIntruder(peer.incarnation)
        if roll == 5:
            return WorkerFrames(peer.incarnation, [b"a", b"b"])
        if roll == 6:
            return self.says(peer, Pong(nonce=b"0" * 16))
        if roll == 7 and self.past_peers:
            return WorkerFrames(self.random.choice(self.past_peers), [b"OPG1late"])
        if roll == 8 and not peer.said:
            del self.peers[peer.incarnation]
            self.launcher.reports.append(self.random.choice((
                StartFailed(peer.incarnation, "no process"), Exited(peer.incarnation, 5, 0))))
            return Readable(LAUNCHER_FD)
        if roll == 8 and self.random.random() < 0.6:
            return self.says(peer, Bye())
        if roll == 9 and self.random.random() < 0.3:
            return self.says(peer, Bye(reason="sandbox_unavailable", detail="landlock"))
        del self.peers[peer.incarnation]
        self.past_peers.append(peer.incarnation)
        if self.random.random() < 0.3:
            return WorkerDisconnected(peer.incarnation)
        self.launcher.reports.append(Exited(peer.incarnation, 0, 9))
        return Readable(LAUNCHER_FD)

    # --- the end ---

    def finish(self) -> None:
        """Let time pass: every accepted invocation must have ended, whatever workers do."""
        self.ledger.fail_at = None
        for _ in range(40):
            self.clock.mono += 5_000_000
            self.turn([])
            end_trial(self, self.random.choice(ENDS))
        stopped = self.core.state.gateway == "stopped"
        require(stopped or not self.registering, "a bundle's request was never answered")
        require(not self.checks.open, f"{len(self.checks.open)} invocations never ended")
        require(not self.checks.pipelines, "a pipeline was never answered")
        require(not self.checks.upgrading, "who asked for an upgrade was never answered")
        require(self.core.idle, "the core still holds calls")
        for event in self.ledger.events:
            self.audit.take(event)
        for verdict in self.audit.report().verdicts:
            require(verdict.ok, f"{verdict}")


def run(seed: int, steps: int = 300) -> World:
    """Play one seed to its end and give the world for its coverage."""
    world = World(seed)
    for _ in range(steps):
        world.step()
    world.finish()
    return world
