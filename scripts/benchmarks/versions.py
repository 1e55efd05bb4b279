"""Homes with thousands of registered versions, made in seconds.

Rules this file keeps: every bundle is real, signed with the home's publisher key and as a gateway
would store it; the events of their registration are written by the gateway's own ledger. What is
left out is the way through a running gateway, one frame for each: `trust` measures that apart.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec
from nacl.signing import SigningKey

from broker.authoring.pack import pack
from broker.authoring.source import read_folder
from broker.home import PUBLISHER_KEY, Home
from broker.keys import read_secret
from broker.ledger.commit import Ledger
from broker.trust.bundles import read_archive, write_bundle
from broker.trust.signatures import key_id, sign_envelope
from schemas.canonical import canonical_bytes
from schemas.events import PluginRegister
from schemas.manifest import PAYLOAD_TYPES, PluginManifest

SCHEMAS: Final = 24
"""Distinct JSON Schemas over all versions of a large registry."""
VERSIONS_EACH: Final = 4
"""Versions of one plugin."""
_AT_ONCE: Final = 500


class Version(NamedTuple):
    """One version: who it is, its bundle, and the digest of its signed bytes."""

    plugin: str
    version: str
    bundle: bytes
    manifest: PluginManifest
    manifest_sha256: str


class Press:
    """Makes signed bundles of one plugin's code under many names, versions and schemas."""

    def __init__(self, root: str, home: Home, schemas: int = SCHEMAS) -> None:
        """Pack the plugin of the benches once; each version changes what tells it apart."""
        self.schemas = schemas
        folder = read_folder(os.path.join(root, "scripts", "benchmarks", "plugin"))
        packed = read_archive(pack(folder, "development").data)
        self._manifest = msgspec.json.decode(packed.pop("manifest.json"))
        self._files = packed
        self._seed = bytes.fromhex(read_secret(os.path.join(home.path, PUBLISHER_KEY)))
        self.signing_key = key_id(bytes(SigningKey(self._seed).verify_key))

    def version(self, plugin: str, version: str, variant: int) -> Version:
        """Sign one version whose schema is one of so many."""
        (schema,) = self._manifest["schemas"].values()
        changed = canonical_bytes({**schema, "$comment": f"variant {variant % self.schemas}"})
        name = "sha256:" + hashlib.sha256(changed).hexdigest()
        methods = {
            method: {**declared, **{side: {**declared[side], "schema": name}
                                    for side in ("input", "output")}}
            for method, declared in self._manifest["methods"].items()
        }
        payload = canonical_bytes({
            **self._manifest, "id": plugin, "version": version, "methods": methods,
            "schemas": {name: msgspec.json.decode(changed)},
        })
        envelope = sign_envelope(payload, PAYLOAD_TYPES["development"], [self._seed])
        return Version(
            plugin, version, write_bundle(self._files, envelope),
            msgspec.json.decode(payload, type=PluginManifest), hashlib.sha256(payload).hexdigest(),
        )

    def versions(self, count: int) -> Iterator[Version]:
        """Sign so many versions, `VERSIONS_EACH` of each plugin."""
        for number in range(count):
            plugin, version = divmod(number, VERSIONS_EACH)
            yield self.version(f"bench-{plugin:05d}", f"1.{version}.0", number)


def fill(home: Home, press: Press, count: int) -> None:
    """Register versions in a home that no gateway serves: bundles, then their events.

    Args:
        home: it was served once, so that its ledger has begun.
        press: makes the bundles.
        count: how many versions.
    """
    ledger = Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id,
        signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)), durability="process",
        now=lambda: (time.time_ns() // 1000, time.monotonic_ns() // 1000),
    )
    actor = next(name for name, key in home.clients.items() if key.role == "operator")
    for number, one in enumerate(press.versions(count)):
        digest = hashlib.sha256(one.bundle).hexdigest()
        with open(os.path.join(home.bundles, digest), "wb") as file:
            file.write(one.bundle)
        ledger.append(PluginRegister(
            plugin=one.plugin, version=one.version, bundle_sha256=digest,
            manifest_sha256=one.manifest_sha256, publisher=one.manifest.publisher,
            signing_keys=(press.signing_key,), api_version=one.manifest.api_version,
            domain="development", capabilities=(), deterministic=(), actor=actor,
        ))
        if number % _AT_ONCE == _AT_ONCE - 1:
            ledger.commit()
    ledger.commit()
    ledger.checkpoint()
    ledger.close()
