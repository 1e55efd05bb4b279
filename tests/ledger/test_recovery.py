"""Opening after a crash or after somebody's hand: what is mended, and what is refused untouched."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nacl.signing
import pytest

from broker.ledger.commit import Ledger
from broker.ledger.errors import (
    LedgerDamaged,
    LedgerLocked,
    LedgerRefused,
    LedgerTruncated,
    LedgerUnwritable,
)
from broker.ledger.volume import Volume
from schemas.events import LedgerClose, LedgerRoll
from schemas.proof import Checkpoint, VerifierKey, sign_note
from schemas.refusals import RefusalCode
from tests.ledger.conftest import LOG_ID, SIGNING_KEY


def snapshot(folder: Path) -> dict[str, bytes]:
    """Give every evidence file's bytes; tiles, locks and the readers' copy are derived."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "tiles" not in path.parts
        and path.name not in ("LOCK", "checkpoint", "ballast")
    }


def restore(folder: Path, files: dict[str, bytes]) -> None:
    for path in folder.rglob("*"):
        if path.is_file() and str(path.relative_to(folder)) not in files:
            path.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


def refused(place, kind, match):
    """The ledger is refused for this reason and every byte of evidence is as it was."""
    root = place.ledger.parent
    before = snapshot(root)
    with pytest.raises(kind, match=match) as caught:
        place.open()
    assert type(caught.value) is kind
    assert snapshot(root) == before


# --- What is mended ---


def test_a_torn_tail_is_put_aside_and_writing_goes_on(place):
    """Bytes after the last newline go to quarantine under their digest; the facts are reported."""
    ledger = place.fill(5)
    ledger.checkpoint()
    place.fill(2, ledger=ledger)
    place.abandon(ledger)
    torn = b'{"event_hash":"half of a li'
    with place.segment().open("ab") as file:
        file.write(torn)
    again = place.open()
    assert again.size == 7
    facts = again.recovered
    assert (facts.torn_bytes, facts.checkpoint_size, facts.events_after_checkpoint) == (27, 5, 2)
    assert facts.torn_sha256 == hashlib.sha256(torn).hexdigest()
    kept = list((place.ledger / "quarantine").iterdir())
    assert [path.read_bytes() for path in kept] == [torn]
    assert kept[0].name == f"000000000000.7.{facts.torn_sha256[:16]}"
    assert again.head_size == 7
    place.fill(1, ledger=again)
    assert [event.seq for event in again.events()] == list(range(8))


def test_a_crash_without_torn_bytes_is_reported_too(place):
    """An end without `ledger.close` is a recovery with nothing torn."""
    place.abandon(place.fill(3))
    facts = place.open().recovered
    assert (facts.torn_bytes, facts.torn_sha256, facts.events_after_checkpoint) == (0, None, 3)


@pytest.mark.parametrize("tail", [b"\0" * 5000, b"{", b"x" * 70_000])
def test_any_unterminated_tail_is_kept_byte_for_byte(place, tail):
    """Zeros after a power cut and long rubbish are put aside whole."""
    place.abandon(place.fill(3))
    with place.segment().open("ab") as file:
        file.write(tail)
    assert place.open().recovered.torn_bytes == len(tail)
    assert next((place.ledger / "quarantine").iterdir()).read_bytes() == tail


def test_a_torn_checkpoint_is_put_aside(place):
    """A checkpoint that was not written whole is kept aside and signed again."""
    ledger = place.fill(3)
    ledger.checkpoint()
    place.fill(1, ledger=ledger)
    place.abandon(ledger)
    log = place.ledger / "checkpoints.log"
    whole = log.read_bytes()
    log.write_bytes(whole + b"2\nomega-gateway/dev")
    again = place.open()
    assert again.head_size == 4
    assert log.read_bytes() == whole + b"2\n" + again.head.encode()
    assert next((place.ledger / "quarantine").iterdir()).read_bytes() == b"2\nomega-gateway/dev"


def test_the_anchor_is_rolled_forward(place):
    """A crash between the log and the anchor leaves an older anchor, which is brought up."""
    ledger = place.fill(3)
    ledger.checkpoint()
    older = (place.anchor / "head").read_bytes()
    place.fill(2, ledger=ledger)
    ledger.checkpoint()
    place.abandon(ledger)
    (place.anchor / "head").write_bytes(older)
    again = place.open()
    assert (place.anchor / "head").read_text() == again.head
    assert again.head_size == 5


@pytest.mark.parametrize("loss", ["all", "top", "short", "flipped"])
def test_tiles_are_made_again(place, loss):
    """Whatever happens to the stored tree, the next start has it right."""
    ledger = place.fill(300)
    ledger.roll()
    place.fill(300, ledger=ledger)
    ledger.close()
    tiles = place.ledger / "tiles"
    if loss == "all":
        shutil.rmtree(tiles)
    elif loss == "top":
        (tiles / "L1").unlink()
    elif loss == "short":
        os.truncate(tiles / "L0", 100)
    else:
        (tiles / "L1").write_bytes(bytes(64))
    again = place.open()
    for seq in (0, 255, 256, 300, 301, 600):
        again.prove(seq)


def test_a_crash_between_roll_and_new_segment_is_finished(place):
    """A segment that ended with `ledger.roll` is never written again; the next one begins."""
    ledger = place.fill(3)
    ledger.append(LedgerRoll(segment=4))
    ledger.commit()
    place.abandon(ledger)
    again = place.open()
    place.fill(1, ledger=again)
    assert place.segment().name == "000000000004.ndjson"
    assert [event.seq for event in again.events()] == list(range(5))


def test_a_crash_in_the_first_moments_is_finished(place):
    """A folder whose ledger was only begun is begun again, at each step of beginning."""
    place.open().close()
    root = place.ledger.parent
    whole = snapshot(root)
    for missing in (
        ["anchor/head"], ["anchor/head", "ledger/checkpoints.log"],
        ["anchor/head", "ledger/checkpoints.log", "ledger/segments/000000000000.ndjson"],
    ):
        restore(root, {name: data for name, data in whole.items() if name not in missing})
        ledger = place.open()
        assert (ledger.size, ledger.recovered) == (0, None)
        ledger.close()
        assert snapshot(root) == whole


class FailingOnce(Volume):
    """Fails the nth call of one kind, with half of the bytes written where that can be."""

    def __init__(self, name: str, nth: int, error: int) -> None:
        self.left, self.error = nth, error
        real = getattr(super(), name)

        def call(*arguments):
            self.left -= 1
            if self.left:
                return real(*arguments)
            if name == "write":
                real(arguments[0], arguments[1][: len(arguments[1]) // 2])
            raise OSError(self.error, os.strerror(self.error))

        setattr(self, name, call)


CALLS = ("open", "mkdir", "write", "pwrite", "fdatasync", "fsync", "ftruncate", "rename")


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", CALLS)
def test_recovery_that_fails_anywhere_can_be_done_again(place, name, error):
    """Each call of opening may fail: the start is refused, and the next one loses nothing."""
    ledger = place.fill(300)
    ledger.checkpoint()
    place.fill(2, ledger=ledger)
    place.abandon(ledger)
    with place.segment().open("ab") as file:
        file.write(b"torn")
    with (place.ledger / "checkpoints.log").open("ab") as file:
        file.write(b"7\ntorn")
    shutil.rmtree(place.ledger / "tiles")
    shutil.rmtree(place.ledger / "quarantine")
    root = place.ledger.parent
    whole = snapshot(root)
    failures = 0
    while True:
        volume = FailingOnce(name, failures + 1, error)
        try:
            ledger = place.open(volume=volume)
            break
        except LedgerRefused as refusal:
            code = refusal.code
        assert code is RefusalCode.LEDGER_UNWRITABLE
        failures += 1
        ledger = place.open()
        assert ledger.size == 302
        assert [event.seq for event in ledger.events()] == list(range(302))
        assert {path.read_bytes() for path in (place.ledger / "quarantine").iterdir()} >= {
            b"torn", b"7\ntorn",
        }
        ledger.close()
        restore(root, whole)
        shutil.rmtree(place.ledger / "tiles")
        shutil.rmtree(place.ledger / "quarantine")
    assert failures >= 2
    assert ledger.size == 302


# --- What is refused ---


def test_a_second_writer_is_refused(place):
    """One process writes a ledger, and one ledger moves an anchor."""
    place.fill(1)
    with pytest.raises(LedgerLocked) as caught:
        place.open()
    assert caught.value.code is RefusalCode.LEDGER_LOCKED
    with pytest.raises(LedgerLocked):
        Ledger.open(
            str(place.ledger.parent / "copy"), str(place.anchor), log_id=LOG_ID,
            signing_key=SIGNING_KEY, durability="power", now=place.now,
        )


def test_truncation_is_refused_at_every_byte_before_the_checkpoint(place):
    """However much is missing from what was signed, the ledger is refused and left as it is."""
    ledger = place.fill(12)
    ledger.checkpoint()
    place.abandon(ledger)
    data = place.segment().read_bytes()
    for length in range(max(0, len(data) - 4096), len(data)):
        place.segment().write_bytes(data[:length])
        with pytest.raises(LedgerTruncated, match="12 were signed"):
            place.open()
        assert place.segment().read_bytes() == data[:length]


def test_truncation_after_the_checkpoint_keeps_every_whole_event(place):
    """Beyond the checkpoint a cut is a torn tail: each whole line stays, the rest is kept aside."""
    ledger = place.fill(2)
    ledger.checkpoint()
    signed = place.segment().stat().st_size
    place.fill(2, ledger=ledger)
    place.abandon(ledger)
    root = place.ledger.parent
    whole = snapshot(root)
    data = place.segment().read_bytes()
    for length in [*range(signed, len(data), 23), len(data) - 1]:
        restore(root, whole)
        place.segment().write_bytes(data[:length])
        ledger = place.open()
        assert ledger.size == data[:length].count(b"\n")
        kept = [path.read_bytes() for path in (place.ledger / "quarantine").iterdir()]
        assert place.segment().read_bytes() + b"".join(kept) == data[:length]
        ledger.close()


def test_a_flipped_bit_anywhere_in_a_line_is_refused(place):
    """Every byte of a line is covered: prefix, hash, body and newline."""
    ledger = place.fill(4)
    ledger.checkpoint()
    place.abandon(ledger)
    data = bytearray(place.segment().read_bytes())
    begin = data.index(b"\n") + 1
    for at in range(begin, data.index(b"\n", begin) + 1):
        data[at] ^= 1
        place.segment().write_bytes(data)
        with pytest.raises(LedgerDamaged, match="not event 1 as written"):
            place.open()
        data[at] ^= 1


def test_deleted_swapped_and_repeated_lines_are_refused(place):
    """The chain names the first line that does not belong where it stands."""
    place.abandon(place.fill(6))
    lines = place.lines()
    for changed in (
        [*lines[:2], *lines[3:]], [*lines[:2], lines[3], lines[2], *lines[4:]],
        [*lines[:2], lines[1], *lines[2:]],
    ):
        place.segment().write_bytes(b"".join(changed))
        refused(place, LedgerDamaged, "not event 2 as written")


def test_a_foreign_line_with_its_newline_is_refused(place):
    """Only an unterminated tail is set aside: a line that is no event is damage."""
    place.abandon(place.fill(3))
    for foreign in (b"hello\n", b"\0" * 100 + b"\n", b"\n"):
        data = place.segment().read_bytes()
        place.segment().write_bytes(data + foreign)
        refused(place, LedgerDamaged, "not event 3 as written")
        place.segment().write_bytes(data)


def test_missing_segments_are_refused(place):
    """The first, a middle and the last segment are each missed by name."""
    ledger = place.fill(3)
    for _ in range(2):
        ledger.roll()
        place.fill(3, ledger=ledger)
    ledger.close()
    folder = place.ledger / "segments"
    root = place.ledger.parent
    whole = snapshot(root)
    for name, kind, match in (
        ("000000000000", LedgerDamaged, "begins with event 0 is missing"),
        ("000000000004", LedgerDamaged, "begins with event 4 is missing"),
        ("000000000008", LedgerTruncated, "holds 8 events, but 11 were signed"),
    ):
        (folder / f"{name}.ndjson").unlink()
        refused(place, kind, match)
        restore(root, whole)
    for path in folder.iterdir():
        path.unlink()
    refused(place, LedgerTruncated, "no segment")
    restore(root, whole)
    (folder / "notes.txt").write_text("mine")
    refused(place, LedgerDamaged, r"notes\.txt")
    restore(root, whole)
    with (folder / "000000000004.ndjson").open("ab") as file:
        file.write(b"x\n")
    refused(place, LedgerDamaged, "does not end with")


def test_missing_or_foreign_checkpoints_and_anchors_are_refused(place):
    """Without checkpoint, without anchor, with an older log than the anchor: each is refused."""
    ledger = place.fill(3)
    ledger.close()
    root = place.ledger.parent
    whole = snapshot(root)
    log, head = place.ledger / "checkpoints.log", place.anchor / "head"
    log.unlink()
    refused(place, LedgerTruncated, "anchor holds a checkpoint over 3 events")
    head.unlink()
    refused(place, LedgerDamaged, "3 events and no checkpoint")
    restore(root, whole)
    head.unlink()
    refused(place, LedgerDamaged, "anchor directory holds no head")
    restore(root, whole)
    log.write_bytes(log.read_bytes().partition(b"\n1\n")[0] + b"\n")
    refused(place, LedgerTruncated, "over 3 events, checkpoints.log over 0")
    restore(root, whole)
    head.write_bytes(head.read_bytes().replace(b"\n3\n", b"\n4\n"))
    refused(place, LedgerDamaged, "the anchor's head does not verify")
    restore(root, whole)
    log.write_bytes(log.read_bytes().replace(b"\n3\n", b"\n2\n"))
    refused(place, LedgerDamaged, "newest checkpoint in checkpoints.log does not verify")
    restore(root, whole)
    log.write_bytes(b"rubbish\n" * 10)
    refused(place, LedgerDamaged, "no checkpoint")
    for path in (place.ledger / "segments").iterdir():
        path.unlink()
    log.unlink()
    refused(place, LedgerTruncated, "the anchor holds a checkpoint over 3 events")


@pytest.mark.parametrize("size", [3, 5])
def test_an_anchor_over_another_history_is_refused(place, size):
    """A rightly signed head whose root these events never had, older or as old, is a fork."""
    place.fill(5).close()
    text = str(Checkpoint(origin=LOG_ID, size=size, root=bytes(32)))
    key = VerifierKey(name=LOG_ID, public_key=bytes(SIGNING_KEY.verify_key))
    note = sign_note(text, key, lambda message: SIGNING_KEY.sign(message).signature)
    (place.anchor / "head").write_text(note)
    refused(place, LedgerDamaged, f"first {size} events are not those that were signed")


def test_another_history_with_a_right_chain_is_refused(place):
    """A ledger rewritten from the first event on has a chain, but not the root that was signed."""
    ledger = place.fill(5)
    ledger.close()
    root = place.ledger.parent
    signed = snapshot(root)
    shutil.rmtree(place.ledger)
    shutil.rmtree(place.anchor)
    other = place.fill(5)
    other.close()
    rewritten = place.segment().read_bytes()
    restore(root, signed)
    assert rewritten != place.segment().read_bytes()
    place.segment().write_bytes(rewritten)
    refused(place, LedgerDamaged, "first 5 events are not those that were signed")


def test_another_log_and_another_key_are_refused(place):
    """A ledger is opened under its own log_id and with its own key only."""
    place.fill(2).close()
    for log_id, key in (
        (LOG_ID, nacl.signing.SigningKey(bytes(32))),
        (LOG_ID.replace("0123", "3210"), SIGNING_KEY),
    ):
        with pytest.raises(LedgerDamaged, match="does not verify"):
            Ledger.open(
                str(place.ledger), str(place.anchor), log_id=log_id, signing_key=key,
                durability="power", now=place.now,
            )


def test_a_folder_that_may_not_be_written_is_refused(place):
    """What the volume does not allow is a refusal with its path, not an exception of the system."""
    place.ledger.write_text("a file")
    with pytest.raises(LedgerUnwritable, match="ledger"):
        place.open()


def test_a_file_that_is_in_the_way_is_named(place):
    """The sentence begins with the file that the system refused, without numbers of errors."""
    place.fill(2).close()
    (place.anchor / "head").unlink()
    (place.anchor / "head").mkdir()
    with pytest.raises(LedgerUnwritable) as refusal:
        place.open()
    assert str(refusal.value) == f"{place.anchor}/head: not a regular file"


# --- kill -9 ---

WRITER = """
import os, sys
from pathlib import Path
from tests.ledger.conftest import Place, frame
place = Place(Path(sys.argv[1]))
ledger = place.open(durability=sys.argv[2])
os.write(1, b"%d\\n" % ledger.size)
while True:
    for _ in range(int(sys.argv[3])):
        ledger.append(frame(ledger.size))
    ledger.commit()
    os.write(1, b"%d\\n" % ledger.size)
    if ledger.size % 5 == 0:
        ledger.checkpoint()
"""


@pytest.mark.system
@pytest.mark.parametrize(("durability", "batch"), [("power", 1), ("power", 64), ("process", 256)])
def test_nothing_acknowledged_is_lost_by_kill_9(place, durability, batch):
    """However often the writer is killed, every event it acknowledged is there afterwards."""
    root = Path(__file__).parents[2]
    for attempt in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place.ledger.parent), durability, str(batch)],
            cwd=root, stdout=subprocess.PIPE,
        )
        for _ in range(3 + attempt * 2):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        later = writer.stdout.read().split()
        writer.wait()
        acknowledged = int(later[-1]) if later else acknowledged
        ledger = place.open()
        assert ledger.size >= acknowledged > 0
        assert [event.seq for event in ledger.events()] == list(range(ledger.size))
        ledger.append(LedgerClose(reason="stopped"))
        ledger.close()


