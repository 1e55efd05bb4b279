"""`ledger prove` and `ledger open`: evidence to hand to others, and payloads shown to belong to it.

Rules this file keeps:
- stdout holds the proof's bytes and nothing else, unless a file was named for them.
- What was withheld is said, and what the newest checkpoint does not cover yet.
- A proof is verified before it is written; only reading, no lock, so a running gateway goes on.

It leaves choosing and making to `broker.evidence.prove`, verifying to `broker.evidence.bundles`.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from broker.cli.ends import FAILURE, LEDGER, USAGE, CommandError
from broker.cli.options import read_options, session
from broker.cli.output import Table, put, show, show_tables

if TYPE_CHECKING:
    from schemas.events import Event
    from schemas.payloads import Payload
    from schemas.proof import ProofBundle

COVER_S: Final = 2.5
"""How long `prove` waits for a checkpoint over what is in the ledger; one comes every second."""
_LOOK_S: Final = 0.1
_FILE = click.Path(exists=True, dir_okay=False)
_POSITIONS: Final = re.compile(r"([0-9]{1,15})(?:-([0-9]{1,15}))?")
_REQUEST: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


class _Wanted(NamedTuple):
    """What a command line names: positions, requests or pipelines, plugins."""

    positions: list[range]
    requests: list[str]
    plugins: list[str]


# --- prove ---


@click.command("prove")
@read_options
@click.argument("what", nargs=-1)
@click.option("--plugin", "plugins", multiple=True, metavar="ID", help="A plugin's whole life.")
@click.option("--withhold", multiple=True, metavar="WHAT",
              help="Show only the hash of these: a position, A-B, or a type such as frame.in.")
@click.option("--since", multiple=True, type=_FILE, metavar="FILE",
              help="An older checkpoint that the proof is to continue, such as a head.note.")
@click.option("--format", "form", type=click.Choice(["bundle", "tlog-proof"]), default="bundle",
              show_default=True, help="A bundle, or one event in the C2SP format.")
@click.option("--ledger", "directory", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="A copy of a ledger, instead of the home's; needs --vkey.")
@click.option("--vkey", metavar="KEY", help="Who signed the copy.")
@click.option("-o", "--to", "target", metavar="FILE", help="Where to write; else to stdout.")
def prove(
    what: tuple[str, ...], plugins: tuple[str, ...], withhold: tuple[str, ...],
    since: tuple[str, ...], form: str, directory: str | None, vkey: str | None, target: str | None,
) -> None:
    """Prove events to somebody who has nothing but the verifier key.

    WHAT is an event's position, a range A-B, or the id of a request or pipeline; several make one
    proof. scripts/verify_proof.py verifies it. The home's files are read, also while its gateway
    runs; with --profile the gateway is asked instead.
    """
    from broker.evidence.bundles import verify_bundle
    from broker.evidence.prove import encode_bundle, encode_tlog_proof
    from broker.evidence.prove import withhold as without
    from schemas.proof import ProofError, parse_verifier_key

    if directory is not None and session().profile is not None:
        raise click.UsageError("a copy is read from its files, without --profile")
    wanted = _wanted(what, plugins)
    hidden = _hidden(withhold)
    notes = [_read_note(path) for path in since]
    try:
        if session().profile is not None:
            bundle, key = _over_wire(wanted, notes)
        else:
            if (directory is None) != (vkey is None):
                raise click.UsageError("--ledger and --vkey belong together")
            bundle, key = _from_files(wanted, notes, directory, vkey)
        bundle = without(bundle, hidden)
        data = encode_bundle(bundle)
        verify_bundle(data, parse_verifier_key(key))
        if form == "tlog-proof":
            data = encode_tlog_proof(bundle)
    except ProofError as error:
        raise CommandError(LEDGER, str(error)) from None
    _write(data, bundle, target, form)


def _wanted(what: tuple[str, ...], plugins: tuple[str, ...]) -> _Wanted:
    positions, requests = [], []
    for word in what:
        if _REQUEST.fullmatch(word):
            requests.append(word)
        else:
            positions.append(position_range(word))
    if not what and not plugins:
        raise click.UsageError("name an event, a range, a request or a --plugin")
    return _Wanted(positions, requests, list(plugins))


def position_range(word: str) -> range:
    """Read a position or a range A-B, both ends included."""
    match = _POSITIONS.fullmatch(word)
    if match is None:
        raise click.UsageError(f"{word!r} is no position, no range A-B and no request's id")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise click.UsageError(f"the range {word} is empty")
    return range(first, last + 1)


def _hidden(withhold: tuple[str, ...]) -> Callable[[Event], bool]:
    from schemas.events import EVENT_TYPES

    types = {word for word in withhold if word in EVENT_TYPES}
    ranges = [position_range(word) for word in withhold if word not in EVENT_TYPES]
    return lambda event: event.event_type in types or any(event.seq in one for one in ranges)


def _read_note(path: str) -> str:
    with open(path, encoding="utf-8", newline="") as file:
        return file.read(65_536)


def _from_files(
    wanted: _Wanted, notes: list[str], directory: str | None, vkey: str | None
) -> tuple[ProofBundle, str]:
    from broker.evidence.prove import bundle_from_files, find_plugin, find_request
    from broker.evidence.reading import LedgerReader, written_events
    from broker.ledger.errors import PositionUnknown
    from schemas.proof import parse_verifier_key

    if directory is None or vkey is None:
        from broker.home import load_home

        home = load_home(session().home_path())
        directory, vkey = home.ledger, home.verifier_key
    key = parse_verifier_key(vkey)
    written, deadline = written_events(directory), time.monotonic() + COVER_S
    # Events are chosen among all there are; one that is named needs to be covered itself.
    named = max((one.stop for one in wanted.positions), default=0)
    size = written if wanted.requests or wanted.plugins else min(written, named)
    reader = LedgerReader(directory, key)
    while reader.checkpoint.size < size and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        reader = LedgerReader(directory, key)
    if reader.checkpoint.size < size:
        click.echo(f"the last {written - reader.checkpoint.size} events are not covered by a "
                   "checkpoint and not looked at; the gateway signs one when it starts", err=True)
    with reader:
        found = [seq for one in wanted.positions for seq in _bounded(one)]
        for request in wanted.requests:
            found += _some(find_request(reader, request), f"request {request}")
        for plugin in wanted.plugins:
            found += _some(find_plugin(reader, plugin), f"plugin {plugin}")
        try:
            return bundle_from_files(reader, _bounded(found), notes), vkey
        except PositionUnknown as error:
            raise CommandError(FAILURE, str(error)) from None


def proven_events(seq: int, request: str | None = None) -> dict[int, Event]:
    """Give an event of the home's ledger, and all those of a request, by position; all are proven.

    Raises:
        CommandError: the ledger holds no such event any more, or not yet.
        ProofError: what is there does not lead to the signed head.
    """
    from broker.evidence.bundles import verify_bundle
    from broker.evidence.prove import encode_bundle
    from schemas.proof import parse_verifier_key

    wanted = _Wanted([range(seq, seq + 1)], [] if request is None else [request], [])
    bundle, key = _from_files(wanted, [], None, None)
    proven = verify_bundle(encode_bundle(bundle), parse_verifier_key(key)).events
    return {place: event for place, event in proven.items() if event is not None}


def _over_wire(wanted: _Wanted, notes: list[str]) -> tuple[ProofBundle, str]:
    from broker.cli.connect import reading_client
    from broker.evidence.prove import bundle_over_wire
    from schemas.events import decode_event

    if wanted.plugins:
        raise click.UsageError("a plugin's life is proven from the home's files, without --profile")
    with reading_client() as client:
        # Asking for the head makes the gateway sign what it has; so nothing is too new.
        key = client.ledger_head().verifier_key
        found = [seq for one in wanted.positions for seq in _bounded(one)]
        requests = list(wanted.requests)
        for request in requests:
            for line in client.show_request(request).lines:
                event = decode_event(line.encode())
                found.append(event.seq)
                if getattr(event.fields, "pipeline", None) == request:
                    requests.append(str(getattr(event.fields, "request_id", "")))
        return bundle_over_wire(client, _bounded(found), notes), key


def _some(found: list[int], what: str) -> list[int]:
    if not found:
        raise CommandError(FAILURE, f"the ledger holds no event of {what}")
    return found


def _bounded(found: range | list[int]) -> range | list[int]:
    from broker.evidence.prove import ITEMS_MAX

    if len(found) > ITEMS_MAX:
        raise CommandError(USAGE, f"that is {len(found)} events, a proof holds {ITEMS_MAX}")
    return found


def _write(data: bytes, bundle: ProofBundle, target: str | None, form: str) -> None:
    from schemas.proof import parse_checkpoint, parse_note

    withheld = [item.index for item in bundle.items if item.line is None]
    shown = [item.index for item in bundle.items if item.line is not None]
    checkpoint = parse_checkpoint(parse_note(bundle.checkpoint).text)
    facts = {
        "log_id": bundle.origin, "format": form, "size": checkpoint.size, "bytes": len(data),
        "shown": shown, "withheld": withheld, "continues": len(bundle.consistency),
    }
    table = Table([
        ("ledger", bundle.origin),
        ("proven in", f"the checkpoint over {checkpoint.size} events"),
        ("shown", _ranges(shown)),
        ("withheld", _ranges(withheld)),
        *([("continues", f"{len(bundle.consistency)} older checkpoints")]
          if bundle.consistency else []),
    ])
    if target is None:
        put(data)
        show_tables(sys.stderr, table)
        return
    with open(target, "wb") as file:
        file.write(data)
    show("omega.proof/1", {"file": target, **facts}, Table([("file", target), *table.rows]))


def _ranges(numbers: list[int]) -> str:
    """Write ascending numbers as 1-3, 7."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if b > a else str(a) for a, b in parts) or "nothing"


# --- open ---


@click.command("open")
@read_options
@click.argument("seq", type=click.IntRange(0), required=False)
@click.option("--proof", type=_FILE, metavar="FILE", help="The bundle that holds the event; else "
              "the home's files, or with --profile its gateway.")
@click.option("--vkey", metavar="KEY", help="Who signed the bundle's checkpoint.")
@click.option("--result", type=_FILE, metavar="FILE", help="What `invoke --output json` printed: "
              "position, key and answer.")
@click.option("--key-file", type=_FILE, metavar="FILE", help="The commitment key, in hex.")
@click.option("--text", metavar="T", help="A text.")
@click.option("--json", "json_text", metavar="J", help="A JSON document.")
@click.option("--file", metavar="F", help="A file of text, or JSON if its name ends in .json; - is "
              "stdin.")
@click.option("--artifact", metavar="ID", help="A reference; needs --sha256, --size, --media-type.")
@click.option("--sha256", metavar="HEX", help="The artifact's digest.")
@click.option("--size", type=click.IntRange(min=0), metavar="BYTES", help="The artifact's size.")
@click.option("--dataset", metavar="ID", help="A reference; needs --keys.")
@click.option("--keys", metavar="K,…", help="The dataset's keys, with commas between them.")
@click.option("--media-type", help="Of --text, --file or --artifact.")
@click.option("--schema", metavar="ID", help="The schema that a JSON answer names.")
@click.option("--words", metavar="T", help="What a plugin said: a progress note or its failure.")
def open_(
    seq: int | None, proof: str | None, vkey: str | None, result: str | None,
    key_file: str | None, words: str | None, schema: str | None, **given: str | int | None,
) -> None:
    """Show that a payload is the one an event commits to.

    Needs the call's commitment key, which only OMEGA has, and the payload. Nothing is learned about
    any other event. Ends with 7 when the event does not commit to it.
    """
    from broker.cli.inputs import whole_payload
    from broker.evidence.opening import open_commitment
    from schemas.proof import ProofError

    if (result is None) == (key_file is None):
        raise click.UsageError("give the key with --key-file, or --result for all at once")
    if (proof is None) != (vkey is None):
        raise click.UsageError("--proof and --vkey belong together")
    payload: Payload | str
    if result is not None:
        place, key, payload = _from_result(result)
        seq = place if seq is None else seq
    else:
        key = _read_key(str(key_file))
        payload = words if words is not None else whole_payload(given, schema)
    if seq is None:
        raise click.UsageError("name the event's position")
    try:
        event, size = _event(seq, proof, vkey)
        opened = open_commitment(event, key, payload)
    except ProofError as error:
        raise CommandError(LEDGER, str(error)) from None
    facts = {
        "seq": seq, "event_type": event.event_type, "member": opened.member, "label": opened.label,
        "log_id": event.log_id, "size": size,
    }
    show("omega.opening/1", facts, Table([
        ("event", f"{seq}, {event.event_type}"),
        ("commits to", f"this payload, as {opened.label} ({opened.member})"),
        ("ledger", event.log_id),
        ("proven in", f"the checkpoint over {size} events"),
    ]))


def _event(seq: int, proof: str | None, vkey: str | None) -> tuple[Event, int]:
    """Give an event that is proven, and how many events its checkpoint covers."""
    from broker.evidence.bundles import verify_bundle
    from broker.evidence.prove import encode_bundle
    from schemas.proof import ProofError, parse_verifier_key

    if proof is not None:
        with open(proof, "rb") as file:
            data, key = file.read(), str(vkey)
    else:
        wanted = _Wanted([range(seq, seq + 1)], [], [])
        over_wire = session().profile is not None
        bundle, key = (
            _over_wire(wanted, []) if over_wire else _from_files(wanted, [], None, None)
        )
        data = encode_bundle(bundle)
    verified = verify_bundle(data, parse_verifier_key(key))
    event = verified.events.get(seq)
    if event is None:
        raise ProofError(f"event {seq} is not shown in this proof")
    return event, verified.checkpoint.size


def _read_key(path: str) -> bytes:
    with open(path, encoding="ascii", errors="replace") as file:
        text = file.read(128).strip()
    if not re.fullmatch(r"[0-9a-f]{64}", text):
        raise CommandError(USAGE, f"{path}: holds no commitment key of 64 hexadecimal digits")
    return bytes.fromhex(text)


def _from_result(path: str) -> tuple[int, bytes, Payload]:
    """Read what `invoke --output json` printed."""
    import msgspec

    from schemas.canonical import InvalidJson, canonical_bytes
    from schemas.names import CommitmentKey
    from schemas.payloads import JSONPayload, Payload

    try:
        with open(path, "rb") as file:
            document = msgspec.json.decode(file.read(), type=dict[str, msgspec.Raw])
        seq = msgspec.json.decode(document["receipt"], type=dict[str, msgspec.Raw])["seq"]
        key = bytes.fromhex(msgspec.json.decode(document["commitment_key"], type=str))
        shown = msgspec.json.decode(document["payload"])
        payload: Payload
        if shown["type"] == "json":
            payload = JSONPayload(canonical_bytes(shown["data"]), shown.get("schema"))
        else:
            payload = msgspec.convert(shown, Payload)
        return msgspec.json.decode(seq, type=int), msgspec.convert(key, CommitmentKey), payload
    except (msgspec.MsgspecError, InvalidJson, KeyError, TypeError, ValueError) as error:
        raise CommandError(
            USAGE, f"{path}: is not what `invoke --output json` prints: {error}"
        ) from None
