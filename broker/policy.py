"""Policy: reading `policy.toml`, and the one function that decides about capabilities.

Rules this file keeps:
- What is absent is refused; `net.connect` and `process.*` are refused whatever a line says.
- Register, dispatch and audit ask `effective` and nothing else: effective = requested ∩ granted.
- Every refusal carries the line of `policy.toml` that would change it.

It leaves reading the file to the shell, grants to `broker.inventory`, and how a limit is enforced
to the worker. Source: specification INV-PNP-05, INV-PNP-06 and section 3.
"""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

import msgspec

from broker.trust.errors import TrustRefused, printable
from broker.trust.mistakes import mistakes, split_place
from schemas.canonical import InvalidJson, canonical_bytes
from schemas.manifest import Limits, Method
from schemas.modules import FREE_MODULES, VETTED_MODULES, covers, is_standard
from schemas.packages import PackageFolder
from schemas.policy import VALUE_BYTES_MAX, Policy
from schemas.refusals import RefusalCode

ALWAYS_REFUSED: Final = "network connections and processes are always refused in this version"
POLICY_BYTES_MAX: Final = 1024 * 1024


class Denied(NamedTuple):
    """One thing asked for and not given: why, what was found and allowed, and the line to add."""

    code: RefusalCode
    asked: str
    sentence: str
    line: str


class Decision(NamedTuple):
    """The effective capabilities in the order they were asked for, and those refused."""

    granted: tuple[str, ...]
    refused: tuple[Denied, ...]


def load_policy(data: bytes) -> Policy:
    """Read `policy.toml`.

    Args:
        data: the file's bytes.

    Raises:
        TrustRefused: `config_invalid`, with the path of the line in `where`.
    """
    if len(data) > POLICY_BYTES_MAX:
        raise TrustRefused(RefusalCode.CONFIG_INVALID, f"policy.toml has {len(data)} bytes")
    try:
        document = msgspec.toml.decode(data)
        policy = msgspec.convert(document, Policy)
        policy_digest(policy)
        _check_lengths(policy)
    except msgspec.ValidationError as error:
        where, found, expected = next(mistakes(document, Policy, "$"), split_place(error))
        raise TrustRefused(
            RefusalCode.CONFIG_INVALID, f"found {found}, expected {expected}",
            where=where,
        ) from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, InvalidJson) as error:
        raise TrustRefused(
            RefusalCode.CONFIG_INVALID, f"policy.toml is not TOML: {printable(str(error))}"
        ) from None
    return policy


def _check_lengths(policy: Policy) -> None:
    """Hold values to their length in bytes: the type counts characters."""
    for section, table in (("env", policy.env), ("roots", policy.roots)):
        for name, value in table.items():
            if (size := len(value.encode())) > VALUE_BYTES_MAX:
                raise TrustRefused(
                    RefusalCode.CONFIG_INVALID,
                    f"policy.toml: found {size} bytes, expected at most {VALUE_BYTES_MAX}",
                    where=f"$.{section}.{name}",
                )


def policy_digest(policy: Policy) -> str:
    """Give the SHA-256, in hex, of a policy's RFC 8785 bytes: comments and order do not matter."""
    return hashlib.sha256(canonical_bytes(policy)).hexdigest()


def matches(plugin: str, glob: str) -> bool:
    """Say whether a plugin id fits a glob of `*` and `?`."""
    return fnmatch.fnmatchcase(plugin, glob)


def effective(
    plugin: str, requested: Collection[str], policy: Policy, grants: Collection[str]
) -> Decision:
    """Decide which of the capabilities a plugin asks for it has now.

    Args:
        plugin: the plugin's id.
        requested: capabilities of its manifest.
        policy: the policy in force.
        grants: capabilities granted to this plugin by a `grant` request and not taken back.
    """
    ruled = {
        capability
        for glob, rule in policy.grants.items()
        if matches(plugin, glob)
        for capability in rule.capabilities
    }
    granted: list[str] = []
    refused: list[Denied] = []
    for capability in requested:
        denied = _denied(plugin, capability, policy, ruled | set(grants))
        if denied is None:
            granted.append(capability)
        else:
            refused.append(denied)
    return Decision(tuple(granted), tuple(refused))


def _denied(
    plugin: str, capability: str, policy: Policy, granted: Collection[str]
) -> Denied | None:
    if capability == "net.connect" or capability.startswith("process."):
        return Denied(RefusalCode.CAPABILITY_REFUSED, capability, ALWAYS_REFUSED, "")
    if capability not in granted:
        return Denied(
            RefusalCode.CAPABILITY_NOT_GRANTED, capability, f"{capability} is not granted",
            f'[grants."{plugin}"] capabilities = ["{capability}"]',
        )
    kind, _, name = capability.partition(":")
    if kind == "fs.read" and name not in policy.roots:
        return Denied(
            RefusalCode.CAPABILITY_NOT_GRANTED, capability, f"the root {name} has no folder",
            f'[roots] {name} = "/ABSOLUTE/PATH"',
        )
    if kind == "env.read" and name not in policy.env:
        return Denied(
            RefusalCode.CAPABILITY_NOT_GRANTED, capability, f"{name} has no value",
            f'[env] {name} = "VALUE"',
        )
    return None


def grant_denied(plugin: str, capability: str, policy: Policy) -> Denied | None:
    """Say why granting a capability would give a plugin nothing, or None: what is always refused,
    or has no value or folder, can be granted to nobody.

    Args:
        plugin: the plugin's id.
        capability: what an operator would grant.
        policy: the policy in force.
    """
    return next(iter(effective(plugin, (capability,), policy, (capability,)).refused), None)


def grant_values(
    grants: Collection[str], policy: Policy, artifacts: str
) -> dict[str, str]:
    """Give what a worker needs to hand its effective capabilities out: values and folders.

    Args:
        grants: effective capabilities, as `effective` gave them under this policy.
        policy: the policy in force.
        artifacts: the folder of the operator's artifact store.

    Returns:
        By capability: the value of an `env.read`, the folder of an `fs.read` and `artifact.read`.
    """
    values: dict[str, str] = {}
    for capability in grants:
        kind, _, name = capability.partition(":")
        if kind == "env.read":
            values[capability] = policy.env[name]
        elif kind == "fs.read":
            values[capability] = policy.roots[name]
        elif kind == "artifact.read":
            values[capability] = artifacts
    return values


def denied_limits(
    limits: Limits, methods: Mapping[str, Method], policy: Policy
) -> Iterator[tuple[str, Denied]]:
    """Name each limit above the policy's maximum, with the path of its field."""
    asked = [(f"$.limits.{name}", name, getattr(limits, name)) for name in Limits.__struct_fields__]
    asked += [
        (f"$.methods.{name}.timeout_ms", "timeout_ms", method.timeout_ms)
        for name, method in methods.items()
    ]
    for where, name, value in asked:
        maximum = getattr(policy.limits, f"{name}_max")
        if value > maximum:
            yield where, Denied(
                RefusalCode.LIMIT_NOT_ALLOWED, str(value), f"at most {maximum}",
                f"[limits] {name}_max = {value}",
            )


def denied_modules(
    plugin: str, modules: Collection[str], policy: Policy
) -> Iterator[tuple[str, Denied]]:
    """Name each module that is neither vetted nor approved for this plugin, or lies nowhere."""
    approved, folder = approved_modules(plugin, modules, policy), package_folder(plugin, policy)
    for number, module in enumerate(modules):
        where = f"$.modules[{number}]"
        if module in VETTED_MODULES or module in FREE_MODULES:
            continue
        if module not in approved:
            yield where, Denied(
                RefusalCode.MODULE_NOT_ALLOWED, module, "a vetted or approved module",
                f'[modules.allowed] "{plugin}" = ["{module}"]',
            )
        elif folder is None and not is_standard(module):
            yield where, Denied(
                RefusalCode.MODULE_NOT_ALLOWED, module, "a module in a folder of packages",
                f'[modules.packages."{plugin}"] folder = "/FOLDER", lock_sha256 = "SHA256"',
            )


def approved_modules(
    plugin: str, modules: Collection[str], policy: Policy
) -> tuple[str, ...]:
    """Give those of a manifest's modules that an operator approved for the plugin, in order."""
    allowed = {
        name
        for glob, names in policy.modules.allowed.items()
        if matches(plugin, glob)
        for name in names
    }
    return tuple(module for module in modules if covers(allowed, module))


def package_folder(plugin: str, policy: Policy) -> PackageFolder | None:
    """Give the folder of a plugin's approved packages: that of the longest glob which fits it."""
    fits = [glob for glob in policy.modules.packages if matches(plugin, glob)]
    # Of globs of one length the last in order, so that there is one answer.
    return policy.modules.packages[max(fits, key=lambda glob: (len(glob), glob))] if fits else None
