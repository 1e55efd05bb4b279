"""How `omega-plugin` tells an author what went wrong: what happened, where, and what to write.

Rules this file keeps: everything goes to stderr; a plugin's own words are made harmless; the exit
code is that of the same error in `omega-gateway`.

It leaves the sentences of refusals to `schemas.refusals`, and those of the sandbox's denials to
`schemas.denials`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from broker.cli.ends import INVALID, TRUST

if TYPE_CHECKING:
    from schemas.messages import Problem


def say(line: str) -> None:
    """Write one line to stderr, without what could steer a terminal."""
    click.echo("".join(letter if letter.isprintable() else "?" for letter in line), err=True)


def tell_problems(problems: Iterable[Problem]) -> int:
    """Tell every problem of a folder or bundle; gives the exit code."""
    from schemas.refusals import RefusalCode

    trust = {
        RefusalCode.SIGNATURE_INVALID, RefusalCode.SIGNATURE_THRESHOLD,
        RefusalCode.DOMAIN_MISMATCH, RefusalCode.PUBLISHER_UNKNOWN,
        RefusalCode.PUBLISHER_NOT_ALLOWED, RefusalCode.TRUST_INVALID,
    }
    codes = set()
    for problem in problems:
        codes.add(problem.code)
        expected = f", expected {problem.expected}" if problem.expected else ""
        say(f"{problem.code.value} at {problem.where or 'the file'}: "
            f"found {problem.found}{expected}")
        say(f"  {problem.remedy}")
    return TRUST if codes & trust else INVALID


def status_of(error: Exception) -> int | None:
    """Tell one error and give its exit code; None, and nothing is told, for a defect of ours."""
    from broker.authoring.source import SourceRefused
    from broker.cli.problems import ending_of, tell

    if isinstance(error, SourceRefused):
        return tell_problems(error.problems)
    ending = ending_of(error)
    if ending is None:
        return None
    tell(ending, "table")
    return ending.exit_code
