"""Verifying a bundle outside a gateway: the same validator, with policy left out.

Rules this file keeps: signatures are always verified, against a trust root or against keys that the
caller names; there is no mode that only looks. Pure: the time comes in.
"""

from __future__ import annotations

import msgspec

from broker.trust.bundles import read_bundle
from broker.trust.errors import TrustRefused
from broker.trust.signatures import decode_base64, read_envelope
from broker.trust.validation import Validated, ValidationContext, validate_bundle
from schemas.manifest import PAYLOAD_TYPES
from schemas.names import Domain
from schemas.policy import Policy
from schemas.refusals import RefusalCode
from schemas.trust import Ed25519Key, Publisher, TrustRoot

_OF_THE_GATEWAY = frozenset({
    RefusalCode.CAPABILITY_NOT_GRANTED, RefusalCode.LIMIT_NOT_ALLOWED,
    RefusalCode.MODULE_NOT_ALLOWED,
})
"""What another home's policy may decide otherwise."""


def verify_bundle(
    data: bytes, trust: TrustRoot | None, public_keys: tuple[str, ...], now_s: int
) -> Validated:
    """Verify a bundle against a trust root, or against named keys when there is none.

    Args:
        data: the bundle's bytes.
        trust: the trust root, or None.
        public_keys: raw Ed25519 keys in hex; all of them must have signed. Used without `trust`.
        now_s: the time in seconds since 1970.

    Raises:
        TrustRefused: `trust_invalid`, a key is not one.
    """
    root = trust or _root_of(data, public_keys)
    context = ValidationContext(
        domain=root.domain, trust=root, policy=Policy(), granted={},
        highest_version=lambda _plugin: None, known_bundles=(), now_s=now_s,
    )
    validated = validate_bundle(data, context)
    problems = tuple(one for one in validated.problems if one.code not in _OF_THE_GATEWAY)
    return validated._replace(problems=problems)


def _root_of(data: bytes, public_keys: tuple[str, ...]) -> TrustRoot:
    """Make a trust root that knows the named keys only, for whoever the bundle says published."""
    try:
        keys = msgspec.convert(sorted(set(public_keys)), tuple[Ed25519Key, ...])
    except msgspec.ValidationError:
        raise TrustRefused(
            RefusalCode.TRUST_INVALID, "a public key is 64 lower-case hex digits"
        ) from None
    envelope = read_envelope(read_bundle(data).envelope)
    production = envelope.payloadType == PAYLOAD_TYPES["production"]
    domain: Domain = "production" if production else "development"
    try:
        claimed = msgspec.json.decode(decode_base64(envelope.payload, "payload"), type=_Claimed)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        claimed = _Claimed()
    publisher = Publisher(keys=keys, threshold=len(keys), plugins=("*",))
    return TrustRoot(
        format="omega-trust/1", domain=domain, version=1, roots=keys, root_threshold=len(keys),
        publishers={claimed.publisher: publisher},
    )


class _Claimed(msgspec.Struct):
    """Whom the unverified manifest names as its publisher; that decides no more than a name."""

    publisher: str = ""
