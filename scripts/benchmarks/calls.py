"""The events that a gateway writes for calls, six for each, as the ledger's benches append them."""

from __future__ import annotations

import itertools
import random
import uuid
from collections.abc import Iterator

from schemas.events import EventFields, FrameIn, FrameOut, InvokeAccept, InvokeEnd

_KEY, _WORKER, _BUNDLE = "5e" * 8, "ab" * 16, "c3" * 32


def events_of_calls(seed: int = 1) -> Iterator[EventFields]:
    """Give the events of one call after another, for ever; ids and digests are fresh each time."""
    chance = random.Random(seed)
    for number in itertools.count(1):
        request = str(uuid.UUID(int=chance.getrandbits(128), version=4))
        yield FrameIn(plane="front.omega", peer=_KEY, type="invoke", bytes=1212, request_id=request)
        yield InvokeAccept(
            request_id=request, peer=_KEY, plugin="bench-plugin", version="1.0.0",
            bundle_sha256=_BUNDLE, method="echo", input_kind="json", input_bytes=1041,
            input_commitment=chance.randbytes(32).hex(), timeout_ms=30_000,
        )
        yield FrameOut(
            plane="worker", peer=_WORKER, type="run", bytes=1240, request_id=request, call=number,
            purpose="primary",
        )
        yield FrameIn(
            plane="worker", peer=_WORKER, type="call_result", bytes=1240, request_id=request,
            call=number,
        )
        yield InvokeEnd(
            request_id=request, outcome="result", reached="answered", incarnation=_WORKER,
            output_kind="json", output_bytes=1041, output_commitment=chance.randbytes(32).hex(),
            cpu_ms=1, wall_ms=2, max_rss_kb_upper_bound=23_456, duration_us=3_456,
        )
        yield FrameOut(
            plane="front.omega", peer=_KEY, type="result", bytes=1500, request_id=request
        )
