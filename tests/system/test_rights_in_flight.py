"""Rights that go while calls need them: a policy without the grant, keys revoked and taken away."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from broker.keys import remove_client_key
from schemas import codec
from schemas.events import FrameOut, InvokeEnd, KeyChange, PolicyChange, Revoke
from schemas.messages import Budget, Invoke, InvokePipeline, Step, StepOutput
from schemas.payloads import TextPayload
from tests.cli.command import gateway as command
from tests.support.gateway import RunningGateway, running_gateway, wait_for
from tests.support.raw import RawClient
from tests.system.test_keys import added, reread

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

WAITS = '''
import time

from sandbox_worker.sdk import Context, TextPayload, method


@method(timeout_ms=90_000)
def wait(context: Context, text: TextPayload) -> TextPayload:
    """Take the time that the input says."""
    time.sleep(float(text.text))
    return text
'''
LIMITS = "cpu_ms = 9000\nwall_ms = 90000\nmemory_mb = 256\noutput_bytes = 4096\nconcurrency = 8\n"
APPROVED = '[modules.allowed]\n"approved-*" = ["getpass"]\n'
RULE = '[grants."{}"]\ncapabilities = ["clock.read"]\n'
LONG, SHORT = TextPayload("80"), TextPayload("0")


@pytest.fixture
def gateway() -> Iterator[RunningGateway]:
    """A gateway whose policy grants the clock to three plugins and approves a module of one; its
    ledger is audited at the end."""
    policy = "".join(map(RULE.format, ("steady-*", "ruled-*", "approved-*"))) + APPROVED
    with running_gateway(policy=policy) as running:
        for plugin in ("steady-plugin", "ruled-plugin", "approved-plugin"):
            more = ("import getpass", ', "getpass"') if plugin == "approved-plugin" else ("", "")
            running.install(running.write_plugin(
                plugin, more[0] + WAITS, limits=LIMITS, modules=f'["time"{more[1]}]',
                extra='capabilities = ["clock.read"]\n',
            ))
        yield running


def begin(gateway: RunningGateway, raw: RawClient, plugin: str) -> set[str]:
    """Begin a call and a pipeline of two branches; give the three calls once they run."""
    call, pipeline = str(uuid.uuid4()), str(uuid.uuid4())
    before = {event.fields.request_id for event in gateway.events()
              if isinstance(event.fields, FrameOut)}
    raw.send(codec.encode(Invoke(
        request_id=call, plugin=plugin, method="wait", payload=LONG, timeout_ms=90_000,
        commitment_key=os.urandom(32))))
    raw.send(codec.encode(InvokePipeline(
        request_id=pipeline, timeout_ms=90_000, commitment_key=os.urandom(32),
        budget=Budget(calls=3, cpu_ms=60_000, output_bytes=60_000), on_error="skip_dependents",
        steps=(
            Step(name="long", plugin=plugin, method="wait", input=LONG),
            Step(name="other", plugin=plugin, method="wait", input=LONG),
            Step(name="after", plugin=plugin, method="wait", input=StepOutput(step="long")),
        ))))

    def running() -> set[str]:
        runs = {event.fields.request_id for event in gateway.events()
                if isinstance(event.fields, FrameOut) and event.fields.type == "run"}
        return {one for one in runs if one and one not in before}

    return wait_for("three calls to run", lambda: found if len(found := running()) == 3 else None)


def ends(gateway: RunningGateway, calls: set[str]) -> Counter[str]:
    """Wait until these calls have ended, and say how."""
    def found() -> list[str]:
        return [event.fields.outcome for event in gateway.events()
                if isinstance(event.fields, InvokeEnd) and event.fields.request_id in calls]

    wait_for("the calls to end", lambda: len(found()) == len(calls))
    return Counter(found())


def test_what_runs_by_a_right_ends_with_it_and_nothing_else_does(
    gateway: RunningGateway,
) -> None:
    """A key taken out of the home, one revoked by command, a grant that policy no longer gives, a
    module that it no longer approves, each with a call and a pipeline in flight: these end revoked,
    and others are served."""
    directories = {name: added(gateway, "omega", name) for name in ("removed", "revoked", "kept")}
    with ExitStack() as stack:
        raw = {name: stack.enter_context(RawClient(directory))
               for name, (directory, _) in directories.items()}
        removed, revoked = (begin(gateway, raw[name], "steady-plugin")
                            for name in ("removed", "revoked"))
        ruled = begin(gateway, raw["kept"], "ruled-plugin")
        approved = begin(gateway, raw["kept"], "approved-plugin")

        remove_client_key(str(gateway.home), directories["removed"][1])
        reread(gateway)
        assert ends(gateway, removed) == {"revoked": 3}

        done = command("keys", "revoke", directories["revoked"][1], "--output", "json",
                       home=gateway.home)
        assert (done.code, done.document()["ended_calls"]) == (0, 3), done.err
        assert ends(gateway, revoked) == {"revoked": 3}
        # The revoked key's file went too, and the policy changes in the same breath.
        policy = gateway.home / "policy.toml"
        policy.write_text(policy.read_text().replace(RULE.format("ruled-*"), ""))
        reread(gateway)
        assert ends(gateway, ruled) == {"revoked": 3}
        policy.write_text(policy.read_text().replace(APPROVED, ""))
        reread(gateway)
        assert ends(gateway, approved) == {"revoked": 3}

        assert gateway.omega().invoke("steady-plugin", "wait", SHORT, timeout=15).text == "0"
    kinds = Counter(type(event.fields) for event in gateway.events())
    assert kinds[Revoke] == 1
    assert kinds[PolicyChange] == 3
    assert [event.fields.key_id for event in gateway.events()
            if isinstance(event.fields, KeyChange) and event.fields.action == "removed"
            ] == [directories[name][1] for name in ("removed", "revoked")]
