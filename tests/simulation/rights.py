"""Who has which right at a position of the ledger: keys, grants, policy and trust root.

Followed from the events alone, apart from the core. What a policy or a root means, of which an
event holds the digest only, comes from the run that wrote it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from broker.policy import policy_digest
from schemas.events import Event, GrantChange, KeyChange, PolicyChange, Revoke, TrustChange
from schemas.policy import Policy
from tests.simulation.fakes import require
from tests.simulation.settings import APPROVED, POLICY
from tests.simulation.trusts import may_run


class Meaning(NamedTuple):
    """What a policy says: how many operators approve, which plugins it lets read artifacts, and
    which may not import what they import."""

    operators_required: int
    ruled: frozenset[str] = frozenset()
    unloaded: frozenset[str] = frozenset()


def meaning(policy: Policy) -> Meaning:
    """Say what one of the run's policies means; its globs are a beginning and `*`."""
    return Meaning(policy.operators_required, frozenset(
        plugin for plugin in ("alpha", "beta", "delta")
        if any(plugin.startswith(glob.removesuffix("*")) for glob in policy.grants)
    ), frozenset(APPROVED.allowed.keys() - policy.modules.allowed.keys()))


@dataclass
class Rights:
    """The state after the events so far. `roles` maps a key id to the role it has or had."""

    roles: dict[str, str]
    policies: dict[str, Meaning] = field(
        default_factory=lambda: {policy_digest(POLICY): meaning(POLICY)})
    policy: Meaning = field(default_factory=lambda: Meaning(0))
    gone: set[str] = field(default_factory=set)
    revoked: set[str] = field(default_factory=set)
    granted: set[tuple[str, str]] = field(default_factory=set)
    trust: tuple[int, str | None] = (0, None)
    trusted: frozenset[str] = frozenset()

    def take(self, event: Event) -> None:
        """Take one event in."""
        fields = event.fields
        if isinstance(fields, PolicyChange):
            self.policy = self.policies[fields.sha256]
        elif isinstance(fields, KeyChange):
            if fields.action == "removed":
                self.gone.add(fields.key_id)
            else:
                self.gone.discard(fields.key_id)
                self.roles = {**self.roles, fields.key_id: fields.role}
        elif isinstance(fields, GrantChange):
            require(not fields.capability.startswith(("net.", "process.")), "never granted")
            self.granted.add((fields.plugin, fields.capability))
        elif isinstance(fields, Revoke) and fields.kind == "client_key":
            self.revoked.add(fields.id)
        elif isinstance(fields, Revoke) and fields.kind == "grant":
            plugin, _, capability = fields.id.partition(" ")
            self.granted.discard((plugin, capability))
        elif isinstance(fields, TrustChange):
            require(fields.version > self.trust[0], "the trust root did not rise")
            require(fields.previous_sha256 == self.trust[1], "a trust root follows another")
            require(fields.actor == "home" or self.roles.get(fields.actor) == "operator",
                    "a trust root was changed by somebody else")
            self.trust = fields.version, fields.sha256
            self.trusted = may_run(fields.version)[fields.sha256]

    def holds(self, key: str, role: str) -> bool:
        """Say whether a key has a role now."""
        return self.roles.get(key) == role and key not in self.gone | self.revoked

    def may(self, plugin: str, capability: str) -> bool:
        """Say whether a request or the policy grants a plugin a capability now."""
        ruled = capability == "artifact.read" and plugin in self.policy.ruled
        return ruled or (plugin, capability) in self.granted
