"""`invoke --lines`: one call for each line of a file, a window of them in flight.

Rules this file keeps: a line in is a line out, in order unless asked otherwise; an answer that
failed takes its line too and makes the exit code 1; progress goes to stderr and only to a terminal
as a bar.

It leaves the window to `broker.client`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from broker.cli.connect import omega_client
from broker.cli.ends import FAILURE
from broker.cli.inputs import json_payload
from broker.cli.options import session
from broker.cli.output import json_bytes, printable, put
from broker.cli.results import result_document

if TYPE_CHECKING:
    from broker.client import Call, GatewayError, Result


def invoke_lines(
    path: str, plugin: str, method: str, version: str | None, timeout_s: float | None,
    in_flight: int, *, ordered: bool,
) -> int:
    """Run one method on each line of a file.

    Args:
        path: the file, or - for stdin; JSON lines if the name ends in .ndjson or .jsonl.
        plugin, method, version: what is called.
        timeout_s: of each call, in seconds; None takes the profile's.
        in_flight: how many wait for their answers at once.
        ordered: whether answers come in the order of the lines.

    Returns:
        0, or 1 when a call was refused.
    """
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TimeElapsedColumn

    failed = 0
    console = Console(stderr=True, no_color="NO_COLOR" in os.environ or None)
    columns = (SpinnerColumn(), "lines answered", MofNCompleteColumn(), TimeElapsedColumn())
    with (
        omega_client() as client,
        Progress(*columns, console=console, disable=not console.is_terminal) as bar,
    ):
        task = bar.add_task("", total=None)
        calls = _calls(path, plugin, method, version, timeout_s)
        for index, outcome in client.invoke_many(calls, in_flight=in_flight, ordered=ordered):
            failed += _show(index, outcome)
            bar.advance(task)
    if failed:
        sys.stderr.write(f"{failed} calls failed\n")
    return FAILURE if failed else 0


def _calls(
    path: str, plugin: str, method: str, version: str | None, timeout_s: float | None
) -> Iterator[Call]:
    from broker.client import Call as ClientCall
    from schemas.payloads import TextPayload

    is_json = path.endswith((".ndjson", ".jsonl"))
    with open(0 if path == "-" else os.path.expanduser(path), encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip("\n")
            payload = (
                json_payload(text.encode(), f"{path}:{number}") if is_json else TextPayload(text)
            )
            yield ClientCall(plugin, method, payload, version, timeout_s)


def _show(index: int, outcome: Result | GatewayError) -> bool:
    """Print one answer; True when it is none."""
    from broker.client import GatewayError as Failed
    from broker.client import Refused
    from schemas.payloads import JSONPayload, TextPayload

    if session().output != "table":
        document: dict[str, object] = {"line": index + 1}
        if isinstance(outcome, Refused):
            document |= {"refused": outcome.code, "message": outcome.refusal.message}
        elif isinstance(outcome, Failed):
            document |= {"refused": "no_answer", "message": str(outcome)}
        else:
            document |= result_document(outcome)
        put(json_bytes("omega.line-result/1", document))
    elif isinstance(outcome, Failed):
        put(b"\n")
        sys.stderr.write(printable(f"line {index + 1}: {outcome}") + "\n")
    else:
        import msgspec

        payload = outcome.payload
        if isinstance(payload, TextPayload):
            data = " ".join(payload.text.splitlines()).encode()
        elif isinstance(payload, JSONPayload):
            data = payload.data
        else:
            data = msgspec.json.encode(payload)
        shown = printable(data.decode()).encode() if sys.stdout.isatty() else data
        put(shown + b"\n")
    return isinstance(outcome, Failed)
