"""How `omega-plugin` tells an author what went wrong: what happened, where, and what to write.

Rules this file keeps: everything goes to stderr; a plugin's own words are made harmless; the exit
code is that of the same error in `omega-gateway`.

It leaves the sentences of refusals to `schemas.refusals`, and those of the sandbox's denials to
`schemas.denials`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import click

from broker.authoring.hazards import hazards
from broker.cli.ends import INVALID, TRUST

if TYPE_CHECKING:
    from broker.authoring.source import PluginSource
    from schemas.messages import Problem, Refusal

_LIMITS: Final = {
    "cpu_limit_exceeded": "cpu_ms", "wall_limit_exceeded": "wall_ms",
    "memory_limit_exceeded": "memory_mb", "output_limit_exceeded": "output_bytes",
}
_HINDERED: Final = frozenset((
    "plugin_error", "plugin_load_failed", "plugin_crashed", "system_call_forbidden",
    "module_not_allowed",
))
_OUTPUTS: Final = frozenset((
    "output_schema_violation", "output_kind_mismatch", "output_invalid", "output_not_canonical",
))


def say(line: str) -> None:
    """Write one line to stderr, without what could steer a terminal."""
    click.echo("".join(letter if letter.isprintable() else "?" for letter in line), err=True)


def tell_problems(problems: Iterable[Problem]) -> int:
    """Tell every problem of a folder or bundle; gives the exit code."""
    from broker.trust.manifests import contrast
    from schemas.refusals import RefusalCode

    trust = {
        RefusalCode.SIGNATURE_INVALID, RefusalCode.SIGNATURE_THRESHOLD,
        RefusalCode.DOMAIN_MISMATCH, RefusalCode.PUBLISHER_UNKNOWN,
        RefusalCode.PUBLISHER_NOT_ALLOWED, RefusalCode.TRUST_INVALID,
    }
    codes = set()
    for problem in problems:
        codes.add(problem.code)
        say(f"{problem.code.value} at {problem.where or 'the file'}: "
            f"{contrast(problem.found, problem.expected)}")
        say(f"  {problem.remedy}")
    return TRUST if codes & trust else INVALID


def tell_hazards(source: str, capabilities: Iterable[str]) -> None:
    """Tell what in plugin.py the sandbox will deny, each with its line and what to write."""
    for one in hazards(source, tuple(capabilities)):
        say(f"note {one.kind} at plugin.py line {one.line}: {one.name}")
        say(f"  {one.instead}")


def status_of(error: Exception, directory: str | None = None, method: str = "") -> int | None:
    """Tell one error and give its exit code; None, and nothing is told, for a defect of ours.

    Args:
        error: what was raised.
        directory: the folder of the plugin that it is about, to say what to write there.
        method: the method that was called.
    """
    from broker.authoring.source import SourceRefused
    from broker.cli.problems import ending_of, tell
    from broker.client_errors import Refused

    if isinstance(error, SourceRefused):
        return tell_problems(error.problems)
    ending = ending_of(error)
    if ending is None:
        return None
    tell(ending, "table")
    if directory is not None and isinstance(error, Refused):
        _advise(error.refusal, directory, method)
    return ending.exit_code


def _advise(refusal: Refusal, directory: str, method: str) -> None:
    """Say what to write in the folder that was just refused or whose call failed."""
    from broker.authoring.source import ENTRY_FILE, read_source

    source = read_source(directory)
    code = refusal.code.value
    if code in _LIMITS:
        say(f"  write in plugin.py: an end to what {method}() does too long or too much; or in "
            f"plugin.toml under [limits]: {_LIMITS[code]} = {2 * _limit(source, code)}")
    elif code in _OUTPUTS:
        say(f"  write in plugin.py: a return of what {method}() promises behind its ->, or another "
            "promise there")
    elif code == "nondeterministic_output":
        say(f"  write in plugin.py: what {method}() returns in an order of its own, as sorted(...) "
            "of what comes out of a set, and nothing made with hash() or id(); or do not promise "
            "@method(deterministic=True)")
    elif code == "unknown_method":
        say(f"  write in plugin.py: @method() on the line above def {method}(context: ...)")
    elif code in _HINDERED:
        with open(os.path.join(directory, ENTRY_FILE), encoding="utf-8-sig") as file:
            tell_hazards(file.read(), source.capabilities)


def _limit(source: PluginSource, code: str) -> int:
    found = getattr(source.limits, _LIMITS[code])
    assert isinstance(found, int)
    return found
