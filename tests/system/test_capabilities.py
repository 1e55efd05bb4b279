"""One plugin for each capability, on a real gateway with real files, and what is refused."""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.client import OmegaClient, Refused
from sandbox_worker.jail import policy
from schemas.events import FrameOut, InvokeEnd, WorkerAttest, WorkerProbe, WorkerStart
from schemas.events import Revoke as Revoked
from schemas.payloads import BinaryRefPayload
from schemas.refusals import RefusalCode
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail]

TELLS = {
    "clock.read": '''
import datetime, time
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def tell(context: Context, text: TextPayload) -> TextPayload:
    told = [time.time() > 1e9, datetime.datetime.now().year > 2000, time.localtime()[0] > 2000]
    time.sleep(0.001)
    return TextPayload(f"{all(told)}")
''',
    "random.read": '''
import random, secrets
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def tell(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload(f"{secrets.token_hex(8)} {random.random()}")
''',
    "env.read:LANG": '''
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def tell(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload(f"{context.env['LANG']} {sorted(context.env)}")
''',
    "artifact.read": '''
import zlib
from sandbox_worker.sdk import BinaryRefPayload, Context, TextPayload, method

@method()
def tell(context: Context, reference: BinaryRefPayload) -> TextPayload:
    artifact, check = context.artifact, 0
    while part := artifact.read(1 << 20):
        check = zlib.crc32(part, check)
    artifact.seek(0)
    return TextPayload(f"{artifact.size} {check} {artifact.read(4).hex()}")

@method()
def wait(context: Context, reference: BinaryRefPayload) -> TextPayload:
    context.progress(0.5, context.artifact.read(4).hex())
    while True:
        pass
''',
    "fs.read:corpus": '''
from sandbox_worker.sdk import Context, TextPayload, method

@method()
def tell(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload(context.files["words"].read().decode())

@method()
def linked(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload("never")

@method()
def piped(context: Context, text: TextPayload) -> TextPayload:
    return TextPayload("never")
''',
}
MODULES = {
    "clock.read": '["datetime", "time"]', "random.read": '["random", "secrets"]',
    "artifact.read": '["zlib"]',
}
FILES = (
    '[methods.tell.files]\nwords = "corpus/en/words.txt"\n'
    '[methods.linked.files]\nwords = "corpus/en/link.txt"\n'
    '[methods.piped.files]\nwords = "corpus/en/pipe"\n'
)
POLICY = '''
[env]
LANG = "fr_FR"
HOME = "/nowhere"
[roots]
corpus = "{corpus}"
[grants."ruled-*"]
capabilities = ["env.read:LANG"]
'''
LIMITS = "cpu_ms = 20000\nwall_ms = 20000\nmemory_mb = 256\noutput_bytes = 65536\nconcurrency = 4\n"
ARTIFACT = os.urandom(1 << 16) * 512
"""32 MiB."""


def plugin_id(capability: str) -> str:
    """Name the plugin that asks for a capability."""
    return "plugin-" + capability.replace(".", "-").replace(":", "-").lower()


def write(running: RunningGateway, capability: str, version: str = "1.0.0") -> Path:
    """Write the plugin of one capability."""
    return running.write_plugin(
        plugin_id(capability), TELLS[capability], version=version, limits=LIMITS,
        modules=MODULES.get(capability, "[]"),
        extra=f'capabilities = ["{capability}"]\n' + (FILES if "fs.read" in capability else ""),
    )


@pytest.fixture(scope="module")
def gateway() -> Iterator[RunningGateway]:
    """One gateway with a policy that holds a value and a root, an artifact and a few files."""
    with running_gateway(policy=POLICY) as running:
        corpus = running.folder / "corpus"
        (corpus / "en").mkdir(parents=True)
        (corpus / "en" / "words.txt").write_text("pomme poire")
        (corpus / "en" / "link.txt").symlink_to("words.txt")
        os.mkfifo(corpus / "en" / "pipe")
        (running.home / "artifacts" / "scan-1").write_bytes(ARTIFACT)
        yield running


def reference(data: bytes = ARTIFACT, name: str = "scan-1") -> BinaryRefPayload:
    """Make the right reference to an artifact."""
    digest = hashlib.sha256(data).hexdigest()
    return BinaryRefPayload(name, digest, len(data), "application/octet-stream")


def tell(running: RunningGateway, capability: str) -> str:
    """Ask the plugin of a capability what it sees."""
    payload = reference() if capability == "artifact.read" else "x"
    return running.omega().invoke(plugin_id(capability), "tell", payload).text


@pytest.mark.parametrize("capability", TELLS)
def test_a_capability_is_refused_then_granted_and_works(
    gateway: RunningGateway, capability: str
) -> None:
    """Registration is refused with the line to add; after the grant the plugin has what it asked
    for, and its worker's start says so in the ledger."""
    admin = gateway.operator()
    directory = write(gateway, capability)
    with pytest.raises(Refused) as refused:
        admin.register_plugin(gateway.bundle(directory))
    assert refused.value.code == RefusalCode.CAPABILITY_NOT_GRANTED
    line = f'[grants."{plugin_id(capability)}"] capabilities = ["{capability}"]'
    assert line in refused.value.refusal.hint

    admin.grant(plugin_id(capability), capability)
    gateway.install(directory, admin)
    told = [tell(gateway, capability) for _ in range(2)]

    if capability == "random.read":
        assert told[0] != told[1]
        assert not set(told[0].split()) & set(told[1].split())
    else:
        assert told[0] == told[1] == {
            "clock.read": "True", "env.read:LANG": "fr_FR ['LANG']",
            "artifact.read": f"{len(ARTIFACT)} {crc(ARTIFACT)} {ARTIFACT[:4].hex()}",
            "fs.read:corpus": "pomme poire",
        }[capability]
    start = gateway.wait_for_event("the worker", lambda event: isinstance(
        event.fields, WorkerStart) and event.fields.plugin == plugin_id(capability))
    assert isinstance(start.fields, WorkerStart)
    assert start.fields.grants == (capability,)
    attest = gateway.wait_for_event("its attestation", lambda event: isinstance(
        event.fields, WorkerAttest) and event.fields.incarnation == start.fields.incarnation)
    assert isinstance(attest.fields, WorkerAttest)
    # The digest is that of a listed program: what waits in the pool, without descriptors.
    program = policy.call_filter(
        clock=capability == "clock.read", random=capability == "random.read"
    )
    assert attest.fields.strict_filter_sha256 == hashlib.sha256(program).hexdigest()


def test_what_policy_grants_needs_no_request_and_is_not_taken_back_by_one(
    gateway: RunningGateway,
) -> None:
    """A rule of policy.toml is enough to register; a request to take it back says where to."""
    admin = gateway.operator()
    gateway.install(gateway.write_plugin(
        "ruled-plugin", TELLS["env.read:LANG"], limits=LIMITS,
        extra='capabilities = ["env.read:LANG"]\n',
    ), admin)

    told = gateway.omega().invoke("ruled-plugin", "tell", "x").text
    with pytest.raises(Refused) as refused:
        admin.revoke("grant", "ruled-plugin env.read:LANG", "a test")

    assert told == "fr_FR ['LANG']"
    assert admin.get_plugin("ruled-plugin").grants == ("env.read:LANG",)
    assert refused.value.code == RefusalCode.CAPABILITY_NOT_GRANTED
    assert "policy.toml grants it" in refused.value.refusal.message


def crc(data: bytes) -> int:
    """CRC-32, as the plugin computes it."""
    import zlib

    return zlib.crc32(data)


@pytest.mark.parametrize(
    ("payload", "code", "words"),
    [
        (reference(ARTIFACT[:-1] + bytes([ARTIFACT[-1] ^ 1])), RefusalCode.ARTIFACT_MISMATCH, ""),
        (reference(b"short"), RefusalCode.ARTIFACT_MISMATCH, "the reference says 5"),
        (reference(name="scan-2"), RefusalCode.ARTIFACT_UNAVAILABLE, ""),
        (BinaryRefPayload("scan-1", "0" * 64, 1 << 40, "image/png"),
         RefusalCode.ARTIFACT_UNAVAILABLE, "allowed are 67108864"),
    ],
    ids=["another digest", "another size", "missing", "too large"],
)
def test_an_artifact_that_is_not_the_promised_one_is_a_typed_refusal(
    gateway: RunningGateway, payload: BinaryRefPayload, code: RefusalCode, words: str
) -> None:
    """OMEGA reads which it is, the ledger holds the end, and the next call is served."""
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke(plugin_id("artifact.read"), "tell", payload)

    assert refused.value.code == code
    assert words in refused.value.refusal.message
    assert refused.value.refusal.where == "$.payload"
    end = gateway.events()[refused.value.refusal.receipt.seq].fields
    assert isinstance(end, InvokeEnd)
    assert (end.code, end.outcome) == (code, "refused")
    assert tell(gateway, "artifact.read")


@pytest.mark.parametrize("method", ["linked", "piped"])
def test_a_link_and_a_pipe_are_a_typed_refusal(gateway: RunningGateway, method: str) -> None:
    """The link is not followed, although it stays beneath its root; the pipe is not waited for."""
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke(plugin_id("fs.read:corpus"), method, "x")

    assert refused.value.code == RefusalCode.FILE_UNAVAILABLE
    assert tell(gateway, "fs.read:corpus") == "pomme poire"


def test_a_plugin_never_reads_other_bytes_than_the_promised_ones(gateway: RunningGateway) -> None:
    """While somebody rewrites the file again and again, each call has the promised bytes or ends
    as a mismatch."""
    other = bytes(len(ARTIFACT))
    path, over = gateway.home / "artifacts" / "scan-3", threading.Event()
    path.write_bytes(ARTIFACT)

    def rewrite() -> None:
        with path.open("r+b", buffering=0) as file:
            while not over.is_set():
                for data in (other, ARTIFACT):
                    file.seek(0)
                    file.write(data)

    writing = threading.Thread(target=rewrite)
    writing.start()
    outcomes = set()
    try:
        for tries in itertools.count(1):
            try:
                outcomes.add(gateway.omega().invoke(
                    plugin_id("artifact.read"), "tell", reference(name="scan-3")).text)
            except Refused as refused:
                outcomes.add(str(refused.code))
            if tries >= 12 and ("artifact_mismatch" in outcomes or tries >= 100):
                break
    finally:
        over.set()
        writing.join()

    right = f"{len(ARTIFACT)} {crc(ARTIFACT)} {ARTIFACT[:4].hex()}"
    assert outcomes <= {right, "artifact_mismatch"}
    assert "artifact_mismatch" in outcomes
    assert gateway.omega().invoke(
        plugin_id("artifact.read"), "tell", reference(name="scan-3")).text == right


def test_the_command_line_makes_the_reference(gateway: RunningGateway) -> None:
    """`invoke --artifact ID` finds size and digest in the store of the home; an id that names no
    file there ends with a sentence; `plugins show` tells which files a plugin is handed."""
    wanted = ("invoke", plugin_id("artifact.read"), "tell", "--artifact")
    done = command(*wanted, "scan-1", home=gateway.home)
    assert (done.code, done.out.split()[:2]) == (0, [str(len(ARTIFACT)), str(crc(ARTIFACT))])

    digest = reference().sha256
    known = command(*wanted, "scan-1", "--sha256", digest, "--size", str(len(ARTIFACT)),
                    home=gateway.home)
    assert known.out == done.out
    shown = command("plugins", "show", plugin_id("fs.read:corpus"), home=gateway.home)
    assert "corpus/en/words.txt" in shown.out
    missing = command(*wanted, "scan-2", home=gateway.home)
    assert (missing.code, missing.out) == (2, "")
    assert "artifacts/scan-2: No such file" in missing.sentence()


def test_a_grant_taken_back_ends_the_call_that_has_it(gateway: RunningGateway) -> None:
    """The call ends `revoked`, its worker is gone, and the next call finds no artifact."""
    plugin = plugin_id("artifact.read")
    ended: list[Refused] = []

    def call() -> None:
        # A client belongs to the thread that uses it.
        with OmegaClient.from_home(str(gateway.home)) as omega, pytest.raises(Refused) as refused:
            omega.invoke(plugin, "wait", reference(), timeout=15)
        ended.append(refused.value)

    waiting = threading.Thread(target=call)
    waiting.start()
    gateway.wait_for_event("the plugin to have its artifact", lambda event: isinstance(
        event.fields, FrameOut) and event.fields.type == "progress")
    revoked = gateway.operator().revoke("grant", f"{plugin} artifact.read", "a test")
    waiting.join(20)

    assert revoked.ended == 1
    assert [one.code for one in ended] == [RefusalCode.REVOKED]
    event = gateway.events()[revoked.receipt.seq].fields
    assert isinstance(event, Revoked)
    assert (event.kind, event.id, event.ended) == ("grant", f"{plugin} artifact.read", 1)
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke(plugin, "tell", reference())
    assert refused.value.code == RefusalCode.PLUGIN_ERROR
    assert "artifact.read is not granted" in (refused.value.refusal.plugin_message or "")
    gateway.operator().grant(plugin, "artifact.read")
    again = gateway.wait_for_event("a worker that has it again", lambda event: isinstance(
        event.fields, WorkerStart) and event.seq > revoked.receipt.seq
        and event.fields.grants == ("artifact.read",)).fields
    assert isinstance(again, WorkerStart)
    # Until its witness has passed, the worker without the grant serves.
    gateway.wait_for_event("its witness", lambda event: isinstance(event.fields, WorkerProbe)
                           and event.fields.incarnation == again.incarnation)
    assert tell(gateway, "artifact.read")


def test_what_plugins_are_handed_survives_a_kill_of_the_broker(gateway: RunningGateway) -> None:
    """Grants are in the ledger: after kill -9 and a new start the plugins have them again."""
    gateway.stop(signal.SIGKILL)
    gateway.start()

    assert tell(gateway, "artifact.read").startswith(str(len(ARTIFACT)))
    assert tell(gateway, "fs.read:corpus") == "pomme poire"
    assert tell(gateway, "env.read:LANG") == "fr_FR ['LANG']"
