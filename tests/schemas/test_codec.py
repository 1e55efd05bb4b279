"""One bounded decoder per direction: any bytes give a message or one `WireError`."""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import codec, messages
from schemas.codec import MAGIC, WireError
from schemas.names import FRAME_BYTES_MAX_ADMIN, FRAME_BYTES_MAX_OMEGA, FRAME_BYTES_MAX_WORKER
from schemas.refusals import RefusalCode
from schemas.request_ids import DECODED_BYTES_MAX, request_id_of
from tests.schemas import samples

Decode = Callable[[bytes], object]

_STRICT: dict[str, Decode] = {
    "from_omega": codec.from_omega.decode,
    "from_admin": codec.from_admin.decode,
    "from_worker": codec.from_worker.decode,
    "to_worker": codec.to_worker.decode,
}
_ALL: dict[str, Decode] = _STRICT | {"reply": codec.decode_reply}
_PACK = msgspec.msgpack.encode
_PING = {"type": "ping", "nonce": samples.NONCE}
_STATUS = {"type": "status", "request_id": samples.REQUEST}


def _first(name: str) -> msgspec.Struct:
    """Give the richest example of a direction."""
    return max(samples.DIRECTIONS[name], key=lambda message: len(codec.encode(message)))


def _refusal(decode: Decode, frame: bytes) -> WireError:
    with pytest.raises(WireError) as caught:
        decode(frame)
    return caught.value


def _message_or_wire_error(decode: Decode, frame: bytes) -> None:
    """Decode; the only error that may come is one whose words are safe to show."""
    refused: WireError | None = None
    try:
        decode(frame)
    except WireError as error:
        refused = error
    assert refused is None or (str(refused) + refused.where + refused.code).isprintable()


def _map(*members: tuple[object, object]) -> bytes:
    """Write a msgpack map member by member, so that a key may stand twice."""
    body = b"".join(_PACK(key) + _PACK(value) for key, value in members)
    return bytes([0x80 | len(members)]) + body


@pytest.mark.parametrize("name", sorted(_ALL))
@given(data=st.data())
def test_any_bytes_give_a_message_or_a_wire_error(name: str, data: st.DataObject) -> None:
    """For any bytes, with and without the magic, nothing but `WireError` is raised."""
    frame = data.draw(st.sampled_from([b"", MAGIC])) + data.draw(st.binary(max_size=300))
    _message_or_wire_error(_ALL[name], frame)


@pytest.mark.parametrize("name", sorted(_ALL))
@given(data=st.data())
def test_any_damage_to_a_frame_gives_a_message_or_a_wire_error(
    name: str, data: st.DataObject
) -> None:
    """A valid frame with bytes replaced, put in or cut off never raises anything else."""
    example = data.draw(st.sampled_from(samples.DIRECTIONS[name]))
    frame = bytearray(codec.encode(example))
    at = data.draw(st.integers(4, len(frame) - 1))
    length = data.draw(st.integers(0, 8))
    frame[at : at + length] = data.draw(st.binary(max_size=8))
    _message_or_wire_error(_ALL[name], bytes(frame))


_json_like = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary()
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["type", "steps", "payload", "usage", "x"]), inner),
    max_leaves=8,
)


@given(st.sampled_from(samples.REPLIES), st.text(max_size=12), _json_like)
def test_a_client_survives_any_added_or_replaced_field(
    example: messages.Reply, key: str, value: object
) -> None:
    """Whatever a newer or broken gateway puts into a reply, a client gets a reply or WireError."""
    document = msgspec.to_builtins(example, builtin_types=(bytes,))
    document[key] = value
    try:
        codec.decode_reply(MAGIC + _PACK(document))
    except WireError:
        return


def test_a_client_ignores_unknown_fields_at_every_depth() -> None:
    """A field that this version does not know changes nothing, in whatever part of a reply."""

    def with_news(value: object) -> object:
        if isinstance(value, dict):
            return {key: with_news(item) for key, item in value.items()} | {"news": [1, {"a": 2}]}
        if isinstance(value, list | tuple):
            return [with_news(item) for item in value]
        return value

    for example in samples.REPLIES:
        document = with_news(msgspec.to_builtins(example, builtin_types=(bytes,)))
        assert codec.decode_reply(MAGIC + _PACK(document)) == example


def test_a_client_ignores_unknown_reply_types() -> None:
    """A reply type of a later version is not an error for a client."""
    assert codec.decode_reply(MAGIC + _PACK({"type": "later", "x": 1})) is None


@pytest.mark.parametrize("name", sorted(_STRICT))
def test_everyone_else_refuses_unknown_fields(name: str) -> None:
    """What the broker or a worker receives may hold nothing that is not in the contract."""
    for example in samples.DIRECTIONS[name]:
        document = msgspec.to_builtins(example, builtin_types=(bytes,)) | {"news": 1}
        error = _refusal(_STRICT[name], MAGIC + _PACK(document))
        assert error.code is RefusalCode.MESSAGE_INVALID
        assert "news" in str(error)


_MALFORMED = {
    "nothing": b"",
    "only the magic": MAGIC,
    "another magic": b"OPG2" + _PACK(_STATUS),
    "no magic": _PACK(_STATUS),
    "a cut magic": b"OPG",
    "cut off": MAGIC + _PACK(_STATUS)[:-1],
    "trailing bytes": MAGIC + _PACK(_STATUS) + b"\x00",
    "JSON": MAGIC + b'{"type":"status"}',
    "an array that claims four thousand million": MAGIC + b"\xdd\xff\xff\xff\xff",
    "a map that claims four thousand million": MAGIC + b"\xdf\xff\xff\xff\xff",
    "a text that claims four thousand million": MAGIC + b"\xdb\xff\xff\xff\xff",
    "invalid UTF-8": MAGIC + b"\x81\xa4type\xa1\xff",
    "nesting of 100 000": MAGIC + b"\x81\xa1x" + b"\x91" * 100_000,
    "the reserved byte": MAGIC + b"\xc1",
    "a key twice": MAGIC
    + _map(("type", "status"), ("request_id", samples.REQUEST), ("type", "status")),
}
_TWICE_INSIDE = MAGIC + _map(
    ("type", "invoke"), ("request_id", samples.REQUEST), ("plugin", "word-count"),
    ("method", "count"), ("timeout_ms", 5), ("commitment_key", samples.COMMITMENT_KEY),
).replace(b"\x86", b"\x87", 1) + _PACK("payload") + _map(
    ("type", "text"), ("text", "one"), ("text", "two")
)


@pytest.mark.parametrize("name", sorted(_MALFORMED))
@pytest.mark.parametrize("direction", ["from_omega", "from_admin"])
def test_malformed_frames(name: str, direction: str) -> None:
    """Every frame that is not one well-formed map is refused as a frame."""
    error = _refusal(_STRICT[direction], _MALFORMED[name])
    allowed = {RefusalCode.FRAME_MALFORMED}
    if not name.startswith(("nothing", "only", "another", "no magic", "a cut", "a key twice")):
        # What the decoder meets first decides: a wrong type of value, or bytes that end.
        allowed |= {RefusalCode.MESSAGE_INVALID, RefusalCode.MESSAGE_UNKNOWN}

    assert error.code in allowed


def test_a_key_twice_inside_a_payload_is_malformed() -> None:
    """OMEGA's decoder refuses a payload that two readers might understand differently."""
    error = _refusal(codec.from_omega.decode, _TWICE_INSIDE)

    assert error.code is RefusalCode.FRAME_MALFORMED
    assert "twice" in str(error)


_INVALID: dict[str, tuple[dict[object, object], str]] = {
    "a missing field": ({"type": "status"}, "$"),
    "a request id with a newline": (_STATUS | {"request_id": samples.REQUEST + "\n"}, "request_id"),
    "a request id in capitals": (_STATUS | {"request_id": samples.REQUEST.upper()}, "request_id"),
    "a request id of version 1": (
        _STATUS | {"request_id": samples.REQUEST.replace("-4c", "-1c")}, "request_id",
    ),
    "a number for a text": (_STATUS | {"request_id": 7}, "request_id"),
    "a bool for a number": (_STATUS | {"known_size": True}, "known_size"),
    "a float for a number": (_STATUS | {"known_size": 5.0}, "known_size"),
    "NaN for a number": (_STATUS | {"known_size": float("nan")}, "known_size"),
    "a negative number": (_STATUS | {"known_size": -1}, "known_size"),
    "a number beyond 53 bits": (_STATUS | {"known_size": 2**53}, "known_size"),
    "bytes for a text": (_STATUS | {"traceparent": b"00"}, "traceparent"),
    "an extension type": (
        _STATUS | {"traceparent": msgspec.msgpack.Ext(5, b"x")}, "traceparent",
    ),
    "nothing at all": ({}, "$"),
}


@pytest.mark.parametrize("name", sorted(_INVALID))
def test_invalid_fields(name: str) -> None:
    """A wrong value is refused with the place where it stands."""
    document, place = _INVALID[name]
    for decode in (codec.from_omega.decode, codec.from_admin.decode):
        error = _refusal(decode, MAGIC + _PACK(document))
        assert error.code is RefusalCode.MESSAGE_INVALID
        assert place in error.where


def test_keys_that_are_not_texts() -> None:
    """A map key of another type is refused."""
    for key in (1, b"type", None):
        error = _refusal(codec.from_omega.decode, MAGIC + _map((key, 1), ("type", "status")))
        assert error.code in {RefusalCode.MESSAGE_INVALID, RefusalCode.FRAME_MALFORMED}


@pytest.mark.parametrize(
    ("decode", "limit"),
    [
        (codec.from_omega.decode, FRAME_BYTES_MAX_OMEGA),
        (codec.from_admin.decode, FRAME_BYTES_MAX_ADMIN),
        (codec.from_worker.decode, FRAME_BYTES_MAX_WORKER),
        (codec.to_worker.decode, FRAME_BYTES_MAX_WORKER),
    ],
)
def test_size_is_checked_before_anything_else(decode: Decode, limit: int) -> None:
    """A frame of one byte more than the limit is refused for its size, whatever is in it."""
    assert _refusal(decode, b"x" * (limit + 1)).code is RefusalCode.FRAME_TOO_LARGE
    assert _refusal(decode, b"x" * limit).code is RefusalCode.FRAME_MALFORMED


@pytest.mark.parametrize("name", sorted(_STRICT))
def test_a_message_of_another_direction_is_unknown(name: str) -> None:
    """What a socket may not say cannot be decoded there."""
    own = {samples.tag_of(message) for message in samples.DIRECTIONS[name]}
    for other, examples in samples.DIRECTIONS.items():
        for example in examples:
            if samples.tag_of(example) in own:
                continue
            error = _refusal(_STRICT[name], codec.encode(example))
            assert error.code is RefusalCode.MESSAGE_UNKNOWN, (other, example)
            assert error.where == "$.type"


def test_a_worker_cannot_express_an_invocation() -> None:
    """No request of a front decodes on the worker plane, and each is known for what it is."""
    requests = {codec.encode(m) for m in (*samples.FROM_OMEGA, *samples.FROM_ADMIN)}
    for frame in requests:
        assert _refusal(codec.from_worker.decode, frame).code is RefusalCode.MESSAGE_UNKNOWN
        assert codec.is_client_request(frame)
    for message in samples.FROM_WORKER:
        assert not codec.is_client_request(codec.encode(message))


def test_the_admin_front_cannot_express_an_invoke() -> None:
    """An operator's decoder knows neither invoke nor invoke_pipeline nor cancel."""
    tags = {samples.tag_of(message) for message in samples.FROM_ADMIN}

    assert tags.isdisjoint({"invoke", "invoke_pipeline", "cancel"})
    for message in samples.FROM_OMEGA[:3]:
        error = _refusal(codec.from_admin.decode, codec.encode(message))
        assert error.code is RefusalCode.MESSAGE_UNKNOWN


def test_request_id_of_a_frame_that_did_not_decode() -> None:
    """The sender of a bad frame is answered under its request id, if that is a request id."""
    bad = {"type": "invoke", "request_id": samples.REQUEST, "nonsense": [1, 2]}
    assert request_id_of(MAGIC + _PACK(bad)) == samples.REQUEST
    assert request_id_of(MAGIC + _PACK(bad | {"request_id": "x" * 5000})) is None
    assert request_id_of(MAGIC + _PACK(bad | {"request_id": 7})) is None
    assert request_id_of(b"GET / HTTP/1.1") is None
    assert request_id_of(b"") is None


def test_request_id_of_a_large_frame_that_did_not_decode() -> None:
    """It is found where the map begins; what lies behind, or claims to be one, is not decoded."""
    bad = {"type": "invoke", "request_id": samples.REQUEST, "nonsense": b"x" * DECODED_BYTES_MAX}
    assert request_id_of(MAGIC + _PACK(bad)) == samples.REQUEST
    assert request_id_of(memoryview(MAGIC + _PACK(bad))) == samples.REQUEST
    assert request_id_of(MAGIC + _PACK(bad | {"request_id": "0" * 36})) is None
    assert request_id_of(b"GET " + _PACK(bad)) is None
    late = {"type": "invoke", "nonsense": bad["nonsense"], "request_id": samples.REQUEST}
    assert request_id_of(MAGIC + _PACK(late)) is None
    # Not looked through: the rest of this one is no msgpack at all.
    assert request_id_of(MAGIC + _PACK(bad)[:-9] + b"\xc1" * 9) == samples.REQUEST


_OTHER = "00000000-0000-4000-8000-000000000000"
_HIDDEN = _map(("request_id", _OTHER))[1:]


@pytest.mark.parametrize("begin", [
    _map(("type", "register_plugin"), ("bundle", _HIDDEN)),
    _map(("payload", {"request_id": _OTHER})),
    _map(("bundle", _HIDDEN), ("request_id", samples.REQUEST)),
    b"\x81\xbfabc" + _HIDDEN,
    b"\x82\xa4type\xa1abc" + _HIDDEN,
    b"\x82\xa4type\xbfabc" + _HIDDEN,
    b"\x80" + _HIDDEN,
    _HIDDEN,
    b"\x92\x81" + _HIDDEN,
])
def test_request_id_inside_something_of_a_large_frame_is_nobodys(begin: bytes) -> None:
    """What a bundle or payload holds names no request: no refusal goes to a wrong one."""
    assert request_id_of(MAGIC + begin + bytes(DECODED_BYTES_MAX)) is None


def test_request_id_of_a_large_frame_of_any_map_header() -> None:
    """Clients write the length of a map in one, three or five bytes, the type first or not."""
    for header in (b"\x83", b"\xde\x00\x03", b"\xdf\x00\x00\x00\x03"):
        for first in ((("type", "invoke"),), ()):
            body = header + _map(*first, ("request_id", samples.REQUEST))[1:]
            assert request_id_of(MAGIC + body + bytes(DECODED_BYTES_MAX)) == samples.REQUEST


@pytest.mark.parametrize("direction", ["from_omega", "from_admin", "from_worker"])
def test_a_view_reads_like_its_bytes(direction: str) -> None:
    """What is received without a copy gives the same message, or the same refusal."""
    decoder = getattr(codec, direction)
    for message in samples.DIRECTIONS[direction]:
        frame = codec.encode(message)
        assert decoder.decode(memoryview(frame)) == message
        for wrong in (frame[:-1], b"OPG2" + frame[4:], bytes(100), b""):
            whole = _refusal(decoder.decode, wrong)
            seen = _refusal(decoder.decode, memoryview(wrong))
            assert (seen.code, str(seen)) == (whole.code, str(whole))


@given(st.binary(max_size=200))
def test_request_id_of_any_bytes(data: bytes) -> None:
    """Looking for a request id never raises."""
    assert request_id_of(data) is None
    assert not codec.is_client_request(data)
    for frame in (MAGIC + data, MAGIC + _map(("request_id", data))):
        assert request_id_of(frame) is None
        assert not codec.is_client_request(frame)


def test_sizes_are_network_order() -> None:
    """A 32-bit map header is read as msgpack says, so a long map's keys are counted right."""
    body = b"\xdf" + struct.pack(">I", 2) + _map(*_STATUS.items())[1:]

    assert codec.from_omega.decode(MAGIC + body) == messages.Status(request_id=samples.REQUEST)
    twice = b"\xdf" + struct.pack(">I", 3) + _map(*_STATUS.items(), ("type", "status"))[1:]
    assert _refusal(codec.from_omega.decode, MAGIC + twice).code is RefusalCode.FRAME_MALFORMED


@pytest.mark.parametrize("name", sorted(samples.DIRECTIONS))
def test_what_encode_writes_decodes(name: str) -> None:
    """Every example of every direction comes back as it was."""
    for example in samples.DIRECTIONS[name]:
        assert _ALL[name](codec.encode(example)) == example
