"""The conformance suite: drives one plugin through a real gateway, rule by rule, and reports.

Rules this file keeps: every method gets every input, what was answered is asked again, and then
everything that can go on beside a call goes on; a method that reaches its limits of time again and
again is left alone.

It leaves sending and judging to `broker.authoring.conform_suite`, inputs to
`broker.authoring.conform_cases`, what is cut short or runs side by side to
`broker.authoring.conform_races`, and words to `broker.authoring.conforming`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from broker.authoring.conform_races import cancelled, killed, side_by_side
from broker.authoring.conform_suite import Suite
from schemas.conformance import ConformanceReport, Counts, suite_digest

CONFIG: Final = """
[limits]
progress_per_s_max = 1000
[breaker]
consecutive_max = 1000
window_calls = 1000
failure_permille_max = 1000
rest_ms = 1
rest_ms_max = 1
probes_max = 16
[times]
backoff_ms_min = 1
backoff_ms_max = 100
[ledger]
durability = "process"
[determinism]
share_permille = 1000
"""
"""The suite's gateway rests no method, since failing calls are what is looked for; its ledger is
gone with it, so that no flush is waited for; each answer that is promised to be the same waits for
a second run under another hash seed."""
_SLOW_CALLS_MAX: Final = 3
"""How often a method may reach a limit of time before the rest of its inputs is left out."""


def drive(
    suite: Suite, bundle_sha256: str, tell: Callable[[int, int], None]
) -> ConformanceReport:
    """Drive every rule and give the report.

    Args:
        suite: against the plugin, with no call sent yet.
        bundle_sha256: of the bundle that is installed.
        tell: hears how many inputs of how many were sent.

    Raises:
        CommandError: the gateway could not run the plugin at all.
    """
    methods = sorted(suite.manifest.methods)
    cases = {name: suite.inputs.cases(name) for name in methods}
    total = sum(map(len, cases.values())) + 1
    for name in methods:
        for case in cases[name]:
            if suite.slow_calls(name) < _SLOW_CALLS_MAX:
                suite.send(name, case)
            tell(len(suite.all), total)
    for name in methods:
        answered = [seen for seen in suite.all if seen.method == name and seen.code is None]
        first = next(seen for seen in suite.all if seen.method == name)
        suite.book.judge("CON-01", answered[0] if answered else first, held=bool(answered))
        suite.repeat(name)
        side_by_side(suite, name)
        cancelled(suite, name)
    killed(suite, tuple(methods))
    tell(total, total)
    return _report(suite, bundle_sha256)


def _report(suite: Suite, bundle_sha256: str) -> ConformanceReport:
    used = [seen.usage for seen in suite.all if seen.usage is not None]
    answered = sum(seen.code is None for seen in suite.all)
    status = suite.gateway.operator.status()
    return ConformanceReport(
        format="omega-conformance/v1",
        domain=suite.manifest.domain,
        suite_sha256=suite_digest(),
        bundle_sha256=bundle_sha256,
        plugin=suite.manifest.id,
        version=suite.manifest.version,
        gateway_version=status.gateway_version,
        rules=suite.book.results(),
        counts=Counts(
            calls=len(suite.all), answered=answered, refused=len(suite.all) - answered,
            cpu_ms_max=max((one.cpu_ms for one in used), default=0),
            wall_ms_max=max((one.wall_ms for one in used), default=0),
            memory_kb_max=max((one.max_rss_kb_upper_bound for one in used), default=0),
            output_bytes_max=max((one.output_bytes for one in used), default=0),
        ),
    )
