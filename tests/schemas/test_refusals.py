"""Refusal codes: a closed list, and each explains itself."""

from __future__ import annotations

import re
import typing

import pytest

from schemas.messages import FailureCode
from schemas.refusal_pages import PAGES, Blame
from schemas.refusals import REFUSALS, RefusalCode


def test_every_code_has_a_page_and_every_page_a_code() -> None:
    """No code is without an explanation, and no explanation without a code."""
    assert {code.value for code in RefusalCode} == set(PAGES) == {c.value for c in REFUSALS}


@pytest.mark.parametrize("code", sorted(PAGES))
def test_a_page_tells_what_why_and_what_to_do(code: str) -> None:
    """Title, reason and remedy are sentences; the remedy ends as one; blame is a known word."""
    info = REFUSALS[RefusalCode(code)]

    assert re.fullmatch(r"[a-z][a-z0-9_]{2,39}", code)
    assert info.title[0].isupper()
    assert not info.title.endswith(".")
    assert info.reason.endswith(".")
    assert info.remedy.endswith(".")
    assert info.blame in typing.get_args(Blame)
    assert max(map(len, (info.title, info.reason, info.remedy))) <= 400


def test_what_a_worker_may_report_is_a_refusal_code() -> None:
    """Every failure a worker may name is a code that a client can be answered with."""
    assert set(typing.get_args(FailureCode)) <= set(PAGES)


def test_a_pause_helps_where_the_gateway_is_busy() -> None:
    """Codes about load can be retried; codes about signatures and trust cannot."""
    for code in ("in_flight_limit", "queue_full", "quota_exceeded", "circuit_open", "draining"):
        assert REFUSALS[RefusalCode(code)].retryable, code
    for code in ("signature_invalid", "plugin_origin_routing", "revoked", "json_not_canonical"):
        assert not REFUSALS[RefusalCode(code)].retryable, code
