"""The reader of hostile bytes: whatever arrives, it gives frames or one kind of error."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox_worker.encode import pack
from sandbox_worker.replies import (
    OVERHEAD_BYTES,
    TALK_BYTES_MAX,
    Answered,
    Inbox,
    ReplyError,
    Told,
    printable,
)
from schemas.payloads import JSONPayload

TOLD = pack(["progress", 250, "a note"])
ANSWERED = pack(["result", {"type": "json", "data": b"[]", "schema": None}])


def _framed(*bodies: bytes) -> bytes:
    return b"".join(len(body).to_bytes(4, "big") + body for body in bodies)


@given(st.lists(st.binary(max_size=200), max_size=20))
def test_no_bytes_make_it_raise_anything_else(chunks: list[bytes]) -> None:
    """Random bytes in random pieces end in frames or a `ReplyError`."""
    inbox = Inbox(1024)
    with contextlib.suppress(ReplyError):
        for chunk in chunks:
            inbox.feed(chunk)


@given(st.binary(max_size=300))
def test_a_frame_of_any_content_is_a_shape_or_an_error(body: bytes) -> None:
    """A well-framed body of random bytes cannot raise anything else either."""
    with contextlib.suppress(ReplyError):
        Inbox(1024).feed(_framed(body))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=30))
def test_frames_are_whole_however_they_are_cut(cuts: list[int]) -> None:
    """Two frames arrive as two frames whatever pieces they came in."""
    data, inbox = _framed(TOLD, ANSWERED), Inbox(1024)
    frames = []
    for cut in cuts:
        frames += inbox.feed(data[:cut])
        data = data[cut:]
    frames += inbox.feed(data)

    assert frames == [Told(250, "a note"), Answered(JSONPayload(b"[]"))]


def test_a_length_is_refused_before_its_bytes_are_waited_for() -> None:
    """Four bytes that promise too much are enough."""
    with pytest.raises(ReplyError) as refused:
        Inbox(1000).feed((1000 + OVERHEAD_BYTES + 1).to_bytes(4, "big"))

    assert refused.value.code == "output_limit_exceeded"
    assert refused.value.used == 1000 + OVERHEAD_BYTES + 1


def test_endless_progress_ends() -> None:
    """Valid frames without end run into a total."""
    inbox, frame = Inbox(0), _framed(TOLD)
    for _ in range((TALK_BYTES_MAX + OVERHEAD_BYTES) // len(frame)):
        inbox.feed(frame)
    with pytest.raises(ReplyError) as refused:
        inbox.feed(frame)

    assert refused.value.code == "output_limit_exceeded"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc0",
        pack([]),
        pack(["rehearsed", 1]),
        pack(["progress", 1001, ""]),
        msgspec.msgpack.encode(["progress", 1.5, ""]),
        pack(["result", {"type": "json", "data": "text", "schema": None}]),
        pack(["result", {"type": "json", "data": b"", "more": 1}]),
        pack(["result", {"type": "text", "text": "x", "media_type": "text/evil"}]),
        pack(["result", {"type": "invoke"}]),
        pack(["failed", "worker_lost", "a code that only the broker may use"]),
        pack(["failed", "plugin_error", b"bytes"]),
        ANSWERED + b"\x00",
        b"\xd9\xff" + b"x",
        b"\x91" * 100_000,
        b"\x92\xa8progress\xcb",
        b"\x93\xa8progress\x01\xa1\xff",
    ],
)
def test_a_wrong_shape_is_invalid_output(body: bytes) -> None:
    """Wrong types, unknown fields, foreign codes, trailing bytes, broken text: all refused."""
    with pytest.raises(ReplyError) as refused:
        Inbox(200_000).feed(_framed(body))

    assert refused.value.code == "output_invalid"


@given(st.text())
def test_a_plugins_text_fits_and_prints(text: str) -> None:
    """At most a kibibyte in UTF-8, one line, nothing that a terminal obeys."""
    shown = printable(text)

    assert len(shown.encode()) <= 1024
    assert shown.isprintable()
