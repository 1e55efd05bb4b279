"""Trust roots as operators send them in a run and on the stage: rightful ones and others.

What a root means for the two plugins is written here by hand, so that the checks do not ask the
code that they check.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import msgspec

from broker.trust.roots import Root, load_first_root, sign_root
from broker.trust.signatures import sign_envelope
from schemas.canonical import struct_bytes
from schemas.trust import TRUST_PAYLOAD_TYPES, Publisher, TrustRoot
from tests.support.bundles import (
    PUBLISHER_SEED,
    ROOT_SEED,
    public_hex,
    public_key_id,
    trust_root,
)

OTHER_SEED: Final = bytes(range(64, 96))
"""A key that no root names before it is rotated to."""
_ALL: Final = frozenset({"alpha", "beta"})
MEANING: Final[dict[str, frozenset[str]]] = {
    "right": _ALL, "rotated": _ALL, "narrow": frozenset({"beta"}), "without": frozenset(),
    "nobody": frozenset(), "expired": frozenset(), "two": frozenset(),
}
"""Forms of a rightful root, and whose plugins may run under each."""
WRONG: Final = ("stranger", "unsigned", "production", "threshold", "twice", "garbage")
"""Forms that nobody takes."""


def document(version: int, form: str) -> TrustRoot:
    """Write the document of a form; see `MEANING` and `WRONG`."""
    root = trust_root(version=version)
    house = root.publishers["house"]
    changes: dict[str, dict[str, object]] = {
        "rotated": {"roots": (public_hex(OTHER_SEED),)},
        "narrow": {"publishers": {"house": msgspec.structs.replace(house, plugins=("beta",))}},
        "without": {"revoked_keys": (public_key_id(PUBLISHER_SEED),)},
        "nobody": {"publishers": {}},
        "expired": {"publishers": {"house": msgspec.structs.replace(house, valid_until_s=1)}},
        "two": {"publishers": {"house": Publisher(
            keys=(*house.keys, public_hex(OTHER_SEED)), threshold=2, plugins=("*",))}},
        "production": {"domain": "production"},
        "threshold": {"roots": (public_hex(ROOT_SEED), public_hex(OTHER_SEED)),
                      "root_threshold": 2},
    }
    changes["twice"] = changes["threshold"]
    return msgspec.structs.replace(root, **changes.get(form, {}))


@functools.cache
def envelope(version: int, form: str, seeds: tuple[bytes, ...] = (ROOT_SEED,)) -> bytes:
    """Sign a form as its name says: `twice` has one key's signature under two ids."""
    if form == "garbage":
        return b"{}"
    root = document(version, form)
    payload, kind = struct_bytes(root), TRUST_PAYLOAD_TYPES[root.domain]
    if form in MEANING:
        # The root before must sign, and its own.
        own = OTHER_SEED if form == "rotated" else ROOT_SEED
        return sign_envelope(payload, kind, [*seeds, own])
    if form == "stranger":
        return sign_envelope(payload, kind, [PUBLISHER_SEED])
    signed = sign_envelope(payload, kind, seeds)
    if form == "unsigned":
        return signed.replace(b'"sig":"', b'"sig":"AAAA', 1)
    if form == "twice":
        whole = msgspec.json.decode(signed)
        whole["signatures"] = [{**whole["signatures"][0], "keyid": name} for name in ("a", "b")]
        return msgspec.json.encode(whole, order="sorted")
    return signed


FIRST: Final[Root] = load_first_root(sign_root(trust_root(), [ROOT_SEED]), "development")
"""The root with which every home begins."""


def may_run(version: int) -> dict[str, frozenset[str]]:
    """Say for each rightful root of a version, by its digest, whose plugins may run under it."""
    return {
        hashlib.sha256(struct_bytes(document(version, form))).hexdigest(): plugins
        for form, plugins in MEANING.items()
    }
