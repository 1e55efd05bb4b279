"""The report `omega-conformance/v1`: what a plugin did under hostile and boundary inputs.

Rules this file keeps: the rules are numbered and each is one sentence, what a plugin must do; a
report names the suite, the bundle and the gateway it was made with, so that it speaks of nothing
else; evidence is request ids and codes, never a word of the plugin's. A report counts only inside a
DSSE envelope of its domain's payload type.

It leaves driving a plugin to `broker.authoring.conform` and counting to `broker.trust.conformance`.
"""

from __future__ import annotations

import hashlib
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from schemas.canonical import canonical_bytes
from schemas.names import (
    Count,
    Domain,
    MethodName,
    PluginId,
    RequestId,
    Sha256,
    ShortText,
    VersionText,
)
from schemas.refusals import RefusalCode

SUITE_REVISION: Final = 1
"""Raised whenever the inputs or the judgement behind a rule change: older reports do not count."""

RULES: Final[dict[str, str]] = {
    "CON-01": "Answers at least one input of each method.",
    "CON-02": "Answers or refuses every input at the bounds of its schema with a typed error.",
    "CON-03": "Answers or refuses an empty input with a typed error.",
    "CON-04": "Answers or refuses the largest input with a typed error.",
    "CON-05": "Answers or refuses the deepest input with a typed error.",
    "CON-06": "Answers or refuses text of any characters with a typed error.",
    "CON-07": "Excludes inputs of a wrong type by its schema, or answers or refuses them.",
    "CON-08": "Excludes inputs that lack a member, or answers or refuses them.",
    "CON-09": "Excludes inputs with unknown members, or answers or refuses them.",
    "CON-10": "Takes every media type that its manifest allows.",
    "CON-11": "Ends every call within its processor time.",
    "CON-12": "Ends every call within its wall time.",
    "CON-13": "Ends every call within its memory.",
    "CON-14": "Ends every call within its output bytes.",
    "CON-15": "Gives only what its manifest promises: kind, schema, and references of the input.",
    "CON-16": "Does nothing for which the sandbox ends its process.",
    "CON-17": "Answers the same input the same, every time, where it promises to.",
    "CON-18": "Answers as before after a cancelled call and after its worker was killed.",
    "CON-19": "Shows no call what another call was given, before it or beside it.",
    "CON-20": "Tells progress that never goes back.",
}
"""What is driven and judged, by number. A number is never used for another rule."""

CONFORMANCE_PAYLOAD_TYPES: Final[dict[Domain, str]] = {
    "production": "application/vnd.omega.conformance-report.v1+json",
    "development": "application/vnd.omega.conformance-report.v1.development+json",
}
"""The DSSE payload type of each domain: no report of development counts in production."""

REPORT_BYTES_MAX: Final = 512 * 1024
"""Largest envelope of a report, in bytes."""
EVIDENCE_MAX: Final = 8
"""How many of the calls that broke a rule a report names."""

RuleNumber = Annotated[str, Meta(pattern=r"^CON-[0-9]{2}$(?!\n)")]
Verdict = Literal["held", "broken", "not_applicable"]


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One call that broke a rule, or that shows it held: its request's id and how it ended.

    `case` says in our words what was sent, `code` is absent where the call was answered.
    """

    method: MethodName
    request_id: RequestId
    case: ShortText
    code: RefusalCode | None = None


class RuleResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What became of one rule: how many calls were judged by it, how many broke it, and which."""

    rule: RuleNumber
    verdict: Verdict
    calls: Count
    broken: Count = 0
    evidence: Annotated[tuple[Evidence, ...], Meta(max_length=EVIDENCE_MAX)] = ()


class Counts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the calls of a run ended, and the most that one of them used."""

    calls: Count
    answered: Count
    refused: Count
    cpu_ms_max: Count
    wall_ms_max: Count
    memory_kb_max: Count
    output_bytes_max: Count


class ConformanceReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run of the suite against one bundle."""

    format: Literal["omega-conformance/v1"]
    domain: Domain
    suite_sha256: Sha256
    bundle_sha256: Sha256
    plugin: PluginId
    version: VersionText
    gateway_version: ShortText
    rules: Annotated[tuple[RuleResult, ...], Meta(min_length=1, max_length=99)]
    counts: Counts

    def broken(self) -> tuple[str, ...]:
        """Name the rules that were broken."""
        return tuple(one.rule for one in self.rules if one.verdict == "broken")


def suite_digest() -> str:
    """Give the SHA-256, in hex, of what this suite is: its revision and its rules."""
    return hashlib.sha256(
        canonical_bytes({"revision": SUITE_REVISION, "rules": RULES})
    ).hexdigest()
