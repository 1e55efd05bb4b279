"""`ledger compress`: what an operator does with a ledger's files.

Rules this file keeps: no line of a ledger is changed, and nothing is removed before what takes its
place was flushed and read back. It leaves the files to `broker.ledger.compressed`.
"""

from __future__ import annotations

import click

from broker.cli.options import home_option, output_option, session
from broker.cli.output import Table, show


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
