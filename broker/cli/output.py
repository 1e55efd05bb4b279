"""How data reaches stdout: tables for people, JSON for programs.

Rules this file keeps:
- JSON is written without a library that knows colours, carries its schema's name, and is one object
  (`json`) or one object a line (`ndjson`).
- Bytes reach stdout through `put` alone, so that it is known whether there are any.
- A table is coloured only on a terminal, and never when NO_COLOR is set.
- Foreign words cannot steer a terminal: control characters are shown as `?` in tables.

It leaves to the commands which data there is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from broker.cli.options import session

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

WIDE = 10_000
"""Columns of a table that goes into a file or pipe: nothing is cut there."""


class Table(NamedTuple):
    """Rows under headers; without headers each row is a name and its value."""

    rows: Sequence[Sequence[object]]
    headers: tuple[str, ...] = ()


def show(
    schema: str, document: Mapping[str, object], *tables: Table, each: tuple[str, str] | None = None
) -> None:
    """Print data in the form that the command line asked for.

    Args:
        schema: the name of the document's form, such as `omega.status/1`.
        document: the data; what msgspec can write as JSON.
        tables: the same for people.
        each: for a list, the member that holds it and the schema of one entry; `ndjson` then
            prints one line an entry.
    """
    output = session().output
    if output == "table":
        show_tables(sys.stdout, *tables)
    elif output == "ndjson" and each is not None:
        member, entry_schema = each
        entries = document[member]
        assert isinstance(entries, Sequence)
        for entry in entries:
            put(json_bytes(entry_schema, entry))
    else:
        put(json_bytes(schema, document, indent=output == "json"))


def json_bytes(schema: str, document: Mapping[str, object], *, indent: bool = False) -> bytes:
    """Write one JSON object, its `schema` first, with a newline at its end."""
    import msgspec

    data = msgspec.json.encode({"schema": schema, **document})
    return (msgspec.json.format(data, indent=2) if indent else data) + b"\n"


def show_tables(stream: object, *tables: Table) -> None:
    """Print tables to a text stream."""
    from rich.table import Table as RichTable

    console = _console(stream)
    for number, table in enumerate(tables):
        if number:
            console.print()
        columns = table.headers or ("", "")
        grid = RichTable(box=None, show_header=bool(table.headers), pad_edge=False)
        for place, header in enumerate(columns):
            is_name = place == 0 and not table.headers
            grid.add_column(header, style="bold" if is_name else "", overflow="fold")
        for row in table.rows:
            grid.add_row(*(_cell(value) for value in row))
        console.print(grid)


def printable(text: str) -> str:
    """Show control characters, which could steer a terminal, as `?`; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)


def _cell(value: object) -> Text:
    from rich.text import Text as RichText

    if isinstance(value, bool):
        value = "yes" if value else "no"
    return RichText("-" if value is None else printable(str(value)))


def _console(stream: object) -> Console:
    from rich.console import Console

    is_terminal = bool(getattr(stream, "isatty", bool)())
    return Console(
        file=stream,  # type: ignore[arg-type]  # Any stream with `write` is one to rich.
        force_terminal=is_terminal, width=None if is_terminal else WIDE,
        color_system="auto" if is_terminal and "NO_COLOR" not in os.environ else None,
        highlight=False, markup=False, emoji=False,
    )


def put(data: bytes) -> None:
    """Write data to stdout at once; an end that is told as data after it would be a second one."""
    session().printed = True
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
