"""Compressed segments: the same lines, read by everything as before, and damage found in them."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from broker.cli.ledger import Tail
from broker.cli.main import run
from broker.evidence.events import read_events
from broker.evidence.files import open_segment, segment_names
from broker.evidence.reading import LedgerReader
from broker.evidence.verify import verify_directory
from broker.home import create_home
from broker.ledger.commit import Ledger
from broker.ledger.compressed import compress
from broker.ledger.errors import LedgerDamaged
from broker.ledger.segments import list_segments, segment_path
from broker.ledger.volume import Volume
from schemas.proof import parse_verifier_key
from tests.evidence.test_verify import patience
from tests.ledger.conftest import VERIFIER_KEY, Place

ROOT = Path(__file__).parents[2]


@pytest.fixture
def rolled(place):
    """A closed ledger of three segments; its lines are kept beside it."""
    ledger = place.fill(40)
    for _ in range(2):
        ledger.roll()
        place.fill(40, ledger=ledger)
    ledger.close()
    place.kept = place.lines()
    return place


def squeeze(place, count=2):
    """Compress the first segments."""
    for first_seq in list_segments(str(place.ledger))[:count]:
        before, after = compress(Volume(), segment_path(str(place.ledger), first_seq))
        assert before > after > 0


def judged(place):
    """Give what both verifiers say; they must agree."""
    report = verify_directory(
        str(place.ledger), verifier_key=VERIFIER_KEY, anchor_directory=str(place.anchor))
    done = subprocess.run(
        [sys.executable, "scripts/verify_ledger.py", str(place.ledger), "--vkey", VERIFIER_KEY,
         "--anchor", str(place.anchor), "--output", "json"],
        cwd=ROOT, capture_output=True, check=False)
    other = json.loads(done.stdout)
    kinds = [problem and problem["kind"] for problem in (other["problem"],)]
    assert kinds == [report.problem and report.problem.kind], (report.problem, other["problem"])
    assert (other["events"], other["root"]) == (report.events, report.root) or not report.ok
    return report


def test_everything_reads_compressed_segments_as_before(rolled):
    """Writer, reader, both verifiers, the audit's events and the last lines give the same lines."""
    whole = judged(rolled)
    squeeze(rolled)
    names = segment_names(str(rolled.ledger / "segments"))
    assert [name.endswith(".gz") for name in names] == [True, True, False]
    assert judged(rolled) == whole
    assert whole.ok
    size = len(rolled.kept)
    assert [event.seq for event in read_events(str(rolled.ledger))] == list(range(size))
    tail = Tail(str(rolled.ledger / "segments"), names)
    assert tail.last(size - 3) == rolled.kept[3:]
    with LedgerReader(str(rolled.ledger), parse_verifier_key(VERIFIER_KEY)) as reader:
        assert [line + b"\n" for _, line in reader.lines()] == rolled.kept
        for seq in (0, 39, 40, 41, 81, 82, size - 1):
            assert reader.line(seq) + b"\n" == rolled.kept[seq]
            reader.inclusion(seq, reader.line(seq))
    (rolled.ledger / "tiles" / "L0").unlink()
    ledger = rolled.open()
    assert [event.seq for event in ledger.events()] == list(range(size))
    for seq in (0, 40, 41, 80, size - 1):
        assert ledger.line(seq) == rolled.kept[seq]
        ledger.prove(seq)
    ledger.append(rolled_frame := next(ledger.events(1)).fields)
    ledger.commit()
    assert next(ledger.events(size)).fields == rolled_frame


def test_the_same_lines_give_the_same_bytes(rolled):
    """Neither a time nor a name is in the file, and compressing again changes nothing."""
    path = segment_path(str(rolled.ledger), 0)
    lines = Path(path).read_bytes()
    squeeze(rolled, 1)
    first = Path(path + ".gz").read_bytes()
    assert compress(Volume(), path) == (0, 0)
    Path(path).write_bytes(lines)
    os.utime(path, (1, 1))
    squeeze(rolled, 1)
    assert Path(path + ".gz").read_bytes() == first


def test_a_compression_that_was_cut_short_is_finished(rolled):
    """While both forms lie there the plain one counts; the next run removes it."""
    path = Path(segment_path(str(rolled.ledger), 0))
    lines = path.read_bytes()
    squeeze(rolled, 1)
    path.write_bytes(lines)
    Path(f"{path}.gz").write_bytes(b"half")
    assert judged(rolled).ok
    rolled.open().close()
    squeeze(rolled, 1)
    assert not path.exists()
    assert judged(rolled).ok


def test_a_write_that_fails_removes_nothing(rolled):
    """Bytes that do not come back as they were written leave the plain segment where it is."""

    class Flipping(Volume):
        def write(self, descriptor, data):
            changed = bytes(data[:-1]) + bytes([data[-1] ^ 1])
            return super().write(descriptor, memoryview(changed))

    path = segment_path(str(rolled.ledger), 0)
    with pytest.raises(LedgerDamaged):
        compress(Flipping(), path)
    assert sorted(os.listdir(rolled.ledger / "segments"))[0] == os.path.basename(path)
    assert not list(rolled.ledger.glob("*.gz*"))


def test_no_damage_to_a_compressed_segment_goes_unseen(rolled):
    """Flipped, cut or longer: it is told by name, or the lines in it are the very same."""
    squeeze(rolled)
    path = Path(segment_path(str(rolled.ledger), 41) + ".gz")
    whole = path.read_bytes()
    spoiled = [
        *(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
          for at in range(0, len(whole), 61)),
        *(whole[:at] for at in (0, 5, 10, len(whole) // 2, len(whole) - 1)),
        whole + b"\0", whole + whole,
    ]
    for data in spoiled:
        path.write_bytes(data)
        report = verify_directory(str(rolled.ledger), verifier_key=VERIFIER_KEY)
        assert report.problem is not None, data[:20].hex()
        assert (report.problem.kind, report.problem.file) == (
            "flipped", "segments/000000000041.ndjson.gz")
        with pytest.raises(LedgerDamaged):
            list(rolled.open().events())
        if rolled.opened:
            rolled.opened.pop()._stack.close()
    for data in (spoiled[0], spoiled[3], whole[:-1], whole + b"\0"):
        path.write_bytes(data)
        assert judged(rolled).problem.kind == "flipped"
    path.unlink()
    assert judged(rolled).problem.kind == "missing_segment"


def test_the_command_compresses_a_homes_ledger(tmp_path, capsysbinary):
    """`ledger compress` leaves a ledger that verifies, and says how much smaller it is."""
    path = str(tmp_path / "home")
    home = create_home(path, "development", None, environment={"XDG_RUNTIME_DIR": str(tmp_path)})
    place = Place(tmp_path)
    ledger = Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id, durability="power", now=place.now,
        signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)),
    )
    place.fill(300, ledger=ledger)
    ledger.roll()
    place.fill(1, ledger=ledger)
    ledger.close()
    told = []
    for _ in range(2):
        assert run(["ledger", "compress", "--home", path, "--output", "json"]) == 0
        told.append(json.loads(capsysbinary.readouterr().out))
    assert (told[0]["segments"], told[1]["segments"]) == (1, 0)
    assert told[0]["bytes_before"] > 3 * told[0]["bytes_after"] > 0
    assert run(["ledger", "verify", "--home", path]) == 0


def test_what_takes_the_place_of_a_segment_between_look_and_reading_holds_nobody_up(tmp_path):
    """A pipe that is exchanged with the compressed segment is refused or never seen."""
    segment, pipe = tmp_path / "000000000000.ndjson.gz", tmp_path / "pipe"
    segment.write_bytes(gzip.compress(b"{}\n", mtime=0))
    os.mkfifo(pipe)
    swap = (
        "import os\nwhile True:\n"
        f"    for a, b in (('{segment.name}', 'x'), ('pipe', '{segment.name}'), ('x', 'pipe')):\n"
        "        os.rename(a, b)\n"
    )
    swapper = subprocess.Popen([sys.executable, "-c", swap], cwd=tmp_path)
    try:
        with patience():
            for _ in range(3000):
                with contextlib.suppress(OSError), open_segment(str(segment)) as file:
                    assert file.read() == b"{}\n"
    finally:
        swapper.kill()
        swapper.wait()
