"""What a call process may say: bounded frames, strictly decoded, and the figures of its end.

Every byte here was written by a process that ran hostile code. Rules: a length is checked before
anything of that length is kept; a frame decodes to one of four shapes or the call has failed;
text is cut and made printable before it goes on.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from schemas.denials import DeniedClass
from schemas.messages import FailureCode, Permille
from schemas.names import Domain
from schemas.payloads import JSONPayload, Payload, TextPayload

PLUGIN_TEXT_BYTES_MAX = 1024
OVERHEAD_BYTES = 4096
"""What a frame may hold beyond the output: tags, names, digests, a failure's text."""

TALK_BYTES_MAX = 256 * 1024
"""All bytes a call may send before its reply, progress notes included."""


class _Frame(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """One frame: an array that begins with its tag."""


class Rehearsed(_Frame, frozen=True, tag="rehearsed"):
    """A rehearsing call process is sealed and its effects held."""


class Probed(_Frame, frozen=True, tag="probed"):
    """Outcomes of probes, pairs of name and outcome."""

    outcomes: Annotated[list[tuple[str, Literal["denied", "allowed"]]], Meta(max_length=64)]


class Told(_Frame, frozen=True, tag="progress"):
    """How far the plugin says it is."""

    permille: Permille
    note: str


class Written(_Frame, frozen=True, tag="wrote"):
    """What the plugin prints, in a development domain."""

    text: str


class Answered(_Frame, frozen=True, tag="result"):
    """The method's output."""

    payload: Payload


class Failed(_Frame, frozen=True, tag="failed"):
    """The plugin, or the code around it, says why there is no output."""

    code: Literal[
        "plugin_error", "plugin_load_failed", "invalid_input", "cannot_answer", "output_invalid",
        "memory_limit_exceeded",
    ]  # fmt: skip
    message: str
    denied: DeniedClass | None = None


Frame = Rehearsed | Probed | Told | Written | Answered | Failed
CALL_FRAMES: dict[Domain, tuple[type[Frame], ...]] = {
    "production": (Answered, Failed, Told),
    "development": (Answered, Failed, Told, Written),
}
"""What a call may send: only in a development domain is there anybody to print for."""

_decoder: msgspec.msgpack.Decoder[Frame] = msgspec.msgpack.Decoder(Frame)


class ReplyError(Exception):
    """A call process broke the rules; `code` is what its call ends with."""

    def __init__(self, code: FailureCode, used: int | None = None) -> None:
        """Remember the code, and for a size the figure."""
        super().__init__(code)
        self.code: FailureCode = code
        self.used = used


class Inbox:
    """The bytes of one call process, cut into frames."""

    __slots__ = ("_bytes_max", "_data", "_total")

    def __init__(self, output_bytes_max: int) -> None:
        """Accept frames for an output of at most `output_bytes_max` bytes."""
        self._bytes_max = output_bytes_max + OVERHEAD_BYTES
        self._data = bytearray()
        self._total = 0

    def feed(self, data: bytes | memoryview) -> list[Frame]:
        """Take more bytes and give the frames that are complete, up to the first end.

        Raises:
            ReplyError: too many bytes, or bytes that are no frame.
        """
        self._total += len(data)
        if self._total > self._bytes_max + TALK_BYTES_MAX:
            raise ReplyError("output_limit_exceeded", self._total)
        # Nearly always a frame comes whole, and is read where it lies.
        source: bytes | memoryview | bytearray = data
        if self._data:
            self._data += data
            source = self._data
        at, end = 0, len(source)
        frames = []
        while end - at >= 4:
            size = int.from_bytes(source[at : at + 4], "big")
            if size > self._bytes_max:
                raise ReplyError("output_limit_exceeded", size)
            if end - at < 4 + size:
                break
            frames.append(_decode(source[at + 4 : at + 4 + size]))
            at += 4 + size
            if isinstance(frames[-1], (Answered, Failed, Probed)):
                # One answer to one job; whatever follows is not read.
                break
        if source is data:
            self._data += data[at:]
        else:
            del self._data[:at]
        return frames


def _decode(body: bytes | memoryview | bytearray) -> Frame:
    try:
        return _decoder.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ReplyError("output_invalid") from None


def output_bytes(payload: Payload) -> int:
    """The size of an output as limits count it: its text, its document or its packed reference."""
    if isinstance(payload, TextPayload):
        return len(payload.text.encode())
    if isinstance(payload, JSONPayload):
        return len(payload.data)
    return len(msgspec.msgpack.encode(payload))


def printable(text: str) -> str:
    """A plugin's text as it may travel: printable, one line, at most a kibibyte."""
    line = "".join(letter if letter.isprintable() else " " for letter in text[:1024])
    return line.encode()[:PLUGIN_TEXT_BYTES_MAX].decode(errors="ignore")
