"""A running gateway's calls proven to others: from its files, over the wire, and opened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.client import AdminClient, Result
from broker.evidence.bundles import verify_bundle
from broker.evidence.prove import bundle_over_wire, encode_bundle
from schemas import messages
from schemas.payloads import TextPayload
from schemas.proof import parse_verifier_key
from tests.cli.command import Done, gateway
from tests.evidence.conftest import load_script
from tests.support.gateway import ECHO, RunningGateway, running_gateway

pytestmark = [pytest.mark.system, pytest.mark.jail, pytest.mark.once]

BUDGET = messages.Budget(calls=4, cpu_ms=4000, output_bytes=100_000)
CALL = ["frame.in", "invoke.accept", "frame.out", "frame.in", "invoke.end", "frame.out"]


class Told:
    """A gateway that answered a call and a pipeline of two steps."""

    def __init__(self, running: RunningGateway) -> None:
        """Ask."""
        running.install(running.write_plugin("echo-plugin", ECHO))
        omega = running.omega()
        omega.invoke("echo-plugin", "echo", "warm")
        self.running = running
        self.result: Result = omega.invoke("echo-plugin", "echo", "said once")
        steps = [
            messages.Step("first", "echo-plugin", "echo", TextPayload("said twice")),
            messages.Step("second", "echo-plugin", "echo", messages.StepOutput("first")),
        ]
        self.pipeline = omega.invoke_pipeline(steps, budget=BUDGET).request_id
        self.key = omega.ledger_head().verifier_key
        self.profile = str(running.home / "profiles" / "auditor")

    def run(self, *arguments: str) -> Done:
        """Run `omega-gateway ledger …` beside the running gateway."""
        return gateway("ledger", *arguments, home=self.running.home)

    def prove(self, path: Path, *arguments: str) -> list[dict]:
        """Prove, verify with the stand-alone script, and give the events."""
        done = self.run("prove", *arguments, "-o", str(path))
        assert done.code == 0, done.err
        script = load_script("verify_proof")
        proof = script.Proof(script.parse_key(self.key))
        proof.read(path.read_bytes())
        return proof.report()["events"]


@pytest.fixture(scope="module")
def told() -> Iterator[Told]:
    """Give a running gateway that has something to prove."""
    with running_gateway() as running:
        yield Told(running)


@pytest.mark.parametrize("wire", [False, True])
def test_a_call_is_proven_while_the_gateway_runs(told, tmp_path, wire):
    """Its six events are there, from the files and over the wire, the newest ones included."""
    where = ["--profile", told.profile] if wire else []
    events = told.prove(tmp_path / "proof.json", told.result.request_id, *where)

    assert [event["event_type"] for event in events] == CALL
    assert events[4]["index"] == told.result.receipt.seq
    assert events[4]["event_hash"] == told.result.receipt.event_hash


@pytest.mark.parametrize("wire", [False, True])
def test_a_pipeline_is_proven_with_its_steps(told, tmp_path, wire):
    """Both steps' calls and the pipeline's own frames are in one proof."""
    where = ["--profile", told.profile] if wire else []
    events = told.prove(tmp_path / "proof.json", told.pipeline, *where)

    types = [event["event_type"] for event in events]
    assert types.count("invoke.accept") == types.count("invoke.end") == 2
    ends = {event["f"]["request_id"] for event in events if event["event_type"] == "invoke.end"}
    steps = {event["f"]["step"] for event in events if event["event_type"] == "invoke.accept"}
    assert len(ends) == 2
    assert steps == {"first", "second"}
    assert told.pipeline in {event["f"].get("request_id") for event in events}


def test_a_plugins_life_is_proven_from_its_registration_on(told, tmp_path):
    """Registration, worker, witness and every call are there; parts of it can be withheld."""
    events = told.prove(tmp_path / "proof.json", "--plugin", "echo-plugin",
                        "--withhold", "worker.attest", "--withhold", "frame.in")

    shown = [event["event_type"] for event in events if not event["withheld"]]
    assert shown[:2] == ["plugin.register", "plugin.enable"]
    assert {"worker.start", "worker.probe", "invoke.end"} <= set(shown)
    assert shown.count("invoke.accept") == 4
    assert not {"worker.attest", "frame.in"} & set(shown)
    assert sum(event["withheld"] for event in events) > 4


def test_what_a_client_accepted_is_what_a_proof_continues(told, tmp_path):
    """The note that an auditor kept is shown to lie in the past of a newer proof."""
    assert told.run("head", "--profile", told.profile).code == 0
    note = Path(told.profile) / "head.note"
    path = tmp_path / "proof.json"
    for where in ([], ["--profile", told.profile]):
        told.prove(path, "0-3", "--since", str(note), *where)
        verified = verify_bundle(path.read_bytes(), parse_verifier_key(told.key))
        assert len(verified.continues) == 1
        assert verified.continues[0] <= verified.checkpoint.size


def test_a_payload_is_opened_from_files_wire_and_proof(told, tmp_path):
    """Question and answer belong to their events; another text, and another call, do not."""
    key, proof = tmp_path / "key", tmp_path / "proof.json"
    key.write_text(told.result.commitment_key.hex())
    events = told.prove(proof, told.result.request_id)
    asked, answered = events[1]["index"], events[4]["index"]
    bundle = ["--proof", str(proof), "--vkey", told.key]
    for where, seq, label in (
        (bundle, asked, "input"), ([], answered, "output"),
        (["--profile", told.profile], asked, "input"),
    ):
        done = told.run("open", str(seq), "--key-file", str(key), "--text", "said once",
                        "--output", "json", *where)
        assert done.code == 0, done.err
        assert (done.document()["label"], done.document()["seq"]) == (label, seq)
    done = told.run("open", str(answered), "--key-file", str(key), "--text", "said", *bundle)
    assert done.code == 7
    assert "does not commit to this payload" in done.sentence()


def test_a_kept_result_opens_itself(told, tmp_path):
    """What `invoke --output json` printed is all that is needed."""
    done = gateway("invoke", "echo-plugin", "echo", "--text", "kept", "--output", "json",
                   home=told.running.home)
    path = tmp_path / "result.json"
    path.write_text(done.out)

    opened = told.run("open", "--result", str(path), "--output", "json")
    assert opened.code == 0, opened.err
    assert opened.document()["member"] == "output_commitment"
    changed = json.loads(done.out)
    changed["payload"]["text"] = "changed"
    path.write_text(json.dumps(changed))
    assert told.run("open", "--result", str(path)).code == 7


class Hasty(AdminClient):
    """An auditor at whose gateway a checkpoint is signed before every fourth proof."""

    asked = 0

    def prove(self, seq: int, *, size: int | None = None) -> messages.Proof:
        """Have one signed now and then."""
        self.asked += 1
        if self.asked % 4 == 0:
            self.ledger_head()
        return super().prove(seq, size=size)


def test_all_events_of_a_running_gateway_are_linked(told):
    """One proof over the wire of all there is, with every link between neighbours, however many
    checkpoints are signed meanwhile."""
    with Hasty(told.profile) as auditor:
        size = auditor.status().ledger_size
        bundle = bundle_over_wire(auditor, range(size))
        assert int(auditor.ledger_head().checkpoint.split("\n")[1]) > size + size // 4
    verified = verify_bundle(encode_bundle(bundle), parse_verifier_key(told.key))
    assert list(verified.events) == list(range(size))
