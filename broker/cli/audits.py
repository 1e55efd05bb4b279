"""`ledger verify` and `ledger audit`: whether a ledger's bytes hold, and whether what it says does.

Rules this file keeps: nothing of a ledger is written. An audit comes after a verification, because
what other bytes say proves nothing. It leaves both judgements to `broker.evidence`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

import click

from broker.cli.ends import LEDGER, CommandError
from broker.cli.options import home_option, output_option, session
from broker.cli.output import Table, show
from broker.cli.progress import bar

if TYPE_CHECKING:
    from broker.evidence.audit import AuditReport
    from broker.evidence.verify import VerificationReport

_FOLDER = click.Path(exists=True, file_okay=False)


class _Place(NamedTuple):
    """What is judged: a folder, who must have signed it, and where the newest note lies again."""

    directory: str
    vkey: str | None
    anchor: str | None


def _place(directory: str | None, vkey: str | None, anchor: str | None) -> _Place:
    """Take the home's ledger, key and anchor unless a folder is named."""
    if directory is not None:
        return _Place(directory, vkey, anchor)
    from broker.home import load_home

    home = load_home(session().home_path())
    return _Place(home.ledger, vkey or home.verifier_key, anchor or home.anchor)


@click.command()
@home_option
@output_option
@click.argument("directory", type=_FOLDER, required=False)
@click.option("--vkey", metavar="KEY", help="The verifier key; else that of the home.")
@click.option("--anchor", type=_FOLDER, help="The anchor's folder; else that of the home.")
@click.option("--from-start", is_flag=True, help="Read also what was verified before.")
def verify(
    directory: str | None, vkey: str | None, anchor: str | None, *, from_start: bool
) -> int:
    """Verify every byte of a ledger; ends with 7 when something is wrong.

    Without DIRECTORY it is the home's ledger, with the home's key and anchor. A copy elsewhere is
    verified with the key you give, else only against the key that it claims itself. Whole segments
    that you verified before, and whose files did not change since, are not read again.
    """
    import msgspec

    place = _place(directory, vkey, anchor)
    report = _verify(place, from_start=from_start)
    document = {"directory": place.directory, **msgspec.to_builtins(report)}
    show("omega.verification/1", document, _report_table(place.directory, report))
    _tell(place, report)
    return 0 if report.ok else LEDGER


@click.command()
@home_option
@output_option
@click.argument("directory", type=_FOLDER, required=False)
@click.option("--vkey", metavar="KEY", help="The verifier key; else that of the home.")
@click.option("--anchor", type=_FOLDER, help="The anchor's folder; else that of the home.")
@click.option("--from-start", is_flag=True, help="Verify also what was verified before.")
@click.option("--archive", "archives", type=_FOLDER, multiple=True, metavar="DIR",
              help="An archive of this ledger; once for each, when old segments were archived.")
def audit(
    directory: str | None, vkey: str | None, anchor: str | None, archives: tuple[str, ...], *,
    from_start: bool,
) -> int:
    """Show whether every invariant holds in a ledger; ends with 7 when one does not.

    The ledger is verified first, as `ledger verify` does; an audit of other bytes proves nothing.
    For each invariant the first event that breaks it is named, with what was expected there.
    """
    import msgspec

    from broker.evidence.audit import Audit
    from broker.evidence.events import UnreadableLedger, read_events

    place = _place(directory, vkey, anchor)
    verified = _verify(place, from_start=from_start)
    _tell(place, verified)
    if not verified.ok:
        return LEDGER
    for one in archives:
        archived = _verify(_Place(one, place.vkey, None), from_start=from_start)
        _tell(_Place(one, place.vkey, None), archived)
        if not archived.ok:
            return LEDGER
    judged = Audit()
    try:
        with bar("auditing") as progress:
            for event in read_events(place.directory, progress, archives):
                judged.take(event)
    except UnreadableLedger as error:
        raise CommandError(
            LEDGER, str(error), "`omega-gateway ledger verify --from-start` says what is wrong"
        ) from None
    report = judged.report()
    document = {
        "directory": place.directory, "log_id": verified.log_id, "root": verified.root,
        "key_given": verified.key_given, **msgspec.to_builtins(report),
    }
    show("omega.audit/1", document, *_audit_tables(place.directory, report))
    for verdict in report.verdicts:
        if not verdict.ok:
            click.echo(
                f"{verdict.name} ({verdict.specification}): event {verdict.seq}, "
                f"{verdict.event_type}: expected {verdict.expected}, found {verdict.found}",
                err=True,
            )
    return 0 if report.ok else LEDGER


def _verify(place: _Place, *, from_start: bool) -> VerificationReport:
    from broker.evidence.memory import memory_path
    from broker.evidence.verify import verify_directory
    from schemas.proof import ProofError

    memory = memory_path(place.directory, os.environ)
    try:
        with bar("verifying") as progress:
            report = verify_directory(
                place.directory, verifier_key=place.vkey, anchor_directory=place.anchor,
                progress=progress, processes=len(os.sched_getaffinity(0)), memory=memory,
                from_start=from_start,
            )
    except ProofError as error:
        raise click.BadParameter(str(error), param_hint="--vkey") from None
    if not report.remembered:
        click.echo(f"what was verified cannot be remembered in {memory}: the next run reads all",
                   err=True)
    return report


def _tell(place: _Place, report: VerificationReport) -> None:
    """Say on stderr what a verification does not show, and what is wrong."""
    if not report.key_given:
        click.echo("no key was given: the ledger agrees with the key that it names itself",
                   err=True)
    if report.problem is not None:
        where = "" if report.problem.offset is None else f" at byte {report.problem.offset}"
        click.echo(f"{place.directory}/{report.problem.file}{where}: {report.problem.kind}: "
                   f"{report.problem.sentence}", err=True)


def _report_table(directory: str, report: VerificationReport) -> Table:
    return Table([
        ("ledger", directory),
        ("holds", report.ok),
        ("log_id", report.log_id),
        ("events", report.events),
        *([("begins with", f"event {report.begins}; of those before it there are hashes only")]
          if report.begins else []),
        *([("verified before", f"{report.known} events")] if report.known else []),
        ("segments", report.segments),
        ("checkpoints", report.checkpoints),
        ("newest over", f"{report.head_size} events"),
        ("root", report.root),
        ("against", ("the given key" if report.key_given else "its own key")
         + (" and the anchor" if report.anchored else "")),
        *([("torn bytes", report.torn_bytes)] if report.torn_bytes else []),
    ])


def _audit_tables(directory: str, report: AuditReport) -> list[Table]:
    facts = [
        ("ledger", directory), ("holds", report.ok), ("events", report.events),
        ("open invocations", report.open),
    ]
    lines = [
        (one.name, one.specification, one.ok, one.asked, one.sentence) for one in report.verdicts
    ]
    return [Table(facts), Table(lines, ("audit", "invariant", "holds", "asked", "what must hold"))]
