"""`ledger compress`, `export`, `archive`, `restore`: what an operator does with a ledger's files.

Rules this file keeps: no line of a ledger is changed, and nothing is removed before what takes its
place was flushed and read back. It leaves the files to `broker.ledger.compressed`,
`broker.evidence.export`, `broker.archiving` and `broker.restoring`.
"""

from __future__ import annotations

from typing import Final

import click

from broker.cli.ends import FAILURE, LEDGER, CommandError
from broker.cli.options import home_option, output_option, read_options, session
from broker.cli.output import Table, show

_REASON_MAX: Final = 1024


@click.command()
@home_option
@output_option
def compress() -> None:
    """Compress the segments that do not change any more, also while the gateway runs.

    Everything that reads a ledger reads them as before. An interrupted run is finished by the next.
    """
    from broker.home import load_home
    from broker.ledger.compressed import compress as compress_segment
    from broker.ledger.segments import list_segments, segment_path
    from broker.ledger.volume import Volume

    home = load_home(session().home_path())
    sizes = [
        compress_segment(Volume(), segment_path(home.ledger, first_seq))
        for first_seq in list_segments(home.ledger)[:-1]
    ]
    facts = {
        "segments": sum(1 for before, _ in sizes if before),
        "bytes_before": sum(before for before, _ in sizes),
        "bytes_after": sum(after for _, after in sizes),
    }
    show("omega.ledger_compressed/1", facts, Table([*facts.items()]))


@click.command()
@read_options
@click.argument("what", required=False, metavar="[A-B]")
@click.option("--to", "target", required=True, metavar="DIR", help="The folder to make.")
@click.option("--ledger", "directory", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="A copy of a ledger, instead of the home's; needs --vkey.")
@click.option("--vkey", metavar="KEY", help="Who signed the copy.")
def export(what: str | None, target: str, directory: str | None, vkey: str | None) -> None:
    """Write the ledger, or its events A to B, as a folder that verifies by itself.

    With it and the verifier key anybody can verify: scripts/verify_ledger.py DIR --vkey KEY. It
    goes as far as the newest checkpoint; with --profile the gateway signs a new one first. A range
    shows nothing of the events before it, and ends with the checkpoint that covers it.
    """
    from broker.cli.connect import reading_client
    from broker.cli.proofs import position_range
    from broker.evidence.export import export as export_ledger
    from broker.home import load_home
    from broker.ledger.errors import PositionUnknown
    from schemas.proof import parse_verifier_key

    if (directory is None) != (vkey is None):
        raise click.UsageError("--ledger and --vkey belong together")
    wanted = position_range(what) if what is not None else None
    if session().profile is not None:
        with reading_client() as client:
            client.ledger_head()
    if directory is None or vkey is None:
        home = load_home(session().home_path())
        directory, vkey = home.ledger, home.verifier_key
    try:
        done = export_ledger(directory, parse_verifier_key(vkey), target, wanted)
    except PositionUnknown as error:
        raise CommandError(FAILURE, str(error)) from None
    except FileExistsError:
        raise CommandError(FAILURE, f"{target}: is there already", "name a new folder") from None
    facts = {
        "directory": target, "log_id": done.report.log_id, "begins": done.begins,
        "ends": done.ends, "root": done.report.root, "verifier_key": vkey,
    }
    show("omega.ledger_export/1", facts, Table([*facts.items()]))


@click.command()
@home_option
@output_option
@click.option("--before", type=click.IntRange(1), required=True, metavar="SEQ",
              help="Only segments that end before this event are moved.")
@click.option("--to", "target", required=True, metavar="DIR",
              help="The folder of archives; each gets a folder of its own in it.")
def archive(before: int, target: str) -> None:
    """Move whole old segments into an archive that verifies by itself; no gateway may run.

    The ledger says what was moved and where to. Hashes, tree and checkpoints stay, so that what
    stays still proves. Interrupted at any moment nothing is lost, and the same command finishes.
    """
    from broker.archiving import CannotArchive
    from broker.archiving import archive as archive_segments
    from broker.home import load_home

    home = load_home(session().home_path())
    try:
        done = archive_segments(home, before, target)
    except CannotArchive as error:
        raise CommandError(FAILURE, str(error)) from None
    facts = {
        "directory": done.directory, "begins": done.begins, "ends": done.ends,
        "verifier_key": home.verifier_key,
    }
    show("omega.ledger_archived/1", facts, Table([*facts.items()]))


@click.command()
@home_option
@output_option
@click.option("--reason", required=True, metavar="TEXT",
              help="Why; the new ledger says it to everybody who reads it.")
@click.option("--from", "source", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="A copy of the ledger that verifies; else the one in the home.")
@click.option("--archive", "archives", multiple=True, metavar="DIR",
              type=click.Path(exists=True, file_okay=False),
              help="An archive of that ledger; once for each.")
def restore(reason: str, source: str | None, archives: tuple[str, ...]) -> None:
    """Begin a new ledger after the old one was damaged or put back from a backup.

    Every client refuses a ledger that was put back: it is another history. The new one has a new
    log_id, says from which it comes and why, and takes over registered versions, revocations,
    quarantines, the trust root's version and the keys' roles. Nothing is enabled or granted in it.
    The old ledger is kept under forks/. Interrupted, the same command finishes.
    """
    from broker.home import load_home
    from broker.restoring import CannotRestore, finish_interrupted
    from broker.restoring import restore as restore_ledger

    if not reason.isascii() or not reason.isprintable() or not 0 < len(reason) <= _REASON_MAX:
        raise click.BadParameter(
            f"expected 1 to {_REASON_MAX} printable ASCII characters", param_hint="--reason"
        )
    path = session().home_path()
    if finish_interrupted(path):
        click.echo("finished the restore that was interrupted; its own reason stands", err=True)
        home = load_home(path)
        facts = {"log_id": home.config.log_id, "verifier_key": home.verifier_key}
        show("omega.ledger_restored/1", facts, Table([*facts.items()]))
        return
    try:
        done = restore_ledger(load_home(path), reason, source, archives)
    except CannotRestore as error:
        raise CommandError(
            LEDGER, str(error), "`omega-gateway ledger verify DIR --vkey KEY` checks a copy"
        ) from None
    facts = {
        "log_id": done.log_id, "restored_from": done.restored_from, "kept_in": done.forks,
        "verifier_key": done.verifier_key,
    }
    show("omega.ledger_restored/1", {**facts, "enabled_before": list(done.enabled_before)},
         Table([*facts.items()]))
    for version in done.enabled_before:
        click.echo(f"was enabled; if it still may: `omega-gateway plugins enable {version}`",
                   err=True)
    click.echo("each client raises LedgerForked until log_id and verifier_key of its profile are "
               "the new ones and its head.note is put aside", err=True)
