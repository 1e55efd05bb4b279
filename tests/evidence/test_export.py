"""Exported ledgers and ranges: each verifies by itself, and hides what was before."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from nacl.signing import SigningKey

from broker.cli.main import run
from broker.evidence.bundles import verify_bundle
from broker.evidence.events import UnreadableLedger, read_events
from broker.evidence.export import export
from broker.evidence.prove import bundle_from_files, encode_bundle
from broker.evidence.reading import LedgerReader
from broker.evidence.verify import verify_directory
from broker.home import create_home
from broker.ledger.commit import Ledger
from broker.ledger.compressed import compress
from broker.ledger.errors import LedgerDamaged, PositionUnknown
from broker.ledger.segments import list_segments, segment_path
from broker.ledger.volume import Volume
from schemas.proof import parse_verifier_key
from tests.evidence.conftest import verdict
from tests.ledger.conftest import VERIFIER_KEY

KEY = parse_verifier_key(VERIFIER_KEY)


@pytest.fixture
def grown(place):
    """A ledger of 3 segments that is still being written, the first compressed."""
    ledger = place.fill(30)
    ledger.checkpoint()
    for _ in range(2):
        place.fill(20, ledger=ledger)
        ledger.roll()
        place.fill(20, ledger=ledger)
        ledger.checkpoint()
    place.kept = place.lines()
    compress(Volume(), segment_path(str(place.ledger), 0))
    return place


def judged(script, folder):
    """Both verifiers give the same verdict on a folder; give it."""
    report = verify_directory(str(folder), verifier_key=VERIFIER_KEY)
    other = script.verify(str(folder), VERIFIER_KEY, None)
    ours = report.problem and (report.problem.kind, report.problem.file)
    assert ours == (other["problem"] and (other["problem"]["kind"], other["problem"]["file"]))
    assert report.begins == other["begins"]
    assert not report.ok or (report.root, report.events) == (other["root"], other["events"])
    return report


@pytest.mark.parametrize(("wanted", "ends"), [
    (None, 112), (range(1), 30), (range(29, 30), 30), (range(30, 31), 51), (range(40, 60), 71),
    (range(51, 52), 71), (range(70, 112), 112), (range(111, 112), 112),
])
def test_whatever_is_exported_verifies_by_itself(grown, tmp_path, script, wanted, ends):
    """The lines are those of the ledger, up to the first checkpoint behind the range."""
    target = tmp_path / "out"
    done = export(str(grown.ledger), KEY, str(target), wanted)
    begins = wanted.start if wanted else 0
    assert (done.begins, done.ends) == (begins, ends)
    report = judged(script, target)
    assert report.ok
    assert (report.begins, report.events, report.head_size) == (begins, ends, ends)
    lines = b"".join(
        path.read_bytes() for path in sorted((target / "segments").iterdir())
    )
    assert lines == b"".join(grown.kept[begins:ends])
    assert (target / "before.hashes").exists() is (begins > 0)
    with LedgerReader(str(target), KEY) as reader:
        seqs = [*range(begins, ends)][::7]
        bundle = encode_bundle(bundle_from_files(reader, seqs, []))
        assert sorted(verify_bundle(bundle, KEY).events) == seqs
        if begins:
            with pytest.raises(PositionUnknown, match="is no part of this range"):
                reader.line(begins - 1)
    if begins:
        with pytest.raises(UnreadableLedger, match=f"begins with event {begins}"):
            list(read_events(str(target)))


def test_every_damage_to_an_export_is_found(grown, tmp_path, script):
    """Hashes before, lines, segments and checkpoints: each is held by the signed roots."""
    target = tmp_path / "out"
    export(str(grown.ledger), KEY, str(target), range(40, 60))
    copy = tmp_path / "copy"

    def spoiled(name, change, kind):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(target, copy)
        path = copy / name
        data = change(bytearray(path.read_bytes()))
        path.unlink()
        if data is not None:
            path.write_bytes(data)
        assert judged(script, copy).problem.kind == kind, (name, kind)

    def flipped(at):
        return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]

    for at in range(0, 39 * 32, 97):
        spoiled("before.hashes", flipped(at), "rewritten")
    spoiled("before.hashes", flipped(40 * 32 - 1), "rewritten")
    for change in (lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:-32],
                   lambda _data: None):
        spoiled("before.hashes", change, "missing_segment")
    spoiled("segments/000000000040.ndjson", flipped(200), "flipped")
    spoiled("segments/000000000040.ndjson", lambda _data: None, "missing_segment")
    spoiled("segments/000000000051.ndjson", lambda _data: None, "missing_segment")
    spoiled("checkpoints.log", lambda _data: None, "missing_checkpoint")
    spoiled("checkpoints.log", lambda data: data[: data.index(b"\n2\n") + 1], "missing_checkpoint")


def test_a_ledger_does_not_pass_as_a_range(grown, tmp_path, script):
    """Beside its anchor a ledger is whole, and a gateway starts from nothing else."""
    target = tmp_path / "out"
    export(str(grown.ledger), KEY, str(target), range(92, 112))
    grown.opened[0].close()
    shutil.copy(target / "before.hashes", grown.ledger)
    for first in list_segments(str(grown.ledger))[:2]:
        for suffix in ("", ".gz"):
            path = segment_path(str(grown.ledger), first) + suffix
            if os.path.exists(path):
                os.unlink(path)
    anchor = str(grown.anchor)
    report = verify_directory(str(grown.ledger), verifier_key=VERIFIER_KEY, anchor_directory=anchor)
    assert report.problem.kind == "missing_segment"
    other = script.verify(str(grown.ledger), VERIFIER_KEY, anchor)
    assert other["problem"]["kind"] == "missing_segment"
    with pytest.raises(LedgerDamaged, match="begins with event 0 is missing"):
        grown.open()


def test_what_cannot_be_exported_is_said(grown, tmp_path):
    """A range beyond the newest checkpoint, and a folder that is there already."""
    for wanted in (range(100, 200), range(112, 113)):
        with pytest.raises(PositionUnknown, match="covers 112 events"):
            export(str(grown.ledger), KEY, str(tmp_path / "out"), wanted)
    with pytest.raises(FileExistsError):
        export(str(grown.ledger), KEY, str(tmp_path))


def test_a_whole_copy_verifies_wherever_it_lies(grown, tmp_path, script):
    """A copied ledger folder needs nothing of the place it came from; one flipped bit is found."""
    copy = tmp_path / "elsewhere"
    shutil.copytree(grown.ledger, copy)
    whole = judged(script, copy)
    assert whole.ok
    assert verdict(script.verify(str(copy), VERIFIER_KEY, None))["ok"]
    last = sorted((copy / "segments").iterdir())[-1]
    data = bytearray(last.read_bytes())
    data[300] ^= 1
    last.write_bytes(data)
    assert judged(script, copy).problem.kind == "flipped"


def test_the_command_exports_a_homes_ledger(place, tmp_path, script, capsysbinary):
    """`ledger export A-B` says what it wrote and which key verifies it; a second one is refused."""
    path, target = str(tmp_path / "home"), str(tmp_path / "out")
    home = create_home(path, "development", None, environment={"XDG_RUNTIME_DIR": str(tmp_path)})
    ledger = Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id, durability="power", now=place.now,
        signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)),
    )
    place.fill(10, ledger=ledger)
    ledger.close()
    arguments = ["ledger", "export", "3-4", "--home", path, "--to", target, "--output", "json"]
    assert run(arguments) == 0
    told = json.loads(capsysbinary.readouterr().out)
    assert (told["begins"], told["ends"], told["log_id"]) == (3, 10, home.config.log_id)
    assert script.verify(target, told["verifier_key"], None)["root"] == told["root"]
    assert run(arguments) == 1
    assert run(["ledger", "verify", target, "--vkey", told["verifier_key"]]) == 0
    assert b"begins with" in capsysbinary.readouterr().out
    assert run(["ledger", "audit", target, "--vkey", told["verifier_key"]]) == 7
    assert b"from event 0 on" in capsysbinary.readouterr().err
    assert run([*arguments[:2], "8-20", *arguments[3:5], "--to", target + "2"]) == 1
