"""`omega-gateway replay` against one real gateway: what was asked, run once more and compared."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.client import OmegaClient, Refused, Result
from schemas.events import InvokeAccept, InvokeEnd
from tests.cli.command import Done
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

METHODS = '''
import time
from sandbox_worker.sdk import CannotAnswer, Context, TextPayload, method


@method(deterministic=True)
def upper(context: Context, text: TextPayload) -> TextPayload:
    """Give the text in capitals."""
    if text.text == "nothing":
        raise CannotAnswer("nothing to say")
    return TextPayload(text.text.upper())


@method()
def echo(context: Context, text: TextPayload) -> TextPayload:
    """Give the text back and promise nothing."""
    return text


@method()
def spin(context: Context, text: TextPayload) -> TextPayload:
    """Never end."""
    while True:
        pass
'''
CLOCK = '''
import time
from sandbox_worker.sdk import Context, TextPayload, method


@method()
def now(context: Context, text: TextPayload) -> TextPayload:
    """Give the time, which never comes again."""
    return TextPayload(str(time.monotonic_ns()))
'''
CLOCK_EXTRA = 'capabilities = ["clock.read"]\n'


class Told:
    """A gateway, and the calls that were made of it."""

    def __init__(self, running: RunningGateway) -> None:
        """Ask."""
        running.install(running.write_plugin("word-plugin", METHODS, modules='["time"]'))
        running.install(running.write_plugin(
            "clock-plugin", CLOCK, modules='["time"]', extra=CLOCK_EXTRA))
        self.running = running
        self.omega: OmegaClient = running.omega()
        self.upper: Result = self.omega.invoke("word-plugin", "upper", "said")
        self.echo: Result = self.omega.invoke("word-plugin", "echo", "said")
        self.now: Result = self.omega.invoke("clock-plugin", "now", "said")

    def accepts(self) -> list[int]:
        """Give the positions of all accepted invocations."""
        return [one.seq for one in self.running.events() if isinstance(one.fields, InvokeAccept)]

    def refused(self, method: str, text: str, timeout: float | None = None) -> int:
        """Make a call that gets no answer; gives the position of its end."""
        with pytest.raises(Refused) as refused:
            self.omega.invoke("word-plugin", method, text, timeout=timeout)
        receipt = refused.value.refusal.receipt
        assert receipt is not None
        return receipt.seq

    def replay(self, seq: int, *arguments: str) -> Done:
        """Run `omega-gateway replay`."""
        return command("replay", str(seq), *arguments, home=self.running.home)


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """Give a running gateway that answered a call of each kind."""
    policy = '[grants."clock-plugin"]\ncapabilities = ["clock.read"]\n'
    with running_gateway(policy=policy) as gateway:
        yield Told(gateway)


def test_the_same_comes_out_again_and_is_an_invocation_of_its_own(told):
    """By its end and by its acceptance, as JSON and for people; both receipts are said."""
    end, before = told.upper.receipt, told.accepts()
    done = told.replay(end.seq, "--text", "said", "--output", "json")
    assert done.code == 0, done.err
    document = done.document()
    assert (document["verdict"], document["compared"]) == ("same", "output_fingerprint")
    old, new = document["before"], document["now"]
    assert old["receipt"]["event_hash"] == end.event_hash
    assert (old["version"], old["output"]) == (new["version"], new["output"])
    again = told.accepts()
    assert len(again) == len(before) + 1
    events = {event.seq: event.fields for event in told.running.events()}
    ended = events[new["receipt"]["seq"]]
    assert isinstance(ended, InvokeEnd)
    assert ended.request_id == events[again[-1]].request_id == new["request_id"]
    assert ended.output_fingerprint == new["output"]

    accepted = next(seq for seq in before if events[seq].request_id == told.upper.request_id)
    done = told.replay(accepted, "--text", "said")
    assert done.code == 0, done.err
    assert "same" in done.out.splitlines()[0]
    assert end.event_hash in done.out


def test_another_input_is_refused_before_anything_runs(told):
    """Another text, another media type, and a key of another call: both values are said."""
    before = told.accepts()
    key = told.upper.commitment_key.hex()
    for arguments in (
        ("--text", "said", "--media-type", "text/markdown"),
        ("--text", "said", "--commitment-key", told.echo.commitment_key.hex()),
        ("--text", "sad", "--commitment-key", key),
    ):
        done = told.replay(told.upper.receipt.seq, *arguments)
        assert done.code == 1
        assert "this is not the input of event" in done.sentence()
        assert "nothing was run" in done.sentence()
    assert told.accepts() == before


def test_a_method_that_promises_nothing_needs_the_calls_key(told):
    """Without it a usage sentence and no run; with it the same, or another answer and exit 1."""
    before = told.accepts()
    done = told.replay(told.echo.receipt.seq, "--text", "said")
    assert done.code == 2
    assert "give --commitment-key" in done.sentence()
    assert told.accepts() == before

    for result, verdict, code in ((told.echo, "same", 0), (told.now, "another answer", 1)):
        done = told.replay(
            result.receipt.seq, "--text", "said", "--commitment-key", result.commitment_key.hex(),
            "--output", "json",
        )
        assert done.code == code, done.err
        document = done.document()
        assert (document["verdict"], document["compared"]) == (verdict, "output_commitment")


def test_a_refusal_comes_out_again_and_what_has_no_answer_is_not_run(told):
    """A plugin's refusal is compared by its code; a call that ran out of time is not replayed."""
    done = told.replay(told.refused("upper", "nothing"), "--text", "nothing", "--output", "json")
    assert done.code == 0, done.err
    document = done.document()
    assert (document["compared"], document["now"]["output"]) == ("code", "cannot_answer")

    late = told.refused("spin", "said", timeout=0.3)
    before = told.accepts()
    for seq, sentence in (
        (late, "ended as deadline"), (0, "event 0 is ledger.open"),
    ):
        done = told.replay(seq, "--text", "said", "--commitment-key", "00" * 32)
        assert done.code == 1
        assert sentence in done.sentence()
    assert told.accepts() == before
