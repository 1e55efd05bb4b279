"""What is found, what is left alone, and what a draft keeps."""

from __future__ import annotations

import imaplib
import inspect
import smtplib

import pytest
from plugin import FINDINGS_MAX, LINES_BYTES_MAX, find, propose, redact

from sandbox_worker.sdk import CannotAnswer, Context, TextPayload

FOUND = {
    "jane.doe@example.org": "MAIL",
    "DE89 3704 0044 0532 0130 00": "ACCOUNT",
    "GB82WEST12345698765432": "ACCOUNT",
    "4111 1111 1111 1111": "CARD",
    "192.0.2.17": "ADDRESS",
    "2001:db8::17": "ADDRESS",
    "+49 (0)30 1234567": "TELEPHONE",
    "030/1234567": "TELEPHONE",
}
LEFT_ALONE = (
    "GB82WEST12345698765431", "4111 1111 1111 1112", "0000 0000 0000 0000", "192.0.2.300",
    "version 3.11.7.1.2", "12:30:59", "page 1234", "2026-11-22", "a@b", "1.2.3",
)


def drafted(text: str) -> str:
    """The draft of a text."""
    return redact(Context(), TextPayload(text)).text


@pytest.mark.parametrize("value", FOUND)
def test_a_value_with_a_form_is_replaced(value: str):
    """Its surroundings stay, and the placeholder names the kind."""
    assert drafted(f"Write to {value}, please.") == f"Write to [{FOUND[value]}-1], please."


@pytest.mark.parametrize("text", LEFT_ALONE)
def test_what_only_looks_alike_is_left_alone(text: str):
    """Wrong check digits, versions, times and dates are no personal data."""
    assert drafted(f"See {text}, please.") == f"See {text}, please."


def test_the_same_value_has_the_same_placeholder():
    """A reader still sees who wrote to whom; spelling does not make another person."""
    text = "a@x.org wrote to b@x.org; B@X.ORG answered. 4111111111111111, 4111-1111-1111-1111"
    assert drafted(text) == "[MAIL-1] wrote to [MAIL-2]; [MAIL-2] answered. [CARD-1], [CARD-1]"


@pytest.mark.parametrize("module", [smtplib, imaplib])
def test_the_authors_of_the_standard_library_are_redacted(module: object):
    """Real sources name real people: every address is gone, and all else is as it was."""
    text = inspect.getsource(module)
    draft = drafted(text)
    findings = find(Context(), TextPayload(text))
    assert findings.distinct["MAIL"] >= 2
    assert "@" in text
    assert all(text[one.start : one.end] not in draft for one in findings.findings)
    assert len(draft.split("\n")) == len(text.split("\n"))
    assert drafted(draft) == draft


def test_a_proposal_holds_both_versions_by_lines():
    """They are what json-difference compares."""
    proposal = propose(Context(), TextPayload("one\nmail a@x.org\n"))
    assert proposal.lines.before == ["one", "mail a@x.org", ""]
    assert proposal.lines.after == ["one", "mail [MAIL-1]", ""]
    assert proposal.text == "one\nmail [MAIL-1]\n"


def test_what_is_too_much_is_said():
    """Too many places, and a proposal of too long a text, are answers of their own."""
    with pytest.raises(CannotAnswer, match="in parts"):
        redact(Context(), TextPayload("a@x.org " * (FINDINGS_MAX + 1)))
    with pytest.raises(CannotAnswer, match="three texts"):
        propose(Context(), TextPayload("a" * (LINES_BYTES_MAX + 1)))


def test_progress_is_told_for_each_kind():
    """Five kinds, five notes, the last at the end."""
    notes: list[tuple[float, str]] = []
    redact(Context(progress=lambda at, note: notes.append((at, note))), TextPayload("a@x.org"))
    assert [note for _, note in notes][:2] == ["1 of kind MAIL", "0 of kind ACCOUNT"]
    assert notes[-1][0] == 1.0


@pytest.mark.parametrize("part", ["a", "1", ".", "a.", "1 ", "1-", ":", "A1", "+", "(", "@", "0"])
def test_a_text_that_repeats_itself_takes_no_longer(part: str):
    """No pattern goes back and forth over a run: a hundred thousand characters end at once."""
    redact(Context(), TextPayload(part * (100_000 // len(part))))
