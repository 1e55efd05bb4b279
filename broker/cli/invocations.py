"""`invoke`: one call of one method, its answer on stdout and its evidence beside it.

Rules this file keeps:
- stdout holds the answer's bytes and nothing else, or with `--output json` one object.
- A plugin is hostile: on a terminal its answer is shown without control characters.
- The commitment key is shown once and kept nowhere; without it the ledger's commitments to input
  and output cannot be opened.

It leaves the forms of an input to `broker.cli.inputs`, those of a result to `broker.cli.results`,
and what a method takes to the gateway.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from broker.cli.connect import omega_client
from broker.cli.inputs import INPUT_FORMS, given_payload, input_options
from broker.cli.options import read_options, session
from broker.cli.output import Table, json_bytes, printable, put, show_tables
from broker.cli.results import result_document, usage_words

if TYPE_CHECKING:
    from schemas.payloads import Payload


@click.command()
@read_options
@click.argument("plugin", metavar="ID")
@click.argument("method")
@input_options
@click.option("--lines", metavar="F", help="A file with an input on each line: texts, or JSON if "
              "its name ends in .ndjson or .jsonl; - is stdin. Answers come a line each.")
@click.option("--in-flight", type=click.IntRange(1, 256), default=32, metavar="N",
              help="With --lines: how many wait for their answers at once.")
@click.option("--as-completed", is_flag=True, help="With --lines: answers as they come.")
@click.option("--timeout", type=click.IntRange(1, 3_600_000), metavar="MS",
              help="How long the answer may take; else the profile's time.")
@click.option("--version", metavar="V", help="An exact version or ^X.Y; else the enabled one.")
def invoke(
    plugin: str, method: str, timeout: int | None, version: str | None, **given: str | int | None
) -> int:
    """Run one method of one plugin.

    The answer goes to stdout; receipt, usage and the commitment key go to stderr, or all of it into
    one object with --output json. Keep the commitment key if you want to prove later what was asked
    and answered.
    """
    timeout_s = None if timeout is None else timeout / 1000
    lines = given.pop("lines")
    if lines is not None:
        from broker.cli.many import invoke_lines

        if any(given[form] is not None for form in INPUT_FORMS):
            raise click.UsageError("--lines is the whole input")
        return invoke_lines(
            str(lines), plugin, method, version, timeout_s, int(given["in_flight"] or 1),
            ordered=not given["as_completed"],
        )
    payload = given_payload(given)
    with omega_client() as client:
        result = client.invoke(plugin, method, payload, version=version, timeout=timeout_s)
    if session().output == "table":
        _print_answer(result.payload)
        show_tables(sys.stderr, Table([
            ("plugin", f"{result.plugin} {result.version}"),
            ("request", result.request_id),
            ("receipt", f"event {result.receipt.seq} of {result.receipt.log_id}"),
            ("event hash", result.receipt.event_hash),
            ("usage", usage_words(result)),
            ("output sha256", result.output_sha256),
            ("commitment key", f"{result.commitment_key.hex()} (kept nowhere else)"),
        ]))
        return 0
    indent = session().output == "json"
    put(json_bytes("omega.result/1", result_document(result), indent=indent))
    return 0


def _print_answer(payload: Payload) -> None:
    import msgspec

    from schemas.payloads import JSONPayload, TextPayload

    terminal = sys.stdout.isatty()
    if isinstance(payload, TextPayload):
        text = payload.text
    else:
        is_json = isinstance(payload, JSONPayload)
        data = payload.data if isinstance(payload, JSONPayload) else msgspec.json.encode(payload)
        text = (msgspec.json.format(data, indent=2) if terminal or not is_json else data).decode()
        text += "\n"
    if terminal:
        text = printable(text)
        text += "" if text.endswith("\n") else "\n"
    put(text.encode())
