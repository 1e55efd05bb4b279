"""Opening: a payload belongs to one event, under one key and one label, and to no other."""

from __future__ import annotations

import hmac
import json
import subprocess
import sys

import pytest

from broker.evidence.opening import LABELS, open_commitment
from broker.evidence.prove import bundle_from_files, encode_bundle, withhold
from broker.evidence.reading import LedgerReader
from broker.orchestrator.calls import commitment
from schemas.events import Event, FrameIn, InvokeAccept, InvokeEnd, decode_event
from schemas.payloads import (
    BinaryRefPayload,
    DatasetSlicePayload,
    JSONPayload,
    Payload,
    TextPayload,
    preimage,
)
from schemas.proof import ProofError, parse_verifier_key
from tests.evidence.conftest import SCRIPTS
from tests.ledger.conftest import REQUEST_ID, VERIFIER_KEY, Place

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
HASH, CLIENT = "0" * 64, "5e" * 8
PAYLOADS: dict[str, Payload] = {
    "text": TextPayload("hello"),
    "other media type": TextPayload("hello", "text/csv"),
    "json": JSONPayload(b'{"a":1}'),
    "json of a schema": JSONPayload(b'{"a":1}', "sha256:" + HASH),
    "reference": BinaryRefPayload("a1", HASH, 5, "image/png"),
    "other size": BinaryRefPayload("a1", HASH, 6, "image/png"),
    "dataset": DatasetSlicePayload("d1", ("a", "b")),
    "other keys": DatasetSlicePayload("d1", ("ab",)),
}
WORDS = "nothing to say"


def events(place: Place, payload: Payload, key: bytes = KEY) -> list[Event]:
    """Ledger one call whose input is its output, with a progress note, and one that failed."""
    opened = place.open()
    plain = preimage(payload)
    for fields in (
        InvokeAccept(
            request_id=REQUEST_ID, peer=CLIENT, plugin="alpha", version="1.0.0", method="m",
            bundle_sha256=HASH, input_kind="text", input_bytes=1, timeout_ms=1,
            input_commitment=commitment(key, "input", plain),
        ),
        FrameIn(plane="worker", peer="1" * 32, type="call_progress", bytes=1, call=1,
                note_commitment=commitment(key, "progress", WORDS.encode())),
        InvokeEnd(request_id=REQUEST_ID, outcome="result", reached="answered",
                  output_commitment=commitment(key, "output", plain)),
        InvokeEnd(request_id=REQUEST_ID, outcome="refused", reached="answered",
                  message_commitment=commitment(key, "output", WORDS.encode())),
        FrameIn(plane="worker", peer="1" * 32, type="pong", bytes=1),
    ):
        opened.append(fields)
    opened.commit()
    opened.close()
    return [decode_event(line) for line in place.lines()]


@pytest.mark.parametrize("name", PAYLOADS)
def test_each_payload_opens_its_own_commitments_only(place, name):
    """Input and output open with their payload and label; every other payload is refused."""
    accepted, note, ended, failed, none = events(place, PAYLOADS[name])

    assert open_commitment(accepted, KEY, PAYLOADS[name]) == ("input_commitment", "input")
    assert open_commitment(ended, KEY, PAYLOADS[name]) == ("output_commitment", "output")
    assert open_commitment(note, KEY, WORDS) == ("note_commitment", "progress")
    assert open_commitment(failed, KEY, WORDS) == ("message_commitment", "output")
    for other, payload in PAYLOADS.items():
        for event in (accepted, ended) if other != name else (note, failed, none):
            with pytest.raises(ProofError):
                open_commitment(event, KEY, payload)
    for event in (accepted, ended, none):
        with pytest.raises(ProofError):
            open_commitment(event, KEY, WORDS)


def test_the_key_of_one_call_opens_no_other(tmp_path):
    """The same payload under another call's key is another commitment: nothing shows equality."""
    calls = []
    for number, key in enumerate((KEY, OTHER)):
        folder = tmp_path / str(number)
        folder.mkdir()
        calls.append(events(Place(folder), PAYLOADS["text"], key))
    mine, other = calls[0][0], calls[1][0]

    assert mine.fields.input_commitment != other.fields.input_commitment
    open_commitment(mine, KEY, PAYLOADS["text"])
    for event, key in ((other, KEY), (mine, OTHER)):
        with pytest.raises(ProofError, match="does not commit"):
            open_commitment(event, key, PAYLOADS["text"])


def test_a_label_is_part_of_what_is_committed(place):
    """One payload under one key has three different commitments."""
    accepted, _, ended, *_ = events(place, PAYLOADS["text"])
    assert accepted.fields.input_commitment != ended.fields.output_commitment
    plain = preimage(PAYLOADS["text"])
    wanted = {
        label: hmac.new(KEY, label.encode() + b"\x00" + plain, "sha256").hexdigest()
        for label in set(LABELS.values())
    }
    assert accepted.fields.input_commitment == wanted["input"]
    assert ended.fields.output_commitment == wanted["output"]
    assert len(set(wanted.values())) == 3


def script(*arguments: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPTS / "verify_proof.py"), *arguments,
         "--vkey", VERIFIER_KEY, "--output", "json"],
        capture_output=True, text=True, timeout=60, check=False,
    )
    return done.returncode, json.loads(done.stdout)


@pytest.mark.parametrize(
    ("name", "index", "data", "more", "member"),
    [
        ("text", 0, b"hello", [], "input_commitment"),
        ("text", 2, b"hello", [], "output_commitment"),
        ("other media type", 0, b"hello", ["--media-type", "text/csv"], "input_commitment"),
        ("json", 0, b'{"a":1}', ["--kind", "json"], "input_commitment"),
        ("json of a schema", 2, b'{"a":1}', ["--kind", "json", "--schema", "sha256:" + HASH],
         "output_commitment"),
        ("reference", 0, preimage(PAYLOADS["reference"]), ["--kind", "raw"], "input_commitment"),
        ("text", 1, WORDS.encode(), ["--kind", "raw"], "note_commitment"),
        ("text", 3, WORDS.encode(), ["--kind", "raw"], "message_commitment"),
    ],
)
def test_the_stand_alone_verifier_opens_too(place, tmp_path, name, index, data, more, member):
    """With the payload's file and the key it names the commitment; changed, it ends with 7."""
    events(place, PAYLOADS[name])
    with LedgerReader(str(place.ledger), parse_verifier_key(VERIFIER_KEY)) as reader:
        bundle = withhold(bundle_from_files(reader, range(5)), lambda event: event.seq == 4)
    proof, payload, key = tmp_path / "proof", tmp_path / "payload", tmp_path / "key"
    proof.write_bytes(encode_bundle(bundle))
    payload.write_bytes(data)
    key.write_text(KEY.hex() + "\n")
    arguments = [str(proof), "--key-file", str(key), "--payload", str(payload), *more]

    code, said = script(*arguments, "--open", str(index))
    assert (code, said["opened"]["member"], said["opened"]["index"]) == (0, member, index)
    assert said["opened"]["label"] == LABELS[member]
    for wrong in ("4", "9"):
        assert script(*arguments, "--open", wrong)[0] == 7
    key.write_text(OTHER.hex())
    assert script(*arguments, "--open", str(index))[0] == 7
    key.write_text(KEY.hex())
    payload.write_bytes(data + b" ")
    assert script(*arguments, "--open", str(index))[0] == 7
