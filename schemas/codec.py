"""Bytes to messages and back: one bounded decoder for each direction.

Rules this file keeps:
- A body frame is the four bytes `OPG1` and one msgpack map, bounded before it is looked at.
- Each direction has its own decoder, and that decoder's union is the permission list of the socket.
- Whatever the bytes are, the outcome is a message or one `WireError`; the decoding library's errors
  are caught in one place. Decoding belongs on the main thread, whose stack is large enough.
- Clients ignore unknown fields and unknown reply types; everyone else refuses them.

It leaves sizes of payloads, roles and duplicates to `broker.core`. Source: docs/WIRE.md.
"""

from __future__ import annotations

import functools
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import inspect

from schemas.messages import (
    FromAdmin,
    FromOmega,
    FromWorker,
    Reply,
    ToWorker,
)
from schemas.names import (
    FRAME_BYTES_MAX_ADMIN,
    FRAME_BYTES_MAX_OMEGA,
    FRAME_BYTES_MAX_WORKER,
    READ_BYTES_MAX,
)
from schemas.refusals import RefusalCode

MAGIC: Final = b"OPG1"

Frame = bytes | memoryview
MessageT = TypeVar("MessageT")

_encoder: Final = msgspec.msgpack.Encoder()
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class WireError(ValueError):
    """Bytes that are not a message of this direction, with the refusal code and the place."""

    def __init__(
        self, code: RefusalCode, sentence: str, *, where: str = "", hint: str = ""
    ) -> None:
        """Remember what was wrong, where, and what would be right."""
        super().__init__(sentence)
        self.code = code
        self.where = where
        self.hint = hint


def encode(message: msgspec.Struct) -> bytes:
    """Write one message as a body frame."""
    return MAGIC + _encoder.encode(message)


def _split_place(sentence: str) -> tuple[str, str]:
    """Split msgspec's sentence into what was wrong and the path, without its quotes."""
    what, _, place = sentence.partition(" - at ")
    return what, place.strip("`") if place else "$"


def printable(text: str, characters_max: int = 200) -> str:
    """Keep foreign words out of terminals' hands: printable ASCII, cut to a length."""
    return "".join(c if " " <= c <= "~" else "?" for c in text[:characters_max])


_map_decoder: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw])
_list_decoder: Final = msgspec.msgpack.Decoder(list[msgspec.Raw])


def _keys_are_distinct(body: memoryview | bytes) -> bool:
    """Say whether every map in a decoded msgpack body names each key once.

    The decoder keeps the last of two equal keys, another reader might keep the first: a frame that
    two readers understand differently is refused. Only bodies that a typed decoder accepted come
    here, so the nesting is that of the types.
    """
    head = body[0]
    if 0x80 <= head <= 0x8F or head in (0xDE, 0xDF):
        declared = (
            head & 0x0F if head <= 0x8F
            else int.from_bytes(body[1:3] if head == 0xDE else body[1:5], "big")
        )
        members = _map_decoder.decode(body)
        return len(members) == declared and all(
            _keys_are_distinct(memoryview(member)) for member in members.values()
        )
    if 0x90 <= head <= 0x9F or head in (0xDC, 0xDD):
        return all(_keys_are_distinct(memoryview(item)) for item in _list_decoder.decode(body))
    return True


class Decoder(Generic[MessageT]):
    """The decoder of one direction: a union of message types and a size."""

    def __init__(self, union: object, bytes_max: int, direction: str) -> None:
        """Build the decoder of `union` for frames of at most `bytes_max` bytes."""
        self._decoder: msgspec.msgpack.Decoder[MessageT] = msgspec.msgpack.Decoder(union)
        self._bytes_max = bytes_max
        self.direction = direction

    def decode(self, frame: Frame) -> MessageT:
        """Read one body frame.

        Args:
            frame: the frame's bytes, exactly as received; a view is copied only if it decodes.

        Raises:
            WireError: the frame is too large, not a frame, or not a message of this direction.
        """
        if len(frame) > self._bytes_max:
            raise WireError(
                RefusalCode.FRAME_TOO_LARGE,
                f"the frame has {len(frame)} bytes, this socket takes {self._bytes_max}",
            )
        if frame[:4] != MAGIC:
            raise WireError(
                RefusalCode.FRAME_MALFORMED,
                f"the frame begins with {bytes(frame[:4])!r}, expected {MAGIC!r}",
            )
        body = memoryview(frame)[4:]
        try:
            message = self._decoder.decode(body)
            frame = bytes(frame)
            # Our own spelling names each key once; only another one needs the slower look.
            spelled = _encoder.encode(message)
            if len(spelled) == len(body) and frame.endswith(spelled):
                return message
            if _keys_are_distinct(body):
                return message
        except msgspec.ValidationError as error:
            what, where = _split_place(str(error))
            what, where = printable(what), printable(where)
            if what.startswith("Invalid value") and where == "$.type":
                raise WireError(
                    RefusalCode.MESSAGE_UNKNOWN,
                    f"{self.direction} does not take this message type: {what}",
                    where=where,
                ) from None
            raise WireError(RefusalCode.MESSAGE_INVALID, what, where=where) from None
        except DECODE_ERRORS as error:
            raise WireError(
                RefusalCode.FRAME_MALFORMED, f"the body is not one msgpack map: "
                f"{printable(str(error))}",
            ) from None
        raise WireError(RefusalCode.FRAME_MALFORMED, "a map of the body names one key twice")


from_omega: Final[Decoder[FromOmega]] = Decoder(
    FromOmega, FRAME_BYTES_MAX_OMEGA, "front.omega"
)
from_admin: Final[Decoder[FromAdmin]] = Decoder(
    FromAdmin, FRAME_BYTES_MAX_ADMIN, "front.admin"
)
from_worker: Final[Decoder[FromWorker]] = Decoder(
    FromWorker, FRAME_BYTES_MAX_WORKER, "the worker plane"
)
to_worker: Final[Decoder[ToWorker]] = Decoder(ToWorker, FRAME_BYTES_MAX_WORKER, "a worker")
from_reader: Final[Decoder[FromAdmin]] = Decoder(FromAdmin, READ_BYTES_MAX, "front.admin")
"""Of keys that may only read: no request of theirs is large."""
_reply: Final[Decoder[Reply]] = Decoder(Reply, FRAME_BYTES_MAX_ADMIN, "a client")


def is_client_request(frame: Frame) -> bool:
    """Say whether a worker's frame would have been a request on a front."""
    for decoder in (from_omega, from_admin):
        try:
            decoder.decode(frame)
        except WireError:
            continue
        return True
    return False


@functools.cache
def _reply_type() -> inspect.Type:
    return inspect.type_info(Reply)


def _prune(value: object, kind: inspect.Type) -> object:
    """Drop from decoded builtins every field that `kind` does not have."""
    if isinstance(kind, inspect.UnionType):
        structs = [member for member in kind.types if isinstance(member, inspect.StructType)]
        tag = value.get("type") if isinstance(value, dict) else None
        found = [member for member in structs if len(structs) == 1 or member.tag == tag]
        return _prune(value, found[0]) if found else value
    if isinstance(kind, inspect.StructType) and isinstance(value, dict):
        types = {field.encode_name: field.type for field in kind.fields}
        return {
            key: _prune(item, types[key]) if key in types else item
            for key, item in value.items()
            if key in types or key == kind.tag_field
        }
    if isinstance(kind, inspect.VarTupleType) and isinstance(value, list):
        return [_prune(item, kind.item_type) for item in value]
    return value


def decode_reply(frame: bytes) -> Reply | None:
    """Read a reply as a client does: unknown fields are ignored, an unknown type gives None.

    Raises:
        WireError: the frame is not a gateway frame, or a known field has a wrong value.
    """
    try:
        return _reply.decode(frame)
    except WireError as error:
        if error.code is RefusalCode.MESSAGE_UNKNOWN:
            return None
        if error.code is not RefusalCode.MESSAGE_INVALID:
            raise
        try:
            value = msgspec.msgpack.decode(memoryview(frame)[4:])
            reply: Reply = msgspec.convert(_prune(value, _reply_type()), Reply)
            return reply
        except DECODE_ERRORS:
            raise error from None
