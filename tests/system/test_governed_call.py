"""A governed call from end to end, and what is refused on the way, on the real thing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from broker.client import GatewayError, Refused
from broker.evidence.verify import verify_directory
from schemas.denials import denied_hint
from schemas.events import (
    FrameDrop,
    FrameIn,
    FrameOut,
    InvokeAccept,
    InvokeEnd,
    PluginReject,
    WorkerAttest,
    WorkerProbe,
)
from schemas.payloads import JSONPayload, TextPayload
from schemas.refusals import RefusalCode
from tests.support.gateway import ECHO, RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail]

ATTEMPTS = '''
from sandbox_worker.sdk import CannotAnswer, Context, InvalidInput, TextPayload, method


@method()
def open_file(context: Context, text: TextPayload) -> TextPayload:
    with open(text.text) as file:
        return TextPayload(file.read())


@method()
def spin(context: Context, text: TextPayload) -> TextPayload:
    while True:
        pass


@method()
def fill(context: Context, text: TextPayload) -> TextPayload:
    held = []
    while True:
        held.append(bytearray(1 << 20))


@method()
def flood(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload("x" * 1_000_000)


@method()
def wrong(context: Context, text: TextPayload) -> TextPayload:
    return 7


@method()
def invalid(context: Context, text: TextPayload) -> TextPayload:
    raise InvalidInput("not like this")


@method()
def unable(context: Context, text: TextPayload) -> TextPayload:
    raise CannotAnswer("no idea")


@method()
def broken(context: Context, text: TextPayload) -> TextPayload:
    raise KeyError("secret detail")


@method()
def leave(context: Context, text: TextPayload) -> TextPayload:
    __import__("posix")._exit(0)
'''


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """One gateway with the echo plugin and the one that tries things."""
    with running_gateway() as running:
        running.install(running.write_plugin("echo-plugin", ECHO))
        running.install(running.write_plugin("attempts", ATTEMPTS, limits=(
            "cpu_ms = 300\nwall_ms = 20000\nmemory_mb = 128\noutput_bytes = 4096\nconcurrency = 2\n"
        )))
        yield running


def test_omega_gets_its_answer_with_receipt_and_usage(gateway: RunningGateway) -> None:
    """The answer is the plugin's, the receipt names the ledgered end, usage is told."""
    result = gateway.omega().invoke("echo-plugin", "echo", "Grüße, OMEGA")

    assert result.payload == TextPayload("Grüße, OMEGA")
    assert result.usage.output_bytes == len("Grüße, OMEGA".encode())
    assert result.usage.max_rss_kb_upper_bound > 0
    end = gateway.events()[result.receipt.seq]
    assert end.event_hash == result.receipt.event_hash
    assert isinstance(end.fields, InvokeEnd)
    assert (end.fields.request_id, end.fields.outcome) == (result.request_id, "result")


def test_a_call_leaves_its_whole_story_in_the_ledger(gateway: RunningGateway) -> None:
    """In order: frame in, accepted, run out, result in, ended, reply out; nothing of the
    payload."""
    result = gateway.omega().invoke("echo-plugin", "echo", "a rare secret: xylophonist")

    story = [event for event in gateway.events()
             if getattr(event.fields, "request_id", None) == result.request_id]
    assert [type(event.fields) for event in story] == [
        FrameIn, InvokeAccept, FrameOut, FrameIn, InvokeEnd, FrameOut,
    ]
    assert "xylophonist" not in "".join(map(repr, gateway.events()))


def test_the_worker_was_attested_and_witnessed_before_its_first_call(
    gateway: RunningGateway,
) -> None:
    """Each worker's attestation and witness stand before the first run it was given."""
    gateway.omega().invoke("echo-plugin", "echo", "x")

    ready: set[str] = set()
    attested: set[str] = set()
    for event in gateway.events():
        fields = event.fields
        if isinstance(fields, WorkerAttest) and fields.accepted:
            attested.add(fields.incarnation)
        elif isinstance(fields, WorkerProbe) and fields.passed:
            ready.add(fields.incarnation)
        elif isinstance(fields, FrameOut) and fields.type == "run":
            assert fields.peer in attested & ready


@pytest.mark.parametrize(
    ("method", "code"),
    [
        ("open_file", RefusalCode.PLUGIN_ERROR),
        ("spin", RefusalCode.CPU_LIMIT_EXCEEDED),
        ("fill", RefusalCode.MEMORY_LIMIT_EXCEEDED),
        ("flood", RefusalCode.OUTPUT_LIMIT_EXCEEDED),
        ("wrong", RefusalCode.OUTPUT_KIND_MISMATCH),
        ("invalid", RefusalCode.INVALID_INPUT),
        ("unable", RefusalCode.CANNOT_ANSWER),
        ("broken", RefusalCode.PLUGIN_ERROR),
        ("leave", RefusalCode.PLUGIN_CRASHED),
    ],
)
def test_what_a_plugin_may_not_do_ends_in_its_own_refusal(
    gateway: RunningGateway, method: str, code: RefusalCode
) -> None:
    """Each limit and failure has its code, is in the ledger, and the next call is served."""
    omega = gateway.omega()

    with pytest.raises(Refused) as refused:
        omega.invoke("attempts", method, "/etc/passwd")

    assert refused.value.code == code
    end = gateway.events()[refused.value.refusal.receipt.seq].fields
    assert isinstance(end, InvokeEnd)
    assert end.code == code
    assert omega.invoke("echo-plugin", "echo", "still here").text == "still here"
    # What was denied is named with the line to add, as the plugin's claim and without its argument.
    assert (refused.value.refusal.hint == denied_hint("file")) == (method == "open_file")


@pytest.mark.parametrize(
    ("plugin", "method", "payload", "code"),
    [
        ("no-such-plugin", "echo", TextPayload("x"), RefusalCode.UNKNOWN_PLUGIN),
        ("echo-plugin", "no_such_method", TextPayload("x"), RefusalCode.UNKNOWN_METHOD),
        ("echo-plugin", "echo", JSONPayload(b"{}"), RefusalCode.PAYLOAD_KIND_NOT_ACCEPTED),
        ("echo-plugin", "echo", TextPayload("x" * 1_100_000), RefusalCode.TEXT_TOO_LARGE),
    ],
)
def test_an_input_that_does_not_fit_is_refused_before_anything_runs(
    gateway: RunningGateway, plugin: str, method: str, payload: TextPayload, code: RefusalCode
) -> None:
    """The refusal names its code and the ledger holds no acceptance."""
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke(plugin, method, payload)

    assert refused.value.code == code
    assert not [event for event in gateway.events() if isinstance(event.fields, InvokeAccept)
                and event.fields.request_id == refused.value.refusal.request_id]


def test_an_operator_cannot_invoke(gateway: RunningGateway) -> None:
    """The admin front's decoder cannot express an invocation; the attempt is ledgered."""
    from schemas.codec import encode
    from schemas.messages import Invoke
    from tests.support.raw import RawClient

    with RawClient(gateway.home / "profiles" / "operator") as raw:
        raw.send(encode(Invoke(
            request_id="0b9fd6b2-8a6f-4f0e-9d5b-0123456789ab", plugin="echo-plugin", method="echo",
            payload=TextPayload("x"), timeout_ms=1000, commitment_key=b"k" * 32)))
        reply = raw.receive()

    assert reply.code == RefusalCode.MESSAGE_UNKNOWN
    gateway.wait_for_event("the dropped frame", lambda event: isinstance(event.fields, FrameDrop)
                           and event.fields.code == "message_unknown"
                           and event.fields.plane == "front.admin")


def test_an_unsigned_or_foreign_bundle_is_rejected_and_ledgered(gateway: RunningGateway) -> None:
    """A bundle signed by an unknown key does not get in, and the refusal is an event."""
    from tests.support.bundles import signed_bundle

    bundle = signed_bundle("stranger", "1.0.0")

    with pytest.raises(GatewayError) as refused:
        gateway.operator().register_plugin(bundle)

    assert isinstance(refused.value, Refused)
    assert isinstance(gateway.events()[refused.value.refusal.receipt.seq].fields, PluginReject)


def test_the_whole_ledger_verifies_while_it_is_written(gateway: RunningGateway) -> None:
    """Bytes, chain, spelling, checkpoints and anchor hold."""
    gateway.omega().invoke("echo-plugin", "echo", "x")

    report = verify_directory(
        str(gateway.home / "ledger"), anchor_directory=str(gateway.home / "anchor")
    )

    assert report.ok, report
