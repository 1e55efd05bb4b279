"""Pipelines of three real plugins: fan-out, one that fails, one that hangs, one cancelled."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from broker.client import AsyncOmegaClient, Call, OmegaClient, Refused
from broker.client_session import new_request_id
from broker.orchestrator.calls import commitment
from schemas.events import InvokeAccept, InvokeEnd
from schemas.messages import Budget, Progress, Step, StepOutput
from schemas.payloads import JSONPayload, TextPayload, preimage
from schemas.refusals import RefusalCode
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway, running_gateway, wait_for

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

SPLIT = '''
import msgspec

from sandbox_worker.sdk import Context, TextPayload, method


class Halves(msgspec.Struct, forbid_unknown_fields=True):
    left: str
    right: str


@method()
def split(context: Context, text: TextPayload) -> Halves:
    middle = len(text.text) // 2
    return Halves(text.text[:middle], text.text[middle:])
'''
SHOUT = '''
from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method


@method()
def shout(context: Context, text: TextPayload) -> TextPayload:
    if text.text == "no":
        raise CannotAnswer("it is no")
    return TextPayload(text.text.upper())
'''
HANG = '''
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def hang(context: Context, text: TextPayload) -> TextPayload:
    while True:
        pass
'''
BUDGET = Budget(calls=16, cpu_ms=60_000, output_bytes=1_000_000)
FAN_OUT = (
    Step(name="loud-right", plugin="shout-plugin", method="shout",
         input=StepOutput(step="halves", pointer="/right")),
    Step(name="halves", plugin="split-plugin", method="split", input=TextPayload("abcdef")),
    Step(name="loud-left", plugin="shout-plugin", method="shout",
         input=StepOutput(step="halves", pointer="/left")),
    Step(name="again", plugin="shout-plugin", method="shout",
         input=StepOutput(step="loud-left")),
)


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """A gateway with the three plugins."""
    with running_gateway() as running:
        long = "cpu_ms = 9000\nwall_ms = 9000\nmemory_mb = 256\noutput_bytes = 4096\n"
        for name, source in (("split", SPLIT), ("shout", SHOUT), ("hang", HANG)):
            running.install(running.write_plugin(
                f"{name}-plugin", source, limits=f"{long}concurrency = 4\n",
                modules='["msgspec"]' if "msgspec" in source else "[]",
            ))
        yield running


def text_of(answer: object) -> str:
    """Give a step's answer, which must be a text."""
    assert isinstance(answer, TextPayload)
    return answer.text


def test_a_fan_out_answers_in_declared_order_and_tells_its_progress(
    gateway: RunningGateway
) -> None:
    """Two steps take parts of one output, a third the whole of another; each can be opened."""
    told: list[Progress] = []

    result = gateway.omega().invoke_pipeline(FAN_OUT, budget=BUDGET, on_progress=told.append)

    assert [step.step for step in result.steps] == [step.name for step in FAN_OUT]
    assert isinstance(result.step("halves").payload, JSONPayload)
    assert [text_of(result.step(name).payload) for name in ("loud-left", "loud-right", "again")] \
        == ["ABC", "DEF", "ABC"]
    assert [(one.step, one.permille) for one in told if one.step == "again"] \
        == [("again", 0), ("again", 1000)]
    accepts = {event.fields.step: event.fields for event in gateway.events()
               if isinstance(event.fields, InvokeAccept)
               and event.fields.pipeline == result.request_id}
    assert accepts.keys() == {step.name for step in FAN_OUT}
    assert accepts["again"].request_id == result.request_id_of("again")
    opened = commitment(result.commitment_key_of("again"), "input", preimage(TextPayload("ABC")))
    assert accepts["again"].input_commitment == opened


def test_a_failed_step_ends_all_or_only_what_waits_for_it(gateway: RunningGateway) -> None:
    """The refusal names the step; with `skip_dependents` the others go on."""
    steps = (
        Step(name="bad", plugin="shout-plugin", method="shout", input=TextPayload("no")),
        Step(name="after", plugin="shout-plugin", method="shout", input=StepOutput(step="bad")),
        Step(name="other", plugin="split-plugin", method="split", input=TextPayload("ab")),
    )
    omega = gateway.omega()

    with pytest.raises(Refused) as refused:
        omega.invoke_pipeline(steps, budget=BUDGET)
    assert refused.value.code == RefusalCode.PIPELINE_STEP_FAILED
    assert refused.value.refusal.where == "$.steps[0]"
    assert refused.value.refusal.plugin_message == "it is no"

    result = omega.invoke_pipeline(steps, budget=BUDGET, on_error="skip_dependents")
    assert [step.outcome for step in result.steps] == ["refused", "skipped", "result"]


def test_a_hanging_step_ends_with_the_pipelines_deadline(gateway: RunningGateway) -> None:
    """One deadline covers the whole, and the work is stopped, not only forgotten."""
    steps = (Step(name="hang", plugin="hang-plugin", method="hang", input=TextPayload("x")),)

    with pytest.raises(Refused) as refused:
        gateway.omega().invoke_pipeline(steps, budget=BUDGET, timeout=1.0)

    assert refused.value.code == RefusalCode.DEADLINE_EXCEEDED


def test_a_pipeline_is_cancelled_by_its_id_and_by_a_task(gateway: RunningGateway) -> None:
    """Cancel reaches what runs: the step ends cancelled in the ledger, both ways."""
    request_id = new_request_id()
    steps = (Step(name="hang", plugin="hang-plugin", method="hang", input=TextPayload("x")),)

    def cancel_when_it_runs() -> None:
        wait_for("the step to run", lambda: any(
            isinstance(event.fields, InvokeAccept) and event.fields.pipeline == request_id
            for event in gateway.events()
        ))
        with OmegaClient.from_home(str(gateway.home)) as other:
            assert other.cancel(request_id).outcome == "cancelled"

    thread = threading.Thread(target=cancel_when_it_runs)
    thread.start()
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke_pipeline(steps, budget=BUDGET, timeout=8, request_id=request_id)
    thread.join()
    assert refused.value.code == RefusalCode.CANCELLED

    async def give_up() -> None:
        async with AsyncOmegaClient.from_home(str(gateway.home)) as omega:
            begun = asyncio.Event()
            task = asyncio.ensure_future(omega.invoke_pipeline(
                steps, budget=BUDGET, timeout=8, on_progress=lambda _: begun.set()
            ))
            await asyncio.wait_for(begun.wait(), 15)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    before = len(gateway.events())
    asyncio.run(give_up())
    wait_for("the second cancel", lambda: any(
        isinstance(event.fields, InvokeEnd) and event.fields.outcome == "cancelled"
        for event in gateway.events()[before:]
    ))


def test_the_command_runs_a_file(gateway: RunningGateway, tmp_path: Path) -> None:
    """`pipeline run` reads the graph from TOML, tells progress and prints every step."""
    file = tmp_path / "words.toml"
    (tmp_path / "words.txt").write_text("good day")
    file.write_text("""
        timeout_ms = 9000
        [budget]
        cpu_ms = 20000
        [[steps]]
        name = "halves"
        plugin = "split-plugin"
        method = "split"
        file = "words.txt"
        [[steps]]
        name = "loud"
        plugin = "shout-plugin"
        method = "shout"
        from = "halves"
        pointer = "/right"
    """)

    done = command("pipeline", "run", str(file), "--output", "json", home=gateway.home)
    document: dict[str, Any] = json.loads(done.out)
    assert [step["outcome"] for step in document["steps"]] == ["result", "result"]
    assert document["steps"][1]["payload"]["text"] == " DAY"
    assert "loud: began" in done.err

    shown = command("pipeline", "run", str(file), home=gateway.home)
    assert "shout-plugin shout" in shown.out

    file.write_text(file.read_text().replace('from = "halves"', 'from = "nobody"'))
    refused = command("pipeline", "run", str(file), home=gateway.home)
    assert (refused.code, "no step nobody" in refused.err) == (1, True)

    file.write_text('[[steps]]\nname = "x"\nplugin = "p"\n')
    invalid = command("pipeline", "run", str(file), home=gateway.home)
    assert invalid.code == 5
    assert "$.steps[0]" in invalid.err


def test_lines_are_answered_line_by_line(gateway: RunningGateway, tmp_path: Path) -> None:
    """A line in is a line out, also for the one that fails, and the exit code says so."""
    words = tmp_path / "words.txt"
    words.write_text("one\ntwo\nno\nfour\n")
    shout = ("invoke", "shout-plugin", "shout", "--lines", str(words))

    plain = command(*shout, home=gateway.home)
    assert plain.out.splitlines() == ["ONE", "TWO", "", "FOUR"]
    assert (plain.code, "line 3" in plain.err) == (1, True)

    words.write_text("one\ntwo\n")
    told = command(*shout, "--as-completed", "--in-flight", "1", "--output", "ndjson",
                   home=gateway.home)
    answers: list[dict[str, Any]] = [json.loads(line) for line in told.out.splitlines()]
    assert [(one["line"], one["payload"]["text"]) for one in answers] == [(1, "ONE"), (2, "TWO")]
    assert told.code == 0


def test_a_call_of_a_client_that_went_is_stopped() -> None:
    """With `keep_alive`, a client that is gone for the grace has its work ended."""
    times = "\n[times]\npresence_ms = 200\npresence_grace_ms = 400\n"
    with running_gateway(times) as running:
        running.install(running.write_plugin(
            "hang-plugin", HANG, limits="cpu_ms = 60000\nwall_ms = 60000\nmemory_mb = 256\n"
            "output_bytes = 4096\nconcurrency = 4\n",
        ))
        with OmegaClient.from_home(str(running.home)) as omega:
            call = omega._session.invoke(
                Call("hang-plugin", "hang", TextPayload("x"), timeout=60, keep_alive=True), None,
                None,
            )
            omega._send(call)
            running.wait_for_event("the call", lambda event: isinstance(
                event.fields, InvokeAccept) and event.fields.request_id == call[0])

        end = running.wait_for_event("its end", lambda event: isinstance(event.fields, InvokeEnd))
        assert isinstance(end.fields, InvokeEnd)
        assert (end.fields.outcome, end.fields.code) == ("cancelled", RefusalCode.CANCELLED)
