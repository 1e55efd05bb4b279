"""The trust root: which publishers may register which plugins, with which keys, until when.

Rules this file keeps: the document is versioned and signed as a DSSE envelope by the keys of the
root before it; its version only rises; one key counts once whatever its id; validity is in whole
seconds since 1970.

It leaves signatures and thresholds to `broker.trust`. Source: specification section 2; DSSE 1.0.2.
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.names import Count, Domain, KeyId, Name
from schemas.policy import PluginGlob

TRUST_PAYLOAD_TYPES: Final[dict[Domain, str]] = {
    "production": "application/vnd.omega.trust-root.v1+json",
    "development": "application/vnd.omega.trust-root.v1.development+json",
}

Ed25519Key = Annotated[
    str,
    Meta(pattern=r"^[0-9a-f]{64}$(?!\n)", description="A raw Ed25519 public key in hex."),
]


class Publisher(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One publisher: its keys, how many must sign, and the plugin ids it may use."""

    keys: Annotated[tuple[Ed25519Key, ...], Meta(min_length=1, max_length=16)]
    threshold: Annotated[int, Meta(ge=1, le=16)]
    plugins: Annotated[tuple[PluginGlob, ...], Meta(min_length=1, max_length=64)]
    valid_from_s: Count = 0
    valid_until_s: Count = 2**53 - 1


class TrustRoot(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole document. `roots` are the keys that may sign the next version."""

    format: Literal["omega-trust/1"]
    domain: Domain
    version: Annotated[int, Meta(ge=1, le=2**53 - 1)]
    roots: Annotated[tuple[Ed25519Key, ...], Meta(min_length=1, max_length=16)]
    root_threshold: Annotated[int, Meta(ge=1, le=16)]
    publishers: Annotated[dict[Name, Publisher], Meta(max_length=1024)]
    conformance_keys: Annotated[tuple[Ed25519Key, ...], Meta(max_length=16)] = ()
    revoked_keys: Annotated[tuple[KeyId, ...], Meta(max_length=1024)] = ()
