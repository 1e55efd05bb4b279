"""What a ledger has said so far, put together anew from its events alone, for the audit.

Rules this file keeps:
- It imports the structs of the events and nothing else of this project: no table, no state and no
  helper of the core. If the core forgets something, this must not forget it too.
- It follows whatever the events say, also what may not be. Judging is left to
  `broker.evidence.invariants`, which look at the history before it takes an event in.

Source: docs/LEDGER.md, section 13.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from broker.evidence.accepted import AcceptedRequests
from schemas.events import (
    BreakerChange,
    DeterminismMismatch,
    Event,
    EventFields,
    FrameDrop,
    FrameIn,
    FrameOut,
    GrantChange,
    InvokeAccept,
    InvokeEnd,
    InvokeRefuse,
    KeyChange,
    LedgerOpen,
    LedgerRecovery,
    PluginApprove,
    PluginDisable,
    PluginEnable,
    PluginQuarantine,
    PluginRegister,
    PolicyChange,
    ReplyUndeliverable,
    Revoke,
    StateSnapshot,
    TrustChange,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
)

LATE_US: Final = 15_000_000
"""How long after its deadline an end may come: what a flush may take at most, and some, in us."""
NO_REPLY_YET: Final = ("progress", "keep_alive")
"""Replies that do not answer their request."""
FINAL: Final = ("call_result", "call_failure")
"""A worker's last word about a call."""


@dataclass(slots=True)
class Worker:
    """One incarnation. `calls` were given to it and have no last word yet; `purpose` is what it was
    given them as."""

    start: WorkerStart
    purpose: str = ""
    attested: bool = False
    witnessed: bool = False
    draining: bool = False
    guilty_of: str = ""
    asked: int = 0
    reports: int = 0
    calls: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Call:
    """One accepted invocation without an end. Deadlines are monotonic times of its process."""

    accept: InvokeAccept
    deadline_us: int
    runs: list[FrameOut] = field(default_factory=list)
    progressed: bool = False
    results: list[str] = field(default_factory=list)
    replica_said: str = ""
    mismatched: str = ""
    client_gone: bool = False


class Breaker(NamedTuple):
    """One method's circuit breaker, and until when it rests: monotonic time of its process."""

    state: str
    rest_until_us: int = 0


CLOSED: Final = Breaker("closed")


class History:
    """The state after the events so far. `take` is its only way to change."""

    def __init__(self) -> None:
        """Begin before the first event."""
        self.runs = 0
        self.snapshots = 0
        self.mono_us = 0
        self.last: EventFields | None = None
        self.opened: LedgerOpen | None = None
        self.trust: tuple[int, str] = (0, "")
        self.policy = ""
        self.roles: dict[str, str] = {}
        self.revoked_keys: set[str] = set()
        self.revoked_publisher_keys: set[str] = set()
        self.versions: dict[tuple[str, str], PluginRegister] = {}
        self.newest: dict[str, str] = {}
        self.enabled: dict[str, str] = {}
        self.last_enabled: dict[str, str] = {}
        self.approved: dict[tuple[str, str, str], set[str]] = {}
        self.dead: dict[tuple[str, str], str] = {}
        self.taken_back: set[tuple[str, str]] = set()
        self.workers: dict[str, Worker] = {}
        self.incarnations: set[str] = set()
        self.calls: dict[str, Call] = {}
        self.inherited: set[str] = set()
        self.outputs: dict[tuple[str, ...], tuple[str, int]] = {}
        self.breakers: dict[tuple[str, str], Breaker] = {}
        self.accepted = AcceptedRequests()
        self.untold: dict[str, InvokeEnd | InvokeRefuse] = {}
        self.condemned: set[str] = set()
        self.doubted: set[str] = set()
        self.heard: dict[str, FrameIn] = {}
        self.pending: dict[tuple[str, str], FrameIn] = {}
        self._asked_again: Counter[tuple[str, str]] = Counter()
        self.dropped: dict[str, FrameDrop] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._handlers: dict[type[EventFields], Callable[..., None]] = {
            StateSnapshot: self._snapshot,
            LedgerRecovery: self._recover, LedgerOpen: self._open, KeyChange: self._key,
            TrustChange: self._trust, PolicyChange: self._policy, GrantChange: self._grant,
            PluginRegister: self._register, PluginEnable: self._enable,
            PluginDisable: self._disable, PluginQuarantine: self._quarantine,
            PluginApprove: self._approve,
            Revoke: self._revoke, WorkerStart: self._start, WorkerAttest: self._attest,
            WorkerProbe: self._probe, WorkerExit: self._exit, FrameIn: self._in,
            FrameOut: self._out, FrameDrop: self._drop, InvokeAccept: self._accept,
            InvokeRefuse: self._refuse, InvokeEnd: self._end,
            DeterminismMismatch: self._mismatch, BreakerChange: self._breaker,
            ReplyUndeliverable: self._undeliverable,
        }

    def take(self, event: Event) -> None:
        """Take one event in, oldest first."""
        self.mono_us = event.mono_us
        handler = self._handlers.get(type(event.fields))
        if handler is not None:
            handler(event.fields, event)
        self.last = event.fields

    # --- what rules ask ---

    def untrusted(self, plugin: str, version: str) -> str | None:
        """Say why a version may not serve at this position, or None."""
        register = self.versions.get((plugin, version))
        if register is None:
            return "was never registered"
        if not register.signing_keys or set(register.signing_keys) <= self.revoked_publisher_keys:
            return "has no signing key that was not revoked"
        return self.dead.get((plugin, version))

    def holds_role(self, key_id: str, role: str) -> bool:
        """Say whether a client key has a role and was not revoked."""
        return self.roles.get(key_id) == role and key_id not in self.revoked_keys

    def concerned(self, revoke: Revoke) -> set[str]:
        """Name the open calls that lose their right by a revocation."""
        if revoke.kind == "client_key":
            return {name for name, call in self.calls.items() if call.accept.peer == revoke.id}
        victims: set[tuple[str, str]] = set()
        for (plugin, version), register in self.versions.items():
            if (
                (revoke.kind == "plugin_version" and f"{plugin}@{version}" == revoke.id)
                or (revoke.kind == "publisher_key" and revoke.id in register.signing_keys)
                or (revoke.kind == "grant" and revoke.id.partition(" ")[0] == plugin
                    and revoke.id.partition(" ")[2] in register.capabilities)
            ):
                victims.add((plugin, version))
        return {
            name for name, call in self.calls.items()
            if (call.accept.plugin, call.accept.version) in victims
        }

    def overdue(self, before_us: int) -> str | None:
        """Name a call that is open although its deadline was before a moment, or None."""
        while self._deadlines and self._deadlines[0][0] < before_us:
            request_id = self._deadlines[0][1]
            if request_id in self.calls:
                return request_id
            heapq.heappop(self._deadlines)
        return None

    # --- the ledger, keys, trust ---

    @property
    def carrying(self) -> bool:
        """Whether a restored ledger still says what it takes over from the one before it."""
        opened = self.opened
        return opened is not None and opened.restored_from is not None and not self.snapshots

    def _snapshot(self, _fields: StateSnapshot, _event: Event) -> None:
        self.snapshots += 1

    def _recover(self, _fields: LedgerRecovery, _event: Event) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Another process: nobody it does not know is alive, and it owes nobody a reply."""
        self.workers.clear()
        self.breakers.clear()
        self.untold.clear()
        self.condemned.clear()
        self.doubted.clear()
        self.heard.clear()
        self.pending.clear()
        self._asked_again.clear()
        self.dropped.clear()

    def _open(self, fields: LedgerOpen, event: Event) -> None:
        self._begin_anew()
        self.accepted.open(fields, event)
        self.runs += 1
        self.opened = fields
        self.inherited = set(self.calls)
        self._deadlines.clear()

    def _key(self, fields: KeyChange, _event: Event) -> None:
        if fields.action == "revoked":
            self.revoked_keys.add(fields.key_id)
        elif fields.action == "removed":
            self.roles.pop(fields.key_id, None)
        else:
            self.roles[fields.key_id] = fields.role
        # What it asked for before is no measure of what it may now.
        self.heard.pop(fields.key_id, None)
        if fields.action != "revoked" and self.roles.get(fields.key_id) != "omega":
            # What an earlier process left open ends as abandoned.
            self.condemned |= {
                name for name, call in self.calls.items() if call.accept.peer == fields.key_id
            } - self.inherited

    def _trust(self, fields: TrustChange, _event: Event) -> None:
        self.trust = fields.version, fields.sha256
        # Whose calls lose their right by it stands in the document, of which a ledger has only the
        # digest. The same holds for a policy.
        self.doubted = set(self.calls)

    def _policy(self, fields: PolicyChange, _event: Event) -> None:
        self.policy = fields.sha256
        self.doubted = set(self.calls)
        # What policy grants stands in the policy, of which a ledger has only the digest.
        self.taken_back.clear()

    def _grant(self, fields: GrantChange, _event: Event) -> None:
        if fields.action == "granted":
            self.taken_back.discard((fields.plugin, fields.capability))
        else:
            self.taken_back.add((fields.plugin, fields.capability))

    # --- plugins ---

    def _register(self, fields: PluginRegister, _event: Event) -> None:
        self.versions[fields.plugin, fields.version] = fields
        self.newest[fields.plugin] = fields.version

    def _enable(self, fields: PluginEnable, _event: Event) -> None:
        self.enabled[fields.plugin] = self.last_enabled[fields.plugin] = fields.version
        for key, breaker in self.breakers.items():
            if key[0] == fields.plugin:
                # It rests for the version that failed, not for another one.
                self.breakers[key] = breaker._replace(rest_until_us=0)

    def _disable(self, fields: PluginDisable, _event: Event) -> None:
        self.enabled.pop(fields.plugin, None)

    def _approve(self, fields: PluginApprove, _event: Event) -> None:
        key = fields.plugin, fields.version, fields.diff_sha256
        self.approved.setdefault(key, set()).add(fields.actor)

    def _quarantine(self, fields: PluginQuarantine, _event: Event) -> None:
        self._kill(fields.plugin, fields.version, f"was quarantined: {fields.reason}")

    def _kill(self, plugin: str, version: str, why: str) -> None:
        self.dead[plugin, version] = why
        if self.enabled.get(plugin) == version:
            del self.enabled[plugin]

    def _revoke(self, fields: Revoke, _event: Event) -> None:
        self.condemned |= self.concerned(fields)
        if fields.kind == "plugin_version":
            plugin, _, version = fields.id.partition("@")
            self._kill(plugin, version, "was revoked")
        elif fields.kind == "grant":
            plugin, _, capability = fields.id.partition(" ")
            self.taken_back.add((plugin, capability))
        elif fields.kind == "publisher_key":
            self.revoked_publisher_keys.add(fields.id)
        else:
            self.revoked_keys.add(fields.id)

    # --- workers ---

    def _start(self, fields: WorkerStart, _event: Event) -> None:
        self.workers[fields.incarnation] = Worker(fields)
        self.incarnations.add(fields.incarnation)

    def _attest(self, fields: WorkerAttest, _event: Event) -> None:
        worker = self.workers.get(fields.incarnation)
        if worker is not None:
            worker.attested = fields.accepted

    def _probe(self, fields: WorkerProbe, _event: Event) -> None:
        worker = self.workers.get(fields.incarnation)
        if worker is not None:
            worker.witnessed = fields.passed
            worker.asked -= 1
            worker.reports -= 1

    def _exit(self, fields: WorkerExit, _event: Event) -> None:
        self.workers.pop(fields.incarnation, None)

    # --- frames ---

    def _in(self, fields: FrameIn, _event: Event) -> None:
        self.doubted.clear()
        if fields.plane != "worker":
            self.heard[fields.peer] = fields
            if fields.request_id is not None:
                self.accepted.asked()
                key = fields.peer, fields.request_id
                # A request id that comes again is refused, and its first request waits on.
                if self.pending.setdefault(key, fields) is not fields:
                    self._asked_again[key] += 1
            return
        worker = self.workers.get(fields.peer)
        if worker is None:
            return
        if fields.type == "probe_report":
            worker.reports += 1
        if fields.call is None:
            return
        if fields.call not in worker.calls:
            worker.guilty_of = f"a {fields.type} about call {fields.call}, which it does not have"
            return
        call = self.calls.get(fields.request_id or "")
        if fields.type == "call_progress" and call is not None:
            call.progressed = True
        if fields.type in FINAL:
            worker.calls.discard(fields.call)
            if call is not None and worker.purpose == "replica":
                call.replica_said = fields.type
            elif call is not None and fields.type == "call_result":
                call.results.append(fields.peer)

    def _out(self, fields: FrameOut, _event: Event) -> None:
        if fields.plane != "worker":
            self._reply(fields)
            return
        worker = self.workers.get(fields.peer)
        if worker is None:
            return
        if fields.type == "drain":
            worker.draining = True
        elif fields.type == "probe":
            worker.asked += 1
        elif fields.type == "run":
            worker.purpose = fields.purpose or ""
            if fields.call is not None:
                worker.calls.add(fields.call)
            call = self.calls.get(fields.request_id or "")
            if call is not None:
                call.runs.append(fields)

    def _reply(self, fields: FrameOut) -> None:
        if fields.type in NO_REPLY_YET:
            return
        if answers_drop(fields, self.dropped.get(fields.peer)):
            del self.dropped[fields.peer]
            return
        if fields.request_id is None:
            return
        key = fields.peer, fields.request_id
        if self._asked_again[key] > 0:
            self._asked_again[key] -= 1
        else:
            del self._asked_again[key]
            self.pending.pop(key, None)
        end = self.untold.get(fields.request_id)
        if end is not None and end.code == fields.code:
            del self.untold[fields.request_id]

    def _drop(self, fields: FrameDrop, _event: Event) -> None:
        if fields.plane != "worker":
            self.dropped[fields.peer] = fields
            return
        worker = self.workers.get(fields.peer)
        if worker is not None:
            worker.guilty_of = f"what was dropped as {fields.code}"

    # --- invocations ---

    def _accept(self, fields: InvokeAccept, event: Event) -> None:
        self.accepted.accept(fields, event)
        call = Call(fields, event.mono_us + fields.timeout_ms * 1000)
        self.calls[fields.request_id] = call
        heapq.heappush(self._deadlines, (call.deadline_us, fields.request_id))

    def _refuse(self, fields: InvokeRefuse, _event: Event) -> None:
        if fields.pipeline is None:
            self.untold[fields.request_id] = fields

    def _end(self, fields: InvokeEnd, event: Event) -> None:
        call = self.calls.pop(fields.request_id, None)
        self.condemned.discard(fields.request_id)
        if fields.request_id in self.inherited:
            self.inherited.discard(fields.request_id)
        elif call is not None and call.accept.pipeline is None:
            self.untold[fields.request_id] = fields
        if call is not None and fields.output_fingerprint is not None:
            self.outputs.setdefault(
                output_key(call.accept), (fields.output_fingerprint, event.seq)
            )

    def _mismatch(self, fields: DeterminismMismatch, _event: Event) -> None:
        call = self.calls.get(fields.request_id)
        if call is not None:
            call.mismatched = fields.against

    def _breaker(self, fields: BreakerChange, event: Event) -> None:
        rest_us = (fields.retry_after_ms or 0) * 1000
        self.breakers[fields.plugin, fields.method] = Breaker(fields.after, event.mono_us + rest_us)

    def _undeliverable(self, fields: ReplyUndeliverable, _event: Event) -> None:
        call = self.calls.get(fields.request_id or "")
        if call is not None and fields.type == "keep_alive":
            call.client_gone = True


def output_key(accept: InvokeAccept) -> tuple[str, ...]:
    """Give what must always lead to one output: method and input of a deterministic call."""
    return accept.plugin, accept.version, accept.method, accept.input_fingerprint or ""


def answers_drop(reply: FrameOut, drop: FrameDrop | None) -> bool:
    """Say whether a reply is the refusal of a frame that was dropped."""
    return drop is not None and reply.type == "refusal" and reply.code == drop.code
