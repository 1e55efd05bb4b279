"""The request id of a frame whatever else it holds, so that its sender can be told what was wrong.

Rules this file keeps: looking for it costs little, however large the frame is and whatever lies in
it; so a large frame is not decoded, and its id is found where it stands near the frame's beginning
as every client of ours writes it. What is found is an id's text and nothing else.

It leaves what a frame means to `schemas.codec`. Source: docs/WIRE.md.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from schemas.codec import DECODE_ERRORS, MAGIC, Frame
from schemas.names import RequestId

DECODED_BYTES_MAX: Final = 64 * 1024
"""The largest frame that is looked through; skipping 16 MiB of nothings takes 40 ms."""
_NEAR_BYTES: Final = 4096


class _Tag(msgspec.Struct):
    """The one field that is looked for."""

    request_id: RequestId | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Tag)
_written: Final = re.compile(rb"\xaarequest_id(\xd9\x24[0-9a-f-]{36})")


def request_id_of(frame: Frame) -> str | None:
    """Find the request id of a frame that did not decode; None when there is none to be found."""
    if frame[:4] != MAGIC:
        return None
    body = memoryview(frame)[4:]
    if len(frame) > DECODED_BYTES_MAX:
        found = _written.search(body[:_NEAR_BYTES])
        if found is None:
            return None
        body = memoryview(b"\x81\xaarequest_id" + found[1])
    try:
        return _decoder.decode(body).request_id
    except DECODE_ERRORS:
        return None
