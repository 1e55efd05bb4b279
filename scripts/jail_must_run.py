"""A pytest plugin that turns a skipped jail test into a failure, and counts those that ran.

    python -m pytest -p scripts.jail_must_run

A test marked `jail` holds what the sandbox promises; on a machine where it cannot run nothing was
shown. A module that is skipped as a whole counts when it has such tests. The count goes to the file
that $OMEGA_JAIL_COUNT names, so that `scripts/test` can see that any ran at all.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

_ran: set[str] = set()
_skipped: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note every jail test that ran and every one that was skipped."""
    if "jail" not in report.keywords:
        return
    if report.skipped:
        _skipped[report.nodeid] = str(report.longrepr)
    elif report.when == "call":
        _ran.add(report.nodeid)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Note every module with jail tests that was skipped as a whole."""
    report = yield
    if (
        report.skipped
        and isinstance(collector, pytest.Module)
        and "mark.jail" in collector.path.read_text("utf-8")
    ):
        _skipped[report.nodeid] = str(report.longrepr)
    return report


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the run when a jail test was skipped."""
    if _skipped:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    count = os.environ.get("OMEGA_JAIL_COUNT")
    if count:
        Path(count).write_text(f"{len(_ran)}\n", "utf-8")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name every jail test that was skipped."""
    for name, reason in _skipped.items():
        terminalreporter.write_line(f"JAIL TEST SKIPPED, which fails the run: {name}: {reason}")
