"""`policy.toml`: what an operator allows plugins, and within which bounds.

Rules this file keeps: everything absent is refused; unknown lines are refused. The digest of the
policy is that of its RFC 8785 bytes, so comments and order do not matter.

It leaves the decision itself to `broker.policy`, the one function that register, dispatch and audit
ask.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas.names import CapabilityName, Count, EnvironmentName, ModuleName, Name
from schemas.packages import PackageFolder

PluginGlob = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-z0-9*?-]+$(?!\n)")]

VALUE_BYTES_MAX: Final = 512
"""Longest value of `[env]` and longest path of `[roots]`, in bytes of UTF-8."""
_END: Final = r"$(?!\n)"
EnvironmentValue = Annotated[
    str, Meta(max_length=VALUE_BYTES_MAX, pattern=r"^[^\x00-\x1f\x7f]*" + _END)
]
RootFolder = Annotated[
    str, Meta(max_length=VALUE_BYTES_MAX, pattern=r"^/[^\x00-\x1f\x7f]*" + _END)
]


class GrantRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The capabilities that plugins matching one glob may have.

    Attributes:
        capabilities: `clock.read`, `random.read`, `env.read:NAME`, `artifact.read`, `fs.read:ROOT`.
    """

    capabilities: Annotated[tuple[CapabilityName, ...], Meta(max_length=64)] = ()


class LimitMaxima(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest limits a manifest may declare, and the largest artifact handed to a call.

    Attributes:
        cpu_ms_max: processor time of one call, in ms.
        wall_ms_max: elapsed time of one call, in ms.
        memory_mb_max: address space of one call process, in MiB.
        output_bytes_max: one output, in bytes.
        concurrency_max: calls of one plugin at the same time.
        timeout_ms_max: a method's own timeout, in ms.
        artifact_bytes_max: an artifact that is handed to a call, in bytes.
    """

    cpu_ms_max: Count = 60_000
    wall_ms_max: Count = 120_000
    memory_mb_max: Count = 1024
    output_bytes_max: Count = 1_048_576
    concurrency_max: Count = 16
    timeout_ms_max: Count = 120_000
    artifact_bytes_max: Count = 64 * 1024 * 1024


class PluginQuotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client key may use of one plugin; 0 means no quota of that kind.

    `weight`: a plugin may hold at most this many times the places that are free, so that others
    find room beside a slow one.

    Attributes:
        in_flight_max: invocations that have not ended.
        calls_per_second_max: invocations accepted in a second.
        queued_max: invocations that wait for a place.
        cpu_ms_per_window_max: processor time of calls that ended in the window, in ms.
        output_bytes_per_window_max: output of calls that ended in the window, in bytes.
        weight: how large a share of the free places a plugin may take beside others.
    """

    in_flight_max: Count = 0
    calls_per_second_max: Count = 0
    queued_max: Count = 0
    cpu_ms_per_window_max: Count = 0
    output_bytes_per_window_max: Count = 0
    weight: Annotated[int, Meta(ge=1, le=100)] = 4


class Quotas(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one client key may use; 0 means no quota of that kind. Windows are in ms.

    The first glob of `plugins` that matches gives what the key may use of that plugin.

    Attributes:
        in_flight_max: invocations that have not ended.
        calls_per_second_max: invocations accepted in a second.
        queued_max: invocations that wait for a place.
        cpu_ms_per_window_max: processor time of calls that ended in the window, in ms.
        output_bytes_per_window_max: output of calls that ended in the window, in bytes.
        weight: how large a share of the free places a plugin may take beside others.
        window_ms: how long a window is.
        plugins: bounds for one key's use of the plugins that a glob matches.
    """

    in_flight_max: Count = 256
    calls_per_second_max: Count = 0
    queued_max: Count = 256
    cpu_ms_per_window_max: Count = 0
    output_bytes_per_window_max: Count = 0
    window_ms: Annotated[int, Meta(ge=100, le=86_400_000)] = 60_000
    weight: Annotated[int, Meta(ge=1, le=100)] = 4
    plugins: Annotated[dict[PluginGlob, PluginQuotas], Meta(max_length=256)] = {}


class ModuleRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Modules beyond the vetted standard ones that plugins may import, by plugin glob.

    A name in `allowed` allows the modules within it too. `packages` is where those lie that are not
    of the standard library; of several globs that fit, the longest counts.

    Attributes:
        allowed: module names by plugin glob.
        packages: `folder` and `lock_sha256` by plugin glob; `omega-gateway plugins lock` prints
            them.
    """

    allowed: Annotated[dict[PluginGlob, tuple[ModuleName, ...]], Meta(max_length=256)] = {}
    packages: Annotated[dict[PluginGlob, PackageFolder], Meta(max_length=256)] = {}


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `policy.toml`.

    `roots` names folders beneath which `fs.read:NAME` opens files, `env` holds what `env.read:NAME`
    reads. Both are the same for every plugin that has the grant. `conformance_required` is for all
    plugins, or names those that are taken only with a signed conformance report.

    Attributes:
        grants: `[grants."GLOB"]`: capabilities by plugin glob.
        roots: absolute folders by the name that `fs.read:NAME` uses.
        env: values by the name that `env.read:NAME` uses.
        limits: the largest limits that a manifest may declare.
        quotas: what one client key may use.
        modules: modules beyond the vetted standard ones.
        conformance_required: true for all plugins, or a list of plugin globs.
        operators_required: how many operators' keys an approval needs.
    """

    grants: Annotated[dict[PluginGlob, GrantRule], Meta(max_length=1024)] = {}
    roots: Annotated[dict[Name, RootFolder], Meta(max_length=64)] = {}
    env: Annotated[dict[EnvironmentName, EnvironmentValue], Meta(max_length=256)] = {}
    limits: LimitMaxima = LimitMaxima()
    quotas: Quotas = Quotas()
    modules: ModuleRules = ModuleRules()
    conformance_required: bool | Annotated[tuple[PluginGlob, ...], Meta(max_length=256)] = False
    operators_required: Annotated[int, Meta(ge=1, le=16)] = 1
