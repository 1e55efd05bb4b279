"""Events: every type comes back as it was, in one spelling, and the hash links them."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Final

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from schemas import events
from schemas.events import (
    EVENT_TYPES,
    GENESIS_HASH,
    Event,
    EventFields,
    InvalidEvent,
    decode_event,
    encode_event,
    line_hash,
)
from tests.schemas import samples

_EVERY: Final = tuple(
    form for full in samples.EVENTS for form in (full, samples.without_optional_fields(full))
)


def _line(fields: object = samples.EVENTS[0], seq: int = 7) -> bytes:
    assert isinstance(fields, EventFields)
    line, _ = encode_event(
        fields, log_id=samples.LOG_ID, seq=seq, ts_us=1, mono_us=2, prev_hash=GENESIS_HASH
    )
    return line


@pytest.mark.parametrize("fields", _EVERY, ids=lambda fields: fields.EVENT_TYPE)
def test_every_type_comes_back(fields: EventFields) -> None:
    """A line decodes to the event that was written, with and without its newline."""
    line, event_hash = encode_event(
        fields, log_id=samples.LOG_ID, seq=7, ts_us=1, mono_us=2, prev_hash=GENESIS_HASH
    )
    wanted = Event(
        seq=7, ts_us=1, mono_us=2, log_id=samples.LOG_ID, prev_hash=GENESIS_HASH,
        event_hash=event_hash, fields=fields,
    )

    assert decode_event(line) == decode_event(line[:-1]) == wanted
    assert wanted.event_type in EVENT_TYPES


@pytest.mark.parametrize("fields", _EVERY, ids=lambda fields: fields.EVENT_TYPE)
def test_every_line_is_rfc8785_and_hashes_from_byte_81(fields: EventFields) -> None:
    """A line is its own RFC 8785 form; without its first member it is what the hash covers."""
    line = _line(fields)
    document = json.loads(line)

    assert rfc8785.dumps(document) + b"\n" == line
    assert min(document) == "event_hash"
    without = rfc8785.dumps({k: v for k, v in document.items() if k != "event_hash"})
    assert b"{" + line[81:-1] == without
    assert hashlib.sha256(b"\x00" + without).hexdigest() == document["event_hash"]
    assert line_hash(line) == line_hash(line[:-1]) == document["event_hash"]


def test_the_list_of_types_is_that_of_the_design() -> None:
    """The closed list has the design's names and no other."""
    design = """ledger.open ledger.close ledger.recovery ledger.roll state.snapshot key.change
        trust.change policy.change grant.change plugin.register plugin.reject plugin.enable
        plugin.disable plugin.quarantine plugin.approve revoke worker.start worker.attest
        worker.probe worker.exit zygote.recycle frame.in frame.out frame.drop invoke.accept
        invoke.refuse invoke.end reply.undeliverable determinism.mismatch breaker.change
        quota.refuse gateway.degraded"""

    assert set(EVENT_TYPES) == set(design.split())
    assert {type(example) for example in samples.EVENTS} == set(EVENT_TYPES.values())


def test_no_event_has_room_for_a_payload() -> None:
    """Every text of an event is bounded, so neither payload nor secret has a field to hide in."""
    for kind in EVENT_TYPES.values():
        for name in kind.__struct_fields__:
            assert name not in {"payload", "text", "data", "secret", "commitment_key", "note"}
    for example in samples.EVENTS:
        assert samples.COMMITMENT_KEY.hex() not in _line(example).decode()


def _good() -> dict[str, object]:
    document: dict[str, object] = json.loads(_line())
    return document


def _rehashed(document: dict[str, object]) -> bytes:
    """Spell a document canonically with a right hash, so that only its content is wrong."""
    document = {key: value for key, value in document.items() if key != "event_hash"}
    right = hashlib.sha256(b"\x00" + rfc8785.dumps(document)).hexdigest()
    return rfc8785.dumps({**document, "event_hash": right})


_WRONG = {
    "nothing": b"",
    "not JSON": b"hello",
    "cut off": _line()[:-5],
    "two newlines": _line() + b"\n",
    "a carriage return": _line()[:-1] + b"\r\n",
    "a space": _line().replace(b'"seq":7', b'"seq": 7'),
    "another number": _line().replace(b'"seq":7', b'"seq":8'),
    "another hash": _line().replace(b'"event_hash":"', b'"event_hash":"0', 1)[:-1],
    "a changed field": _line().replace(b'"0.1.0"', b'"0.1.1"'),
    "an unknown field": _rehashed(_good() | {"news": 1}),
    "an unknown inner field": _rehashed(_good() | {"f": {"news": 1}}),
    "an unknown type": _rehashed(_good() | {"event_type": "coffee"}),
    "another version": _rehashed(_good() | {"v": 2}),
    "a missing field": _rehashed({k: v for k, v in _good().items() if k != "ts_us"}),
    "a negative time": _rehashed(_good() | {"ts_us": -1}),
    "a number beyond 53 bits": _line().replace(b'"ts_us":1', b'"ts_us":9007199254740993'),
    "a log of nobody": _rehashed(_good() | {"log_id": "somewhere"}),
    "a default written out": _rehashed(
        json.loads(_line(events.GatewayDegraded(reason="x")))
        | {"f": {"degraded": True, "reason": "x"}}
    ),
}


@pytest.mark.parametrize("name", sorted(_WRONG))
def test_another_line_is_an_error(name: str) -> None:
    """Whatever is not one event in its only spelling is refused."""
    with pytest.raises(InvalidEvent):
        decode_event(_WRONG[name])


@given(st.sampled_from(samples.EVENTS), st.data())
def test_no_changed_byte_passes(fields: EventFields, data: st.DataObject) -> None:
    """A line with any one byte changed is refused."""
    line = bytearray(_line(fields)[:-1])
    at = data.draw(st.integers(0, len(line) - 1))
    line[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != line[at]))
    with pytest.raises(InvalidEvent):
        decode_event(bytes(line))


@given(st.binary(max_size=200))
def test_any_bytes_are_an_error(data: bytes) -> None:
    """For any bytes that are not an event the outcome is `InvalidEvent`, nothing else."""
    with pytest.raises(InvalidEvent):
        decode_event(data)


def test_the_head_of_the_module_shows_a_real_line() -> None:
    """The example in the module's docstring has the members and the order of a real line."""
    shown = re.findall(r'"(\w+)":', (events.__doc__ or "").split("`event_hash =")[0])
    wanted = re.findall(
        r'"(\w+)":', _line(events.FrameIn(
            plane="front.omega", peer=samples.KEY_ID, type="invoke", bytes=212,
            request_id=samples.REQUEST,
        )).decode()
    )

    assert shown == wanted
