"""A request's whole story: every event of it, with what it says and how long each step took.

Rules this file keeps: only what the events say is told; times between events are those of the
monotonic clock, and of the wall clock where the machine was started anew in between. A pipeline's
story holds its steps.

It leaves showing it to the command line and proofs to `broker.evidence.prove`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

import msgspec

from broker.evidence.events import whole_lines
from broker.evidence.files import segment_names
from schemas.events import (
    Event,
    FrameIn,
    FrameOut,
    InvokeAccept,
    InvokeEnd,
    InvokeRefuse,
    decode_event,
)

_SECOND_RUN: Final = {
    "agreed": "the second run agreed", "differed": "the second run differed",
    "unverified": "no second run to compare with",
}
_ANSWERS: Final = ("call_result", "call_failure")


class Moment(NamedTuple):
    """One event of a story: when it came, in us after the first and after the one before."""

    event: Event
    after_us: int
    since_us: int
    words: str


class Durations(msgspec.Struct, frozen=True, kw_only=True):
    """How long a request took, in us; what it did not come to is absent.

    `queued_us` is from the acceptance to the worker, `worker_us` from there to its answer, without
    the second run of a deterministic method, `total_us` from the request's arrival to its last
    event.
    """

    queued_us: int | None
    worker_us: int | None
    total_us: int


def find_story(
    directory: str, request_id: str, progress: Callable[[int, int], None]
) -> list[Event]:
    """Read all events of a request, or of a pipeline with its steps, from a ledger's files.

    Args:
        directory: the ledger's folder, or a copy of it; a gateway may be writing it.
        request_id: the request.
        progress: told how many bytes of how many are done.

    Raises:
        InvalidEvent: a line of the story is no event, or its hash is wrong.
        OSError: a file could not be read.
    """
    folder = os.path.join(directory, "segments")
    paths = [os.path.join(folder, name) for name in segment_names(folder)]
    total, done = sum(map(os.path.getsize, paths)), 0
    wanted, story = {request_id.encode()}, []
    for path in paths:
        for lines in whole_lines(path):
            for line in _mentioning(lines, wanted):
                event = decode_event(line)
                story.append(event)
                step = getattr(event.fields, "request_id", None)
                if getattr(event.fields, "pipeline", None) == request_id and step is not None:
                    wanted.add(step.encode())
            done = min(total, done + len(lines))
            progress(done, total)
    return story


def _mentioning(lines: bytes, wanted: set[bytes]) -> Iterator[bytes]:
    """Give the lines that name one of the ids; `wanted` may grow meanwhile."""
    for line in lines[:-1].split(b"\n"):
        if any(one in line for one in wanted):
            yield line


def timeline(events: Iterable[Event]) -> list[Moment]:
    """Put a story's events on a line of time."""
    moments: list[Moment] = []
    for event in events:
        since_us = after_us = 0
        if moments:
            before = moments[-1].event
            since_us = event.mono_us - before.mono_us
            if since_us < 0:
                since_us = max(0, event.ts_us - before.ts_us)
            after_us = moments[-1].after_us + since_us
        moments.append(Moment(event, after_us, since_us, _words(event)))
    return moments


def durations(moments: list[Moment]) -> Durations:
    """Say how long a request waited, ran and took as a whole."""
    accepted = run = answered = None
    replicas = set()
    for moment in moments:
        fields = moment.event.fields
        if isinstance(fields, InvokeAccept):
            accepted = moment.after_us if accepted is None else accepted
        elif isinstance(fields, FrameOut) and fields.purpose == "replica":
            replicas.add(fields.call)
        elif isinstance(fields, FrameOut) and fields.type == "run":
            run = moment.after_us if run is None else run
        elif isinstance(fields, FrameIn) and fields.type in _ANSWERS and (
            fields.call not in replicas
        ):
            answered = moment.after_us
    return Durations(
        queued_us=run - accepted if accepted is not None and run is not None else None,
        worker_us=answered - run if answered is not None and run is not None else None,
        total_us=moments[-1].after_us if moments else 0,
    )


def _words(event: Event) -> str:
    """Say in some words what an event says."""
    fields = event.fields
    if isinstance(fields, FrameIn):
        who = f"worker {fields.peer[:8]} says" if fields.plane == "worker" else (
            f"{fields.peer} asks"
        )
        return f"{who} {fields.type}, {fields.bytes} bytes"
    if isinstance(fields, FrameOut):
        if fields.plane == "worker":
            purpose = f" as {fields.purpose}" if fields.purpose else ""
            return f"{fields.type} for worker {fields.peer[:8]}, call {fields.call}{purpose}"
        code = f" {fields.code}" if fields.code else ""
        return f"{fields.type}{code} for {fields.peer}, {fields.bytes} bytes"
    if isinstance(fields, InvokeAccept):
        step = f", step {fields.step}" if fields.step else ""
        return (f"{fields.plugin}@{fields.version} {fields.method}, {fields.input_kind} of "
                f"{fields.input_bytes} bytes, within {fields.timeout_ms} ms{step}")
    if isinstance(fields, InvokeRefuse):
        place = f" at {fields.where}" if fields.where else ""
        return f"{fields.code}{place}"
    if isinstance(fields, InvokeEnd):
        return _end_words(fields)
    members = msgspec.to_builtins(fields)
    return " ".join(f"{name}={value}" for name, value in members.items() if name != "request_id")


def _end_words(end: InvokeEnd) -> str:
    words = [end.outcome if end.code is None else f"{end.outcome}: {end.code}"]
    if end.outcome != "result":
        words.append(f"it was {end.reached}")
    if end.output_kind is not None:
        words.append(f"{end.output_kind} of {end.output_bytes} bytes")
    if end.cpu_ms is not None:
        words.append(f"{end.cpu_ms} ms of processor")
    if end.replica is not None:
        words.append(_SECOND_RUN[end.replica])
    if end.used is not None and end.allowed is not None:
        words.append(f"used {end.used} of {end.allowed}")
    return ", ".join(words)
