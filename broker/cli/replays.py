"""`replay`: run one invocation of the ledger again, and say whether the same came out.

Rules this file keeps:
- The ledger holds no payload, so the input is given again, and held against what the ledger holds
  of it before anything runs.
- What the old call was is taken from events that are proven against the signed head.
- Nothing of the old call is changed: the second one is an invocation of its own, by OMEGA.

It leaves the forms of an input to `broker.cli.inputs` and proofs to `broker.cli.proofs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import click

from broker.cli.connect import omega_client
from broker.cli.ends import FAILURE, LEDGER, CommandError
from broker.cli.inputs import input_options, whole_payload
from broker.cli.options import read_options, session
from broker.cli.output import Table, show
from broker.cli.results import usage_words

if TYPE_CHECKING:
    from broker.client import Result
    from broker.client_errors import Refused
    from schemas.events import Event, InvokeAccept, InvokeEnd
    from schemas.messages import Receipt
    from schemas.payloads import Payload


class _Call(NamedTuple):
    """A call of the ledger that ended: its two events, and what each says."""

    accepted: Event
    accept: InvokeAccept
    ended: Event
    end: InvokeEnd


class _Measure(NamedTuple):
    """What two payloads are held against each other by: a fingerprint, or the call's commitment."""

    name: str
    key: bytes

    def of(self, call: _Call, label: str, payload: Payload) -> str:
        """Give the measure of a payload, as if it were that call's."""
        from broker.orchestrator.calls import commitment, fingerprint
        from schemas.payloads import preimage

        plain, accept = preimage(payload), call.accept
        if self.name == "commitment":
            return commitment(self.key, "input" if label == "input" else "output", plain)
        return fingerprint(self.key, accept.plugin, accept.version, accept.method, plain)


@click.command()
@read_options
@click.argument("seq", type=click.IntRange(0))
@input_options
@click.option("--schema", metavar="ID", help="The schema that the JSON input named.")
@click.option("--commitment-key", "key", metavar="HEX", help="The old call's commitment key; "
              "needed for a method that does not promise to be deterministic.")
@click.option("--timeout", type=click.IntRange(1, 3_600_000), metavar="MS",
              help="How long the answer may take; else the profile's time.")
def replay(
    seq: int, key: str | None, schema: str | None, timeout: int | None, **given: str | int | None
) -> int:
    """Run an invocation of the ledger again.

    Says whether the same came out, and ends with 1 when it did not. SEQ is the position of an
    `invoke.accept` or `invoke.end` of this home's ledger. The ledger holds no payload: give the
    input again. It is held against the event before anything runs, then the same method of the same
    version is invoked.
    """
    if key is not None and not re.fullmatch(r"[0-9a-f]{64}", key):
        raise click.BadParameter("is not 64 hexadecimal digits", param_hint="--commitment-key")
    payload = whole_payload(given, schema)
    call = _recorded(seq)
    measure = _measure(call, key)
    _check_input(call, measure, payload)
    accept = call.accept
    from broker.client_errors import Refused

    with omega_client() as client:
        try:
            result = client.invoke(
                accept.plugin, accept.method, payload, version=accept.version,
                timeout=None if timeout is None else timeout / 1000,
            )
        except Refused as refused:
            return _refused(call, refused)
    return _answered(call, measure, result)


# --- what the ledger has ---


def _recorded(seq: int) -> _Call:
    """Find the call that an event belongs to, and both its events."""
    from broker.cli.proofs import proven_events
    from schemas.events import InvokeAccept, InvokeEnd
    from schemas.proof import ProofError

    try:
        named = proven_events(seq)[seq]
        if not isinstance(named.fields, InvokeAccept | InvokeEnd):
            raise CommandError(
                FAILURE,
                f"event {seq} is {named.event_type}, needed is invoke.accept or invoke.end",
                "`omega-gateway ledger show REQUEST` lists a request's events",
            )
        events = proven_events(seq, named.fields.request_id).values()
    except ProofError as error:
        raise CommandError(LEDGER, str(error)) from None
    accepted = accept = ended = end = None
    for event in events:
        if isinstance(event.fields, InvokeAccept):
            accepted, accept = event, event.fields
        elif isinstance(event.fields, InvokeEnd):
            ended, end = event, event.fields
    if accepted is None or accept is None:
        raise CommandError(FAILURE, f"the invoke.accept of event {seq} is not in this ledger",
                           "an archive or the ledger before a restore may hold it")
    if ended is None or end is None:
        raise CommandError(FAILURE, f"the call of event {seq} has not ended",
                           "wait for its invoke.end, or cancel it")
    if end.outcome not in ("result", "refused"):
        raise CommandError(
            FAILURE, f"event {ended.seq} says the call ended as {end.outcome}; it has no answer "
            "to compare with", "replay a call whose outcome is result or refused",
        )
    return _Call(accepted, accept, ended, end)


def _measure(call: _Call, key: str | None) -> _Measure:
    if key is not None:
        return _Measure("commitment", bytes.fromhex(key))
    if call.accept.input_fingerprint is None:
        raise click.UsageError(
            f"{call.accept.method} of {call.accept.plugin} {call.accept.version} does not promise "
            "to be deterministic, so the ledger has no fingerprints of it: "
            "give --commitment-key, which `invoke` showed"
        )
    from broker.home import load_home

    return _Measure("fingerprint", load_home(session().home_path()).keys.determinism)


def _check_input(call: _Call, measure: _Measure, payload: Payload) -> None:
    accept = call.accept
    by_key = measure.name == "commitment"
    held = accept.input_commitment if by_key else accept.input_fingerprint
    found = measure.of(call, "input", payload)
    if found != held:
        raise CommandError(
            FAILURE, f"this is not the input of event {call.accepted.seq}: its {measure.name} is "
            f"{held}, that of what was given is {found}; nothing was run",
            "give the same bytes and media type" + (" and the call's own key" if by_key else ""),
        )


# --- what came out ---


def _answered(call: _Call, measure: _Measure, result: Result) -> int:
    by_key = measure.name == "commitment"
    old = call.end.output_commitment if by_key else call.end.output_fingerprint
    new = measure.of(call, "output", result.payload)
    again = {
        "version": result.version, "request_id": result.request_id, "output": new,
        "receipt": _receipt(result.receipt), "commitment_key": result.commitment_key.hex(),
    }
    return _told(call, f"output_{measure.name}", old or call.end.code, again, [
        ("usage", usage_words(result)),
        ("commitment key", f"{result.commitment_key.hex()} (of the new call, kept nowhere else)"),
    ])


def _refused(call: _Call, refused: Refused) -> int:
    """Compare two refusals; one that says nothing about the method's answer is told as ever."""
    from schemas.refusals import RefusalCode

    code = refused.code
    # The gateway itself compares with what it remembers, and withholds an answer that differs.
    if code not in (call.end.code, RefusalCode.NONDETERMINISTIC_OUTPUT):
        raise refused
    again = {
        "version": call.accept.version, "request_id": refused.refusal.request_id, "output": code,
        "receipt": _receipt(refused.refusal.receipt),
    }
    old = call.end.code or call.end.output_fingerprint
    return _told(call, "code" if call.end.code else "output_fingerprint", old, again, [])


def _receipt(receipt: Receipt | Event | None) -> dict[str, object]:
    if receipt is None:
        return {"log_id": None, "seq": None, "event_hash": None}
    return {"log_id": receipt.log_id, "seq": receipt.seq, "event_hash": receipt.event_hash}


def _told(
    call: _Call, compared: str, old: str | None, again: Mapping[str, object],
    more: list[tuple[str, object]],
) -> int:
    """Print both calls and the verdict; gives the exit code."""
    accept, same = call.accept, old == again["output"]
    verdict = "same" if same else "another answer"
    before: dict[str, object] = {
        "version": accept.version, "request_id": accept.request_id, "output": old,
        "receipt": _receipt(call.ended),
    }
    document = {
        "verdict": verdict, "plugin": accept.plugin, "method": accept.method,
        "compared": compared, "before": before, "now": again,
    }
    rows = [
        (name, one["version"], *_receipt_cells(one["receipt"]), one["output"])
        for name, one in (("before", before), ("now", again))
    ]
    show("omega.replay/1", document, Table([
        ("verdict", verdict), ("method", f"{accept.method} of {accept.plugin}"),
        ("compared", compared), *more,
    ]), Table(rows, ("", "version", "event", "ledger", "event hash", "output")))
    return 0 if same else FAILURE


def _receipt_cells(receipt: object) -> tuple[object, ...]:
    assert isinstance(receipt, dict)
    return receipt["seq"], receipt["log_id"], receipt["event_hash"]
