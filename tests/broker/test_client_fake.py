"""The fake client: the real client's behaviour over a table of answers, for integrators' tests."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from broker.client import (
    AsyncOmegaClient,
    Call,
    GatewayError,
    OmegaClient,
    Refused,
    Result,
    TimedOut,
)
from broker.client_fake import LOG_ID, AsyncFakeOmegaClient, FakeOmegaClient
from schemas.canonical import InvalidJson
from schemas.messages import Budget, Cancel, Progress, Step, StepOutput, Usage
from schemas.payloads import DatasetSlicePayload, JSONPayload, Payload, TextPayload
from schemas.refusals import RefusalCode

BUDGET = Budget(calls=10, cpu_ms=1000, output_bytes=1000)


def words(omega: OmegaClient, text: str) -> int:
    """Code of an integrator's: it takes the real client's type, and tries a busy gateway again."""
    for _ in range(3):
        try:
            answer = omega.invoke("word-count", "count", text).json()
        except Refused as refused:
            if not refused.retryable:
                raise
        else:
            assert isinstance(answer, dict)
            found = answer["words"]
            assert isinstance(found, int)
            return found
    raise AssertionError("refused three times")


def test_answers_come_in_the_order_they_were_laid_down_and_the_last_stays():
    """A refusal that may be tried again is, and every receipt is of one rising ledger."""
    with FakeOmegaClient() as fake:
        fake.refuse("word-count", "count", RefusalCode.QUEUE_FULL, retry_after_ms=50)
        fake.answer("word-count", "count", {"words": 2})
        assert words(fake, "one two") == 2
        assert words(fake, "one two") == 2
        assert [call.payload for call in fake.calls] == [TextPayload("one two")] * 3
        results = [fake.invoke("word-count", "count", "x") for _ in range(3)]
    assert [result.receipt.log_id for result in results] == [LOG_ID] * 3
    seqs = [result.receipt.seq for result in results]
    assert seqs == sorted(set(seqs))
    assert len({result.receipt.event_hash for result in results}) == 3
    assert {len(result.commitment_key) for result in results} == {32}


def test_a_refusal_is_typed_as_the_gateways():
    """Code, hint, what the plugin said and a receipt; not a word differs from the code's page."""
    fake = FakeOmegaClient()
    fake.refuse("word-count", "count", RefusalCode.CANNOT_ANSWER, plugin_message="no words")
    with pytest.raises(Refused, match="cannot_answer: The plugin says that it cannot") as caught:
        words(fake, "")
    refusal = caught.value.refusal
    assert (refusal.plugin_message, caught.value.retryable) == ("no words", False)
    assert refusal.receipt is not None
    assert refusal.receipt.log_id == LOG_ID


def test_what_is_not_laid_down_is_refused():
    """An unknown plugin and an unknown method have their own codes."""
    fake = FakeOmegaClient()
    fake.answer("word-count", "count", "two")
    for plugin, method, code in (
        ("word-count", "cuont", "unknown_method"), ("word-cuont", "count", "unknown_plugin"),
    ):
        with pytest.raises(Refused) as caught:
            fake.invoke(plugin, method, "x")
        assert caught.value.code == code


def test_an_answer_may_be_made_from_the_input_with_progress_and_usage():
    """The function sees the payload as it travelled: JSON is its canonical bytes."""
    notes: list[Progress] = []
    usage = Usage(cpu_ms=3, wall_ms=4, max_rss_kb_upper_bound=5, output_bytes=6)
    fake = FakeOmegaClient(version="2.1.0")
    fake.answer("echo", "back", lambda payload: payload, usage=usage, notes=((500, "half"),))
    result = fake.invoke("echo", "back", {"b": 1, "a": [True]}, on_progress=notes.append)
    assert result.payload == JSONPayload(b'{"a":[true],"b":1}')
    assert (result.usage, result.version) == (usage, "2.1.0")
    assert [(note.permille, note.note) for note in notes] == [(500, "half")]


def test_what_cannot_be_sent_or_read_ends_as_with_a_gateway():
    """A value without a canonical form is not sent; a request that breaks the wire is refused."""
    fake = FakeOmegaClient()
    fake.answer("echo", "back", "x")
    with pytest.raises(InvalidJson):
        fake.invoke("echo", "back", {"a": float("nan")})
    with pytest.raises(Refused, match=r"message_invalid: .* \(at \$.plugin\)"):
        fake.invoke("Not A Plugin", "back", "x")
    assert fake.calls == []


@pytest.mark.parametrize("ordered", [True, False])
def test_many_calls_end_each_as_laid_down(ordered: bool):
    """Answers, a refusal and a silence come each at its call, and nothing waits."""
    fake = FakeOmegaClient()
    fake.answer("echo", "back", "0")
    fake.refuse("echo", "back", RefusalCode.QUEUE_FULL)
    fake.silence("echo", "back")
    fake.answer("echo", "back", lambda payload: payload)
    calls = [Call("echo", "back", str(number)) for number in range(6)]
    ends = dict(fake.invoke_many(calls, in_flight=2, ordered=ordered))
    assert [type(ends[number]) for number in range(6)] == [
        Result, Refused, TimedOut, Result, Result, Result
    ]
    assert len(fake.calls) == 6


def test_a_pipeline_runs_over_the_same_table():
    """Outputs flow along pointers; a refused step skips what waits for it, or ends all."""
    fake = FakeOmegaClient()
    fake.answer("word-count", "count", {"words": 2, "first": "one"})
    fake.answer("echo", "back", lambda payload: payload)
    fake.refuse("echo", "fail", RefusalCode.CANNOT_ANSWER)
    steps = [
        Step("last", "echo", "back", StepOutput("first", "/first")),
        Step("first", "word-count", "count", TextPayload("one two")),
    ]
    result = fake.invoke_pipeline(steps, budget=BUDGET)
    assert result.step("last").payload == TextPayload("one")
    assert [step.step for step in result.steps] == ["last", "first"]
    failing = [
        Step("first", "echo", "fail", TextPayload("x")),
        Step("second", "echo", "back", StepOutput("first")),
        Step("third", "echo", "back", StepOutput("fourth", "/nothing")),
        Step("fourth", "word-count", "count", TextPayload("x")),
    ]
    ended = fake.invoke_pipeline(failing, budget=BUDGET, on_error="skip_dependents")
    assert [step.outcome for step in ended.steps] == ["refused", "skipped", "refused", "result"]
    with pytest.raises(Refused, match="pipeline_step_failed"):
        fake.invoke_pipeline(failing, budget=BUDGET)
    with pytest.raises(Refused, match="pipeline_invalid"):
        fake.invoke_pipeline(steps[:1], budget=BUDGET)


def test_reads_say_what_was_laid_down_and_proofs_are_not_made_up():
    """Plugins, status and cancelling answer; what would need a ledger says that there is none."""
    fake = FakeOmegaClient()
    fake.answer("echo", "back", "x")
    request_id = fake.invoke("echo", "back", "x").request_id
    assert [entry.plugin for entry in fake.list_plugins().plugins] == ["echo"]
    assert fake.status().enabled == 1
    assert fake.cancel(request_id).outcome == "too_late"
    with pytest.raises(Refused, match="request_unknown"):
        fake.cancel("00000000-0000-4000-8000-000000000000")
    for ask in (
        fake.ledger_head, lambda: fake.prove(0), lambda: fake.prove_consistency(1),
        lambda: fake.get_plugin("echo"), lambda: fake.show_request(request_id),
    ):
        with pytest.raises(GatewayError, match="a fake has no ledger"):
            ask()


LONE = "text \udc80"
STEP = Step("one", "a-plugin", "m", TextPayload(LONE))
UNWRITABLE = {
    "text": lambda omega: omega.invoke("a-plugin", "m", LONE),
    "plugin": lambda omega: omega.invoke(LONE, "m", "x"),
    "media type": lambda omega: omega.invoke("a-plugin", "m", TextPayload("x", LONE)),
    "dataset key": lambda omega: omega.invoke("a-plugin", "m", DatasetSlicePayload("d", (LONE,))),
    "step": lambda omega: omega.invoke_pipeline([STEP], budget=BUDGET),
    "target": lambda omega: omega.cancel(LONE),
    "number": lambda omega: omega.prove(2**70),
    "timeout": lambda omega: omega.invoke("a-plugin", "m", "x", timeout=float("inf")),
    "no timeout": lambda omega: omega.invoke("a-plugin", "m", "x", timeout=float("nan")),
    "object": lambda omega: omega.invoke("a-plugin", "m", TextPayload(object())),
}


@pytest.mark.parametrize("what", UNWRITABLE)
def test_what_is_no_message_is_an_error_of_the_client_s(what):
    """A lone surrogate, a number or an object that msgpack has no form for: one error, nothing
    sent, and the next call goes on. The same for asyncio."""
    expected = "cannot be written as a message: .*; nothing was sent"

    async def ask() -> None:
        fake = AsyncFakeOmegaClient()
        fake.answer("a-plugin", "m", "y")
        async with fake:
            with pytest.raises(GatewayError, match=expected):
                await UNWRITABLE[what](fake)
            assert fake.requests == []
            assert (await fake.invoke("a-plugin", "m", "x")).text == "y"

    fake = FakeOmegaClient()
    fake.answer("a-plugin", "m", "y")
    with pytest.raises(GatewayError, match=expected):
        UNWRITABLE[what](fake)
    assert fake.requests == []
    assert fake.invoke("a-plugin", "m", "x").text == "y"
    asyncio.run(ask())


def test_what_no_gateway_could_read_is_refused_as_there():
    """A size below nothing is no message, and refused where a gateway would."""
    fake = FakeOmegaClient()
    for ask in (fake.prove, fake.prove_consistency):
        with pytest.raises(Refused, match="message_invalid") as refused:
            ask(0, size=-1)
        assert refused.value.refusal.where == "$.size"


def interface(client: type) -> dict[str, str]:
    """Every public method of a client, with its signature."""
    return {
        name: str(inspect.signature(method)) for name, method in inspect.getmembers(client)
        if not name.startswith("_") and inspect.isroutine(method)
    }


@pytest.mark.parametrize(("fake", "real"), [
    (FakeOmegaClient, OmegaClient), (AsyncFakeOmegaClient, AsyncOmegaClient),
])
def test_a_fake_can_be_called_as_the_real_client(fake: type, real: type):
    """Whatever the real one has, the fake has with the same signature, and tells what is async."""
    assert issubclass(fake, real)
    assert interface(real).items() <= interface(fake).items()
    assert interface(fake).keys() - interface(real).keys() == {"answer", "refuse", "silence"}
    for name in interface(real):
        kinds = [(inspect.iscoroutinefunction(one), inspect.isasyncgenfunction(one))
                 for one in (getattr(real, name), getattr(fake, name))]
        assert kinds[0] == kinds[1], name


def test_both_clients_ask_for_the_same():
    """What asyncio's client offers is what the other one offers, by name and arguments."""
    plain, asynchronous = interface(OmegaClient), interface(AsyncOmegaClient)
    assert plain.keys() - asynchronous.keys() == {"close"}
    assert asynchronous.keys() <= plain.keys()
    for name in asynchronous.keys() - {"invoke_many"}:
        assert asynchronous[name] == plain[name]


def test_the_asynchronous_fake_answers_over_the_same_table():
    """Answers, a refusal, a silence, many at once, a pipeline and reads end as laid down."""
    async def scenario() -> None:
        async with AsyncFakeOmegaClient() as fake:
            fake.refuse("echo", "back", RefusalCode.QUEUE_FULL)
            fake.silence("echo", "back")
            fake.answer("echo", "back", lambda payload: payload)
            with pytest.raises(Refused) as caught:
                await fake.invoke("echo", "back", "0")
            assert caught.value.retryable
            with pytest.raises(TimedOut):
                await fake.invoke("echo", "back", "1")
            notes = await asyncio.gather(*(fake.invoke("echo", "back", str(n)) for n in range(9)))
            assert [result.text for result in notes] == [str(number) for number in range(9)]
            many = fake.invoke_many([Call("echo", "back", str(n)) for n in range(5)], in_flight=2)
            assert [index async for index, _ in many] == [0, 1, 2, 3, 4]
            step = Step("only", "echo", "back", TextPayload("x"))
            result = await fake.invoke_pipeline([step], budget=BUDGET)
            assert result.step("only").payload == TextPayload("x")
            assert (await fake.status()).enabled == 1
            assert [call.method for call in fake.calls] == ["back"] * 16
            with pytest.raises(GatewayError, match="a fake has no ledger"):
                await fake.prove(0)

    asyncio.run(scenario())


def test_a_cancelled_task_cancels_its_call_at_the_fake_too():
    """What a real gateway would be told stands among the requests."""
    async def scenario() -> None:
        async with AsyncFakeOmegaClient() as fake:
            def cancelled_meanwhile(payload: Payload) -> Payload:
                task.cancel()
                return payload

            fake.answer("echo", "back", cancelled_meanwhile)
            task = asyncio.ensure_future(fake.invoke("echo", "back", "x"))
            with pytest.raises(asyncio.CancelledError):
                await task
            call, cancel = fake.requests
            assert isinstance(cancel, Cancel)
            assert cancel.target == call.request_id

    asyncio.run(scenario())
