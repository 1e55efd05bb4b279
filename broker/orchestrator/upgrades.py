"""Which version serves: enabling, disabling, and the approval that a widening one waits for.

Rules this file keeps:
- A version that was revoked, quarantined, damaged or whose publisher lost trust is never enabled;
  one that widens what its plugin may, against the version enabled last, only after exactly that
  difference was approved, by as many operators as policy asks for. It is asked anew at the switch.
- Where a version serves, the next one takes over when a worker of its own was witnessed, in one
  event; until then and after every failure the one before serves on. What may happen meanwhile is
  `broker.lifecycle.UPGRADE`. A crash forgets an upgrade: nothing was switched.
- Whoever asks gets one answer.

It leaves what widens to `broker.trust.ratchet`, workers to `broker.supervision` and the fold to
`broker.inventory`. Source: specification section 6, layers 1 and 2; docs/decisions/0027.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from broker.effects import Origin
from broker.inventory import PluginRecord, VersionRecord
from broker.lifecycle import UPGRADE, UpgradeEvent, UpgradeState
from broker.orchestrator.calls import Misfit, Shelf
from broker.orchestrator.fleet import Pool, Worker
from broker.state import State
from broker.supervision import NEVER_BEGAN, Supervision
from broker.trust.ratchet import Difference, difference
from broker.trust.versions import api_compatible
from schemas.events import PluginApprove, PluginDisable, PluginEnable, ZygoteRecycle
from schemas.messages import (
    Approve,
    Approved,
    Disabled,
    DisablePlugin,
    Enabled,
    EnablePlugin,
)
from schemas.names import API_VERSION
from schemas.refusals import REFUSALS, RefusalCode

_SHOWN_MAX: Final = 3
"""Changes that a refusal names; the whole difference is a read away."""
_CODES: Final = {
    "attestation_failed": RefusalCode.PLUGIN_QUARANTINED,
    "probe_succeeded": RefusalCode.PLUGIN_QUARANTINED, "revoked": RefusalCode.REVOKED,
}
"""What became of a worker that was awaited, where it is more than a start that failed."""


class Asked(NamedTuple):
    """Who asked for an upgrade and waits for its answer."""

    origin: Origin
    request_id: str
    known_size: int | None


@dataclass(slots=True)
class Upgrade:
    """One version on its way to take over: `incarnation` is the worker whose witness it awaits."""

    plugin: str
    version: str
    incarnation: str
    asked: list[Asked]
    state: UpgradeState = "warming"

    def step(self, event: UpgradeEvent) -> bool:
        """Take the table's transition; False when there is none, and then nothing changed."""
        after = UPGRADE.get((self.state, event))
        if after is None:
            return False
        self.state = after
        return True


class Upgrades:
    """Decides which version of a plugin serves new calls."""

    def __init__(self, state: State, workers: Supervision) -> None:
        """Share the core's memory; no upgrade is under way."""
        self._state = state
        self._workers = workers
        self._under_way: dict[str, Upgrade] = {}

    # --- enabling and disabling ---

    def enable(self, origin: Origin, request: EnablePlugin) -> None:
        """Let a version serve new calls, or say what hinders it.

        Where another version serves, the new one's worker comes first: the answer is given when it
        was witnessed and new calls go to it, or when it did not come.
        """
        state = self._state
        entry = registered_version(state, origin, request.request_id, request.plugin,
                                   request.version)
        if entry is None:
            return
        record = state.inventory.plugins[request.plugin]
        asked = Asked(origin, request.request_id, request.known_size)
        if record.enabled == request.version:
            self._withdraw(request.plugin, "cancel", f"{request.version} was asked to serve on")
            state.send(origin, Enabled(request_id=request.request_id, plugin=request.plugin,
                                       version=request.version, previous=request.version))
            return
        hindrance = self._hindrance(entry, record)
        if hindrance is not None:
            _refuse(state, asked, hindrance)
            return
        under_way = self._under_way.get(request.plugin)
        if under_way is not None and under_way.version == request.version:
            under_way.step("enable")
            under_way.asked.append(asked)
            return
        self._withdraw(request.plugin, "supersede", f"{request.version} was asked for after it")
        if record.enabled is None:
            self._switch(entry, [asked], None)
        else:
            self._warm(entry, asked)

    def _warm(self, entry: VersionRecord, asked: Asked) -> None:
        """Have a worker of the version come up, beside what serves; switch to one that is up."""
        state = self._state
        # Whatever it comes to: until it serves, what it is warmed with may be forgotten again.
        state.unserved.add((entry.plugin, entry.version))
        pool = state.fleet.pool(entry.plugin, entry.version)
        workers = sorted(pool.workers.values(), key=lambda one: one.state != "ready")
        worker = next((one for one in workers
                       if one.state in ("ready", "probing", "starting")), None)
        if worker is None and state.gateway != "serving":
            _refuse(state, asked, Misfit(RefusalCode.DRAINING, ""))
            return
        if worker is None and state.fleet.full("primary", above=1):
            _refuse(state, asked, Misfit(
                RefusalCode.WORKER_START_FAILED,
                f"there are more than {state.config.limits.workers_max} workers already",
                retry_after_ms=state.config.times.backoff_ms_min,
            ))
            return
        self._awaken(entry)
        worker = worker or self._workers.start(pool)
        if worker.state == "ready":
            self._switch(entry, [asked], worker.incarnation)
            return
        self._under_way[entry.plugin] = Upgrade(
            entry.plugin, entry.version, worker.incarnation, [asked]
        )

    def _switch(self, entry: VersionRecord, asked: list[Asked], successor: str | None) -> None:
        """Send new calls to a version from here on; the one before finishes what it has."""
        state = self._state
        record = state.inventory.plugins[entry.plugin]
        previous = record.enabled
        widening = widening_difference(state, record, entry.version)
        state.append(PluginEnable(
            plugin=entry.plugin, version=entry.version, previous=previous,
            diff_sha256=widening.digest() if widening is not None else None,
            actor=asked[0].origin.key_id,
        ))
        for one in asked:
            state.send(
                one.origin,
                Enabled(request_id=one.request_id, plugin=entry.plugin, version=entry.version,
                        previous=previous),
                receipt=True, known_size=one.known_size,
            )
        self._awaken(entry)
        if previous is None:
            return
        before = state.fleet.pool(entry.plugin, previous)
        for worker in before.workers.values():
            if worker.state == "ready" and successor is not None:
                state.append(ZygoteRecycle(incarnation=worker.incarnation, successor=successor,
                                           reason="upgrade"))
        self._workers.retire(before)

    def _awaken(self, entry: VersionRecord) -> None:
        """Let a version's workers start, whatever befell them before."""
        for pool in self._state.fleet.pools_of(entry.plugin, entry.version):
            pool.failures, pool.not_before_us, pool.retiring = 0, 0, False

    def came(self, pool: Pool) -> None:
        """A worker was witnessed: the version that awaited it takes over, if it still may."""
        state = self._state
        upgrade = self._under_way.get(pool.plugin)
        if upgrade is None or (upgrade.version, "primary") != (pool.version, pool.role):
            return
        record = state.inventory.plugins[pool.plugin]
        entry = record.versions[pool.version]
        hindrance = self._hindrance(entry, record)
        if not state.holds(upgrade.asked[0].origin.key_id, "operator"):
            hindrance = Misfit(RefusalCode.KEY_REVOKED, "who asked for the upgrade may no more")
        elif RefusalCode.LOW_SPACE in state.degraded:
            hindrance = Misfit(RefusalCode.LOW_SPACE, "")
        if hindrance is not None:
            self._end(upgrade, "hindered", hindrance)
        elif upgrade.step("witnessed"):
            del self._under_way[pool.plugin]
            self._switch(entry, upgrade.asked, upgrade.incarnation)

    def left(self, worker: Worker, reason: str) -> None:
        """A worker is gone: the upgrade that awaited it fails, and what served serves on."""
        upgrade = self._under_way.get(worker.plugin)
        if upgrade is None or upgrade.incarnation != worker.incarnation:
            return
        code = NEVER_BEGAN.get(reason) or _CODES.get(reason, RefusalCode.WORKER_START_FAILED)
        detail = worker.exit_detail or reason
        self._end(upgrade, "revoke" if reason == "revoked" else "worker_lost",
                  Misfit(code, f"the worker of {worker.version} ended ({detail})", "$.version"))

    def stop(self) -> None:
        """The gateway takes nothing new any more: no upgrade comes to its switch."""
        for upgrade in list(self._under_way.values()):
            self._end(upgrade, "stop", Misfit(RefusalCode.DRAINING, ""))

    def _withdraw(
        self, plugin: str, event: Literal["cancel", "supersede", "disable"], why: str
    ) -> None:
        upgrade = self._under_way.get(plugin)
        if upgrade is not None:
            self._end(upgrade, event, Misfit(RefusalCode.UPGRADE_WITHDRAWN, why))

    def _end(self, upgrade: Upgrade, event: UpgradeEvent, why: Misfit) -> None:
        """End an upgrade without a switch: who asked is told, its worker goes again."""
        if not upgrade.step(event):
            return
        state = self._state
        del self._under_way[upgrade.plugin]
        serving = state.inventory.plugins[upgrade.plugin].enabled
        for one in upgrade.asked:
            _refuse(state, one, why._replace(
                sentence=f"{why.sentence or REFUSALS[why.code].reason}"
                + (f"; {serving} serves on" if serving and event != "disable" else "")
            ))
        self._workers.retire(state.fleet.pool(upgrade.plugin, upgrade.version))

    def _hindrance(self, entry: VersionRecord, record: PluginRecord) -> Misfit | None:
        """Say why a version may not serve now; None when it may."""
        return self._unfit(entry) or _unapproved(
            self._state, record, widening_difference(self._state, record, entry.version)
        )

    def _unfit(self, entry: VersionRecord) -> Misfit | None:
        """Say why a version may not serve, whatever it asks for; None when it may."""
        state = self._state
        if not state.inventory.may(entry, "enable"):
            return Misfit(RefusalCode.REVOKED if entry.state == "revoked"
                          else RefusalCode.PLUGIN_QUARANTINED, "", "$.version")
        if not state.trusts(entry):
            return Misfit(RefusalCode.REVOKED, "its publisher is not trusted any more",
                          "$.version")
        if (entry.plugin, entry.version) not in state.plugins:
            return Misfit(RefusalCode.PLUGIN_QUARANTINED, "its bundle is damaged", "$.version")
        side = api_compatible(entry.api_version, API_VERSION)
        if side is not None:
            return Misfit(RefusalCode.API_VERSION_INCOMPATIBLE, side, "$.version", side)
        return None

    def disable(self, origin: Origin, request: DisablePlugin) -> None:
        """Let no version serve new calls; what was accepted is still served."""
        state = self._state
        record = state.inventory.plugins.get(request.plugin)
        if record is None or not record.versions:
            state.refuse(origin, request.request_id, RefusalCode.UNKNOWN_PLUGIN, where="$.plugin")
            return
        self._withdraw(request.plugin, "disable", "the plugin was disabled")
        previous = record.enabled
        if previous is None:
            state.send(origin, Disabled(request_id=request.request_id, plugin=request.plugin))
            return
        state.append(PluginDisable(plugin=request.plugin, version=previous, actor=origin.key_id))
        state.send(
            origin,
            Disabled(request_id=request.request_id, plugin=request.plugin, previous=previous),
            receipt=True, known_size=request.known_size,
        )
        self._workers.retire(state.fleet.pool(request.plugin, previous))

    # --- approvals ---

    def approve(self, origin: Origin, request: Approve) -> None:
        """Approve exactly the present difference; doing it again changes nothing."""
        state = self._state
        entry = registered_version(state, origin, request.request_id, request.plugin,
                                   request.version)
        if entry is None:
            return
        record = state.inventory.plugins[request.plugin]
        hindrance = self._unfit(entry) if record.enabled != request.version else None
        widening = widening_difference(state, record, request.version)
        if hindrance is None and widening is None:
            hindrance = Misfit(
                RefusalCode.APPROVAL_MISMATCH, "nothing of this version waits for approval",
                "$.version", "Enable it: it widens nothing.",
            )
        elif hindrance is None and widening is not None and (
            widening.digest() != request.diff_digest
        ):
            hindrance = Misfit(
                RefusalCode.APPROVAL_MISMATCH,
                f"the difference to {record.last_enabled} has the digest {widening.digest()}",
                "$.diff_digest",
            )
        if hindrance is not None:
            _refuse(state, Asked(origin, request.request_id, request.known_size), hindrance)
            return
        assert widening is not None
        given = _approving(record, widening)
        again = origin.key_id in given
        if not again:
            state.append(PluginApprove(plugin=request.plugin, version=request.version,
                                       diff_sha256=request.diff_digest, actor=origin.key_id))
        state.send(
            origin,
            Approved(request_id=request.request_id, plugin=request.plugin,
                     version=request.version, diff_digest=request.diff_digest,
                     approvals=len(_one_each(state, given | {origin.key_id})),
                     required=state.policy.operators_required),
            receipt=not again, known_size=request.known_size,
        )


def registered_version(
    state: State, origin: Origin, request_id: str, plugin: str, version: str
) -> VersionRecord | None:
    """Find a version that somebody asks to change; None when the refusal was sent."""
    record = state.inventory.plugins.get(plugin)
    if record is None or not record.versions:
        state.refuse(origin, request_id, RefusalCode.UNKNOWN_PLUGIN, where="$.plugin")
        return None
    entry = record.versions.get(version)
    if entry is None:
        state.refuse(origin, request_id, RefusalCode.UNKNOWN_VERSION, where="$.version")
    return entry


def present_difference(state: State, record: PluginRecord, version: str) -> Difference | None:
    """Give the difference of a version to the one enabled last; None when there is none.

    The first version that a plugin ever has enabled differs from nothing. The version enabled last
    is the measure also when it was revoked since; where its bundle is damaged, everything is new.
    """
    plugins = state.plugins
    loaded = plugins.get((record.plugin, version))
    if record.last_enabled in (None, version) or loaded is None:
        return None
    key = record.plugin, record.last_enabled or ""
    if isinstance(plugins, Shelf):
        return difference(plugins.manifest_bytes(key), loaded.manifest_bytes)
    before = plugins.get(key)
    return difference(before.manifest_bytes if before else None, loaded.manifest_bytes)


def widening_difference(state: State, record: PluginRecord, version: str) -> Difference | None:
    """Give the present difference where it widens, and so needs approval."""
    found = present_difference(state, record, version)
    return found if found is not None and found.widens else None


def approvers(state: State, record: PluginRecord, widening: Difference) -> set[str]:
    """Name the keys whose approval of exactly this difference counts: those of operators now.

    One key is one approval, however often it was sent; a key that was revoked, rotated away or
    removed since is none.
    """
    return _one_each(state, _approving(record, widening))


def _approving(record: PluginRecord, widening: Difference) -> set[str]:
    return record.approvals.get((widening.after.version, widening.digest()), set())


def _one_each(state: State, keys: set[str]) -> set[str]:
    """Keep one key of each operator: while a key is replaced, its holder is let in by two."""
    found: dict[str, str] = {}
    for key in sorted(keys):
        if state.holds(key, "operator"):
            chain = [key]
            while (known := state.keys.get(chain[-1])) and known.replaces not in ("", *chain):
                chain.append(known.replaces)
            found[chain[-1]] = key
    return set(found.values())


def is_approved(state: State, record: PluginRecord, widening: Difference) -> bool:
    """Say whether as many operators approved exactly this difference as policy asks for."""
    return len(approvers(state, record, widening)) >= state.policy.operators_required


def _refuse(state: State, asked: Asked, why: Misfit) -> None:
    state.refuse(asked.origin, asked.request_id, why.code, why.sentence, where=why.where,
                 hint=why.hint, retry_after_ms=why.retry_after_ms, receipt=True,
                 known_size=asked.known_size)


def _unapproved(
    state: State, record: PluginRecord, widening: Difference | None
) -> Misfit | None:
    if widening is None or is_approved(state, record, widening):
        return None
    count, required = len(approvers(state, record, widening)), state.policy.operators_required
    places = [one.where for one in widening.changes if one.change in ("wider", "changed")]
    more = len(places) - _SHOWN_MAX
    name = f"{record.plugin}@{widening.after.version}"
    return Misfit(
        RefusalCode.APPROVAL_REQUIRED,
        f"against {record.last_enabled} it widens {', '.join(places[:_SHOWN_MAX])}"
        + (f" and {more} more" if more > 0 else "")
        + f"; the difference has the digest {widening.digest()}"
        + (f", approved by {count} of {required} operators" if required > 1 else ""),
        "$.version",
        f"Look at it with omega-gateway plugins show {name} --diff, then "
        f"omega-gateway plugins approve {name} --digest {widening.digest()}",
    )
