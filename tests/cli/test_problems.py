"""Every error has one sentence, a next step and its exit code, and all of it in one place."""

from __future__ import annotations

import errno

import click
import pytest

from broker.cli import ends
from broker.cli.problems import EXIT_CODES, ending_of
from broker.client_errors import (
    GatewayError,
    LedgerForked,
    NotAuthorised,
    Refused,
    TimedOut,
    Unreachable,
)
from broker.configured import HomeRefused
from broker.keys import KeyFileRefused
from broker.launchers.local import LauncherLost
from broker.ledger.errors import (
    LedgerDamaged,
    LedgerFailure,
    LedgerLocked,
    LedgerTruncated,
    LedgerUnwritable,
)
from broker.seal import SealUnavailable
from broker.sockets import TransportRefused
from broker.trust.errors import TrustRefused
from schemas.messages import Refusal
from schemas.refusals import REFUSALS, RefusalCode

EXPECTED: dict[int, set[str]] = {
    3: {"deadline_exceeded", "deadline_unreachable", "draining"},
    4: {"role_not_allowed", "key_revoked", "handshake_refused", "plugin_origin_routing",
        "approval_required"},
    6: {"signature_invalid", "signature_threshold", "domain_mismatch", "publisher_unknown",
        "publisher_not_allowed", "trust_invalid", "trust_version_not_raised"},
    7: {"ledger_damaged", "ledger_truncated"},
    8: {"gateway_degraded", "low_space"},
    74: {"ledger_unwritable"},
}

ERRORS: dict[str, tuple[Exception, int]] = {
    "unreachable": (Unreachable("no gateway answers"), 3),
    "timed out": (TimedOut("00000000-0000-4000-8000-000000000000", 1.0), 3),
    "not authorised": (NotAuthorised("not admitted"), 4),
    "forked": (LedgerForked("another history"), 7),
    "another client error": (GatewayError("no"), 1),
    "home": (HomeRefused(RefusalCode.CONFIG_INVALID, "gateway.toml: $.x: wrong"), 5),
    "home's trust root": (HomeRefused(RefusalCode.TRUST_INVALID, "root: wrong"), 6),
    "key file": (KeyFileRefused("/k", "has mode 0644"), 5),
    "trust": (TrustRefused(RefusalCode.SIGNATURE_INVALID, "wrong", where="manifest"), 6),
    "socket": (TransportRefused(RefusalCode.SOCKET_IN_USE, "/s: is in use"), 5),
    "seal": (SealUnavailable("Landlock", errno.ENOSYS, "Boot another kernel."), 5),
    "launcher": (LauncherLost("the launcher ended"), 1),
    "ledger locked": (LedgerLocked("locked"), 1),
    "ledger damaged": (LedgerDamaged("damaged"), 7),
    "ledger truncated": (LedgerTruncated("truncated"), 7),
    "ledger not writable at start": (LedgerUnwritable("read-only"), 74),
    "ledger failed": (LedgerFailure("flush: no space left"), 74),
    "command": (ends.CommandError(5, "no profile"), 5),
    "usage": (click.UsageError("no such option"), 2),
    "bad value": (click.BadParameter("not a number"), 2),
    "stopped": (click.Abort(), 1),
    "not UTF-8": (UnicodeEncodeError("utf-8", "a\udcff", 1, 2, "surrogates not allowed"), 2),
    "file": (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), 1),
}


def test_every_refusal_code_has_an_exit_code():
    """The table names each code of the closed list once, with a code of the contract."""
    assert set(EXIT_CODES) == set(RefusalCode)
    assert set(EXIT_CODES.values()) == {1, 3, 4, 5, 6, 7, 8, 74}


@pytest.mark.parametrize("exit_code", EXPECTED)
def test_refusal_codes_end_with_what_they_mean(exit_code: int):
    """Time, authority, signatures, evidence and health each have their own exit code."""
    assert {code for code, number in EXIT_CODES.items() if number == exit_code} == EXPECTED[
        exit_code
    ]


@pytest.mark.parametrize("name", ERRORS)
def test_every_known_error_has_its_end(name: str):
    """Each kind of error becomes one line that is not empty, and its own exit code."""
    error, exit_code = ERRORS[name]
    ending = ending_of(error)
    assert ending is not None
    assert ending.exit_code == exit_code
    assert ending.sentence
    assert "\n" not in ending.sentence
    assert "\n" not in ending.next_step


@pytest.mark.parametrize("code", RefusalCode)
def test_a_refusal_says_its_remedy(code: RefusalCode):
    """Without a hint of the gateway's, the next step is the remedy of the code's page."""
    ending = ending_of(Refused(Refusal(code=code, message="No.", where="$.x")))
    assert ending is not None
    assert ending.sentence == f"refused: {code}: No. (at $.x)"
    assert ending.next_step == REFUSALS[code].remedy
    hinted = ending_of(Refused(Refusal(code=code, message="No.", hint="Do this.")))
    assert hinted is not None
    assert hinted.next_step == "Do this."


@pytest.mark.parametrize("error", [UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates"),
                                   ValueError("x"), KeyError("x"), AssertionError("x"),
                                   BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_an_unknown_error_is_not_dressed_up(error: Exception):
    """What nobody foresaw is a defect: it keeps its traceback."""
    assert ending_of(error) is None


def test_an_argument_that_is_no_text_is_told_from_the_client_s_error():
    """A byte of the command line that is not UTF-8 is wrong use, whoever noticed it."""
    for text, exit_code in (("a\udcff", 2), ("a\ud800", 1)):
        error = GatewayError("the request cannot be written as a message")
        error.__cause__ = UnicodeEncodeError("utf-8", text, 1, 2, "surrogates not allowed")
        ending = ending_of(error)
        assert ending is not None
        assert ending.exit_code == exit_code
        assert ("not UTF-8 text" in ending.sentence) == (exit_code == 2)


def test_a_path_and_a_place_stand_in_the_sentence():
    """The file of an error of the operating system and the field of a trust document are named."""
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "/some/file")
    ending = ending_of(error)
    assert ending is not None
    assert ending.sentence == "/some/file: No such file or directory"
    numbered = ending_of(IsADirectoryError(errno.EISDIR, "Is a directory", 3))
    assert numbered is not None
    assert numbered.sentence == "Is a directory"
    trust = ending_of(TrustRefused(RefusalCode.TRUST_INVALID, "is too large", where="$.version"))
    assert trust is not None
    assert trust.sentence == "$.version: is too large"
