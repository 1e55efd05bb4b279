"""Whoever is not on the list gets nothing, costs nobody anything, and is in the ledger."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import zmq

from broker.client import NotAuthorised, OmegaClient, Refused
from broker.client_profile import write_profile
from schemas import codec
from schemas.events import Event, FrameDrop
from schemas.messages import Cancel, Invoke, RegisterPlugin, Run, Status
from schemas.names import READ_BYTES_MAX
from schemas.payloads import JSONPayload, TextPayload
from schemas.profile import PROFILE_FILE, ClientProfile
from schemas.refusals import RefusalCode
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.raw import RawClient

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """One gateway without plugins."""
    with running_gateway() as running:
        yield running


def endpoint(gateway: RunningGateway, role: str = "omega") -> str:
    """Where the front of a role listens."""
    text = (gateway.home / "profiles" / role / PROFILE_FILE).read_bytes()
    return msgspec.toml.decode(text, type=ClientProfile).endpoint


def refused_handshakes(gateway: RunningGateway) -> int:
    """How many refused connections the ledger has counted on front.omega."""
    return sum(
        event.fields.count for event in gateway.events()
        if isinstance(event.fields, FrameDrop) and event.fields.code == "handshake_refused"
        and event.fields.plane == "front.omega"
    )


def is_drop(event: Event, code: str) -> bool:
    """Whether an event is a dropped frame of this code."""
    return isinstance(event.fields, FrameDrop) and event.fields.code == code


def test_a_key_that_nobody_added_gets_nothing_and_is_ledgered(
    gateway: RunningGateway, tmp_path: Path
) -> None:
    """The client says so at once, and the ledger counts the refused connection."""
    before = refused_handshakes(gateway)
    profile = tmp_path / "stranger"
    known = gateway.home / "profiles" / "omega" / PROFILE_FILE
    write_profile(str(profile), msgspec.toml.decode(known.read_bytes(), type=ClientProfile))

    with pytest.raises(NotAuthorised):
        OmegaClient(str(profile)).status()

    gateway.wait_for_event("the refused handshake",
                           lambda _: refused_handshakes(gateway) > before)


@pytest.mark.parametrize("mechanism", ["NULL", "PLAIN"])
def test_another_mechanism_gets_nothing_and_is_ledgered(
    gateway: RunningGateway, mechanism: str
) -> None:
    """A peer without CURVE never gets a frame through."""
    before = refused_handshakes(gateway)
    context = zmq.Context()
    try:
        peer = context.socket(zmq.DEALER)
        peer.linger = 0
        if mechanism == "PLAIN":
            peer.plain_username, peer.plain_password = b"omega", b"omega"
        peer.connect(endpoint(gateway))
        peer.send(codec.encode(Status(request_id=str(uuid.uuid4()))))

        gateway.wait_for_event("the refused handshake",
                               lambda _: refused_handshakes(gateway) > before)

        assert not peer.poll(0)
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    "greeting",
    [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", os.urandom(64),
     b"\xff" * 9],
    ids=["http", "tls", "random", "huge length"],
)
def test_raw_bytes_on_the_port_get_nothing_and_are_ledgered(
    gateway: RunningGateway, greeting: bytes
) -> None:
    """The connection is closed without an answer of ours, and counted."""
    before = refused_handshakes(gateway)
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(endpoint(gateway).removeprefix("ipc://"))
        stream.sendall(greeting)
        stream.shutdown(socket.SHUT_WR)

        gateway.wait_for_event("the refused connection",
                               lambda _: refused_handshakes(gateway) > before)


def fresh() -> str:
    """A new request id."""
    return str(uuid.uuid4())


def tampered(message: msgspec.Struct, **changes: object) -> bytes:
    """Encode a message with fields changed or added behind the types' back."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    return codec.MAGIC + msgspec.msgpack.encode({**fields, **changes})


INVOKE = Invoke(request_id=fresh(), plugin="none", method="m", payload=TextPayload("x"),
                timeout_ms=1000, commitment_key=b"k" * 32)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b""], "frame_malformed"),
        ([b"OPG1"], "frame_malformed"),
        ([b"OPG2" + codec.encode(Status(request_id=fresh()))[4:]], "frame_malformed"),
        ([b"OPG1\xc1\xc1"], "frame_malformed"),
        ([b"OPG1" + b"\x91" * 5000], "message_invalid"),
        ([codec.encode(Status(request_id=fresh())) + b"x"], "frame_malformed"),
        ([codec.encode(Status(request_id=fresh())), b""], "frame_count"),
        ([b"a"] * 4, "frame_count"),
        ([codec.encode(Run(call=1, method="m", payload=TextPayload("x"), timeout_ms=1,
                           request_id=fresh()))], "message_unknown"),
        ([tampered(INVOKE, extra=1)], "message_invalid"),
        ([tampered(INVOKE, request_id="not a uuid")], "message_invalid"),
        ([tampered(INVOKE, timeout_ms=-1)], "message_invalid"),
        ([tampered(INVOKE, timeout_ms=True)], "message_invalid"),
        ([tampered(INVOKE, commitment_key=b"short")], "message_invalid"),
        ([tampered(INVOKE, payload={"type": "json", "data": "text"})], "message_invalid"),
        ([tampered(INVOKE, payload=msgspec.msgpack.Ext(1, b"x"))], "message_invalid"),
    ],
    ids=["empty", "magic only", "another version", "not msgpack", "deep nesting", "trailing bytes",
         "two frames", "four frames", "a worker's message", "unknown field", "bad request id",
         "negative timeout", "bool for int", "short key", "text for bytes", "extension type"],
)
def test_a_malformed_frame_gets_one_refusal_and_costs_nobody_else_anything(
    gateway: RunningGateway, frames: list[bytes], code: str
) -> None:
    """The sender is told the code, the ledger has it, and the next request is served."""
    with RawClient(gateway.home / "profiles" / "omega") as raw:
        raw.send(*frames)
        refusal = raw.receive()

    assert refusal.code == code
    assert refusal.receipt is not None
    assert is_drop(gateway.events()[refusal.receipt.seq], code)
    assert gateway.omega().status().state == "serving"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'{"b":1,"a":2}', "json_not_canonical"), (b'{"a":1,"a":2}', "json_not_canonical"),
        (b"[NaN]", "json_not_canonical"), (b"\xff", "json_not_canonical"), (b"[1.0]",
                                                                          "json_not_canonical"),
        (b"[" * 2000 + b"]" * 2000, "json_too_deep"), (b'"' + b"x" * 300_000 + b'"',
                                                      "json_too_large"),
    ],
    ids=["unsorted", "duplicate keys", "NaN", "bad UTF-8", "another number", "deep", "large"],
)
def test_json_in_another_spelling_is_refused(
    gateway: RunningGateway, data: bytes, code: str
) -> None:
    """JSON is checked and not repaired, before any plugin could see it."""
    operator = gateway.operator()
    if not operator.list_plugins().plugins:
        source = (
            "from sandbox_worker.sdk import Context, JSONPayload, method\n\n\n"
            "@method()\ndef same(context: Context, document: dict) -> dict:\n"
            "    return document\n"
        )
        gateway.install(gateway.write_plugin("json-plugin", source), operator)

    with pytest.raises(Refused) as refused:
        gateway.omega().invoke("json-plugin", "same", JSONPayload(data))

    assert refused.value.code == code


def test_a_frame_over_the_limit_closes_the_connection_and_nothing_else(
    gateway: RunningGateway,
) -> None:
    """libzmq closes the oversized sender's connection; everyone else is served."""
    with RawClient(gateway.home / "profiles" / "omega") as raw:
        raw.send(b"OPG1" + b"x" * (3 * 1024 * 1024))

        assert gateway.omega().status().state == "serving"
        assert not raw.socket.poll(0)


def test_the_same_request_id_is_refused_the_second_time(gateway: RunningGateway) -> None:
    """One id names one request, whichever key or front asks again."""
    frame = codec.encode(Status(request_id=fresh()))
    with RawClient(gateway.home / "profiles" / "omega") as omega:
        omega.send(frame)
        omega.socket.recv()
        omega.send(frame)
        assert omega.receive().code == RefusalCode.DUPLICATE_REQUEST
    with RawClient(gateway.home / "profiles" / "auditor") as auditor:
        auditor.send(frame)
        assert auditor.receive().code == RefusalCode.DUPLICATE_REQUEST


def test_an_auditor_may_read_and_change_nothing(gateway: RunningGateway) -> None:
    """A change asked by an auditor's key is refused by the role table."""
    auditor = gateway.auditor()

    assert auditor.status().state == "serving"
    with pytest.raises(Refused) as refused:
        auditor.disable_plugin("json-plugin")
    assert refused.value.code == RefusalCode.ROLE_NOT_ALLOWED


def test_an_auditor_sends_nothing_large(gateway: RunningGateway) -> None:
    """No request of a key that may only read is large: above its bound none is decoded, an
    operator's is; and the sender learns which request it was."""
    for role, code in (("auditor", "frame_too_large"), ("operator", "bundle_malformed")):
        ask = RegisterPlugin(request_id=str(uuid.uuid4()), bundle=bytes(READ_BYTES_MAX))
        with RawClient(gateway.home / "profiles" / role) as raw:
            raw.send(codec.encode(ask))
            refusal = raw.receive()
        assert (refusal.code, refusal.request_id) == (code, ask.request_id)


def test_a_cancel_of_nothing_is_refused(gateway: RunningGateway) -> None:
    """A target that this key never sent is not known."""
    with RawClient(gateway.home / "profiles" / "omega") as raw:
        raw.send(codec.encode(Cancel(request_id=fresh(), target=fresh())))

        assert raw.receive().code == RefusalCode.REQUEST_UNKNOWN
