"""`ledger`: its head as the gateway signs it, its last lines, and whether all of it holds.

Rules this file keeps: nothing is written. `head` asks the gateway and is held against what the
profile knows; `tail` reads the files and needs no gateway. It leaves `verify` and `audit` to
`broker.cli.audits`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Final

import click

from broker.cli.audits import audit, verify
from broker.cli.ends import INVALID, LEDGER, CommandError
from broker.cli.ledger_files import archive, compress, export, restore
from broker.cli.options import home_option, output_option, read_options, session
from broker.cli.output import Table, put, show
from broker.cli.proofs import open_, prove
from broker.cli.stories import show_story
from broker.evidence.files import open_segment, segment_names

FOLLOW_S: Final = 0.2
"""How often `tail -f` looks for new lines, in seconds."""
_BLOCK_BYTES: Final = 65_536
_DIGITS: Final = 12
"""A segment's name begins with the position of its first event."""


@click.group()
def ledger() -> None:
    """Read, verify, audit and prove the ledger."""


ledger.add_command(verify)
ledger.add_command(audit)
ledger.add_command(prove)
ledger.add_command(open_)
ledger.add_command(compress)
ledger.add_command(export)
ledger.add_command(archive)
ledger.add_command(restore)
ledger.add_command(show_story)


@ledger.command("head")
@read_options
def head() -> None:
    """Show the newest checkpoint; it must continue the one that the profile knows."""
    from broker.cli.connect import reading_client
    from schemas.proof import parse_checkpoint, parse_note

    with reading_client() as client:
        answer = client.ledger_head()
    checkpoint = parse_checkpoint(parse_note(answer.checkpoint).text)
    facts = {
        "log_id": checkpoint.origin, "size": checkpoint.size, "root": checkpoint.root.hex(),
        "verifier_key": answer.verifier_key,
    }
    document = {**facts, "checkpoint": answer.checkpoint}
    show("omega.ledger_head/1", document, Table([*facts.items()]))


@ledger.command("tail")
@home_option
@output_option
@click.option("-n", "count", type=click.IntRange(0), default=10, show_default=True,
              help="How many of the last events.")
@click.option("-f", "follow", is_flag=True, help="Go on with new events until Ctrl-C.")
def tail(count: int, *, follow: bool) -> None:
    """Print the last events; with --output ndjson as the very lines of the ledger."""
    if follow and session().output == "json":
        raise click.UsageError("-f has no end, so it cannot be one JSON object; use ndjson")
    folder = os.path.join(session().home_path(), "ledger", "segments")
    try:
        names = segment_names(folder)
    except FileNotFoundError:
        raise CommandError(INVALID, f"{folder}: there is no ledger",
                           "name the home with --home DIR; `omega-gateway serve` begins a ledger"
                           ) from None
    reader = Tail(folder, names)
    lines = reader.last(count)
    if session().output == "json":
        import msgspec

        document = {"events": [msgspec.Raw(line.removesuffix(b"\n")) for line in lines]}
        show("omega.ledger_tail/1", document)
        return
    try:
        for line in lines:
            _print_line(line)
        while follow:
            for line in reader.new():
                _print_line(line)
            time.sleep(FOLLOW_S)
    except KeyboardInterrupt:
        # The usual way to end a follower is no failure.
        return


class Tail:
    """Reads the last lines of a ledger's segments, then what is added to them."""

    def __init__(self, folder: str, names: list[str]) -> None:
        """Begin with the segments that are there, by their names, oldest first."""
        self._folder = folder
        self._names = names
        self._offset = 0

    def last(self, count: int) -> list[bytes]:
        """Give the last whole lines, oldest first."""
        lines: list[bytes] = []
        for place, name in enumerate(reversed(self._names)):
            found, end = _last_lines(os.path.join(self._folder, name), count - len(lines))
            if place == 0:
                self._offset = end
            lines = found + lines
            if len(lines) >= count:
                break
        return lines

    def new(self) -> Iterator[bytes]:
        """Give the whole lines that were added since the last time."""
        while True:
            current = self._names[-1] if self._names else ""
            # Asked first: a segment is whole once the next one exists.
            later = [name for name in segment_names(self._folder)
                     if name[:_DIGITS] > current[:_DIGITS]]
            if current:
                with open_segment(os.path.join(self._folder, current)) as file:
                    file.seek(self._offset)
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        self._offset += len(line)
                        yield line
            if not later:
                return
            self._names, self._offset = [later[0]], 0


def _last_lines(path: str, count: int) -> tuple[list[bytes], int]:
    """Read the last whole lines of a file, and where the last of them ends."""
    with open_segment(path) as file:
        start = file.seek(0, os.SEEK_END)
        data = b""
        while start and data.count(b"\n") <= count:
            step = min(_BLOCK_BYTES, start)
            start -= step
            file.seek(start)
            data = file.read(step) + data
    end = start + data.rfind(b"\n") + 1
    lines = data[: end - start].splitlines(keepends=True)
    return (lines[-count:] if count else []), end


def _print_line(line: bytes) -> None:
    if session().output != "table":
        put(line)
        return
    click.echo(_sentence(line))


def _sentence(line: bytes) -> str:
    """Say one event in one line: position, time, type and its fields."""
    import datetime as dt

    from schemas.events import InvalidEvent, decode_event

    try:
        event = decode_event(line)
    except InvalidEvent as error:
        raise CommandError(
            LEDGER, f"a line is no event: {error}", "`omega-gateway ledger verify` says where"
        ) from None
    import msgspec

    moment = dt.datetime.fromtimestamp(event.ts_us / 1_000_000, dt.UTC)
    fields = msgspec.to_builtins(event.fields)
    shown = " ".join(f"{name}={_short(value)}" for name, value in fields.items() if value != "")
    return f"{event.seq:>8} {moment:%Y-%m-%dT%H:%M:%S.%f}Z {event.event_type:<19} {shown}"


def _short(value: object) -> str:
    from broker.cli.output import printable

    text = printable(str(value)).replace("\n", " ")
    return text if len(text) <= 48 else f"{text[:45]}..."
