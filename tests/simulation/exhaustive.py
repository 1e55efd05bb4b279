"""Every order in which a small world can go, up to a depth: nothing drawn, nothing left out.

The world has one version of one plugin, one worker with room for two, and two calls of one client:
`pick`, and `read`, which may be tried again. What may happen: each call is made and cancelled; the
worker becomes ready, is witnessed, says how far it is, answers, answers twice, fails, dies; time
goes to what is due next; the version is revoked; the gateway crashes; the ledger latches in the
middle of any of these, with its last turn kept or lost; and what clients do may come in one turn
with what the worker does, in both orders. Loop, core and invariants are those of the simulation.

States are visited breadth first. Two are the same when everything that can still make a difference
is: names are replaced by order of birth and times by their distance from now. From every state that
is not gone on from, time passes, and everything must come to rest.
"""

from __future__ import annotations

import argparse
import copyreg
import io
import json
import pickle
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import msgspec

from broker.arrivals import Arrival, FrontFrames, Readable, WorkerFrames
from broker.config import GatewayConfig, TimesConfig
from broker.effects import Origin
from broker.gateway import Gateway
from broker.orchestrator.calls import Call, LoadedPlugin
from broker.state import Edge
from schemas import codec
from schemas.events import Event
from schemas.messages import (
    CallFailure,
    CallProgress,
    CallResult,
    Cancel,
    EnablePlugin,
    Invoke,
    Ready,
    Revoke,
    Run,
)
from schemas.payloads import DatasetSlicePayload, JSONPayload, TextPayload
from schemas.policy import Policy
from schemas.trust import TrustRoot
from tests.simulation.fakes import LAUNCHER_FD, Exited, Started, require
from tests.simulation.settings import ATTESTATION, CONFIG, USAGE
from tests.simulation.world import Peer, World

OMEGA, OPERATOR = "a" * 16, "c" * 16
PLUGIN, VERSION = "alpha", "1.0.0"
SMALL = msgspec.structs.replace(
    CONFIG, limits=msgspec.structs.replace(CONFIG.limits, workers_max=1),
    times=TimesConfig(start_ms=3_000, drain_ms=300, witness_interval_ms=600_000),
)
CALLS = {"P": ("pick", DatasetSlicePayload("set", ("k1",)), 900),
         "R": ("read", TextPayload("x"), 1_500)}
"""Method, payload and time in ms of each call."""
ANSWERS = {"P": CALLS["P"][1], "R": JSONPayload(b'{"value":7}')}
STARTS: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "one runs": ("invoke P", "ready", "report"),
    "both run": ("invoke P", "ready", "report", "invoke R"),
    "both wait": ("invoke P", "invoke R", "ready"),
}
"""Where the search may begin: what happened before."""


class Fixed:
    """In place of chance: numbers that are new, and a crash that keeps all or nothing."""

    def __init__(self) -> None:
        self.given = 0
        self.keep = True

    def random(self) -> float:
        """Nothing unlikely happens by itself."""
        return 0.5

    def randint(self, low: int, high: int) -> int:
        """Keep all of an unfinished turn, or none."""
        return high if self.keep else low

    def getrandbits(self, bits: int) -> int:
        """Give a new number."""
        self.given += 1
        return self.given

    def randbytes(self, count: int) -> bytes:
        """Give new bytes."""
        return self.getrandbits(8).to_bytes(count, "big")


class Small(World):
    """One state of the small world. Copies are made by `freeze` and `thaw`."""

    def __init__(self) -> None:
        super().__init__(0, chance=Fixed(), plugins=((PLUGIN, VERSION),))
        # It would be copied each time, and the whole ledger is not audited here.
        del self.audit
        self.requests: dict[str, str] = {}
        self.numbers: dict[int, str] = {}
        self.answered: list[tuple[str, int, str]] = []
        self.spent: set[str] = set()
        self.ask(OPERATOR, EnablePlugin(request_id=self.uuid(), plugin=PLUGIN, version=VERSION))

    def make(self) -> Gateway:
        """Make a gateway with the small configuration, whose parts can be copied."""
        gateway = super().make()
        state = self.core.state
        state.edge = Edge(new_incarnation=self.new_name, new_nonce=self.new_nonce,
                          determinism_key=b"k" * 32, log_id=CONFIG.log_id)
        state.reconfigure(SMALL)
        self.checks.config = SMALL
        return gateway

    def watch(self) -> None:
        """Effects are not counted here."""

    def new_name(self) -> str:
        """Give a worker's name."""
        return f"{self.random.getrandbits(128):032x}"

    def new_nonce(self) -> bytes:
        """Give a nonce."""
        return self.random.randbytes(16)

    # --- what may happen ---

    def enabled(self) -> Iterator[str]:
        """Name everything that may happen next."""
        clients, worker = list(self.of_clients()), list(self.of_worker())
        singles = clients + worker + (["time"] if self.core.next_deadline() is not None else [])
        yield from singles
        for one in clients:
            for other in worker:
                yield f"{one}+{other}"
                yield f"{other}+{one}"
        if "crash" not in self.spent:
            yield "crash"
            for one in singles:
                yield f"{one}!kept"
                yield f"{one}!lost"

    def of_clients(self) -> Iterator[str]:
        """What clients may do."""
        for name in CALLS:
            if name not in self.requests:
                yield f"invoke {name}"
            elif f"cancel {name}" not in self.spent:
                yield f"cancel {name}"
        if "revoke" not in self.spent:
            yield "revoke"

    def of_worker(self) -> Iterator[str]:
        """What the worker may do, as far as it has come."""
        for peer in self.peers.values():
            if not peer.said:
                yield "ready"
                yield "start fails"
                continue
            if peer.probes:
                yield "report"
            for run in peer.runs.values():
                name = self.numbers[run.call]
                yield f"answer {name}"
                yield f"fail {name}"
                yield f"progress {name}"
            if self.answered and self.answered[-1][0] == peer.incarnation:
                yield "answer again"
            yield "die"

    def happen(self, action: str) -> None:
        """Let one thing happen, or two in one turn, or one in whose turn the ledger latches."""
        action, _, latch = action.partition("!")
        if latch or action == "crash":
            self.spent.add("crash")
            self.random.keep = latch != "lost"
        if action == "crash":
            self.crash()
            return
        if latch:
            self.ledger.fail_at = self.ledger.commits + 1
        if action == "time":
            deadline = self.core.next_deadline()
            assert deadline is not None
            self.clock.mono = max(self.clock.mono, deadline)
            self.turn([])
        else:
            arrivals = [self.arrival(part) for part in action.split("+")]
            self.clock.mono += 10
            self.turn(arrivals)
        self.ledger.fail_at = None

    def arrival(self, action: str) -> Arrival:
        """Make what arrives when something happens."""
        verb, _, name = action.partition(" ")
        if verb in ("invoke", "cancel", "revoke"):
            return self.from_client(verb, name)
        peer = next(iter(self.peers.values()))
        if verb == "die" or action == "start fails":
            del self.peers[peer.incarnation]
            self.launcher.reports.append(Exited(peer.incarnation, 0, 9))
            return Readable(LAUNCHER_FD)
        return WorkerFrames(peer.incarnation, [codec.encode(self.word(peer, verb, action, name))])

    def from_client(self, verb: str, name: str) -> FrontFrames:
        """Make a request."""
        request_id = self.uuid()
        if verb == "invoke":
            self.requests[name] = request_id
            method, payload, timeout_ms = CALLS[name]
            message: msgspec.Struct = Invoke(
                request_id=request_id, plugin=PLUGIN, method=method, payload=payload,
                timeout_ms=timeout_ms, commitment_key=b"c" * 32,
            )
        elif verb == "cancel":
            self.spent.add(f"cancel {name}")
            message = Cancel(request_id=request_id, target=self.requests[name])
            self.cancels[request_id] = message.target
        else:
            self.spent.add("revoke")
            message = Revoke(request_id=request_id, kind="plugin_version",
                             id=f"{PLUGIN}@{VERSION}", reason="test")
            return FrontFrames(Origin("front.admin", OPERATOR, b"o"), [codec.encode(message)])
        return FrontFrames(Origin("front.omega", OMEGA, b"c"), [codec.encode(message)])

    def word(self, peer: Peer, verb: str, action: str, name: str) -> msgspec.Struct:
        """Make a worker's message."""
        if verb == "ready":
            peer.said = True
            self.launcher.reports.append(Started(peer.incarnation, 4711))
            return Ready(pid=4711, attestation=ATTESTATION, concurrency=2)
        if verb == "report":
            return self.probe_report(peer.probes.pop())
        if action == "answer again":
            call = self.answered[-1][1]
        else:
            call = next(call for call in peer.runs if self.numbers[call] == name)
        if verb == "progress":
            return CallProgress(call=call, permille=500)
        peer.runs.pop(call, None)
        self.answered = [(peer.incarnation, call, self.numbers[call])]
        if verb == "fail":
            return CallFailure(call=call, code="plugin_error")
        return CallResult(call=call, payload=ANSWERS[self.numbers[call]], usage=USAGE)

    def deliver(self) -> None:
        """Note which run is whose; an aborted call's word is its answer, or nothing."""
        super().deliver()
        for peer in self.peers.values():
            for call, run in peer.runs.items():
                self.numbers.setdefault(call, self.name_of(run))

    def name_of(self, run: Run) -> str:
        """Say which of the two calls a run is of."""
        return next(name for name, known in self.requests.items() if known == run.request_id)

    def rest(self) -> None:
        """Let time pass without anybody doing anything: every call must end."""
        for _ in range(3):
            self.clock.mono += 5_000_000
            self.turn([])
        require(not self.checks.open, "an invocation never ended")
        require(self.core.idle, "the core still holds calls")

    # --- when two states are the same ---

    def outlook(self) -> tuple[object, ...]:
        """Everything that can still make a difference, without names and absolute times."""
        state, now = self.core.state, self.clock.mono
        fleet = list(state.fleet.by_incarnation.values())
        rank = {worker.incarnation: place for place, worker in enumerate(fleet)}
        names = {request_id: name for name, request_id in self.requests.items()}
        def since(at: int | None) -> int | None:
            return None if at is None else max(at - now, -1)
        def call(one: Call) -> tuple[object, ...]:
            return (names[one.request_id], one.state, since(one.deadline_us), one.retried,
                    rank.get(one.incarnation or ""), since(one.told_us))
        workers = tuple(
            (worker.state, sorted(names[one.request_id] for one in worker.calls.values()),
             sorted((self.numbers[number], since(at)) for number, at in worker.aborted.items()),
             bool(worker.nonce), bool(worker.pinged), worker.struck, worker.outgrown,
             since(worker.witness_us), since(worker.drain_until_us))
            for worker in fleet
        )
        pools = tuple(
            (pool.retiring, pool.failures, since(pool.not_before_us), pool.service_us,
             [names[one.request_id] for one in pool.queue])
            for pool in state.fleet.pools.values()
        )
        timers = sorted(
            (since(at) or 0, kind, names.get(key, str(rank.get(key, key[:5]))))
            for at, _, kind, key in state._timers
        )
        peers = tuple(
            (rank.get(peer.incarnation), peer.said, len(peer.probes), len(peer.pings),
             sorted(self.numbers[number] for number in peer.runs), len(peer.aborted),
             peer.draining)
            for peer in self.peers.values()
        )
        ended = sorted(
            name for name, known in self.requests.items()
            if OMEGA in state.windows and state.end_of(OMEGA, known) is not None
        )
        runs = sorted(
            (names[known], sorted(self.checks.workers[one].gone for one in seen.runs))
            for known, seen in self.checks.open.items()
        )
        again = [(rank.get(one), name) for one, _, name in self.answered]
        return (
            state.gateway, sorted(state.degraded), [call(one) for one in state.calls.values()],
            workers, pools, timers, peers, sorted(self.requests), sorted(self.spent), ended, runs,
            again, repr(state.breakers.not_closed()),
        )


# --- copies ---


_shared: list[object] = []
_places: dict[int, int] = {}


def _shared_at(place: int) -> object:
    return _shared[place]


def _share(one: object) -> tuple[Callable[[int], object], tuple[int]]:
    """Let every copy hold the same thing, which never changes."""
    place = _places.get(id(one))
    if place is None:
        place = _places[id(one)] = len(_shared)
        _shared.append(one)
    return _shared_at, (place,)


_TABLE = {
    **copyreg.dispatch_table,
    **dict.fromkeys((Event, LoadedPlugin, GatewayConfig, Policy, TrustRoot), _share),
}


def freeze(world: Small) -> bytes:
    """Make a copy that can be thawed any number of times."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _TABLE
    pickler.dump(world)
    return buffer.getvalue()


def thaw(frozen: bytes) -> Small:
    """Give a world that goes on from a copy."""
    world: Small = pickle.loads(frozen)
    return world


# --- the search ---


@dataclass
class Search:
    """What was visited."""

    states: int = 1
    transitions: int = 0
    depth: int = 0
    rested: int = 0
    by_depth: list[int] = field(default_factory=list)
    seconds: float = 0.0
    failure: str = ""


def search(start_at: str, depth: int, seconds: float = float("inf")) -> Search:
    """Visit every state up to a depth, or until the time is over; stop at the first failure."""
    began = time.monotonic()
    found = Search()
    try:
        start = Small()
        for action in STARTS[start_at]:
            start.happen(action)
    except Exception as error:  # noqa: BLE001 - any exception is the finding.
        found.failure = f"before the start: {error!r}"
        return found
    level: list[tuple[bytes, tuple[str, ...]]] = [(freeze(start), ())]
    seen = {hash(repr(start.outlook()))}
    while level and found.depth < depth:
        following: list[tuple[bytes, tuple[str, ...]]] = []
        last = found.depth + 1 == depth
        for frozen, path in level:
            for action in list(thaw(frozen).enabled()):
                if time.monotonic() - began > seconds:
                    found.seconds = time.monotonic() - began
                    return found
                world = thaw(frozen)
                found.transitions += 1
                try:
                    world.happen(action)
                    outlook = hash(repr(world.outlook()))
                    if outlook in seen:
                        continue
                    seen.add(outlook)
                    if last:
                        world.rest()
                        found.rested += 1
                    else:
                        following.append((freeze(world), (*path, action)))
                except Exception as error:  # noqa: BLE001 - any exception is the finding.
                    found.failure = f"{' / '.join((*path, action))}: {error!r}"
                    found.seconds = time.monotonic() - began
                    return found
                found.states += 1
        found.depth += 1
        found.by_depth.append(found.states)
        level = following
    found.seconds = time.monotonic() - began
    return found


def main() -> int:
    """Search from every start and print one line of JSON for each; 1 when an invariant broke."""
    parser = argparse.ArgumentParser(prog="scripts/exhaustive", description=main.__doc__)
    parser.add_argument("--depth", type=int, default=4, help="things that happen (default 4)")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="the longest time")
    parser.add_argument("--start", choices=STARTS, action="append", help="only from here")
    options = parser.parse_args()
    status = 0
    for start in options.start or STARTS:
        found = search(start, options.depth, options.seconds)
        print(json.dumps({"start": start, "asked_depth": options.depth, **asdict(found)}),
              flush=True)
        status |= bool(found.failure)
    return status


if __name__ == "__main__":
    # Copies name their classes by module, so the module must be the imported one.
    from tests.simulation.exhaustive import main as imported

    sys.exit(imported())
