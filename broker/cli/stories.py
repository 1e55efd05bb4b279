"""`ledger show`: what became of one request, event by event, as a timeline.

Rules this file keeps: nothing is written. The home's files are read, also while its gateway runs;
with --profile the gateway is asked instead, which remembers the newest requests. It leaves what a
story is to `broker.evidence.stories`.
"""

from __future__ import annotations

import datetime as dt
import os
from typing import TYPE_CHECKING

import click

from broker.cli.ends import FAILURE, INVALID, LEDGER, CommandError
from broker.cli.options import read_options, session
from broker.cli.output import Table, show

if TYPE_CHECKING:
    from broker.evidence.stories import Durations, Moment
    from schemas.events import Event


@click.command("show")
@read_options
@click.argument("request")
@click.option("--ledger", "directory", type=click.Path(exists=True, file_okay=False), metavar="DIR",
              help="A copy of a ledger, instead of the home's.")
def show_story(request: str, directory: str | None) -> None:
    """Show the whole story of a REQUEST: what happened when, and how long each step took.

    REQUEST is the id of a request; of a pipeline, its steps are shown too. The home's files are
    read; with --profile the gateway is asked, which remembers the newest requests.
    """
    import msgspec

    from broker.evidence.stories import durations, timeline
    from schemas.events import InvalidEvent
    from schemas.names import RequestId

    try:
        msgspec.convert(request, RequestId)
    except msgspec.ValidationError:
        raise click.BadParameter("a request's id is a UUIDv4 in lower case") from None
    try:
        events = _asked(request) if session().profile is not None else _read(request, directory)
    except InvalidEvent as error:
        raise CommandError(
            LEDGER, str(error), "`omega-gateway ledger verify` says where"
        ) from None
    if not events:
        raise CommandError(FAILURE, f"the ledger holds no event of {request}")
    moments = timeline(events)
    took = durations(moments)
    document = {
        "request_id": request, "durations": took,
        "events": [
            {"after_us": one.after_us, "since_us": one.since_us, "words": one.words,
             **_members(one.event)}
            for one in moments
        ],
    }
    show("omega.request_story/1", document, *_tables(request, moments, took),
         each=("events", "omega.request_event/1"))


def _read(request: str, directory: str | None) -> list[Event]:
    """Read the story from the files."""
    from broker.cli.progress import bar
    from broker.evidence.stories import find_story

    place = directory or os.path.join(session().home_path(), "ledger")
    try:
        with bar("reading") as progress:
            return find_story(place, request, progress)
    except FileNotFoundError:
        raise CommandError(INVALID, f"{place}: there is no ledger",
                           "name the home with --home DIR or a copy with --ledger DIR") from None


def _asked(request: str) -> list[Event]:
    """Ask the gateway for the story, and for those of a pipeline's steps."""
    from broker.cli.connect import reading_client
    from schemas.events import decode_event

    found: dict[int, Event] = {}
    with reading_client() as client:
        waiting, told = [request], set()
        while waiting:
            target = waiting.pop()
            told.add(target)
            for line in client.show_request(target).lines:
                event = decode_event(line.encode())
                found[event.seq] = event
                step = getattr(event.fields, "request_id", None)
                if getattr(event.fields, "pipeline", None) == request and step not in told:
                    waiting.append(str(step))
    return [found[seq] for seq in sorted(found)]


def _members(event: Event) -> dict[str, object]:
    import msgspec

    return {
        "seq": event.seq, "ts_us": event.ts_us, "mono_us": event.mono_us,
        "event_type": event.event_type, "event_hash": event.event_hash,
        "f": msgspec.to_builtins(event.fields),
    }


def _tables(request: str, moments: list[Moment], took: Durations) -> list[Table]:
    first = dt.datetime.fromtimestamp(moments[0].event.ts_us / 1_000_000, dt.UTC)
    facts = [
        ("request", request), ("began", f"{first:%Y-%m-%dT%H:%M:%S.%f}Z"),
        ("waited", _ms(took.queued_us)), ("worker took", _ms(took.worker_us)),
        ("all", _ms(took.total_us)),
    ]
    rows = [
        (one.event.seq, _ms(one.after_us), f"+{_ms(one.since_us)}", one.event.event_type, one.words)
        for one in moments
    ]
    return [Table(facts), Table(rows, ("event", "after", "", "type", "what"))]


def _ms(duration_us: int | None) -> str | None:
    return None if duration_us is None else f"{duration_us / 1000:.3f} ms"
