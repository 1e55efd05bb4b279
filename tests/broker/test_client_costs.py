"""What a call that goes wrong costs the client: a sentence, and nothing of other calls."""

from __future__ import annotations

import msgspec
import pytest

from broker.client import AdminClient, Call, GatewayError, Refused
from broker.client_session import PayloadLike
from schemas import messages
from schemas.canonical import InvalidJson
from schemas.refusals import RefusalCode
from tests.broker.scripted_gateway import Request, echo, scripted_gateway
from tests.broker.test_client import client, refusal


def test_what_the_plugin_said_is_in_the_sentence():
    """A traceback or a log line of OMEGA's shows it; the gateway's own words are apart from it."""
    def script(request: Request) -> list[msgspec.Struct]:
        no = refusal(request, RefusalCode.CANNOT_ANSWER)
        return [msgspec.structs.replace(no, plugin_message="the order is empty")]

    with scripted_gateway(script) as gateway, client(gateway) as omega:
        with pytest.raises(Refused, match="the plugin said: 'the order is empty'") as no:
            omega.invoke("a-plugin", "m", "x")
        assert "order" not in no.value.sentence


def test_a_request_that_is_too_large_is_not_sent_and_costs_nothing_else():
    """It is refused here, with both figures: sent, it would end the connection."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        with pytest.raises(GatewayError, match=r"has 2097\d\d\d bytes, .* at most 2097152"):
            omega.invoke("a-plugin", "m", "x" * 2_097_152)
        assert omega.invoke("a-plugin", "m", "y").text == "y"
        assert len(gateway.requests) == 1


@pytest.mark.parametrize("payload", ["x" * 2_097_152, {"x": float("nan")}])
@pytest.mark.parametrize("ordered", [False, True])
def test_a_call_of_many_that_cannot_be_sent_costs_none_before_it(
    payload: PayloadLike, ordered: bool
) -> None:
    """Those that were sent are answered, whatever else was to follow; then its error is raised."""
    calls = [Call("a-plugin", "m", one) for one in ("0", "1", payload, "3")]
    with scripted_gateway() as gateway, client(gateway) as omega:
        outcomes = omega.invoke_many(calls, ordered=ordered)
        assert sorted(index for index, _ in (next(outcomes), next(outcomes))) == [0, 1]
        with pytest.raises((GatewayError, InvalidJson)):
            next(outcomes)
        assert len(gateway.requests) == 2
        assert not omega._session.waiting


def test_an_auditor_hears_what_an_auditor_may_send():
    """A bundle is nothing for an auditor, and the sentence speaks of the role."""
    with scripted_gateway() as gateway, AdminClient(gateway.path("auditor")) as auditor:
        with pytest.raises(GatewayError, match="at most 65536 from a client of role auditor"):
            auditor.register_plugin(bytes(65_536))
        assert not gateway.requests


def test_an_error_in_a_callback_leaves_nothing_behind():
    """Nobody waits for that call any more, and the client goes on."""
    def script(request: Request) -> list[msgspec.Struct]:
        return [messages.Progress(request_id=request.request_id, permille=10), echo(request)]

    def wrong(note: messages.Progress) -> None:
        raise ZeroDivisionError

    with scripted_gateway(script) as gateway, client(gateway) as omega:
        with pytest.raises(ZeroDivisionError):
            omega.invoke("a-plugin", "m", "x", on_progress=wrong)
        assert not omega._session.waiting
        assert omega.invoke("a-plugin", "m", "y").text == "y"
