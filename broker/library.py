"""The versions at hand: enabled ones always, others read again from their bundle when asked for.

Ten thousand registered versions would fill the memory with manifests that nobody calls. Rules this
file keeps: what serves is never let go before it is released, so that nothing that runs depends on
a file; of all others the most recent are kept. A bundle that is not what the ledger
says, or whose schemas are not admitted any more, is no version at hand. It leaves quarantine to
`broker.core` and the folder to `broker.bundles`.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from broker.administration import loaded_plugin
from broker.bundles import BundleFolder
from broker.inventory import Inventory, VersionRecord
from broker.orchestrator.calls import LoadedPlugin
from broker.trust.errors import TrustRefused
from broker.trust.validation import load_registered, registered_description
from schemas.manifest import BUNDLE_BYTES_MAX
from schemas.names import Domain

RECENT_MAX: Final = 64
"""Versions kept at hand that do not serve."""
DESCRIPTIONS_MAX: Final = 65_536

Key = tuple[str, str]
DefaultT = TypeVar("DefaultT")


class Library(dict[Key, LoadedPlugin]):
    """Versions by plugin and version. `[]` holds one until its `release`, `get` for a while."""

    def __init__(
        self, inventory: Callable[[], Inventory], bundles: BundleFolder, domain: Domain
    ) -> None:
        """Read bundles of this folder; `inventory` says which versions are registered, and how."""
        super().__init__()
        self._inventory = inventory
        self._bundles = bundles
        self._domain: Domain = domain
        self._recent: OrderedDict[Key, None] = OrderedDict()
        self._descriptions: dict[Key, str] = {}

    def __getitem__(self, key: Key) -> LoadedPlugin:
        """Give a version that starts to serve.

        Raises:
            KeyError: it may not serve, or its bundle is damaged.
        """
        found = self.get(key)
        if found is None:
            raise KeyError(key)
        self._recent.pop(key, None)
        return found

    def get(  # type: ignore[override]  # A default of its own type, and nothing else, is asked for.
        self, key: Key, default: DefaultT | None = None
    ) -> LoadedPlugin | DefaultT | None:
        """Give a version that is registered and may serve, or the default."""
        found = super().get(key)
        if found is None:
            found = self._read(key)
            if found is None:
                return default
            self[key] = found
        elif key in self._recent:
            self._note(key)
        return found

    def __contains__(self, key: object) -> bool:
        """Say whether a version is registered, may serve and can be read."""
        return isinstance(key, tuple) and self.get(key) is not None

    def __setitem__(self, key: Key, loaded: LoadedPlugin) -> None:
        """Put a version at hand."""
        super().__setitem__(key, loaded)
        if len(self._descriptions) < DESCRIPTIONS_MAX:
            self._descriptions[key] = loaded.manifest.description
        self._note(key)
        self._trim()

    def release(self, key: Key) -> None:
        """Hold a version no longer that serves no more; one that never may again is let go."""
        if key not in self.keys():
            return
        record = self._inventory().record(*key)
        if record is None or record.state in ("revoked", "quarantined"):
            self._recent.pop(key, None)
            del self[key]
            return
        self._note(key)
        self._trim()

    def _trim(self) -> None:
        while len(self._recent) > RECENT_MAX:
            self.pop(self._recent.popitem(last=False)[0], None)

    def _note(self, key: Key) -> None:
        """Hold a version that serves; of another remember that it was asked for now."""
        record = self._inventory().record(*key)
        self._recent.pop(key, None)
        if record is None or record.state != "enabled":
            self._recent[key] = None

    def description(self, key: Key) -> str:
        """Give a version's description without holding the version; empty when it is damaged."""
        known = self._descriptions.get(key)
        entry = self._inventory().record(*key)
        if known is not None or entry is None:
            return known or ""
        data = self._bundles.read(entry.bundle_sha256, bytes_max=BUNDLE_BYTES_MAX)
        found = registered_description(data or b"", entry.bundle_sha256)
        if len(self._descriptions) < DESCRIPTIONS_MAX:
            self._descriptions[key] = found
        return found

    def damaged(self) -> Iterator[Key]:
        """Load what serves, look at everything else that may, and give what is damaged.

        Of what does not serve now only the bytes are held against their digest.
        """
        for record in self._inventory().plugins.values():
            for entry in record.versions.values():
                key = record.plugin, entry.version
                if entry.state == "enabled":
                    whole = key in self
                else:
                    whole = entry.state in ("revoked", "quarantined") or self._whole(entry)
                if not whole:
                    yield key

    def _whole(self, entry: VersionRecord) -> bool:
        data = self._bundles.read(entry.bundle_sha256, bytes_max=BUNDLE_BYTES_MAX)
        return data is not None and hashlib.sha256(data).hexdigest() == entry.bundle_sha256

    def manifest_bytes(self, key: Key) -> bytes | None:
        """Give a version's manifest, also of one that may never serve again; None when its bundle
        is damaged."""
        found = super().get(key)
        entry = self._inventory().record(*key)
        if found is None and entry is not None:
            found = self._load(entry)
        return found.manifest_bytes if found is not None else None

    def _read(self, key: Key) -> LoadedPlugin | None:
        entry = self._inventory().record(*key)
        if entry is None or entry.state in ("revoked", "quarantined"):
            return None
        return self._load(entry)

    def _load(self, entry: VersionRecord) -> LoadedPlugin | None:
        data = self._bundles.read(entry.bundle_sha256, bytes_max=BUNDLE_BYTES_MAX)
        try:
            registered = load_registered(
                data or b"", entry.manifest_sha256, entry.bundle_sha256, self._domain
            )
            # Also a schema that is not admitted any more costs its version only.
            return loaded_plugin(registered.manifest, registered.bundle)
        except TrustRefused:
            return None
