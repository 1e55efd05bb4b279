"""A stage's commands about the home: clients' keys that come, change and go, another policy."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from broker.arrivals import Arrival, Readable
from broker.core import Core
from broker.policy import policy_digest
from broker.reload import Settings
from broker.state import KnownKey
from schemas.messages import Revoke
from schemas.names import Role
from schemas.policy import GrantRule, ModuleRules, Policy
from tests.scenarios.asking import Asking
from tests.simulation.fakes import SIGNALS_FD, FakeSignals
from tests.simulation.settings import APPROVED


class Keyring(Asking):
    """What becomes of clients' keys. The stage gives ids, names, a front and a core."""

    core: Core
    signals: FakeSignals
    names: dict[str, str]

    def keyring(self) -> dict[str, Callable[..., Arrival | None]]:
        """Give these commands by name."""
        return {
            "revoke-client": self.revoke_client, "forget-client": self.forget_client,
            "change-role": self.change_role, "replace-key": self.replace_key,
            "policy": self.other_policy,
        }

    def revoke_client(self, name: str, who: str = "operator") -> Arrival:
        """An operator, or the `second`, revokes a client's key."""
        return self.from_operator(key=self.id_of(who), message=Revoke(
            request_id=self.uuid(), kind="client_key", id=self.id_of(name), reason="lost"))

    def forget_client(self, name: str) -> Arrival:
        """A client's key is taken out of the home, and the home is read again."""
        keys = {key: known for key, known in self.core.state.keys.items()
                if key != self.id_of(name)}
        return self._reread(keys)

    def change_role(self, name: str, role: Role) -> Arrival:
        """The home gives a client's key another role, and is read again."""
        key = self.id_of(name)
        return self._reread(self.core.state.keys | {key: KnownKey(key, role, key)})

    def replace_key(self, name: str, next_name: str) -> Arrival:
        """A client's next key comes into the home beside the present one."""
        key, present = "8" * 16, self.core.state.keys[self.id_of(name)]
        self.names[key] = next_name
        return self._reread(self.core.state.keys | {
            key: KnownKey(key, present.role, key, present.key_id)})

    def other_policy(self, *says: str) -> Arrival:
        """Another policy is read: `grants` artifacts to beta, `imports` approve its modules."""
        grants = {"be*": GrantRule(("artifact.read",))} if "grants" in says else {}
        return self._reread(self.core.state.keys, msgspec.structs.replace(
            self.core.state.policy, grants=grants,
            modules=APPROVED if "imports" in says else ModuleRules()))

    def _reread(self, keys: dict[str, KnownKey], policy: Policy | None = None) -> Arrival:
        state = self.core.state
        digest = policy_digest(policy) if policy else state.policy_sha256
        self.signals.settings = Settings(state.config, policy or state.policy, digest, keys)
        return Readable(SIGNALS_FD)
