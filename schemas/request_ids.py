"""The request id of a frame whatever else it holds, so that its sender can be told what was wrong.

Rules this file keeps: looking for it costs little, however large the frame is and whatever lies in
it. So a large frame is not decoded, and its id is found only where every client of ours writes it,
as the first field or the one behind `type`: further on it may be a part of somebody's bundle or
payload that only looks like one. What is found is an id's text and nothing else.

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


class _Tag(msgspec.Struct):
    """The one field that is looked for."""

    request_id: RequestId | None = None


_decoder: Final = msgspec.msgpack.Decoder(_Tag)
_begin: Final = re.compile(
    rb"(?s:[\x81-\x8f]|\xde..|\xdf....)"
    rb"((?:\xa4type[\xa1-\xbf][a-z_]{1,31})?\xaarequest_id\xd9\x24[0-9a-f-]{36})"
)
"""How a map begins that names its type and its request id first; what it names is in the group."""


def request_id_of(frame: Frame) -> str | None:
    """Find the request id of a frame that did not decode; None when there is none to be found."""
    if frame[:4] != MAGIC:
        return None
    body = memoryview(frame)[4:]
    if len(frame) > DECODED_BYTES_MAX:
        found = _begin.match(body)
        if found is None:
            return None
        # A map of these fields alone: the decoder holds each length against what is there.
        body = memoryview((b"\x82" if found[1].startswith(b"\xa4type") else b"\x81") + found[1])
    try:
        return _decoder.decode(body).request_id
    except DECODE_ERRORS:
        return None
