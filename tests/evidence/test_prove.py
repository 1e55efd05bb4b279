"""Bundles: what they hold is proven, what is changed in them is found, by two verifiers."""

from __future__ import annotations

import base64
import functools
import json
import subprocess
import sys
from types import ModuleType

import pytest

from broker.evidence.bundles import verify_bundle
from broker.evidence.prove import (
    bundle_from_files,
    encode_bundle,
    encode_tlog_proof,
    find_plugin,
    find_request,
    withhold,
)
from broker.evidence.reading import LedgerReader, written_events
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from schemas.canonical import canonical_bytes
from schemas.events import (
    BreakerChange,
    EventFields,
    FrameIn,
    FrameOut,
    InvokeAccept,
    InvokeEnd,
    PluginEnable,
    PluginRegister,
    Revoke,
    WorkerExit,
    WorkerStart,
    ZygoteRecycle,
    decode_event,
    event_record,
)
from schemas.proof import ProofBundle, ProofError, parse_verifier_key
from tests.evidence.conftest import SCRIPTS, load_script
from tests.ledger.conftest import REQUEST_ID, VERIFIER_KEY, Place, frame
from tests.support.timing import children_s

KEY = parse_verifier_key(VERIFIER_KEY)
PIPELINE = "11111111-1111-4111-8111-111111111111"
FIRST, SECOND, OTHER = (f"{digit * 8}-2222-4222-8222-222222222222" for digit in "abc")
WORKER, NEXT, FOREIGN = "1" * 32, "2" * 32, "3" * 32
CLIENT, SIGNER = "5e" * 8, "51" * 8
HASH = "0" * 64


@pytest.fixture(scope="module")
def proof_script() -> ModuleType:
    """Give `scripts/verify_proof.py`, which remembers signatures that it has checked."""
    script = load_script("verify_proof")
    script.check_signature = functools.cache(script.check_signature)
    return script


@pytest.fixture
def ledger(place: Place) -> Place:
    """A ledger of 601 events in three segments, and a checkpoint over the first 250 in `old`."""
    opened = place.fill(250)
    place.old = opened.checkpoint()
    opened.roll()
    place.fill(200, ledger=opened)
    opened.roll()
    place.fill(149, ledger=opened)
    opened.close()
    return place


def read(place: Place) -> LedgerReader:
    return LedgerReader(str(place.ledger), KEY)


def make(place: Place, seqs, *older: str) -> ProofBundle:
    with read(place) as reader:
        return bundle_from_files(reader, seqs, older)


def judge(script: ModuleType, data: bytes) -> dict | None:
    """Give what both verifiers say a bundle proves, or None when both refuse it."""
    proof = script.Proof(script.parse_key(VERIFIER_KEY))
    try:
        proof.read(data)
        said = proof.report()
    except script.WrongError:
        said = None
    try:
        verified = verify_bundle(data, KEY)
    except ProofError:
        assert said is None, "only the gateway's verifier refuses it"
        return None
    assert said is not None, "only the script refuses it"
    assert said["size"] == verified.checkpoint.size
    assert said["root"] == verified.checkpoint.root.hex()
    assert tuple(said["continues"]) == verified.continues
    assert {event["index"]: event.get("event_type") for event in said["events"]} == {
        index: event and event.event_type for index, event in verified.events.items()
    }
    return said


def test_events_of_every_segment_are_proven_with_what_came_before(proof_script, ledger):
    """Shown and withheld events and an older checkpoint hold for both verifiers."""
    bundle = withhold(make(ledger, [0, 1, 249, 250, 251, 452, 600], ledger.old),
                      lambda event: event.seq in (1, 251))

    said = judge(proof_script, encode_bundle(bundle))

    assert [event["index"] for event in said["events"]] == [0, 1, 249, 250, 251, 452, 600]
    assert [event["index"] for event in said["events"] if event["withheld"]] == [1, 251]
    assert said["continues"] == [250]
    assert said["size"] == 601
    assert "f" not in said["events"][1]


def test_what_is_withheld_is_not_in_the_bundle(ledger):
    """Of a withheld event nothing but its hash and place remains."""
    shown = make(ledger, [7])
    hidden = withhold(shown, lambda event: event.event_type == "frame.in")
    event = decode_event(shown.items[0].line.encode())

    assert hidden.items[0].line is None
    assert hidden.items[0].event_hash == event.event_hash
    for word in (b"frame.in", b"invoke", event.fields.peer.encode(), REQUEST_ID.encode()):
        assert word in encode_bundle(shown)
        assert word not in encode_bundle(hidden)


def test_a_bundle_with_any_changed_byte_is_refused(proof_script, place):
    """Whatever byte becomes another, is missing or comes twice: both verifiers refuse."""
    opened = place.fill(2)
    old = opened.checkpoint()
    place.fill(3, ledger=opened)
    opened.close()
    whole = encode_bundle(withhold(make(place, [1, 2], old), lambda event: event.seq == 2))
    assert judge(proof_script, whole) is not None

    for at in range(len(whole)):
        others = {whole[at] ^ 1, whole[at] ^ 0x20, 0x20, 0x0A, 0x22} - {whole[at]}
        for other in others if at % 16 == 0 else {whole[at] ^ (1 << at % 8)}:
            assert judge(proof_script, whole[:at] + bytes([other]) + whole[at + 1 :]) is None, at
        assert judge(proof_script, whole[:at] + whole[at + 1 :]) is None, at
        if at % 4 == 0:
            assert judge(proof_script, whole[:at] + whole[at : at + 1] + whole[at:]) is None, at
    for more in (b"\n", b" ", b"\0"):
        assert judge(proof_script, whole + more) is None


def changed(bundle: ProofBundle, change) -> bytes:
    """Change a bundle's document and write it canonically again."""
    document = json.loads(encode_bundle(bundle))
    change(document)
    return canonical_bytes(document) + b"\n"


CHANGES = {
    "format": lambda d: d.update(format="omega-proof/v2"),
    "no format": lambda d: d.pop("format"),
    "unknown member": lambda d: d.update(note="x"),
    "another origin": lambda d: d.update(origin="omega-gateway/development/" + "f" * 16),
    "no items": lambda d: d.update(items=[]),
    "items no list": lambda d: d.update(items={}),
    "no consistency": lambda d: d.update(consistency=[]),
    "an older checkpoint as head": lambda d: d.update(
        checkpoint=d["consistency"][0]["old_checkpoint"]),
    "head and older exchanged": lambda d: d.update(
        checkpoint=d["consistency"][0]["old_checkpoint"],
        consistency=[d["consistency"][0] | {"old_checkpoint": d["checkpoint"]}]),
    "without signature": lambda d: d.update(
        checkpoint=d["checkpoint"].rpartition("\n\n")[0] + "\n\n"),
    "items exchanged": lambda d: d.update(items=d["items"][::-1]),
    "an item twice": lambda d: d.update(items=[d["items"][0], *d["items"]]),
    "index as truth": lambda d: d["items"][1].update(index=True),
    "index beyond": lambda d: d["items"][1].update(index=601),
    "another index": lambda d: d["items"][0].update(index=2),
    "line and hash": lambda d: d["items"][0].update(event_hash="0" * 64),
    "neither line nor hash": lambda d: d["items"][0].pop("line"),
    "line of another event": lambda d: d["items"][0].update(line=d["items"][2]["line"]),
    "line with its newline": lambda d: d["items"][0].update(line=d["items"][0]["line"] + "\n"),
    "hash in capitals": lambda d: d["items"][1].update(
        event_hash=d["items"][1]["event_hash"].upper()),
    "proof too short": lambda d: d["items"][0]["proof"].pop(),
    "proof too long": lambda d: d["items"][0]["proof"].append("0" * 64),
    "proof in another order": lambda d: d["items"][0]["proof"].reverse(),
    "proof of another event": lambda d: d["items"][0].update(proof=d["items"][2]["proof"]),
    "proof no list": lambda d: d["items"][0].update(proof="0" * 64),
    "short hash": lambda d: d["items"][0]["proof"].__setitem__(0, "00"),
    "no older proof": lambda d: d["consistency"][0].update(proof=[]),
    "older proof too long": lambda d: d["consistency"][0]["proof"].append("0" * 64),
    "older not signed": lambda d: d["consistency"][0].update(old_checkpoint="x\n"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_structural_change_is_refused(proof_script, ledger, change):
    """A document that is canonical and changed in its structure is refused by both."""
    bundle = withhold(make(ledger, [0, 1, 599], ledger.old), lambda event: event.seq == 1)

    assert judge(proof_script, changed(bundle, lambda document: None)) is not None
    assert judge(proof_script, changed(bundle, CHANGES[change])) is None


def test_neighbours_must_be_linked(proof_script, place):
    """Two events side by side that a signed tree holds, but no chain, are refused."""
    opened = place.open()
    opened.append(frame(0))
    opened._head_hash = "1" * 64
    opened.append(frame(1))
    opened.commit()
    opened.close()

    assert judge(proof_script, encode_bundle(make(place, [1]))) is not None
    assert judge(proof_script, encode_bundle(make(place, [0, 1]))) is None


def test_another_key_is_refused(ledger):
    """A bundle never brings its own key; whoever verifies gives it."""
    data = encode_bundle(make(ledger, [3]))
    other = VERIFIER_KEY.replace("0123456789abcdef", "0123456789abcdee")
    script = load_script("verify_proof")
    with pytest.raises(script.WrongError):
        script.parse_key(other)
    with pytest.raises(ProofError):
        verify_bundle(data, parse_verifier_key(str(KEY.__class__(KEY.name, bytes(31) + b"\x01"))))


# --- One event as c2sp.org/tlog-proof@v1 ---


def tlog(script: ModuleType, data: bytes) -> dict | None:
    proof = script.Proof(script.parse_key(VERIFIER_KEY))
    try:
        proof.read(data)
    except script.WrongError:
        return None
    return proof.report()


def test_one_event_is_a_tlog_proof(proof_script, ledger):
    """The C2SP lines are there, the record hashes to the leaf, any changed byte is refused."""
    bundle = make(ledger, [452])
    data = encode_tlog_proof(bundle)
    head, _, note = data.decode().partition("\n\n")
    lines = head.split("\n")
    record = base64.b64decode(lines[1].removeprefix("extra "))

    assert note == bundle.checkpoint
    assert lines[0] == "c2sp.org/tlog-proof@v1"
    assert lines[2] == "index 452"
    assert [base64.b64decode(one).hex() for one in lines[3:]] == list(bundle.items[0].proof)
    assert record == event_record(bundle.items[0].line.encode())
    said = tlog(proof_script, data)
    assert (said["format"], said["events"][0]["index"]) == ("c2sp.org/tlog-proof@v1", 452)
    for at in range(len(data)):
        assert tlog(proof_script, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None, at
        assert tlog(proof_script, data[:at] + data[at + 1 :]) is None, at


def test_only_one_shown_event_is_a_tlog_proof(ledger):
    """What the format cannot say is refused and not left out."""
    for bundle in (
        make(ledger, [1, 2]), make(ledger, [1], ledger.old),
        withhold(make(ledger, [1]), lambda _: True),
    ):
        with pytest.raises(ProofError, match="holds one event"):
            encode_tlog_proof(bundle)


# --- Choosing ---


def accept(request: str, plugin: str, pipeline: str | None = None) -> EventFields:
    return InvokeAccept(
        request_id=request, peer=CLIENT, plugin=plugin, version="1.0.0", bundle_sha256=HASH,
        method="m", input_kind="text", input_bytes=1, input_commitment=HASH, timeout_ms=1,
        pipeline=pipeline, step=None if pipeline is None else "s",
    )


def end(request: str) -> EventFields:
    return InvokeEnd(request_id=request, outcome="result", reached="answered")


def heard(request: str) -> EventFields:
    return FrameIn(plane="front.omega", peer=CLIENT, type="invoke", bytes=1, request_id=request)


def told(worker: str) -> EventFields:
    return FrameOut(plane="worker", peer=worker, type="run", bytes=1, call=1)


def register(plugin: str, signer: str) -> EventFields:
    return PluginRegister(
        plugin=plugin, version="1.0.0", bundle_sha256=HASH, manifest_sha256=HASH, publisher="p",
        signing_keys=(signer,), api_version="1.0.0", domain="development", actor=CLIENT,
    )


def start(worker: str, plugin: str) -> EventFields:
    return WorkerStart(incarnation=worker, plugin=plugin, version="1.0.0", bundle_sha256=HASH,
                       launcher="local")


STORY: list[tuple[EventFields, str]] = [
    (register("alpha", SIGNER), "alpha"),
    (register("alpha-two", "52" * 8), ""),
    (PluginEnable(plugin="alpha", version="1.0.0", actor=CLIENT), "alpha"),
    (heard(FIRST), "alpha first"),
    (accept(FIRST, "alpha"), "alpha first"),
    (start(WORKER, "alpha"), "alpha"),
    (start(FOREIGN, "alpha-two"), ""),
    (told(WORKER), "alpha"),
    (told(FOREIGN), ""),
    (end(FIRST), "alpha first"),
    (heard(PIPELINE), "pipeline"),
    (heard(OTHER), ""),
    (accept(SECOND, "alpha", PIPELINE), "alpha pipeline"),
    (accept(OTHER, "alpha-two"), ""),
    (end(SECOND), "alpha pipeline"),
    (end(OTHER), ""),
    (ZygoteRecycle(incarnation=WORKER, successor=NEXT, reason="calls"), "alpha"),
    (start(NEXT, "alpha"), "alpha"),
    (WorkerExit(incarnation=WORKER, reason="bye"), "alpha"),
    (WorkerExit(incarnation=FOREIGN, reason="bye"), ""),
    (BreakerChange(plugin="alpha", method="m", before="closed", after="open", reason="x"),
     "alpha"),
    (Revoke(kind="grant", id="alpha clock.read", reason="x", actor=CLIENT), "alpha"),
    (Revoke(kind="grant", id="alpha-two clock.read", reason="x", actor=CLIENT), ""),
    (Revoke(kind="client_key", id=CLIENT, reason="x", actor=CLIENT), ""),
    (Revoke(kind="publisher_key", id=SIGNER, reason="x", actor=CLIENT), "alpha"),
    (Revoke(kind="plugin_version", id="alpha@1.0.0", reason="x", actor=CLIENT), "alpha"),
    (frame(1), ""),
]


@pytest.mark.parametrize("whose", ["alpha", "first", "pipeline"])
def test_a_life_a_request_and_a_pipeline_have_exactly_their_events(proof_script, place, whose):
    """Nothing of theirs is left out, nothing of a neighbour's comes in, and all of it is proven."""
    opened = place.open()
    for fields, _ in STORY:
        opened.append(fields)
    opened.commit()
    opened.close()
    with read(place) as reader:
        found = find_plugin(reader, "alpha") if whose == "alpha" else find_request(
            reader, FIRST if whose == "first" else PIPELINE
        )

    assert found == [seq for seq, (_, names) in enumerate(STORY) if whose in names.split()]
    said = judge(proof_script, encode_bundle(make(place, found)))
    assert [event["index"] for event in said["events"]] == found


def test_an_unknown_request_has_no_events(ledger):
    """A name that nothing bears gives nothing."""
    with read(ledger) as reader:
        assert find_request(reader, PIPELINE) == []
        assert find_plugin(reader, "omega") == []


# --- Reading what lies there ---


def test_a_writer_goes_on_while_events_are_proven(proof_script, place):
    """An open ledger is read up to its newest checkpoint, in the middle of a line or not."""
    opened = place.fill(300)
    opened.checkpoint()
    place.fill(10, ledger=opened)
    with place.segment().open("ab") as file:
        file.write(b'{"event_hash":"')

    assert judge(proof_script, encode_bundle(make(place, [0, 299])))["size"] == 300
    assert written_events(str(place.ledger)) == 310
    with pytest.raises(PositionUnknown):
        make(place, [300])


@pytest.mark.parametrize("damage", ["gone", "short", "wrong"])
def test_a_damaged_tree_costs_time_and_no_proof(proof_script, ledger, damage):
    """Tiles are not believed: the proof is then made from the segments."""
    for level in (ledger.ledger / "tiles").iterdir():
        size = level.stat().st_size
        if damage == "gone":
            level.unlink()
        else:
            level.write_bytes(bytes(size if damage == "wrong" else size // 2))

    bundle = make(ledger, [0, 256, 600], ledger.old)

    assert len(judge(proof_script, encode_bundle(bundle))["events"]) == 3


def test_a_changed_event_is_not_proven(ledger):
    """A line that is not what was signed is refused by name, with its tree made anew."""
    path = ledger.segment(1)
    path.write_bytes(path.read_bytes().replace(b'"bytes":300', b'"bytes":301'))

    with pytest.raises(LedgerDamaged, match="event 300 is not what was signed"):
        make(ledger, [300])


def test_a_missing_segment_costs_only_its_own_events(proof_script, ledger):
    """What stays still proves, because the tree is in the tiles."""
    ledger.segment(0).unlink()

    assert judge(proof_script, encode_bundle(make(ledger, [300, 600]))) is not None
    with pytest.raises(LedgerDamaged):
        make(ledger, [3])


def test_an_older_note_of_another_history_is_refused(ledger, tmp_path):
    """A ledger that does not continue a note says so and makes no bundle."""
    other = Place(tmp_path / "other")
    (tmp_path / "other").mkdir()
    opened = other.fill(9)
    opened.append(frame(77))
    opened.commit()
    note = opened.checkpoint()
    opened.close()

    with pytest.raises(ProofError):
        make(ledger, [3], note)
    with pytest.raises(ProofError):
        make(other, [3], ledger.old)


# --- The script as people run it ---


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with nothing but the standard library."""
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPTS / "verify_proof.py"), *arguments],
        capture_output=True, text=True, timeout=60, check=False,
    )


def test_ten_events_are_verified_within_two_hundred_milliseconds(ledger, tmp_path):
    """Of processor time, from the start of the interpreter to its end, with an older checkpoint
    beside them."""
    path = tmp_path / "proof.json"
    path.write_bytes(encode_bundle(make(ledger, range(200, 210), ledger.old)))
    best = 10.0
    for _ in range(5):
        begin = children_s()
        done = run(str(path), "--vkey", VERIFIER_KEY)
        best = min(best, children_s() - begin)
        assert done.returncode == 0, done.stdout + done.stderr

    assert best < 0.2


def test_the_script_says_what_it_found(ledger, tmp_path):
    """0 with an account, 7 with the place that does not hold, 2 for wrong use, 1 for no file."""
    path, changed_path = tmp_path / "proof.json", tmp_path / "changed.json"
    bundle = withhold(make(ledger, [0, 1, 9], ledger.old), lambda event: event.seq == 1)
    path.write_bytes(encode_bundle(bundle))
    changed_path.write_bytes(changed(bundle, CHANGES["proof of another event"]))

    good = run(str(path), "--vkey", VERIFIER_KEY)
    assert (good.returncode, good.stderr) == (0, "")
    for words in ("OK omega-gateway/development", "0 ledger.open", "1 WITHHELD",
                  "is not in this proof", "continues the checkpoints over [250] events"):
        assert words in good.stdout
    bad = run(str(changed_path), "--vkey", VERIFIER_KEY)
    assert bad.returncode == 7
    assert "FAILED" in bad.stdout
    assert "event 0: " in bad.stdout
    document = json.loads(run(str(path), "--vkey", VERIFIER_KEY, "--output", "json").stdout)
    assert (document["ok"], document["size"]) == (True, 601)
    failed = run(str(changed_path), "--vkey", VERIFIER_KEY, "--output", "json")
    assert (json.loads(failed.stdout)["ok"], failed.returncode) == (False, 7)
    assert run(str(path), "--vkey", VERIFIER_KEY, "--min-size", "602").returncode == 7
    assert run(str(path), "--vkey", VERIFIER_KEY, "--min-size", "601").returncode == 0
    assert run(str(path)).returncode == 2
    assert run(str(path), "--vkey", VERIFIER_KEY[:-1]).returncode == 2
    assert run(str(path), "--vkey", VERIFIER_KEY, "--open", "3").returncode == 2
    assert run(str(tmp_path / "none"), "--vkey", VERIFIER_KEY).returncode == 1


GARBAGE = [
    b"", b"\n", b"{", b"[]\n", b"null\n", b"{}\n", b"\xff\n", b"9" * 5000 + b"\n",
    b"[" * 100_000 + b"\n", b'{"a":1e999}\n', b'{"a":NaN}\n', b"c2sp.org/tlog-proof@v1\n",
    b"c2sp.org/tlog-proof@v1\nindex 0\n\n", b"c2sp.org/tlog-proof@v1\nextra ew==\nindex 0\n\nx",
]


@pytest.mark.parametrize("data", GARBAGE, ids=range(len(GARBAGE)))
def test_any_bytes_give_a_verdict(proof_script, data):
    """What is no proof is refused and never ends in a traceback."""
    assert tlog(proof_script, data) is None
    with pytest.raises(ProofError):
        verify_bundle(data, KEY)
