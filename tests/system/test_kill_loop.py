"""A broker that is killed again and again: what it acknowledged is there, what it began ends once,
and what was asked before is not done again."""

from __future__ import annotations

import signal
import uuid
from collections import Counter
from typing import NamedTuple

import pytest

from broker.evidence.verify import verify_directory
from schemas import codec
from schemas.events import Event, FrameIn, FrameOut, InvokeAccept, InvokeEnd, LedgerOpen
from schemas.messages import Invoke, Receipt
from schemas.payloads import TextPayload
from schemas.refusals import RefusalCode
from tests.support.gateway import ECHO, RunningGateway, running_gateway
from tests.support.raw import RawClient

pytestmark = [pytest.mark.system, pytest.mark.jail]

ASKED = 24
KILLED_AFTER = (0, 1, 15)
"""After how many replies of a round the broker is killed; 0 is right after the first acceptance."""


class Told(NamedTuple):
    """A reply that reached us: what it answers, and the event that it points at."""

    request_id: str
    receipt: Receipt


def frame(request_id: str) -> bytes:
    """An invocation with an id of ours."""
    return codec.encode(Invoke(
        request_id=request_id, plugin="echo-plugin", method="echo", timeout_ms=20_000,
        payload=TextPayload(request_id), commitment_key=bytes(32),
    ))


def killed_round(gateway: RunningGateway, ids: list[str], replies: int) -> list[Told]:
    """Ask for much, hear some replies, kill the broker, and start it again."""
    told = []
    before = len(gateway.events())
    with RawClient(gateway.home / "profiles" / "omega") as raw:
        for request_id in ids:
            raw.send(frame(request_id))
        gateway.wait_for_event("the first acceptance", lambda event: event.seq >= before
                               and isinstance(event.fields, InvokeAccept))
        while len(told) < replies:
            reply = codec.decode_reply(raw.socket.recv())
            receipt = getattr(reply, "receipt", None)
            assert isinstance(receipt, Receipt), reply
            told.append(Told(str(getattr(reply, "request_id", None)), receipt))
        gateway.stop(signal.SIGKILL)
    gateway.start()
    return told


def hold(events: list[Event], told: list[Told], opened: int) -> None:
    """Nothing acknowledged is lost, and every accepted call has exactly one end."""
    sent = {event.fields.request_id for event in events if isinstance(event.fields, FrameOut)}
    for reply in told:
        assert events[reply.receipt.seq].event_hash == reply.receipt.event_hash
        assert reply.request_id in sent
    accepted = [event.fields.request_id for event in events
                if isinstance(event.fields, InvokeAccept)]
    ends = Counter(event.fields.request_id for event in events
                   if isinstance(event.fields, InvokeEnd))
    assert len(set(accepted)) == len(accepted)
    assert ends == Counter(accepted)
    answered = {reply.request_id for reply in told}
    for event in events:
        fields = event.fields
        if isinstance(fields, InvokeEnd) and fields.outcome == "abandoned":
            assert fields.request_id not in answered
            last_open = max(one.seq for one in events[: event.seq]
                            if isinstance(one.fields, LedgerOpen))
            assert not any(isinstance(one.fields, FrameIn) for one in events[last_open:event.seq])
    assert sum(isinstance(event.fields, LedgerOpen) for event in events) == opened


def test_a_broker_that_is_killed_again_and_again_loses_nothing() -> None:
    """After each kill -9 the ledger holds what was told, ends what was open as abandoned, once, and
    a request id of any round before is refused; the whole ledger verifies and passes the audit."""
    told: list[Told] = []
    asked: list[str] = []
    abandoned = 0
    with running_gateway() as gateway:
        gateway.install(gateway.write_plugin("echo-plugin", ECHO))
        for number, replies in enumerate(KILLED_AFTER, 2):
            ids = [str(uuid.uuid4()) for _ in range(ASKED)]
            told += killed_round(gateway, ids, replies)
            events = gateway.events()
            hold(events, told, number)
            heard = {event.fields.request_id for event in events
                     if isinstance(event.fields, FrameIn)}
            asked += [request_id for request_id in ids if request_id in heard]
            with RawClient(gateway.home / "profiles" / "omega") as raw:
                for request_id in (asked[0], asked[-1]):
                    raw.send(frame(request_id))
                    refusal = raw.receive()
                    assert refusal.code == RefusalCode.DUPLICATE_REQUEST
                    assert "ended at event" in refusal.hint
            abandoned = sum(getattr(event.fields, "outcome", "") == "abandoned"
                            for event in events)
        assert abandoned > ASKED // 2
        report = verify_directory(
            str(gateway.home / "ledger"), anchor_directory=str(gateway.home / "anchor")
        )
        assert report.ok, report
        assert gateway.omega().invoke("echo-plugin", "echo", "at last").text == "at last"
