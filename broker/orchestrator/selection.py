"""Which version of a plugin serves a call, if any may.

Rules this file keeps: what was not registered, enabled, trusted and loaded, or speaks another
plugin API, serves nothing; the refusal says which of these it is and where in the request.

It leaves load to `broker.orchestrator.gate` and registering to `broker.administration`. Source:
specification sections 4 and 6.
"""

from __future__ import annotations

from broker.orchestrator.calls import LoadedPlugin, Misfit
from broker.orchestrator.fleet import Pool
from broker.state import State
from broker.trust.versions import api_compatible, version_request_matches
from schemas.names import API_VERSION
from schemas.refusals import RefusalCode


def serving_version(
    state: State, plugin: str, wanted: str | None, method: str
) -> tuple[str, LoadedPlugin, Pool] | Misfit:
    """Find the version that serves a method, with the pool of its workers, or say why none does.

    Args:
        state: the core's memory.
        plugin, method: what is called.
        wanted: an exact version, `^X.Y`, or None for the enabled one.
    """
    record = state.inventory.plugins.get(plugin)
    if record is None or not record.versions:
        return Misfit(RefusalCode.UNKNOWN_PLUGIN, "", "$.plugin")
    enabled = state.inventory.enabled(plugin)
    if enabled is None:
        states = {entry.state for entry in record.versions.values()}
        if "quarantined" in states and not states & {"registered", "disabled"}:
            return Misfit(RefusalCode.PLUGIN_QUARANTINED, "", "$.plugin")
        if states == {"revoked"}:
            return Misfit(RefusalCode.REVOKED, "", "$.plugin")
        return Misfit(RefusalCode.PLUGIN_NOT_ENABLED, "", "$.plugin")
    if wanted is not None and not version_request_matches(wanted, enabled.version):
        other = record.versions.get(wanted)
        return Misfit(
            RefusalCode.UNKNOWN_VERSION, f"{enabled.version} is enabled, asked for was {wanted}"
            + (f", which is {other.state}" if other else ""), "$.version",
        )
    if not state.trusts(enabled):
        return Misfit(RefusalCode.REVOKED, "its publisher is not trusted any more", "$.plugin")
    side = api_compatible(enabled.api_version, API_VERSION)
    if side is not None:
        return Misfit(RefusalCode.API_VERSION_INCOMPATIBLE, side, "$.plugin", side)
    loaded = state.plugins.get((plugin, enabled.version))
    if loaded is None:
        return Misfit(RefusalCode.PLUGIN_QUARANTINED, "its bundle is damaged", "$.plugin")
    if method not in loaded.manifest.methods:
        return Misfit(RefusalCode.UNKNOWN_METHOD, "", "$.method")
    pool = state.fleet.pool(plugin, enabled.version)
    if state.fleet.in_crash_loop(pool, state.now) and not pool.expecting:
        return Misfit(RefusalCode.WORKER_CRASH_LOOP, "", "$.plugin")
    return enabled.version, loaded, pool
