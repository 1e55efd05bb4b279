"""What the core remembers, and the effects of the turn that is being decided.

Rules this file keeps: one object holds all of the core's memory; effects are only ever added, in
the order in which they must happen. Everything here is plain data or a small pure object.

It leaves decisions to `broker.core`, `broker.supervision` and `broker.administration`.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Literal

import msgspec

from broker.config import GatewayConfig
from broker.effects import Append, Effect, Evidence, Order, Origin, Send
from broker.inventory import Inventory, VersionRecord
from broker.lifecycle import GatewayState
from broker.orchestrator.admission import DropBudget
from broker.orchestrator.breaker import Breakers
from broker.orchestrator.calls import Call, LoadedPlugin, Shelf
from broker.orchestrator.fleet import Fleet
from broker.orchestrator.graph import Pipeline
from broker.orchestrator.windows import RequestWindow, request_key
from broker.trust.roots import still_trusted
from schemas.codec import printable
from schemas.events import (
    EventFields,
    FrameDrop,
    Plane,
    PluginDisable,
    PluginEnable,
    PluginQuarantine,
    Revoke,
)
from schemas.messages import Refusal, Reply, ToWorker, Usage
from schemas.names import Role
from schemas.policy import Policy
from schemas.refusals import REFUSALS, RefusalCode
from schemas.trust import TrustRoot

_OUT_OF_SERVICE: Final = frozenset({PluginEnable, PluginDisable, PluginQuarantine, Revoke})

TimerKind = Literal[
    "call", "pipeline", "presence", "start", "backoff", "abort", "ping", "drain", "renew",
    "witness", "trial", "stop",
]

TIMERS_OVER_MIN: Final = 64
"""So few timers of calls that are over are not worth a look."""


@dataclass(frozen=True, slots=True)
class KnownKey:
    """One client's public key, as Z85 text, the role it has, and the id of the key it replaces."""

    key_id: str
    role: Role
    public_key: str
    replaces: str = ""


@dataclass(frozen=True, slots=True)
class Edge:
    """What only the outside world can give: fresh ids and nonces, and secrets read at the start."""

    new_incarnation: Callable[[], str]
    new_nonce: Callable[[], bytes]
    determinism_key: bytes = field(repr=False)
    log_id: str = ""
    gateway_version: str = ""


def refusal(
    request_id: str | None,
    code: RefusalCode,
    sentence: str = "",
    *,
    where: str = "",
    hint: str = "",
    retry_after_ms: int | None = None,
    plugin_message: str | None = None,
    usage: Usage | None = None,
) -> Refusal:
    """Make a refusal, with the words of its page where none are given."""
    info = REFUSALS[code]
    return Refusal(
        request_id=request_id,
        code=code,
        message=f"{info.title}: {sentence}" if sentence else f"{info.title}. {info.reason}",
        where=where,
        hint=hint or info.remedy,
        retry_after_ms=retry_after_ms,
        plugin_message=plugin_message,
        usage=usage,
    )


class State:
    """The core's memory. `now` is monotonic in us, `wall_us` the wall time of the same moment."""

    def __init__(
        self,
        *,
        config: GatewayConfig,
        policy: Policy,
        trust: TrustRoot,
        trust_sha256: str,
        policy_sha256: str,
        keys: dict[str, KnownKey],
        inventory: Inventory,
        plugins: dict[tuple[str, str], LoadedPlugin],
        edge: Edge,
    ) -> None:
        """Begin with what the home and the ledger say, and no worker."""
        self.config = config
        self.policy = policy
        self.trust = trust
        self.trust_sha256 = trust_sha256
        self.policy_sha256 = policy_sha256
        self.keys = keys
        self.inventory = inventory
        self.plugins = plugins
        self.edge = edge
        self.fleet = Fleet(config.times, config.workers, config.limits)
        self.drops = DropBudget(per_second_max=config.limits.bad_frames_per_s_max)
        self.windows: dict[str, RequestWindow] = {}
        self.calls: dict[str, Call] = {}
        self.pipelines: dict[str, Pipeline] = {}
        self.starving: set[str] = set()
        self.unserved: set[tuple[str, str]] = set()
        self.breakers = Breakers(config.breaker)
        self.gateway: GatewayState = "serving"
        self.degraded: set[str] = set()
        self.next_call = 1
        self.now = 0
        self.wall_us = 0
        self.began_us = 0
        self.steady_offset_us = 0
        self.ledger_size = 0
        self._timers: list[tuple[int, int, TimerKind, str]] = []
        self._timer_number = 0
        self._timers_over = 0
        self._effects: list[Effect] = []
        self._trusted: dict[tuple[str, str], bool] = {}
        self._trusted_moment = (0, 0, 0)

    def reconfigure(self, config: GatewayConfig) -> None:
        """Hold everything from now on to other bounds and times."""
        self.config = config
        self.fleet.reconfigure(config.times, config.workers, config.limits)
        self.breakers.config = config.breaker
        self.drops.per_second_max = config.limits.bad_frames_per_s_max

    # --- effects ---

    def take(self) -> list[Effect]:
        """Give the effects decided so far and begin a new list."""
        effects, self._effects = self._effects, []
        return effects

    def take_answer(self, to: Origin, known_size: int | None) -> list[Effect]:
        """Give the effects of a request: whatever answers it has a receipt, also a read.

        A reply that names no event of its own points at the event of the request's arrival.
        """
        effects = self.take()
        for place, effect in enumerate(effects):
            if isinstance(effect, Evidence):
                effects[place] = msgspec.structs.replace(effect, known_size=known_size)
            elif isinstance(effect, Send) and effect.to is to and not effect.receipt:
                effects[place] = msgspec.structs.replace(
                    effect, receipt=True, known_size=known_size
                )
        return effects

    def do(self, effect: Effect) -> None:
        """Decide one effect."""
        self._effects.append(effect)

    def append(self, fields: EventFields) -> None:
        """Decide that an event is ledgered."""
        self._effects.append(Append(fields))

    def send(
        self, to: Origin, message: Reply, *, receipt: bool = False, known_size: int | None = None
    ) -> None:
        """Decide a reply; `receipt` names the event decided right before it."""
        self._effects.append(Send(to, message, receipt, known_size))

    def order(self, incarnation: str, message: ToWorker) -> None:
        """Decide a message to a worker."""
        self._effects.append(Order(incarnation, message))

    def refuse(
        self,
        to: Origin,
        request_id: str | None,
        code: RefusalCode,
        sentence: str = "",
        *,
        where: str = "",
        hint: str = "",
        retry_after_ms: int | None = None,
        plugin_message: str | None = None,
        usage: Usage | None = None,
        receipt: bool = False,
        known_size: int | None = None,
    ) -> None:
        """Decide a refusal with the words of its page where none are given."""
        self.send(
            to,
            refusal(request_id, code, sentence, where=where, hint=hint,
                    retry_after_ms=retry_after_ms, plugin_message=plugin_message, usage=usage),
            receipt=receipt, known_size=known_size,
        )

    def drop(
        self, plane: Plane, peer: str, code: RefusalCode, size: int, where: str = "",
        count: int = 1,
    ) -> bool:
        """Ledger what was not let in; False when it is only counted by now."""
        drop = FrameDrop(
            plane=plane, peer=peer, code=code, bytes=size, count=count, where=printable(where)
        )
        told = self.drops.tell(drop, self.now)
        if told:
            self.append(drop)
        return told

    # --- memory ---

    def take_in(self, fields: EventFields, seq: int) -> None:
        """Fold an event of the ledger; a version that it takes out of service may be forgotten."""
        if type(fields) in _OUT_OF_SERVICE:
            self.unserved.update(self._left_by(fields))
        self.inventory.apply(fields, seq)

    def _left_by(self, fields: EventFields) -> Iterator[tuple[str, str]]:
        if isinstance(fields, PluginEnable):
            last = self.inventory.plugins[fields.plugin].last_enabled
            if last is not None:
                yield fields.plugin, last
        elif isinstance(fields, Revoke) and fields.kind == "plugin_version":
            plugin, _, version = fields.id.partition("@")
            yield plugin, version
        elif isinstance(fields, PluginDisable | PluginQuarantine) and fields.version is not None:
            yield fields.plugin, fields.version

    def window(self, key_id: str) -> RequestWindow:
        """Give the request-id window of one key."""
        window = self.windows.get(key_id)
        if window is None:
            limits = self.config.limits
            window = self.windows[key_id] = RequestWindow(
                entries_max=limits.request_window, window_us=limits.request_window_ms * 1000
            )
        return window

    def used(self, request_id: str) -> bool:
        """Say whether any key used a request id within the window."""
        key = request_key(request_id)
        return request_id in self.calls or request_id in self.pipelines or any(
            key in window for window in self.windows.values()
        )

    def admit(self, key_id: str, request_id: str, at_us: int | None = None) -> bool:
        """Remember a request id of one key; False when any key used it within the window.

        Each key has a window of its own size, but one id names one request in the whole ledger.
        Of the ledger's past the wall time is given, in us.
        """
        if request_id in self.calls or request_id in self.pipelines:
            return False
        key, window = request_key(request_id), self.window(key_id)
        for other in self.windows.values():
            if other is not window and key in other:
                return False
        # A wall clock may step; the window must not forget or hold on because of it.
        steady_us = self.now + self.steady_offset_us
        return window.admit(key, steady_us if at_us is None else at_us)

    def ended(self, key_id: str, request_id: str, seq: int) -> None:
        """Remember where the end of a request of one key lies in the ledger."""
        self.window(key_id).ended(request_key(request_id), seq)

    def end_of(self, key_id: str, request_id: str) -> int | None:
        """Give the position of the end of a request of one key, or None."""
        return self.window(key_id).end_of(request_key(request_id))

    def knows(self, key_id: str) -> bool:
        """Say whether a client's key lies in the home and was not revoked."""
        return key_id in self.keys and key_id not in self.inventory.revoked_keys

    def holds(self, key_id: str, role: Role) -> bool:
        """Say whether a client's key has a role now: what waited must ask again."""
        return self.knows(key_id) and self.keys[key_id].role == role

    def description(self, plugin: str, version: str) -> str:
        """Give the description of a registered version; empty when its bundle is damaged."""
        if isinstance(self.plugins, Shelf):
            return self.plugins.description((plugin, version))
        loaded = self.plugins.get((plugin, version))
        return loaded.manifest.description if loaded else ""

    def trusts(self, record: VersionRecord) -> bool:
        """Say whether the publisher of a registered version is still trusted, now.

        Asked for every call, so the answer is kept for the second, and until something is revoked
        or another root is in force.
        """
        revoked = len(self.inventory.revoked_publisher_keys)
        moment = (self.wall_us // 1_000_000, revoked, self.trust.version)
        if moment != self._trusted_moment:
            self._trusted.clear()
            self._trusted_moment = moment
        key = (record.plugin, record.version)
        trusted = self._trusted.get(key)
        if trusted is None:
            trusted = self._trusted[key] = still_trusted(
                record.publisher, record.signing_keys, self.trust,
                self.inventory.revoked_publisher_keys, record.plugin, moment[0],
            )
        return trusted

    # --- time ---

    def later(self, at_us: int, kind: TimerKind, key: str) -> None:
        """Ask to be woken at a time; whoever is woken checks whether it still matters."""
        self._timer_number += 1
        heapq.heappush(self._timers, (at_us, self._timer_number, kind, key))

    def call_over(self, request_id: str) -> None:
        """Forget an open call. Its timers matter no more, and go when they are about half of all.

        Each left until its time would make every other slower: there is one for each call that a
        timeout's span has seen.
        """
        del self.calls[request_id]
        self._timers_over += 1
        if 2 * self._timers_over > len(self._timers) + TIMERS_OVER_MIN:
            self._timers = [
                timer for timer in self._timers if timer[2] != "call" or timer[3] in self.calls
            ]
            heapq.heapify(self._timers)
            self._timers_over = 0

    def due(self) -> tuple[TimerKind, str] | None:
        """Take the next timer that is due by `now`, or None."""
        if self._timers and self._timers[0][0] <= self.now:
            _, _, kind, key = heapq.heappop(self._timers)
            return kind, key
        return None

    def next_deadline(self) -> int | None:
        """Say when something is due next, in monotonic us, or None."""
        times = [self._timers[0][0]] if self._timers else []
        counted = self.drops.due_us()
        if counted is not None:
            times.append(counted)
        return min(times, default=None)
