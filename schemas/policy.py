"""`policy.toml`: what an operator allows plugins, and within which bounds.

Rules this file keeps: everything absent is refused; unknown lines are refused. The digest of the
policy is that of its RFC 8785 bytes, so comments and order do not matter.

It leaves the decision itself to `broker.policy`, the one function that register, dispatch and audit
ask.
"""

from __future__ import annotations

from fnmatch import fnmatchcase
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
    """The capabilities that plugins matching one glob may have."""

    capabilities: Annotated[tuple[CapabilityName, ...], Meta(max_length=64)] = ()


class LimitMaxima(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The largest limits a manifest may declare, and the largest artifact handed to a call."""

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
    """

    in_flight_max: Count = 256
    calls_per_second_max: Count = 0
    queued_max: Count = 256
    cpu_ms_per_window_max: Count = 0
    output_bytes_per_window_max: Count = 0
    window_ms: Annotated[int, Meta(ge=100, le=86_400_000)] = 60_000
    weight: Annotated[int, Meta(ge=1, le=100)] = 4
    plugins: Annotated[dict[PluginGlob, PluginQuotas], Meta(max_length=256)] = {}

    def weight_of(self, plugin: str) -> int:
        """Give a plugin's weight."""
        for glob, bounds in self.plugins.items():
            if fnmatchcase(plugin, glob):
                return bounds.weight
        return self.weight


class ModuleRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Modules beyond the vetted standard ones that plugins may import, by plugin glob.

    A name in `allowed` allows the modules within it too. `packages` is where those lie that are not
    of the standard library; of several globs that fit, the longest counts.
    """

    allowed: Annotated[dict[PluginGlob, tuple[ModuleName, ...]], Meta(max_length=256)] = {}
    packages: Annotated[dict[PluginGlob, PackageFolder], Meta(max_length=256)] = {}


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of `policy.toml`.

    `roots` names folders beneath which `fs.read:NAME` opens files, `env` holds what `env.read:NAME`
    reads. Both are the same for every plugin that has the grant. `conformance_required` is for all
    plugins, or names those that are taken only with a signed conformance report.
    """

    grants: Annotated[dict[PluginGlob, GrantRule], Meta(max_length=1024)] = {}
    roots: Annotated[dict[Name, RootFolder], Meta(max_length=64)] = {}
    env: Annotated[dict[EnvironmentName, EnvironmentValue], Meta(max_length=256)] = {}
    limits: LimitMaxima = LimitMaxima()
    quotas: Quotas = Quotas()
    modules: ModuleRules = ModuleRules()
    conformance_required: bool | Annotated[tuple[PluginGlob, ...], Meta(max_length=256)] = False
    operators_required: Annotated[int, Meta(ge=1, le=16)] = 1
