"""`doctor`, `status`, `explain` and `completion`: questions that change nothing.

Rules this file keeps: `doctor` and `explain` need no home and no gateway. It leaves the look at the
machine to `broker.machine` and the pages of refusals to `schemas.refusals`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from broker.cli.ends import DEGRADED, INVALID, USAGE, CommandError
from broker.cli.options import output_option, read_options
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from schemas.messages import StatusReport


@click.command()
@output_option
@click.option("--filters", is_flag=True,
              help="List the workers' system call filters instead: which call, when, what happens.")
def doctor(*, filters: bool) -> int:
    """Say what this machine can enforce.

    Every feature that the sandbox stands on is looked at or tried, and then a whole sandbox is
    made. Ends with 5 when something is missing.
    """
    if filters:
        from broker.cli.asked import show_filters

        show_filters()
        return 0
    from broker.machine import examine

    findings = examine()
    if all(finding.ok for finding in findings):
        from broker.cli.asked import try_sandbox

        findings.append(try_sandbox())
    missing = [finding for finding in findings if not finding.ok]
    headers = ("feature", "found", "required", "enough")
    show(
        "omega.doctor/1",
        {"ok": not missing, "findings": [finding._asdict() for finding in findings]},
        Table([(one.feature, one.found, one.required, one.ok) for one in findings], headers),
        each=("findings", "omega.finding/1"),
    )
    for finding in missing:
        click.echo(finding.sentence(), err=True)
    return INVALID if missing else 0


@click.command()
@read_options
def status() -> int:
    """Say how the gateway is. Ends with 8 when it is degraded."""
    import msgspec

    from broker.cli.connect import reading_client

    with reading_client() as client:
        report = client.status()
    document = msgspec.to_builtins(report)
    for name in ("type", "request_id"):
        document.pop(name, None)
    show("omega.status/1", document, *_status_tables(report))
    return DEGRADED if report.state == "degraded" else 0


def _status_tables(report: StatusReport) -> list[Table]:
    facts = [
        ("state", report.state),
        ("domain", report.domain),
        ("gateway", f"{report.gateway_version}, plugin API {report.api_version}"),
        ("log_id", report.log_id),
        ("ledger", f"{report.ledger_size} events"),
        ("uptime", f"{report.uptime_us / 1_000_000:.1f} s"),
        ("in flight", f"{report.in_flight} of at most {report.in_flight_max}"),
        ("plugins", f"{report.plugins}, enabled {report.enabled}"),
        ("trust root", f"version {report.trust_version}"),
        ("policy", report.policy_sha256),
        *(("degraded", reason) for reason in report.degraded),
        *(("breaker", f"{one.plugin} {one.method} is {one.state.replace('_', ' ')}"
           + (f" for another {one.retry_after_ms} ms" if one.retry_after_ms else ""))
          for one in report.breakers),
    ]
    workers = [
        (one.plugin, one.version, one.role, one.state, one.in_flight, one.calls, one.pid)
        for one in report.workers
    ]
    headers = ("worker of", "version", "role", "state", "in flight", "calls", "pid")
    return [Table(facts), *([Table(workers, headers)] if workers else [])]


@click.command()
@output_option
@click.argument("code")
def explain(code: str) -> None:
    """Explain a refusal code: what it means and what would make it allowed."""
    from broker.cli.problems import EXIT_CODES
    from schemas.refusals import REFUSALS, RefusalCode

    try:
        known = RefusalCode(code)
    except ValueError:
        import difflib

        near = difflib.get_close_matches(code, list(RefusalCode), n=3)
        raise CommandError(
            USAGE, f"{code!r} is no refusal code", f"perhaps {' or '.join(near)}" if near else ""
        ) from None
    page = REFUSALS[known]
    document = {"code": code, **page._asdict(), "exit_code": EXIT_CODES[known]}
    show("omega.explanation/1", document, Table([
        ("code", code),
        ("means", page.title),
        ("because", page.reason),
        ("remedy", page.remedy),
        ("retry", "the same request may succeed later" if page.retryable else "change it first"),
        ("to mend by", page.blame),
        ("exit code", EXIT_CODES[known]),
    ]))


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell.

    For bash: eval "$(omega-gateway completion bash)"
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    root = click.get_current_context().find_root()
    program = root.info_name or ""
    variable = f"_{program.upper().replace('-', '_')}_COMPLETE"
    click.echo(kind(root.command, {}, program, variable).source())
