"""A draft of a text without personal data, for a person to look through.

What has a form of its own is found: mail addresses, account numbers (IBAN), payment cards,
telephone numbers and internet addresses. Numbers that carry a check digit are checked, so that an
order number is not taken for a card. Names and streets have no form and are not found: this is a
draft.

Each value gets a placeholder of its own, the same wherever it occurs, so that a reader can still
see who wrote to whom. Every pattern reads each character a bounded number of times.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator

import msgspec

from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method

FINDINGS_MAX = 2_000
LINES_BYTES_MAX = 60_000


class Finding(msgspec.Struct, forbid_unknown_fields=True):
    """One place: characters `start` to before `end`, and what stands for it in the draft."""

    kind: str
    start: int
    end: int
    placeholder: str


class Findings(msgspec.Struct, forbid_unknown_fields=True):
    """Every place, in the order of the text; values themselves are not repeated."""

    findings: list[Finding]
    distinct: dict[str, int]


class Lines(msgspec.Struct, forbid_unknown_fields=True):
    """The text and the draft by lines, in the form that json-difference takes."""

    before: list[str]
    after: list[str]


class Proposal(msgspec.Struct, forbid_unknown_fields=True):
    """The draft as a text, and beside the original by lines."""

    text: str
    lines: Lines


@method(deterministic=True, idempotent=True)
def redact(context: Context, text: TextPayload) -> TextPayload:
    """Give the draft: the text with a placeholder for each value."""
    return TextPayload(_draft(context, text.text), text.media_type)


@method(deterministic=True, idempotent=True)
def find(context: Context, text: TextPayload) -> Findings:
    """Say where something was found, and of which kind."""
    findings = _find(context, text.text)
    distinct: dict[str, int] = {}
    for placeholder in {one.placeholder for one in findings}:
        kind = placeholder[1:].partition("-")[0]
        distinct[kind] = distinct.get(kind, 0) + 1
    return Findings(findings, distinct)


@method(deterministic=True, idempotent=True)
def propose(context: Context, text: TextPayload) -> Proposal:
    """Give the draft and both versions by lines, so that a pipeline can compare them."""
    if len(text.text.encode()) > LINES_BYTES_MAX:
        raise CannotAnswer(f"a proposal holds three texts: at most {LINES_BYTES_MAX} bytes")
    draft = _draft(context, text.text)
    return Proposal(draft, Lines(text.text.split("\n"), draft.split("\n")))


def _draft(context: Context, text: str) -> str:
    parts, at = [], 0
    for one in _find(context, text):
        parts += (text[at : one.start], one.placeholder)
        at = one.end
    return "".join([*parts, text[at:]])


def _find(context: Context, text: str) -> list[Finding]:
    """Find every value; where two kinds claim a place, the earlier kind of the table has it."""
    taken: list[tuple[int, int, str, str]] = []
    for number, (kind, (pattern, judge)) in enumerate(KINDS.items(), 1):
        found = [
            (match.start(), match.end(), kind, value)
            for match in pattern.finditer(text)
            if (value := judge(match[0])) is not None
        ]
        taken = list(_merged(taken, found))
        if len(taken) > FINDINGS_MAX:
            raise CannotAnswer(f"more than {FINDINGS_MAX} places; hand the text over in parts")
        context.progress(number / len(KINDS), f"{len(found)} of kind {kind}")
    placeholders: dict[tuple[str, str], str] = {}
    numbers = dict.fromkeys(KINDS, 0)
    findings = []
    for start, end, kind, value in taken:
        if (kind, value) not in placeholders:
            numbers[kind] += 1
            placeholders[kind, value] = f"[{kind}-{numbers[kind]}]"
        findings.append(Finding(kind, start, end, placeholders[kind, value]))
    return findings


_Place = tuple[int, int, str, str]


def _merged(taken: list[_Place], found: list[_Place]) -> Iterator[_Place]:
    """Bring two lists together by place, leaving out of the second what touches the first."""
    at = 0
    for place in taken:
        while at < len(found) and found[at][1] <= place[0]:
            yield found[at]
            at += 1
        while at < len(found) and found[at][0] < place[1]:
            at += 1
        yield place
    yield from found[at:]


def _mail(found: str) -> str | None:
    return found.lower()


def _account(found: str) -> str | None:
    """Check an IBAN: moved and read as a number, it leaves 1 when divided by 97 (ISO 13616)."""
    compact = found.replace(" ", "")
    number = "".join(str(int(sign, 36)) for sign in compact[4:] + compact[:4])
    return compact if 15 <= len(compact) <= 34 and int(number) % 97 == 1 else None


def _card(found: str) -> str | None:
    """Check a card's number by Luhn's sum (ISO/IEC 7812-1)."""
    digits = re.sub(r"[ -]", "", found)
    total = 0
    for place, sign in enumerate(reversed(digits)):
        value = int(sign) * (1 + place % 2)
        total += value - 9 if value > 9 else value
    return digits if total % 10 == 0 and len(set(digits)) > 1 else None


def _network(found: str) -> str | None:
    try:
        return str(ipaddress.ip_address(found))
    except ValueError:
        return None


def _telephone(found: str) -> str | None:
    digits = re.sub(r"\D", "", found)
    return digits if 8 <= len(digits) <= 15 else None


# A run of characters is tried once, from its beginning, and every repetition has a bound: a text
# of one letter, digit or dot costs no more than another.
KINDS: dict[str, tuple[re.Pattern[str], Callable[[str], str | None]]] = {
    "MAIL": (
        re.compile(
            r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@"
            r"(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
        ),
        _mail,
    ),
    "ACCOUNT": (
        re.compile(
            r"(?<![A-Za-z0-9])[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?"
            r"(?![A-Za-z0-9])"
        ),
        _account,
    ),
    "CARD": (re.compile(r"(?<![0-9A-Za-z-])[0-9](?:[ -]?[0-9]){12,18}(?![0-9A-Za-z-])"), _card),
    "ADDRESS": (
        re.compile(
            r"(?<![0-9A-Za-z.:])(?:[0-9]{1,3}(?:\.[0-9]{1,3}){3}|"
            r"(?:[0-9A-Fa-f]{0,4}:){2,7}[0-9A-Fa-f]{1,4})(?![0-9A-Za-z:]|\.[0-9])"
        ),
        _network,
    ),
    "TELEPHONE": (
        re.compile(r"(?<![0-9A-Za-z.+/-])(?:\+|00|0|\()[0-9 ()./-]{6,20}[0-9](?![0-9A-Za-z-])"),
        _telephone,
    ),
}
