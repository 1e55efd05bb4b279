"""Every kind of damage is found and told apart by name, by two verifiers that share no code."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nacl.signing
import pytest

from broker.evidence.verify import verify_directory
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerRefused, LedgerUnwritable
from schemas.events import EVENT_TYPES, GENESIS_HASH, LedgerClose, encode_event
from schemas.proof import Checkpoint, ProofError, VerifierKey, sign_note
from tests.evidence.conftest import SCRIPT, both
from tests.ledger.conftest import LOG_ID, SIGNING_KEY, VERIFIER_KEY, Place, frame, opening

KEY = VerifierKey(name=LOG_ID, public_key=bytes(SIGNING_KEY.verify_key))


@pytest.fixture
def written(place: Place) -> Place:
    """A ledger of three segments (0-6, 7-13, 14-19) and a checkpoint each, closed in order."""
    ledger = place.fill(6)
    ledger.checkpoint()
    ledger.roll()
    place.fill(6, ledger=ledger)
    ledger.roll()
    place.fill(5, ledger=ledger)
    ledger.append(LedgerClose(reason="stopped"))
    ledger.close()
    return place


def segment(place: Place, number: int) -> Path:
    return sorted((place.ledger / "segments").iterdir())[number]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def change_lines(path: Path, change) -> None:
    lines = lines_of(path)
    path.write_bytes(b"".join(change(lines)))


def rehash(line: bytes) -> bytes:
    """Give a line its right hash again after its body was changed."""
    digest = hashlib.sha256(b"\x00{" + line[81:-1]).hexdigest()
    return b'{"event_hash":"%b",' % digest.encode() + line[81:]


def test_a_whole_ledger_holds(script, written):
    """Nothing is wrong, everything is counted, and key and anchor were compared."""
    report = both(script, written)
    assert report["ok"]
    assert report["problem"] is None
    assert (report["events"], report["segments"], report["checkpoints"]) == (20, 3, 5)
    assert (report["head_size"], report["torn_bytes"], report["log_id"]) == (20, 0, LOG_ID)
    assert report["key_given"]
    assert report["anchored"]


def test_a_ledger_without_a_given_key_agrees_only_with_itself(script, written):
    """Without a key the ledger's own claim is used, and the report says so."""
    report = both(script, written, key=None, anchor=False)
    assert (report["ok"], report["key_given"], report["anchored"]) == (True, False, False)


def test_a_running_ledger_may_be_verified(script, place):
    """Verifying only reads; committed events beyond the checkpoint are counted."""
    ledger = place.fill(5)
    ledger.checkpoint()
    place.fill(3, ledger=ledger)
    report = both(script, place)
    assert report["ok"]
    assert (report["events"], report["head_size"]) == (8, 5)
    place.fill(1, ledger=ledger)


def test_an_empty_ledger_holds(script, place):
    """A ledger that was only begun has a checkpoint over nothing."""
    place.open()
    report = both(script, place)
    assert report["ok"]
    assert report["root"] == hashlib.sha256(b"").hexdigest()


def test_a_torn_tail_is_counted_and_is_no_damage(script, written):
    """Bytes after the last newline were never acknowledged; they are told, not blamed."""
    with segment(written, 2).open("ab") as file:
        file.write(b'{"event_ha')
    report = both(script, written)
    assert (report["ok"], report["torn_bytes"]) == (True, 10)


def swap(first: int, second: int):
    def change(lines):
        lines[first], lines[second] = lines[second], lines[first]
        return lines

    return lambda path: change_lines(path, change)


def drop(begin: int, end: int):
    return lambda path: change_lines(path, lambda lines: lines[:begin] + lines[end:])


def edit(number: int, before: bytes, after: bytes, *, hashed: bool = True):
    def change(lines):
        assert before in lines[number]
        line = lines[number].replace(before, after)
        lines[number] = rehash(line) if hashed else line
        return lines

    return lambda path: change_lines(path, change)


def repeat(number: int):
    return lambda path: change_lines(
        path, lambda lines: [*lines[: number + 1], lines[number], *lines[number + 1 :]]
    )


def cut(length: int):
    return lambda path: os.truncate(path, path.stat().st_size - length)


def insert(number: int, line: bytes):
    return lambda path: change_lines(
        path, lambda lines: [*lines[:number], line, *lines[number:]]
    )


LINE_DAMAGES = {
    # what was done: (segment, what, kind, event)
    "a digit is changed": (1, edit(2, b'"bytes":9', b'"bytes":8', hashed=False), "flipped", 9),
    "a newline is lost": (1, edit(2, b"\n", b" ", hashed=False), "flipped", 9),
    "rubbish is a line": (1, insert(2, b"rubbish\n"), "flipped", 9),
    "zeros are a line": (2, insert(2, bytes(300) + b"\n"), "flipped", 16),
    "an empty line": (2, insert(0, b"\n"), "flipped", 14),
    "a line is deleted": (1, drop(2, 3), "deleted", 9),
    "the first line is deleted": (1, drop(0, 1), "deleted", 7),
    "the very first line is deleted": (0, drop(0, 1), "deleted", 0),
    "three lines are deleted": (1, drop(2, 5), "deleted", 9),
    "two neighbours are swapped": (1, swap(2, 3), "swapped", 9),
    "two distant lines are swapped": (1, swap(1, 5), "swapped", 8),
    "a line is repeated": (1, repeat(2), "inserted", 10),
    "an event is rewritten": (1, edit(2, b'"bytes":9', b'"bytes":8'), "rewritten", 10),
    "the last event is rewritten": (2, edit(5, b"stopped", b"drained"), "rewritten", None),
    "a space is added": (1, edit(2, b',"seq"', b', "seq"'), "not_canonical", 9),
    "a member is added": (1, edit(2, b',"mono_us"', b',"lie":1,"mono_us"'), "not_canonical", 9),
    "a member stands twice": (1, edit(2, b'"f":{', b'"f":{"bytes":1,'), "not_canonical", 9),
    "a number is a float": (1, edit(2, b'"bytes":9', b'"bytes":9.0'), "not_canonical", 9),
    "a number has a zero": (1, edit(2, b'"bytes":9', b'"bytes":09'), "not_canonical", 9),
    "a number is too long": (
        1, edit(2, b'"bytes":9', b'"bytes":9007199254740992'), "not_canonical", 9
    ),
    "a type is unknown": (1, edit(2, b"frame.in", b"frame.on"), "not_canonical", 9),
    "another version": (1, edit(2, b'"v":1}', b'"v":2}'), "not_canonical", 9),
    "a segment's end is deleted": (1, drop(5, 7), "truncated", 12),
    "a segment's last line is torn": (1, cut(1), "truncated", 13),
    "the last segment loses a line": (2, drop(5, 6), "truncated", 19),
    "the last segment loses a byte": (2, cut(1), "truncated", 19),
    "the last segment is emptied": (2, drop(0, 6), "truncated", 14),
    "the first segment is emptied": (0, drop(0, 7), "truncated", 0),
}


@pytest.mark.parametrize("what", LINE_DAMAGES)
def test_damaged_lines_are_told_apart(script, written, what):
    """Each damage has its own name and is found at the first event that is not as it was."""
    number, damage, kind, seq = LINE_DAMAGES[what]
    damage(segment(written, number))
    problem = both(script, written)["problem"]
    assert (problem["kind"], problem["number"] if seq is not None else None) == (kind, seq)
    if seq is not None:
        assert problem["file"] == f"segments/{segment(written, number).name}"
    if number == 2:
        with pytest.raises(LedgerRefused):
            written.open()


def test_missing_and_foreign_segments_are_told_apart(script, written):
    """The first, a middle, the last and all segments are each missed by name."""
    folder = written.ledger / "segments"
    for number, missing in ((0, 0), (1, 7), (2, 14)):
        path = segment(written, number)
        data = path.read_bytes()
        path.unlink()
        problem = both(script, written)["problem"]
        assert (problem["kind"], problem["number"]) == ("missing_segment", missing)
        assert problem["file"] == f"segments/{missing:012d}.ndjson"
        path.write_bytes(data)
    (folder / "000000000010.ndjson").write_bytes(b"")
    assert both(script, written)["problem"]["kind"] == "inserted"
    (folder / "000000000010.ndjson").rename(folder / "notes.txt")
    problem = both(script, written)["problem"]
    assert (problem["kind"], problem["file"]) == ("foreign_file", "segments/notes.txt")
    for path in folder.iterdir():
        path.unlink()
    assert both(script, written)["problem"]["kind"] == "missing_segment"


def entries(place: Place) -> list[bytes]:
    lines = lines_of(place.ledger / "checkpoints.log")
    return [b"".join(lines[at : at + 6]) for at in range(0, len(lines), 6)]


def test_each_missing_checkpoint_is_missed(script, written):
    """Whichever entry of checkpoints.log is gone, or all of them, is told as missing."""
    log = written.ledger / "checkpoints.log"
    whole = entries(written)
    for number in range(len(whole)):
        log.write_bytes(b"".join(whole[:number] + whole[number + 1 :]))
        problem = both(script, written)["problem"]
        assert (problem["kind"], problem["number"]) == ("missing_checkpoint", number)
    # Without an anchor the readers' copy still tells that the log lost its end.
    assert both(script, written, anchor=False)["problem"]["kind"] == "missing_checkpoint"
    (written.ledger / "checkpoint").unlink()
    assert both(script, written, anchor=False)["ok"]
    assert both(script, written)["problem"]["kind"] == "missing_checkpoint"
    log.unlink()
    assert both(script, written)["problem"]["kind"] == "missing_checkpoint"


def test_every_flipped_byte_of_a_checkpoint_is_found(script, written):
    """No single byte of a middle entry can be another without a verdict on checkpoints.log."""
    log = written.ledger / "checkpoints.log"
    data = bytearray(log.read_bytes())
    begin = len(entries(written)[0])
    for at in range(begin, begin + len(entries(written)[1]), 3):
        data[at] ^= 1
        log.write_bytes(data)
        problem = both(script, written)["problem"]
        assert problem["kind"] in ("checkpoint_invalid", "missing_checkpoint"), at
        assert problem["file"] == "checkpoints.log"
        data[at] ^= 1


def resign(place: Place, number: int, *, size: int, root: bytes, key: VerifierKey = KEY,
           signing_key: nacl.signing.SigningKey = SIGNING_KEY, origin: str = LOG_ID) -> None:
    """Put another checkpoint in an entry's place, rightly signed by some key."""
    note = sign_note(
        str(Checkpoint(origin=origin, size=size, root=root)), key,
        lambda text: signing_key.sign(text).signature,
    )
    whole = entries(place)
    whole[number] = f"{number}\n{note}".encode()
    (place.ledger / "checkpoints.log").write_bytes(b"".join(whole))


def test_signed_checkpoints_that_do_not_fit_are_told_apart(script, written):
    """A wrong root, another key, another log and a size that does not grow each have a name."""
    whole = b"".join(entries(written))
    log = written.ledger / "checkpoints.log"
    other = nacl.signing.SigningKey(bytes(32))
    foreign = VerifierKey(name=LOG_ID, public_key=bytes(other.verify_key))
    for change, kind in (
        ({"size": 6, "root": bytes(32)}, "rewritten"),
        ({"size": 6, "root": bytes(32), "key": foreign, "signing_key": other},
         "checkpoint_invalid"),
        ({"size": 6, "root": bytes(32), "origin": "omega-gateway/production/0123456789abcdef"},
         "checkpoint_invalid"),
        ({"size": 0, "root": bytes(32)}, "checkpoint_invalid"),
    ):
        resign(written, 1, **change)
        problem = both(script, written)["problem"]
        assert (problem["kind"], problem["number"]) == (kind, 1)
        log.write_bytes(whole)
    resign(written, 4, size=21, root=bytes(32))
    assert both(script, written)["problem"]["kind"] == "truncated"


def test_the_anchor_is_compared(script, written):
    """A missing, damaged, foreign, newer or different anchor each has a name."""
    head = written.anchor / "head"
    note = head.read_text()
    head.write_text(entries(written)[2].partition(b"\n")[2].decode())
    assert both(script, written)["ok"]
    head.write_text(note.replace("\n20\n", "\n21\n"))
    assert both(script, written)["problem"]["kind"] == "anchor_invalid"
    head.write_text("rubbish")
    assert both(script, written)["problem"]["kind"] == "anchor_invalid"
    for size, kind in ((20, "rewritten"), (21, "truncated")):
        head.write_text(sign_note(
            str(Checkpoint(origin=LOG_ID, size=size, root=bytes(32))), KEY,
            lambda text: SIGNING_KEY.sign(text).signature,
        ))
        problem = both(script, written)["problem"]
        assert (problem["kind"], problem["file"].partition("/")[0]) == (
            kind, "anchor" if size == 20 else "segments"
        )
    head.unlink()
    assert both(script, written)["problem"]["kind"] == "missing_anchor"


def test_another_key_and_a_lost_claim_are_found(script, written):
    """The given key decides; a ledger that claims none cannot vouch for itself."""
    foreign = nacl.signing.SigningKey(bytes(32))
    other = VerifierKey(name=LOG_ID, public_key=bytes(foreign.verify_key))
    assert both(script, written, key=str(other))["problem"]["kind"] == "checkpoint_invalid"
    with pytest.raises(ProofError):
        verify_directory(str(written.ledger), verifier_key="nonsense")
    for path in (written.ledger / "segments").iterdir():
        path.unlink()
    assert both(script, written, key=None)["problem"]["kind"] == "checkpoint_invalid"


def test_an_event_of_another_log_is_found(script, place):
    """An event that is chained rightly but names another ledger does not pass."""
    place.fill(2).close()
    lines, previous = [], GENESIS_HASH
    for seq, log_id in enumerate((LOG_ID, LOG_ID.replace("0123", "3210"))):
        line, previous = encode_event(
            opening() if seq == 0 else frame(1), log_id=log_id, seq=seq, ts_us=1, mono_us=1,
            prev_hash=previous,
        )
        lines.append(line)
    place.segment().write_bytes(b"".join(lines))
    problem = both(script, place)["problem"]
    assert (problem["kind"], problem["number"]) == ("other_log", 1)


def test_a_field_no_event_has_is_found_by_the_schema(written):
    """The broker's verifier knows the fields of every type, so a secret has no place to hide."""
    edit(2, b'"bytes":9', b'"bytes":9,"note":"hidden"')(segment(written, 1))
    report = verify_directory(str(written.ledger), verifier_key=VERIFIER_KEY)
    assert report.problem is not None
    assert (report.problem.kind, report.problem.number) == ("not_canonical", 9)


def test_both_know_the_same_types(script):
    """The stand-alone verifier's list of types is the closed list."""
    assert all(script.EVENT_TYPE.fullmatch(name) for name in EVENT_TYPES)
    assert not script.EVENT_TYPE.fullmatch("frame.inn")
    assert not script.EVENT_TYPE.fullmatch("")


def test_progress_is_told(written):
    """Whoever waits hears how many bytes of how many are done, and at the end that all are."""
    heard = []
    verify_directory(str(written.ledger), progress=lambda *counts: heard.append(counts))
    sizes = [path.stat().st_size for path in sorted((written.ledger / "segments").iterdir())]
    assert heard == [(sum(sizes[: done + 1]), sum(sizes)) for done in range(3)]


# --- The command line ---


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(SCRIPT), *arguments], capture_output=True, text=True,
        check=False, timeout=60,
    )


def test_the_script_needs_only_the_standard_library(written):
    """Without site packages and from anywhere it gives one line and the status 0 or 7."""
    arguments = (str(written.ledger), "--vkey", VERIFIER_KEY, "--anchor", str(written.anchor))
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"OK {LOG_ID}: 20 events, 3 segments, 5 checkpoints, root ")
    assert done.stdout.count("\n") == 1
    drop(2, 3)(segment(written, 1))
    done = run(*arguments)
    assert done.returncode == 7
    assert done.stdout.startswith("FAILED deleted: segments/000000000007.ndjson, byte ")
    done = run(*arguments, "--output", "json")
    assert done.returncode == 7
    assert json.loads(done.stdout)["problem"]["kind"] == "deleted"


def test_the_script_says_what_is_wrong_with_its_arguments(written, tmp_path):
    """A wrong folder or key is a usage error, not a verdict."""
    for arguments in ((str(tmp_path / "none"),), (str(written.ledger), "--vkey", "nonsense"), ()):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert "verify_ledger.py: error:" in done.stderr


@contextlib.contextmanager
def patience() -> Iterator[None]:
    """Fail what does not come back."""

    def ring(_number: int, _frame: object) -> None:
        raise AssertionError("it waits")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(20)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("device", [False, True])
@pytest.mark.parametrize("name", [
    "checkpoints.log", "checkpoint", "segments/000000000007.ndjson", "anchor/head",
])
def test_what_is_no_file_is_refused_at_once(script, written, name, device):
    """A pipe or a device in a file's place holds nobody up: no verifier, no start, no proof."""
    path = (written.anchor if name == "anchor/head" else written.ledger) / Path(name).name
    if name.startswith("segments"):
        path = written.ledger / name
    path.unlink()
    if device:
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(path)
    arguments = str(written.ledger), VERIFIER_KEY, str(written.anchor)
    with patience():
        for verify in (script.verify, verify_ledger):
            with pytest.raises(OSError, match="not a regular file"):
                verify(*arguments)
        if name != "checkpoint":
            # That one is for readers; a start writes it anew.
            with pytest.raises(LedgerUnwritable, match=r"not a regular file|symbolic links"):
                written.open()


def verify_ledger(directory: str, key: str, anchor: str) -> object:
    """The gateway's verifier, with the arguments of the script's."""
    return verify_directory(directory, verifier_key=key, anchor_directory=anchor)


def test_a_copied_directory_verifies_and_cannot_be_continued_under_the_anchor(written, tmp_path):
    """A backup proves itself; a writer that has gone on since makes it older than its anchor."""
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", str(written.ledger), str(copy)], check=True)
    written.fill(3, ledger=written.open()).close()
    assert verify_directory(str(copy), verifier_key=VERIFIER_KEY).ok
    with pytest.raises(Exception, match="anchor holds a checkpoint over 23 events"):
        Ledger.open(
            str(copy), str(written.anchor), log_id=LOG_ID, signing_key=SIGNING_KEY,
            durability="power", now=written.now,
        )
