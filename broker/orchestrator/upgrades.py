"""Which version serves: enabling, disabling, and the approval that a widening one waits for.

Rules this file keeps: a version that was revoked, quarantined, damaged or whose publisher lost
trust is never enabled; one that widens what its plugin may, against the version enabled last, only
after exactly that difference was approved; whoever asks gets one answer.

It leaves what widens to `broker.trust.ratchet`, workers to `broker.supervision` and the fold to
`broker.inventory`. Source: specification section 6, layers 1 and 2; docs/decisions/0027.
"""

from __future__ import annotations

from typing import Final

from broker.effects import Origin
from broker.inventory import PluginRecord, VersionRecord
from broker.orchestrator.calls import Misfit
from broker.state import State
from broker.supervision import Supervision
from broker.trust.ratchet import Difference, difference
from schemas.events import PluginApprove, PluginDisable, PluginEnable
from schemas.messages import (
    Approve,
    Approved,
    Disabled,
    DisablePlugin,
    Enabled,
    EnablePlugin,
)
from schemas.refusals import RefusalCode

_SHOWN_MAX: Final = 3
"""Changes that a refusal names; the whole difference is a read away."""


class Upgrades:
    """Decides which version of a plugin serves new calls."""

    def __init__(self, state: State, workers: Supervision) -> None:
        """Share the core's memory."""
        self._state = state
        self._workers = workers

    # --- enabling and disabling ---

    def enable(self, origin: Origin, request: EnablePlugin) -> None:
        """Let a version serve new calls, or say what hinders it."""
        state = self._state
        entry = registered_version(state, origin, request.request_id, request.plugin,
                                   request.version)
        if entry is None:
            return
        record = state.inventory.plugins[request.plugin]
        previous = record.enabled
        if previous == request.version:
            state.send(origin, Enabled(request_id=request.request_id, plugin=request.plugin,
                                       version=request.version, previous=previous))
            return
        widening = widening_difference(state, record, request.version)
        hindrance = self._hindrance(entry) or _unapproved(record, request.version, widening)
        if hindrance is not None:
            state.refuse(origin, request.request_id, hindrance.code, hindrance.sentence,
                         where=hindrance.where, hint=hindrance.hint)
            return
        state.append(PluginEnable(
            plugin=request.plugin, version=request.version, previous=previous,
            diff_sha256=widening.digest() if widening is not None else None, actor=origin.key_id,
        ))
        state.send(
            origin,
            Enabled(request_id=request.request_id, plugin=request.plugin,
                    version=request.version, previous=previous),
            receipt=True, known_size=request.known_size,
        )
        pool = state.fleet.pool(request.plugin, request.version)
        pool.failures, pool.not_before_us, pool.retiring = 0, 0, False
        if previous is not None:
            self._workers.retire(state.fleet.pool(request.plugin, previous))

    def _hindrance(self, entry: VersionRecord) -> Misfit | None:
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
        return None

    def disable(self, origin: Origin, request: DisablePlugin) -> None:
        """Let no version serve new calls; what was accepted is still served."""
        state = self._state
        record = state.inventory.plugins.get(request.plugin)
        if record is None or not record.versions:
            state.refuse(origin, request.request_id, RefusalCode.UNKNOWN_PLUGIN, where="$.plugin")
            return
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
        hindrance = self._hindrance(entry) if record.enabled != request.version else None
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
            state.refuse(origin, request.request_id, hindrance.code, hindrance.sentence,
                         where=hindrance.where, hint=hindrance.hint)
            return
        approvers = record.approvals.get((request.version, request.diff_digest), set())
        again = origin.key_id in approvers
        if not again:
            state.append(PluginApprove(plugin=request.plugin, version=request.version,
                                       diff_sha256=request.diff_digest, actor=origin.key_id))
        state.send(
            origin,
            Approved(request_id=request.request_id, plugin=request.plugin,
                     version=request.version, diff_digest=request.diff_digest),
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

    The first version that a plugin ever has enabled differs from nothing. Where the version
    enabled last cannot be read any more, everything is new.
    """
    loaded = state.plugins.get((record.plugin, version))
    if record.last_enabled in (None, version) or loaded is None:
        return None
    before = state.plugins.get((record.plugin, record.last_enabled or ""))
    return difference(before.manifest_bytes if before else None, loaded.manifest_bytes)


def widening_difference(state: State, record: PluginRecord, version: str) -> Difference | None:
    """Give the present difference where it widens, and so needs approval."""
    found = present_difference(state, record, version)
    return found if found is not None and found.widens else None


def is_approved(record: PluginRecord, widening: Difference) -> bool:
    """Say whether exactly this difference was approved by as many keys as it needs."""
    return bool(record.approvals.get((widening.after.version, widening.digest())))


def _unapproved(
    record: PluginRecord, version: str, widening: Difference | None
) -> Misfit | None:
    if widening is None or is_approved(record, widening):
        return None
    places = [one.where for one in widening.changes if one.change in ("wider", "changed")]
    more = len(places) - _SHOWN_MAX
    return Misfit(
        RefusalCode.APPROVAL_REQUIRED,
        f"against {record.last_enabled} it widens {', '.join(places[:_SHOWN_MAX])}"
        + (f" and {more} more" if more > 0 else "")
        + f"; the difference has the digest {widening.digest()}",
        "$.version",
        f"Look at it with omega-gateway plugins show {record.plugin}@{version} --diff, then "
        f"omega-gateway plugins approve {record.plugin}@{version} --digest {widening.digest()}",
    )
