"""A ledger's events in order, decoded, for those who ask what they mean: the audit, the stories.

Rules this file keeps: it only reads, and gives what is there at the time; positions must follow
each other. It leaves whether the bytes are those that were signed to `broker.evidence.verify`,
which should come first: here no hash is computed.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Literal

import msgspec

from broker.evidence.files import open_segment, segment_names
from schemas.events import EVENT_TYPES, Event, EventFields, LedgerOpen
from schemas.names import Count, Microseconds

_CHUNK_BYTES: Final = 128 * 1024


class UnreadableLedger(ValueError):
    """The files do not hold events one after the other; `ledger verify` says what is wrong."""


class _Line(msgspec.Struct, frozen=True, gc=False):
    event_hash: str
    log_id: str
    mono_us: Microseconds
    prev_hash: str
    seq: Count
    ts_us: Microseconds
    v: Literal[1]
    f: EventFields


_decoder: Final[msgspec.json.Decoder[_Line]] = msgspec.json.Decoder(functools.reduce(
    operator.or_, (
        msgspec.defstruct(
            f"{kind.__name__}Line", [("f", kind)], bases=(_Line,), tag_field="event_type",
            tag=name, frozen=True, gc=False,
        )
        for name, kind in EVENT_TYPES.items()
    ),
))


def read_events(
    directory: str, progress: Callable[[int, int], None] | None = None,
    archives: Sequence[str] = (),
) -> Iterator[Event]:
    """Give all events of a ledger directory, oldest first, up to the last whole line.

    Args:
        directory: the ledger's folder, or a copy of it.
        progress: told now and then how many bytes of how many are done.
        archives: folders with segments that were archived from it.

    Raises:
        UnreadableLedger: a line is no event, or not the next one.
        OSError: a file could not be read.
    """
    folders = [os.path.join(one, "segments") for one in (*archives, directory)]
    paths = sorted(
        (os.path.join(folder, name) for folder in folders for name in segment_names(folder)),
        key=os.path.basename,
    )
    total, done, seq = sum(map(os.path.getsize, paths)), 0, 0
    for path in paths:
        for lines in whole_lines(path):
            for event in _decoded(lines, path):
                if event.seq != seq and not seq:
                    raise UnreadableLedger(
                        f"{directory} begins with event {event.seq}; what it says can only be "
                        "judged from event 0 on; name the archives with the rest of it"
                    )
                if event.seq != seq:
                    raise UnreadableLedger(f"{path}: event {event.seq} stands where {seq} must")
                yield event
                seq += 1
            # Of a compressed segment there are more lines than bytes.
            done = min(total, done + len(lines))
            if progress is not None:
                progress(done, total)


def events_of(directory: str, *kinds: type[EventFields]) -> Iterator[Event]:
    """Give a ledger's events of some rare kinds, oldest first; other lines are not decoded.

    Raises:
        UnreadableLedger: a line of such a kind is no event.
        OSError: a file could not be read.
    """
    folder = os.path.join(directory, "segments")
    marks = [b'"event_type":"%b"' % kind.EVENT_TYPE.encode() for kind in kinds]
    for name in segment_names(folder):
        path = os.path.join(folder, name)
        for lines in whole_lines(path):
            if any(mark in lines for mark in marks):
                wanted = [line for line in lines.splitlines(keepends=True)
                          if any(mark in line for mark in marks)]  # fmt: skip
                yield from _decoded(b"".join(wanted), path)


def archived_before(directory: str) -> int:
    """Give the first event that was not archived, as the ledger's own events say; 0 for none.

    Raises:
        UnreadableLedger: a line that should say so is no event.
        OSError: a file could not be read.
    """
    return max((
        event.fields.archived_before or 0 for event in events_of(directory, LedgerOpen)
        if isinstance(event.fields, LedgerOpen)
    ), default=0)


def whole_lines(path: str) -> Iterator[bytes]:
    """Give a segment's bytes in pieces that end with a line; what follows the last one is none."""
    with open_segment(path) as file:
        rest = b""
        while chunk := file.read(_CHUNK_BYTES):
            data = rest + chunk
            end = data.rfind(b"\n") + 1
            rest = data[end:]
            if end:
                yield data[:end]


def _decoded(lines: bytes, path: str) -> Iterator[Event]:
    try:
        decoded = _decoder.decode_lines(lines)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UnreadableLedger(f"{path}: not an event: {error}") from None
    for line in decoded:
        yield Event(
            seq=line.seq, ts_us=line.ts_us, mono_us=line.mono_us, log_id=line.log_id,
            prev_hash=line.prev_hash, event_hash=line.event_hash, fields=line.f,
        )
