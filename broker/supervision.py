"""The workers' lives: started on demand, attested, witnessed, watched, replaced and ended.

Rules this file keeps: nobody is routable before its attestation is accepted and its witness has
passed; the witness comes again for as long as a worker serves; a probe that gets through
quarantines the version, and a report that is late or lacks one ends the worker; a worker that is
gone ends its calls at once; starts back off and stop at a cap. Legality is
`broker.lifecycle.WORKER`.

It leaves calls to `broker.core`, which hands in what to do with a lost one and with new room.
Source: specification INV-PNP-05, INV-PNP-10; docs/ARCHITECTURE.md, section "Workers".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

from broker.effects import Kill, Spawn
from broker.orchestrator.calls import Call
from broker.orchestrator.fleet import Pool, Worker
from broker.policy import effective
from broker.state import State
from schemas.events import (
    PluginQuarantine,
    WorkerAttest,
    WorkerExit,
    WorkerProbe,
    WorkerStart,
    ZygoteRecycle,
)
from schemas.messages import Attestation, Bye, Drain, Ping, Pong, Probe, ProbeReport, Ready
from schemas.refusals import RefusalCode
from schemas.witness import escaped, failed_probes

LANDLOCK_ABI_MIN = 6
_NO_CAPABILITIES = "0" * 16

NEVER_BEGAN: Final[dict[str, RefusalCode]] = {
    "sandbox_unavailable": RefusalCode.SANDBOX_UNAVAILABLE,
    "plugin_load_failed": RefusalCode.PLUGIN_LOAD_FAILED,
    "packages_changed": RefusalCode.PACKAGES_CHANGED,
    "launch_refused": RefusalCode.WORKER_START_FAILED,
}
"""What a worker says that never could begin, and the code its waiting calls end with."""

LostCall = Callable[[Call, RefusalCode, str], None]


def attestation_fault(attestation: Attestation) -> str | None:
    """Say which layer an attestation shows to be missing, or None when all are there."""
    expected: tuple[tuple[str, bool], ...] = (
        ("no_new_privileges", attestation.no_new_privileges == 1),
        ("seccomp_mode", attestation.seccomp_mode == 2),
        ("seccomp_filters_zygote", attestation.seccomp_filters_zygote >= 1),
        (
            "seccomp_filters_call",
            attestation.seccomp_filters_call > attestation.seccomp_filters_zygote,
        ),
        ("capabilities_effective", attestation.capabilities_effective == _NO_CAPABILITIES),
        ("capabilities_bounding", attestation.capabilities_bounding == _NO_CAPABILITIES),
        ("threads", attestation.threads == 1),
        ("uid", attestation.uid != 0),
        ("landlock_abi", attestation.landlock_abi >= LANDLOCK_ABI_MIN),
        ("namespaces", len(attestation.namespaces) == 7),
    )
    return next((name for name, holds in expected if not holds), None)


class Supervision:
    """Decides about workers. `lost` ends a call, `room` dispatches what waits in a pool, `left`
    hears of a worker that is gone and why."""

    def __init__(
        self, state: State, *, lost: LostCall, room: Callable[[Pool], None],
        left: Callable[[Worker, str], None],
    ) -> None:
        """Share the core's memory and take the core's three answers."""
        self._state = state
        self._lost = lost
        self._room = room
        self._left = left

    def due(self, kind: str, incarnation: str) -> None:
        """A timer of one worker rang; of one that is gone nothing is due."""
        worker = self._state.fleet.by_incarnation.get(incarnation)
        if worker is None:
            return
        if kind == "start":
            self.start_overdue(worker)
        elif kind == "ping":
            self.ping_due(worker)
            self.renew(worker)
        elif kind == "renew":
            self.renew_due(worker)
        elif kind == "witness":
            self.witness_due(worker)
        elif kind == "drain" and worker.state == "draining":
            self.kill(worker, "drain_timeout", failed=False)
        elif kind == "abort" and any(at <= self._state.now for at in worker.aborted.values()):
            self.kill(worker, "abort_ignored")

    # --- starting ---

    def ensure(self, pool: Pool) -> None:
        """Start a worker for calls that wait, unless one is coming or the back-off holds.

        Where no more workers are allowed, one that is idle makes room. A gateway that drains starts
        nothing: what waits for a worker ends. What waits for a replica waits for no luck.
        """
        state = self._state
        if pool.expecting or not pool.queue:
            return
        if state.gateway != "serving":
            self.refuse_queue(pool, RefusalCode.DRAINING, "")
            return
        retry_us, idle = pool.not_before_us, None
        if state.now >= retry_us and state.fleet.full(pool.role):
            idle = state.fleet.longest_idle(pool.role)
            if idle is not None:
                self.drain(idle)
            retry_us = state.now + state.config.times.backoff_ms_min * 1000
        if state.now < retry_us and pool.role == "replica" and idle is None:
            self.refuse_queue(pool, RefusalCode.WORKER_START_FAILED, "")
        elif state.now < retry_us:
            state.later(retry_us, "backoff", pool.name)
        else:
            self.start(pool)

    def foresee(self, pool: Pool) -> None:
        """Start a worker ahead of its first call, where there is room for it."""
        state = self._state
        held_back = state.gateway != "serving" or state.now < pool.not_before_us
        if not (held_back or pool.expecting or state.fleet.full(pool.role)):
            self.start(pool)

    def start(self, pool: Pool) -> Worker:
        """Start one more worker of a version, whatever there is already."""
        state = self._state
        loaded = state.plugins[pool.plugin, pool.version]
        manifest = loaded.manifest
        granted = state.inventory.plugins[pool.plugin].grants
        grants = effective(pool.plugin, manifest.capabilities, state.policy, granted).granted
        launcher: Literal["local", "external"] = "local"
        if pool.plugin in state.config.workers.external and pool.role == "primary":
            launcher = "external"
        worker = Worker(
            incarnation=state.edge.new_incarnation(),
            plugin=pool.plugin,
            version=pool.version,
            grants=tuple(grants),
            concurrency=manifest.limits.concurrency,
            pool_size=state.fleet.pool_share(
                manifest.limits.concurrency if pool.role == "primary" else 1
            ),
            started_us=state.now,
            role=pool.role,
            terms=f"{state.policy_sha256} {grants}",
        )
        state.fleet.add(worker)
        state.append(
            WorkerStart(
                incarnation=worker.incarnation,
                plugin=pool.plugin,
                version=pool.version,
                bundle_sha256=loaded.bundle_sha256,
                launcher=launcher,
                grants=worker.grants,
            )
        )
        state.do(
            Spawn(
                incarnation=worker.incarnation,
                plugin=pool.plugin,
                version=pool.version,
                bundle_sha256=loaded.bundle_sha256,
                limits=manifest.limits,
                grants=worker.grants,
                modules=manifest.modules,
                launcher=launcher,
                pool_size=worker.pool_size,
                role=pool.role,
            )
        )
        state.later(state.now + state.config.times.start_ms * 1000, "start", worker.incarnation)
        return worker

    # --- what a worker says about itself ---

    def ready(self, worker: Worker, message: Ready) -> bool:
        """Judge an attestation; False when the worker had no business sending one."""
        if not worker.step("attested"):
            return False
        state = self._state
        attestation = message.attestation
        fault = attestation_fault(attestation)
        state.append(
            WorkerAttest(
                incarnation=worker.incarnation,
                accepted=fault is None,
                pid=message.pid,
                uid=attestation.uid,
                landlock_abi=attestation.landlock_abi,
                no_new_privileges=attestation.no_new_privileges,
                seccomp_mode=attestation.seccomp_mode,
                seccomp_filters_zygote=attestation.seccomp_filters_zygote,
                seccomp_filters_call=attestation.seccomp_filters_call,
                capabilities_effective=attestation.capabilities_effective,
                capabilities_bounding=attestation.capabilities_bounding,
                threads=attestation.threads,
                base_filter_sha256=attestation.base_filter_sha256,
                strict_filter_sha256=attestation.strict_filter_sha256,
                namespaces=attestation.namespaces,
                interpreter=attestation.interpreter,
            )
        )
        if fault is not None:
            self._quarantine(worker, "attestation_failed", fault)
            return True
        worker.concurrency = min(worker.concurrency, message.concurrency)
        worker.heard_us = worker.called_us = state.now
        self._witness(worker)
        return True

    def _witness(self, worker: Worker) -> None:
        """Have denied things tried down the path that calls take, and await the report."""
        state = self._state
        worker.probe, worker.nonce = state.next_call, state.edge.new_nonce()
        state.next_call += 1
        state.order(worker.incarnation, Probe(probe=worker.probe, nonce=worker.nonce))
        self._witness_at(worker, state.config.times.witness_ms)

    def _witness_at(self, worker: Worker, in_ms: int) -> None:
        worker.witness_us = self._state.now + in_ms * 1000
        self._state.later(worker.witness_us, "witness", worker.incarnation)

    def witness_due(self, worker: Worker) -> None:
        """End a worker whose report is late; ask one that serves again, idle or busy."""
        if self._state.now < worker.witness_us:
            return
        if worker.nonce:
            self.kill(worker, "probe_overdue")
        elif worker.state == "ready":
            self._witness(worker)

    def probed(self, worker: Worker, message: ProbeReport) -> bool:
        """Judge a witness report; False when it answers no probe of ours."""
        if not worker.nonce or (message.probe, message.nonce) != (worker.probe, worker.nonce):
            return False
        state = self._state
        outcomes = {entry.name: entry.outcome for entry in message.outcomes}
        if len(outcomes) != len(message.outcomes):
            return False
        failed = failed_probes(outcomes, worker.grants)
        state.append(
            WorkerProbe(
                incarnation=worker.incarnation,
                probe=worker.probe,
                passed=not failed,
                outcomes=dict(outcomes),
                failed=failed,
            )
        )
        through = escaped(outcomes, failed)
        if through:
            self._quarantine(worker, "probe_succeeded", ",".join(through)[:200])
            return True
        if failed:
            self.kill(worker, "probe_incomplete")
            return True
        first = worker.state == "probing"
        worker.step("witnessed")
        worker.nonce = b""
        times = state.config.times
        self._witness_at(worker, times.witness_interval_ms)
        if first:
            state.later(state.now + times.ping_interval_ms * 1000, "ping", worker.incarnation)
            self._routable(worker)
        return True

    def _routable(self, worker: Worker) -> None:
        """A worker may be given calls from now on, and the one that it replaces no more."""
        pool = self._state.fleet.pool_of(worker)
        for other in list(pool.workers.values()):
            if other.successor == worker.incarnation:
                self.drain(other, "recycle")
        self._room(pool)
        self.settle(pool)

    def pong(self, worker: Worker, message: Pong) -> bool:
        """Take a sign of life; False when it answers no ping of ours."""
        if worker.pinged is None or message.nonce != worker.pinged:
            return False
        worker.pinged = None
        return True

    def bye(self, worker: Worker, message: Bye) -> bool:
        """A worker leaves in order; False when it still owes answers."""
        if message.reason in NEVER_BEGAN:
            worker.exit_detail = f"{message.reason}: {message.detail}"[:1024]
            code = NEVER_BEGAN[message.reason]
            pool = self._state.fleet.pool_of(worker)
            self.gone(worker, "bye", message.reason)
            self.refuse_queue(pool, code, message.detail)
            return True
        if worker.calls or worker.state not in ("draining", "ready"):
            return False
        self.gone(worker, "bye", message.reason, failed=False)
        return True

    # --- ending ---

    def drain(self, worker: Worker, event: Literal["drain", "recycle"] = "drain") -> None:
        """Let a worker finish what it has and take nothing more."""
        state = self._state
        if not worker.step(event):
            return
        worker.drain_until_us = state.now + state.config.times.drain_ms * 1000
        if event == "recycle":
            # Nobody asked for its end: no call is lost by it, so it has as long as they have.
            ends_us = (call.deadline_us for call in worker.calls.values())
            worker.drain_until_us = max(worker.drain_until_us, *ends_us, 0)
        state.later(worker.drain_until_us, "drain", worker.incarnation)
        state.order(worker.incarnation, Drain())

    def kill(
        self, worker: Worker, reason: str, *, failed: bool = True,
        code: RefusalCode = RefusalCode.WORKER_LOST,
    ) -> None:
        """End a worker at once; its calls end with `code` unless they were ended before."""
        self.gone(worker, "kill", reason, failed=failed, code=code)

    def gone(
        self,
        worker: Worker,
        event: Literal["bye", "exit", "kill", "start_failed"],
        reason: str,
        *,
        status: int | None = None,
        signal: int | None = None,
        failed: bool = True,
        code: RefusalCode = RefusalCode.WORKER_LOST,
    ) -> None:
        """Write a worker off: its exit is an event, its calls are lost, its pool may start anew."""
        state = self._state
        if not worker.step(event):
            return
        state.fleet.remove(worker)
        pool = state.fleet.pool_of(worker)
        state.append(
            WorkerExit(
                incarnation=worker.incarnation,
                reason=reason,
                status=status,
                signal=signal,
                calls=worker.served,
                detail=worker.exit_detail,
            )
        )
        state.do(Kill(worker.incarnation))
        lost = list(worker.calls.values())
        worker.calls.clear()
        for call in lost:
            self._lost(call, code, "the worker ended while it had the call")
        for other in pool.workers.values():
            if other.successor == worker.incarnation:
                # A successor that did not come up leaves the old one serving and due again.
                other.recycle = other.successor = None
                other.renew_after_us = state.now + state.config.times.recycle_interval_ms * 1000
                state.later(other.renew_after_us, "renew", other.incarnation)
        if failed:
            state.fleet.failed(pool, state.now)
            if state.fleet.in_crash_loop(pool, state.now) and not pool.expecting:
                self.refuse_queue(pool, RefusalCode.WORKER_CRASH_LOOP, "")
        self.ensure(pool)
        self._left(worker, reason)

    def retire(self, pool: Pool) -> None:
        """A version takes no new call: its workers finish what they and the queue hold."""
        for each in self._state.fleet.pools_of(pool.plugin, pool.version):
            each.retiring = True
            self.settle(each)

    def settle(self, pool: Pool) -> None:
        """Let a retiring version's workers go once nothing waits for them."""
        if not pool.retiring or pool.queue:
            return
        for worker in list(pool.workers.values()):
            if worker.state == "ready":
                self.drain(worker)
            elif worker.state in ("starting", "probing"):
                self.kill(worker, "disabled", failed=False)

    def refuse_queue(self, pool: Pool, code: RefusalCode, sentence: str) -> None:
        """End every call that waits in a pool."""
        while pool.queue:
            self._lost(pool.queue[0], code, sentence)

    def _quarantine(self, worker: Worker, reason: str, detail: str) -> None:
        state = self._state
        record = state.inventory.record(worker.plugin, worker.version)
        if record is not None and state.inventory.may(record, "quarantine"):
            state.append(
                PluginQuarantine(
                    plugin=worker.plugin,
                    version=worker.version,
                    reason="probe_succeeded"
                    if reason == "probe_succeeded"
                    else "attestation_failed",
                    detail=detail,
                )
            )
        pools = list(state.fleet.pools_of(worker.plugin, worker.version))
        for pool in pools:
            self.refuse_queue(pool, RefusalCode.PLUGIN_QUARANTINED, "")
        others = [one for pool in pools for one in pool.workers.values() if one is not worker]
        for each in (worker, *others):
            self.kill(each, reason, code=RefusalCode.PLUGIN_QUARANTINED)

    # --- replacing ---

    def regrant(self, plugin: str, capability: str) -> None:
        """Replace the workers of a plugin that began without a capability it is granted now.

        Not at once: the grant holds for a worker that starts after its event was appended.
        """
        for pool in self._state.fleet.pools_of(plugin):
            loaded = self._state.plugins.get((pool.plugin, pool.version))
            if loaded is None or capability not in loaded.manifest.capabilities:
                continue
            for worker in list(pool.workers.values()):
                if capability not in worker.grants:
                    worker.outgrown = True
                    self._state.later(self._state.now, "renew", worker.incarnation)

    def struck(self, worker: Worker) -> None:
        """A plugin's code brought a call process down: replace the worker, but not ever so often.

        It serves until then, as it would for a plugin that brings nothing down.
        """
        if not worker.struck:
            worker.struck = True
            self.renew_due(worker)

    def renew_due(self, worker: Worker) -> None:
        """Replace a worker, or look again when it may be replaced."""
        self.renew(worker)
        if worker.struck and worker.recycle is None and worker.state == "ready":
            pool = self._state.fleet.pool_of(worker)
            at_us = max(self._state.fleet.calm_us(pool), worker.renew_after_us, pool.not_before_us)
            if at_us > self._state.now:
                self._state.later(at_us, "renew", worker.incarnation)

    def renew(self, worker: Worker) -> None:
        """Begin to replace a worker that is due: it serves until the new one is witnessed."""
        state = self._state
        reason = state.fleet.recycle_reason(worker, state.now)
        if reason is None or worker.recycle is not None or worker.state != "ready":
            return
        pool = state.fleet.pool_of(worker)
        if state.gateway != "serving" or pool.retiring:
            return
        if state.now < max(pool.not_before_us, worker.renew_after_us):
            return
        if state.fleet.full(pool.role, above=1):
            # One successor may stand above the bound: a full host replaces one after the other.
            return
        if reason == "killed":
            state.fleet.replaced_struck(pool, state.now)
        successor = self.start(pool)
        worker.recycle, worker.successor = reason, successor.incarnation
        state.append(
            ZygoteRecycle(
                incarnation=worker.incarnation, successor=successor.incarnation, reason=reason
            )
        )

    # --- time ---

    def start_overdue(self, worker: Worker) -> None:
        """A worker that is not ready within its bound is ended."""
        if worker.state in ("starting", "probing"):
            self.kill(worker, "start_timeout")

    def ping_due(self, worker: Worker) -> None:
        """Ask a silent worker for a sign of life, and end one that stays silent."""
        state = self._state
        times = state.config.times
        if worker.state not in ("ready", "draining"):
            return
        if worker.pinged is not None:
            if state.now - worker.pinged_us >= times.ping_silence_ms * 1000:
                self.kill(worker, "silent")
                return
        elif state.now - worker.heard_us >= times.ping_interval_ms * 500:
            # From half an interval on, so that a worker hears of us within one and a half.
            worker.pinged, worker.pinged_us = state.edge.new_nonce(), state.now
            state.order(worker.incarnation, Ping(nonce=worker.pinged))
        if state.now - worker.called_us >= times.idle_worker_ms * 1000 and not worker.calls:
            self.drain(worker)
        state.later(state.now + times.ping_interval_ms * 1000, "ping", worker.incarnation)
