"""The client library against a real socket: what it sends, takes, ignores and raises."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from broker.client import (
    AdminClient,
    GatewayError,
    NotAuthorised,
    OmegaClient,
    Refused,
    Result,
    TimedOut,
    Unreachable,
)
from broker.keys import KeyFileRefused, new_curve_pair
from schemas import messages
from schemas.canonical import InvalidJson, canonical_bytes
from schemas.codec import MAGIC
from schemas.payloads import BinaryRefPayload, JSONPayload, TextPayload
from schemas.refusals import RefusalCode
from tests.broker.scripted_gateway import (
    LOG_ID,
    USAGE,
    Request,
    ScriptedGateway,
    SmallLedger,
    echo,
    receipt,
    scripted_gateway,
)


def refusal(request: Request, code: RefusalCode = RefusalCode.UNKNOWN_PLUGIN) -> messages.Refusal:
    """Refuse a request."""
    return messages.Refusal(
        request_id=request.request_id, code=code, message="no such plugin", where="$.plugin"
    )


def client(gateway: ScriptedGateway, **options: float) -> OmegaClient:
    """Make OMEGA's client."""
    return OmegaClient(gateway.path(), **options)


# --- Invoking ---


def test_an_invocation_brings_back_payload_receipt_usage_and_key():
    """The result carries everything needed to use the answer and to prove it later."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        result = omega.invoke("word-count", "count", "some text", version="^1.2", timeout=1.5)
        [sent] = gateway.requests

        assert isinstance(sent, messages.Invoke)
        assert (sent.plugin, sent.method, sent.version) == ("word-count", "count", "^1.2")
        assert sent.timeout_ms == 1500
        assert len(sent.commitment_key) == 32
        assert result == Result(
            payload=TextPayload("some text"), receipt=receipt(result.receipt.seq), usage=USAGE,
            commitment_key=sent.commitment_key, request_id=sent.request_id,
            plugin="word-count", version="1.2.3", output_sha256="cd" * 32,
        )
        assert result.text == "some text"


@pytest.mark.parametrize(
    "value",
    [
        {"b": 1, "a": [True, None, "ä"]}, [], {}, 7, None, True, {"x": 1.0}, {"x": 0.1},
        {"x": 1e21}, {"x": 2**53 - 1}, {"\U0001f600": "\U0001f600", "\uffff": 1},
        {"n": (1, 2)}, {"long": "1234567890123456"},
    ],
)
def test_json_is_sent_in_its_one_spelling(value):
    """Whatever the document holds, the bytes are those of RFC 8785."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        result = omega.invoke("a-plugin", "m", value)

        assert isinstance(result.payload, JSONPayload)
        assert result.payload.data == canonical_bytes(value)
        assert result.json() == msgspec.json.decode(canonical_bytes(value))


@pytest.mark.parametrize(
    "value",
    [{"x": math.nan}, {"x": math.inf}, {"x": 2**53 + 1}, {"x": 2**70}, {"x": "\ud800"}],
)
def test_a_value_without_a_canonical_form_is_not_sent(value):
    """Nothing is changed to make it fit."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        with pytest.raises(InvalidJson):
            omega.invoke("a-plugin", "m", value)
        assert gateway.requests == []


def test_a_payload_is_sent_as_it_is():
    """References travel unchanged, and asking for text or JSON of them is an error of type."""
    payload = BinaryRefPayload("artifact", "ab" * 32, 7, "image/png")
    with scripted_gateway() as gateway, client(gateway) as omega:
        result = omega.invoke("a-plugin", "m", payload)

        assert result.payload == payload
        with pytest.raises(TypeError):
            _ = result.text
        with pytest.raises(TypeError):
            result.json()


def test_every_request_has_its_own_id_and_key():
    """Ids are fresh UUIDv4 texts, commitment keys fresh bytes."""
    with scripted_gateway() as gateway, client(gateway) as omega:
        for _ in range(3):
            omega.invoke("a-plugin", "m", "x")

        assert len({sent.request_id for sent in gateway.requests}) == 3
        assert len({sent.commitment_key for sent in gateway.requests}) == 3


def test_a_refusal_is_raised_whole():
    """Code, sentence, place and whether to try again are there."""
    with scripted_gateway(lambda request: [refusal(request)]) as gateway, client(gateway) as omega:
        with pytest.raises(Refused, match=r"unknown_plugin: no such plugin \(at \$.plugin\)") as no:
            omega.invoke("a-plugin", "m", "x")

        assert no.value.code is RefusalCode.UNKNOWN_PLUGIN
        assert not no.value.retryable
        assert no.value.refusal.where == "$.plugin"


def test_a_refusal_that_may_pass_says_so():
    """A full queue is worth another try."""
    with scripted_gateway(
        lambda request: [refusal(request, RefusalCode.QUEUE_FULL)]
    ) as gateway, client(gateway) as omega:
        with pytest.raises(Refused) as no:
            omega.invoke("a-plugin", "m", "x")
        assert no.value.retryable


def test_progress_reaches_its_callback_and_signs_of_life_are_no_answers():
    """Notes of the call come in order before its result."""
    seen: list[int] = []

    def script(request: Request) -> list[msgspec.Struct]:
        ask = request.request_id
        return [
            messages.Progress(request_id=ask, permille=10),
            messages.KeepAlive(request_id=ask),
            messages.Progress(request_id=ask, permille=900),
            echo(request),
        ]

    with scripted_gateway(script) as gateway, client(gateway) as omega:
        omega.invoke("a-plugin", "m", "x", on_progress=lambda note: seen.append(note.permille))
        omega.invoke("a-plugin", "m", "x")

        assert seen == [10, 900]


# --- What is ignored and what is not ---


def widened(reply: msgspec.Struct) -> bytes:
    """Write a reply as a later gateway might: with fields that this client does not know."""
    fields = msgspec.to_builtins(reply, builtin_types=(bytes,))
    fields["new_field"] = {"deep": [1, 2]}
    fields["receipt"]["new_field"] = 1
    fields["payload"]["new_field"] = 1
    return MAGIC + msgspec.msgpack.encode(fields)


def test_unknown_types_unknown_fields_and_other_peoples_answers_are_ignored():
    """What a later gateway adds hurts nobody; what belongs to no request is dropped."""
    def script(request: Request) -> list[msgspec.Struct | bytes]:
        unknown = {"type": "something_new", "request_id": request.request_id}
        other = echo(request, request_id="00000000-0000-4000-8000-000000000000")
        return [MAGIC + msgspec.msgpack.encode(unknown), other, widened(echo(request))]

    with scripted_gateway(script) as gateway, client(gateway) as omega:
        assert omega.invoke("a-plugin", "m", "x").text == "x"


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"OPG1", b"OPG2\x80", MAGIC + b"\xc1",
        MAGIC + msgspec.msgpack.encode({"type": "result", "request_id": 7}),
        [b"two", b"frames"],
    ],
    ids=["empty", "no body", "other version", "no msgpack", "wrong field", "two frames"],
)
def test_what_is_no_reply_is_an_error(frame):
    """A frame that is not of the protocol is never taken for an answer."""
    with (
        scripted_gateway(lambda _: [frame]) as gateway,
        client(gateway) as omega,
        pytest.raises(GatewayError, match="what is no reply"),
    ):
        omega.invoke("a-plugin", "m", "x")


def test_an_answer_of_another_kind_is_an_error():
    """A status is no result."""
    def script(request: Request) -> list[msgspec.Struct]:
        return [messages.Plugins(request_id=request.request_id, plugins=())]

    with (
        scripted_gateway(script) as gateway,
        client(gateway) as omega,
        pytest.raises(GatewayError, match="expected Result, the gateway sent Plugins"),
    ):
        omega.invoke("a-plugin", "m", "x")


def test_a_result_without_a_receipt_is_an_error():
    """No evidence, no answer."""
    with (
        scripted_gateway(lambda request: [echo(request, receipt=None)]) as gateway,
        client(gateway) as omega,
        pytest.raises(GatewayError, match="has no receipt"),
    ):
        omega.invoke("a-plugin", "m", "x")


def test_a_refusal_of_an_unreadable_request_reaches_whoever_waits():
    """The gateway could not even find a request id; that is not silence."""
    def script(_: Request) -> list[msgspec.Struct]:
        return [messages.Refusal(code=RefusalCode.FRAME_MALFORMED, message="what is this")]

    with (
        scripted_gateway(script) as gateway,
        client(gateway) as omega,
        pytest.raises(Refused, match="frame_malformed"),
    ):
        omega.invoke("a-plugin", "m", "x")


# --- Connections ---


def test_an_unauthorised_key_raises_in_under_two_seconds():
    """A stranger's profile is told so, and does not wait for ever."""
    with scripted_gateway() as gateway:
        path = f"{gateway.directory}/stranger"
        gateway.profile("omega", path)
        stranger = OmegaClient(path, connect_timeout=60)
        begin = time.monotonic()

        with pytest.raises(NotAuthorised, match="does not admit this key"):
            stranger.invoke("a-plugin", "m", "x")
        assert time.monotonic() - begin < 2
        with pytest.raises(NotAuthorised):
            stranger.status()


def test_no_gateway_is_unreachable():
    """Nobody listens: one sentence with the endpoint after the handshake's time."""
    with (
        scripted_gateway(start=False) as gateway,
        pytest.raises(Unreachable, match="no gateway answers at ipc://"),
    ):
        client(gateway, connect_timeout=0.2).status()


def test_an_endpoint_that_cannot_be_is_unreachable():
    """What libzmq refuses to connect to is one sentence with the endpoint."""
    with scripted_gateway(start=False) as gateway:
        path = f"{gateway.directory}/long"
        gateway.profile("omega", path, endpoint="ipc:///" + "x" * 150)

        with pytest.raises(Unreachable, match=r"ipc:///xxx.*: File name too long"):
            OmegaClient(path).status()


def test_a_wrong_server_key_is_unreachable_with_a_hint():
    """The sentence says what to compare."""
    with scripted_gateway() as gateway:
        path = f"{gateway.directory}/wrong"
        gateway.profile("omega", path, server_key=new_curve_pair().public)

        with pytest.raises(Unreachable, match="compare the server key"):
            OmegaClient(path, connect_timeout=1.5).status()


def test_silence_ends_with_the_time():
    """A gateway that takes a request and says nothing costs the time asked for and a little."""
    with scripted_gateway(lambda _: []) as gateway, client(gateway) as omega:
        with pytest.raises(TimedOut, match=r"within 0\.05 s") as late:
            omega.invoke("a-plugin", "m", "x", timeout=0.05)
        assert late.value.request_id == gateway.requests[0].request_id

        gateway.script = lambda request: [
            echo(request, request_id=late.value.request_id, payload=TextPayload("late")),
            echo(request),
        ]
        assert omega.invoke("a-plugin", "m", "y").text == "y"


def test_a_gateway_that_dies_is_said_at_once_and_its_successor_is_used():
    """The call in flight ends as unreachable; the client connects again by itself."""
    dying = threading.Event()

    def script(_: Request) -> list[msgspec.Struct]:
        dying.set()
        return []

    with scripted_gateway(script) as gateway, client(gateway, connect_timeout=10) as omega:
        def kill() -> None:
            dying.wait(10)
            gateway.stop()

        killer = threading.Thread(target=kill)
        killer.start()
        with pytest.raises(Unreachable, match="was lost"):
            omega.invoke("a-plugin", "m", "x", timeout=60)
        killer.join()

        gateway.script = lambda request: [echo(request)]
        gateway.start()
        assert omega.invoke("a-plugin", "m", "again").text == "again"


def test_a_key_taken_away_is_said_at_the_next_connection():
    """A client whose gateway came back without its key hears it instead of waiting."""
    with scripted_gateway() as gateway, client(gateway, connect_timeout=10) as omega:
        omega.invoke("a-plugin", "m", "x")
        gateway.stop()
        del gateway.admitted["omega"]
        gateway.start()

        begin = time.monotonic()
        for _ in range(2):
            with pytest.raises(NotAuthorised):
                omega.invoke("a-plugin", "m", "x", timeout=60)
        assert time.monotonic() - begin < 2


def test_a_client_belongs_to_one_thread():
    """A second thread gets an exception instead of an aborted process."""
    caught: list[BaseException] = []

    def use() -> None:
        try:
            omega.status()
        except GatewayError as error:
            caught.append(error)

    with scripted_gateway() as gateway, client(gateway) as omega:
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()

        assert "belongs to the thread" in str(caught[0])


def test_a_profile_of_another_role_is_refused():
    """OMEGA's client takes OMEGA's profile only, the other one never."""
    with scripted_gateway(start=False) as gateway:
        with pytest.raises(GatewayError, match="role operator, needed is omega"):
            OmegaClient(gateway.path("operator"))
        with pytest.raises(GatewayError, match="role omega, needed is operator or auditor"):
            AdminClient(gateway.path("omega"))


def test_a_profile_open_to_others_is_refused():
    """The key file's rules hold for clients too."""
    with scripted_gateway(start=False) as gateway:
        os.chmod(f"{gateway.path()}/client.key_secret", 0o644)

        with pytest.raises(KeyFileRefused, match="chmod 600"):
            OmegaClient(gateway.path())


# --- Many at once ---


def reply_to(request: Request) -> messages.Reply:
    """Give the least reply of the right kind."""
    ask, plugin, version = request.request_id, "a-plugin", "1.2.3"
    replies: dict[type, messages.Reply] = {
        messages.ListPlugins: messages.Plugins(plugins=()),
        messages.GetPlugin: messages.Plugin(plugin=plugin, versions=(), manifest=None),
        messages.ShowRequest: messages.RequestStory(target=ask, lines=()),
        messages.ProveConsistency: messages.Consistency(
            old_size=3, hashes=(), checkpoint=SmallLedger().note(0), receipt=receipt()
        ),
        messages.Cancel: messages.Cancelled(outcome="cancelled", reached="running"),
        messages.InvokePipeline: messages.PipelineResult(
            steps=(), usage=USAGE, receipt=receipt()
        ),
        messages.Status: messages.StatusReport(
            state="serving", domain="development", gateway_version="0", api_version="1.0.0",
            log_id=LOG_ID, ledger_size=1, uptime_us=1, in_flight=0, in_flight_max=1, plugins=0,
            enabled=0, workers=(), trust_version=1, policy_sha256="ab" * 32,
        ),
        messages.RegisterPlugin: messages.Registered(
            plugin=plugin, version=version, bundle_sha256="ab" * 32
        ),
        messages.ValidateBundle: messages.Validation(problems=()),
        messages.EnablePlugin: messages.Enabled(plugin=plugin, version=version),
        messages.DisablePlugin: messages.Disabled(plugin=plugin),
        messages.Approve: messages.Approved(
            plugin=plugin, version=version, diff_digest="ab" * 32
        ),
        messages.Grant: messages.Granted(plugin=plugin, capability="clock.read"),
        messages.Revoke: messages.Revoked(kind="grant", id="x", ended=0),
        messages.SetTrust: messages.Trust(version=2, sha256="ab" * 32, publishers=()),
    }
    return msgspec.structs.replace(replies[type(request)], request_id=ask)


def test_omega_can_read_cancel_and_run_pipelines():
    """Each method sends its request and returns its reply."""
    target = "01234567-89ab-4def-8123-456789abcdef"
    step = messages.Step("first", "a-plugin", "m", TextPayload("x"))
    with scripted_gateway(lambda request: [reply_to(request)]) as gateway:
        with client(gateway) as omega:
            assert omega.list_plugins(after="abc", limit=5).plugins == ()
            assert omega.get_plugin("a-plugin").plugin == "a-plugin"
            assert omega.status().state == "serving"
            assert omega.show_request(target).lines == ()
            assert omega.prove_consistency(3).old_size == 3
            assert omega.cancel(target).outcome == "cancelled"
            budget = messages.Budget(calls=1, cpu_ms=1, output_bytes=1)
            assert omega.invoke_pipeline([step], budget=budget).usage == USAGE

        kinds = [type(request).__name__ for request in gateway.requests]
        assert kinds == [
            "ListPlugins", "GetPlugin", "Status", "ShowRequest", "ProveConsistency", "Cancel",
            "InvokePipeline",
        ]


def test_an_operator_can_send_every_request_of_the_admin_front():
    """Each method sends its request and returns its reply."""
    with scripted_gateway(lambda request: [reply_to(request)]) as gateway:
        with AdminClient(gateway.path("operator")) as admin:
            assert admin.register_plugin(b"bundle").version == "1.2.3"
            assert admin.validate_bundle(b"bundle").problems == ()
            assert admin.enable_plugin("a-plugin", "1.2.3").plugin == "a-plugin"
            assert admin.disable_plugin("a-plugin").plugin == "a-plugin"
            assert admin.approve("a-plugin", "1.2.3", "ab" * 32).version == "1.2.3"
            assert admin.grant("a-plugin", "clock.read").capability == "clock.read"
            assert admin.revoke("grant", "x", "because").ended == 0
            assert admin.set_trust(b"envelope").version == 2
            assert admin.list_plugins().plugins == ()
        asked = {type(request) for request in gateway.requests}
        assert {messages.RegisterPlugin, messages.SetTrust} <= asked


def test_a_development_home_is_enough():
    """`from_home` finds the profiles that the home keeps."""
    with scripted_gateway(lambda request: [reply_to(request)]) as gateway:
        with OmegaClient.from_home(gateway.directory) as omega:
            assert omega.status().state == "serving"
        for role in ("operator", "auditor"):
            with AdminClient.from_home(gateway.directory, role=role) as admin:
                assert admin.status().state == "serving"


def test_the_library_imports_nothing_of_the_gateways_own():
    """An integrator's process loads neither asyncio nor what only the gateway needs."""
    code = (
        "import sys, broker.client; "
        "print([name for name in ('asyncio', 'semver', 'structlog', 'jsonschema_rs', 'click', "
        "'rich', 'broker.gateway', 'broker.transport', 'broker.ledger.commit') "
        "if name in sys.modules])"
    )
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=60,
        check=True,
    )
    assert done.stdout == "[]\n"
