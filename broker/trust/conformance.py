"""Whether a conformance report counts for a bundle: who signed it, of what, and what it says.

Rules this file keeps: pure; a report that is handed over must hold, asked for or not; no part of it
is believed before a conformance key of the trust root has signed those very bytes; every reason why
it does not count is told with what to do.

It leaves running the suite to `broker.authoring.conform`. Source: DSSE 1.0.2; docs/decisions/0032.
"""

from __future__ import annotations

import hashlib
from collections.abc import Container, Iterator
from typing import Final, NamedTuple

import msgspec

from broker.policy import matches
from broker.trust.errors import TrustRefused, printable
from broker.trust.signatures import key_id, sign_envelope, verify_envelope
from schemas.canonical import struct_bytes
from schemas.conformance import (
    CONFORMANCE_PAYLOAD_TYPES,
    RULES,
    ConformanceReport,
    suite_digest,
)
from schemas.policy import Policy
from schemas.refusals import RefusalCode
from schemas.trust import TrustRoot

WHERE: Final = "conformance"
_decoder: Final = msgspec.json.Decoder(ConformanceReport)


class Conformed(NamedTuple):
    """A report that counts: the SHA-256 of its signed bytes, and the ids of who signed them."""

    sha256: str
    keys: tuple[str, ...]


def is_required(plugin: str, policy: Policy) -> bool:
    """Say whether a policy takes this plugin only with a report."""
    wanted = policy.conformance_required
    if isinstance(wanted, bool):
        return wanted
    return any(matches(plugin, glob) for glob in wanted)


def sign_report(report: ConformanceReport, signing_keys: list[bytes]) -> bytes:
    """Write a report as the envelope that a registration takes along.

    Args:
        report: what the suite found.
        signing_keys: Ed25519 seeds, 32 bytes each, at least one.
    """
    return sign_envelope(
        struct_bytes(report), CONFORMANCE_PAYLOAD_TYPES[report.domain], signing_keys
    )


def check_report(
    envelope: bytes, bundle_sha256: str, trust: TrustRoot, revoked_keys: Container[str]
) -> Conformed:
    """Verify a report and what it says of a bundle.

    Args:
        envelope: the envelope's bytes, from anyone.
        bundle_sha256: the bundle that is to be registered.
        trust: the root in force; its `conformance_keys` have the role.
        revoked_keys: ids of keys taken back by request, beyond those that the root revokes.

    Raises:
        TrustRefused: `conformance_required`, the report does not count.
    """
    out = {*trust.revoked_keys}
    keys = [
        raw for raw in map(bytes.fromhex, trust.conformance_keys)
        if key_id(raw) not in out and key_id(raw) not in revoked_keys
    ]
    try:
        signed = verify_envelope(
            envelope, payload_type=CONFORMANCE_PAYLOAD_TYPES[trust.domain], keys=keys, threshold=1
        )
    except TrustRefused as refused:
        raise _refused(
            f"not signed by a conformance key: {refused.sentence}",
            "Sign it with omega-plugin conform --sign-key FILE, with a key that the trust root "
            "lists under conformance_keys.",
        ) from None
    try:
        report = _decoder.decode(signed.payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(f"not a report: {printable(str(error))}", _AGAIN) from None
    if struct_bytes(report) != signed.payload:
        raise _refused("the report is not in its canonical form", _AGAIN)
    for sentence in _faults(report, bundle_sha256, trust):
        raise _refused(sentence, _AGAIN)
    return Conformed(hashlib.sha256(signed.payload).hexdigest(), signed.key_ids)


_AGAIN: Final = (
    "Run omega-plugin conform on this very bundle, with this gateway's own suite, and hand the new "
    "report over."
)


def _faults(report: ConformanceReport, bundle_sha256: str, trust: TrustRoot) -> Iterator[str]:
    """Say why a signed report does not speak for a bundle."""
    if report.domain != trust.domain:
        yield f"the report is of the {report.domain} domain"
    if report.bundle_sha256 != bundle_sha256:
        yield f"the report is of another bundle, {report.bundle_sha256}"
    if report.suite_sha256 != suite_digest():
        yield f"the report is of another suite, {report.suite_sha256}, not {suite_digest()}"
    if [one.rule for one in report.rules] != list(RULES):
        yield "the report does not have every rule of the suite once"
    if report.broken():
        yield f"the plugin broke {', '.join(report.broken())}"
    if not report.counts.answered:
        yield "the report has no answered call"


def _refused(sentence: str, hint: str) -> TrustRefused:
    return TrustRefused(RefusalCode.CONFORMANCE_REQUIRED, sentence, where=WHERE, hint=hint)
