"""Many calls at once: a window in flight, in order or as they end."""

from __future__ import annotations

import msgspec
import pytest

from broker.client import (
    Call,
    Refused,
    Result,
    TimedOut,
)
from schemas.payloads import TextPayload
from tests.broker.scripted_gateway import (
    Request,
    echo,
    scripted_gateway,
)
from tests.broker.test_client import client, refusal


@pytest.mark.parametrize("ordered", [True, False])
def test_many_calls_keep_to_their_window(ordered):
    """No more than the window is in flight, and every call comes back once with its outcome."""
    held: list[Request] = []

    def script(request: Request) -> list[msgspec.Struct]:
        held.append(request)
        most.append(len(held))
        if len(held) < 5:
            return []
        # Answer in another order than asked; the third is refused.
        ready = held[::-1]
        held.clear()
        return [
            refusal(one) if one.payload == TextPayload("3") else echo(one) for one in ready
        ]

    most: list[int] = []
    with scripted_gateway(script) as gateway, client(gateway) as omega:
        calls = (Call("a-plugin", "m", str(number)) for number in range(20))
        outcomes = list(omega.invoke_many(calls, in_flight=5, ordered=ordered))

        assert max(most) == 5
        assert sorted(index for index, _ in outcomes) == list(range(20))
        assert [index for index, _ in outcomes] == list(range(20)) or not ordered
        for index, outcome in outcomes:
            if index == 3:
                assert isinstance(outcome, Refused)
            else:
                assert isinstance(outcome, Result)
                assert outcome.text == str(index)


def test_a_stream_of_calls_that_is_left_leaves_nothing_behind():
    """Breaking off forgets what was in flight, and the client goes on."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        for _ in omega.invoke_many(Call("a-plugin", "m", "x") for _ in range(100)):
            break

        assert omega.invoke("a-plugin", "m", "y").text == "y"
        assert omega._session.waiting == {}
        assert omega._arrived == {}


def test_a_call_among_many_that_is_never_answered_times_out_alone():
    """The others have their results."""
    def script(request: Request) -> list[msgspec.Struct]:
        return [] if request.payload == TextPayload("1") else [echo(request)]

    with scripted_gateway(script) as gateway, client(gateway) as omega:
        calls = [Call("a-plugin", "m", str(number), timeout=0.05) for number in range(3)]
        outcomes = dict(omega.invoke_many(calls, ordered=False))

        assert isinstance(outcomes[1], TimedOut)
        assert isinstance(outcomes[0], Result)
        assert isinstance(outcomes[2], Result)


# --- Everything else one can ask ---
