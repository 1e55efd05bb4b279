"""The asyncio client against a real socket: the same answers and the same refusals."""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable, Coroutine

import msgspec
import pytest
import zmq

from broker.client import (
    AsyncOmegaClient,
    Call,
    GatewayError,
    LedgerForked,
    NotAuthorised,
    Refused,
    Result,
    TimedOut,
    Unreachable,
)
from schemas import messages
from schemas.payloads import TextPayload
from tests.broker.scripted_gateway import (
    Request,
    ScriptedGateway,
    SmallLedger,
    echo,
    scripted_gateway,
)
from tests.broker.test_client import refusal, reply_to
from tests.broker.test_client_head import Honest

Body = Callable[[ScriptedGateway, AsyncOmegaClient], Coroutine[object, object, None]]


def run(script: Callable[[Request], list[msgspec.Struct]], body: Body) -> None:
    """Run a body with a connected client."""
    async def main(gateway: ScriptedGateway) -> None:
        async with AsyncOmegaClient(gateway.path()) as omega:
            await body(gateway, omega)

    with scripted_gateway(script) as gateway:
        asyncio.run(main(gateway))


def test_calls_of_many_tasks_find_their_answers():
    """A hundred tasks at once each get the answer to their own question."""
    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        results = await asyncio.gather(
            *(omega.invoke("a-plugin", "m", str(number)) for number in range(100))
        )
        assert [result.text for result in results] == [str(number) for number in range(100)]

    run(lambda request: [echo(request)], body)


def test_many_calls_keep_to_their_window_and_order():
    """Outcomes come in the calls' order, a refusal as an outcome, the window never exceeded."""
    held: list[Request] = []
    most: list[int] = []

    def script(request: Request) -> list[msgspec.Struct]:
        held.append(request)
        most.append(len(held))
        if len(held) < 5:
            return []
        ready = held[::-1]
        held.clear()
        return [refusal(one) if one.payload == TextPayload("3") else echo(one) for one in ready]

    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        calls = (Call("a-plugin", "m", str(number)) for number in range(20))
        outcomes = [outcome async for outcome in omega.invoke_many(calls, in_flight=5)]
        assert [index for index, _ in outcomes] == list(range(20))
        assert isinstance(outcomes[3][1], Refused)
        assert isinstance(outcomes[4][1], Result)
        assert max(most) <= 5

    run(script, body)


def test_reads_and_cancel_return_their_replies():
    """Each method sends its request and returns its reply."""
    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        target = "01234567-89ab-4def-8123-456789abcdef"
        assert (await omega.list_plugins()).plugins == ()
        assert (await omega.get_plugin("a-plugin")).plugin == "a-plugin"
        assert (await omega.status()).state == "serving"
        assert (await omega.show_request(target)).lines == ()
        assert (await omega.cancel(target)).outcome == "cancelled"

    run(lambda request: [reply_to(request)], body)


def test_a_refusal_is_raised_and_the_client_goes_on():
    """One call's refusal is that call's alone."""
    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        with pytest.raises(Refused):
            await omega.invoke("a-plugin", "m", "x")
        gateway.script = lambda request: [echo(request)]
        assert (await omega.invoke("a-plugin", "m", "y")).text == "y"

    run(lambda request: [refusal(request)], body)


def test_silence_ends_with_the_time():
    """The time asked for and a little, then `TimedOut`."""
    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        with pytest.raises(TimedOut):
            await omega.invoke("a-plugin", "m", "x", timeout=0.05)

    run(lambda _: [], body)


def test_a_cancelled_task_cancels_its_call_at_the_gateway():
    """Giving up tells the gateway, naming the call that nobody waits for."""
    asked = asyncio.Event()

    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        loop = asyncio.get_running_loop()

        def script(request: Request) -> list[msgspec.Struct]:
            if isinstance(request, messages.Invoke):
                loop.call_soon_threadsafe(asked.set)
                return []
            return [reply_to(request)]

        gateway.script = script
        task = asyncio.ensure_future(omega.invoke("a-plugin", "m", "x"))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await omega.status()).state == "serving"
        invoked, cancelled, _ = gateway.requests
        assert isinstance(cancelled, messages.Cancel)
        assert cancelled.target == invoked.request_id

    run(lambda _: [], body)


def test_an_unauthorised_key_raises_in_under_two_seconds():
    """A stranger hears it when connecting."""
    async def main(path: str) -> None:
        with pytest.raises(NotAuthorised):
            async with AsyncOmegaClient(path, connect_timeout=60):
                raise AssertionError("a stranger was admitted")

    with scripted_gateway() as gateway:
        gateway.profile("omega", f"{gateway.directory}/stranger")
        begin = time.monotonic()
        asyncio.run(main(f"{gateway.directory}/stranger"))
        assert time.monotonic() - begin < 2


def test_a_gateway_that_dies_ends_every_call_in_flight_at_once():
    """All waiting tasks get `Unreachable`; nobody waits for the timeout."""
    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        tasks = [asyncio.ensure_future(omega.invoke("a-plugin", "m", "x")) for _ in range(3)]
        async with asyncio.timeout(10):
            while len(gateway.requests) < 3:
                await asyncio.to_thread(select.select, [], [], [], 0.01)
        await asyncio.to_thread(gateway.stop)
        for task in tasks:
            with pytest.raises(Unreachable):
                await asyncio.wait_for(task, 5)

    run(lambda _: [], body)


def test_a_call_that_never_left_is_unreachable_and_not_timed_out():
    """While no gateway is there nothing is sent, and nobody is told to look for the request."""
    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        await omega.invoke("a-plugin", "m", "x")
        await asyncio.to_thread(gateway.stop)
        with pytest.raises(Unreachable, match="the request was not sent"):
            await omega.invoke("a-plugin", "m", "x", timeout=0.05)

    run(lambda request: [echo(request)], body)


def test_a_call_that_waits_to_leave_when_the_connection_is_lost_says_that_it_did_not():
    """The loss is noticed while the call still waits: it is told apart from calls that left."""
    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        await omega.invoke("a-plugin", "m", "x")
        # Nothing is awaited, so the client does not see the loss before the call begins.
        gateway.stop()
        deadline = time.monotonic() + 20
        while omega._link.socket.poll(1, zmq.POLLOUT):
            assert time.monotonic() < deadline, "the connection did not end"
        with pytest.raises(Unreachable, match=r"was lost.*the request was not sent"):
            await omega.invoke("a-plugin", "m", "x", timeout=20)

    run(lambda request: [echo(request)], body)


def test_a_client_that_is_not_open_says_so_at_once():
    """Before `async with` and after it there is no connection that a call could wait for."""
    async def body(gateway: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        other = AsyncOmegaClient(gateway.path())
        with pytest.raises(GatewayError, match="async with"):
            await asyncio.wait_for(other.invoke("a-plugin", "m", "x", timeout=60), 5)

    run(lambda request: [echo(request)], body)


def test_the_ledger_is_followed_and_a_fork_is_raised():
    """The asyncio client holds receipts against the same history."""
    honest = Honest(SmallLedger(20), 8)

    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        await omega.invoke("a-plugin", "m", "x")
        await omega.prove(3)
        honest.size = 11
        await omega.ledger_head()
        honest.changes = {"log_id": "omega-gateway/development/ffffffffffffffff"}
        with pytest.raises(LedgerForked):
            await omega.invoke("a-plugin", "m", "x")

    run(honest, body)


def test_heads_asked_for_while_calls_go_on_are_no_forks():
    """An answer that is overtaken by a newer receipt in the same moment is still honest."""
    honest = Honest(SmallLedger(60), 1)

    def script(request: Request) -> list[msgspec.Struct]:
        honest.size += 1
        return honest(request)

    async def body(_: ScriptedGateway, omega: AsyncOmegaClient) -> None:
        await asyncio.gather(
            *(omega.ledger_head() for _ in range(5)),
            *(omega.prove(0) for _ in range(5)),
            *(omega.invoke("a-plugin", "m", "x") for _ in range(30)),
        )

    run(script, body)
