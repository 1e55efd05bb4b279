"""Appending, committing, checkpoints and proofs of a ledger that nothing bad happens to."""

from __future__ import annotations

import os

import pytest

from broker.ledger.errors import LedgerDamaged, PositionUnknown, SizeUnsigned, TilesDamaged
from broker.ledger.merkle import (
    CompactRange,
    verify_consistency,
    verify_inclusion,
)
from broker.ledger.segments import SEGMENT_BYTES_MAX
from broker.ledger.signature import check_signature
from schemas.events import GENESIS_HASH, FrameDrop, LedgerClose, decode_event
from schemas.proof import parse_checkpoint, parse_note, parse_verifier_key, verify_checkpoint
from tests.ledger.conftest import LOG_ID, REQUEST_ID, VERIFIER_KEY, frame


def head_of(ledger):
    return verify_checkpoint(ledger.head, parse_verifier_key(VERIFIER_KEY), check_signature)


def test_nothing_is_written_before_commit_and_everything_after(place):
    """An appended event reaches the file with the commit, in order, chained from the first on."""
    ledger = place.open()
    first = ledger.append(frame(1))
    second = ledger.append(frame(2))
    assert (first.seq, second.seq, ledger.size, ledger.pending) == (0, 1, 2, True)
    assert place.lines() == []
    ledger.commit()
    assert not ledger.pending
    events = [decode_event(line) for line in place.lines()]
    assert [event.event_hash for event in events] == [first.event_hash, second.event_hash]
    assert [event.prev_hash for event in events] == [GENESIS_HASH, first.event_hash]
    assert [event.fields.bytes for event in events] == [1, 2]
    assert {event.log_id for event in events} == {LOG_ID}
    ledger.commit()
    assert len(place.lines()) == 2


def test_a_new_ledger_begins_with_a_checkpoint_over_nothing(place):
    """Log, readers' file and anchor hold the same signed size 0 from the first moment."""
    ledger = place.open()
    assert head_of(ledger).size == ledger.head_size == 0
    assert (place.ledger / "checkpoint").read_text() == ledger.head
    assert (place.anchor / "head").read_text() == ledger.head
    assert (place.ledger / "checkpoints.log").read_text() == "0\n" + ledger.head
    assert ledger.recovered is None


def test_a_checkpoint_is_due_after_4096_events_or_a_second(place):
    """Committed events wait for a checkpoint at most 4096 long and at most a second."""
    ledger = place.fill(4095)
    assert not ledger.checkpoint_due()
    ledger.append(frame())
    assert not ledger.checkpoint_due()
    ledger.commit()
    assert ledger.checkpoint_due()
    note = ledger.checkpoint()
    assert note == ledger.head
    assert ledger.head_size == 4096
    assert not ledger.checkpoint_due()
    place.fill(1, ledger=ledger)
    assert not ledger.checkpoint_due()
    for _ in range(1_000_000 - 10):
        next(place.clock_us)
    assert not ledger.checkpoint_due()
    for _ in range(10):
        next(place.clock_us)
    assert ledger.checkpoint_due()


def test_an_unchanged_ledger_is_not_signed_again(place):
    """A checkpoint over the same events is the same note, and the log does not grow."""
    ledger = place.fill(3)
    note = ledger.checkpoint()
    length = (place.ledger / "checkpoints.log").stat().st_size
    assert ledger.checkpoint() == note
    assert (place.ledger / "checkpoints.log").stat().st_size == length


def test_a_checkpoint_covers_committed_events_only(place):
    """What is only appended is not signed."""
    ledger = place.fill(3)
    ledger.append(frame())
    ledger.checkpoint()
    assert ledger.head_size == 3
    assert ledger.size == 4


@pytest.mark.parametrize("count", [1, 2, 255, 256, 257, 700])
def test_every_event_is_proven_against_the_head(place, count):
    """Root, inclusion of each event and consistency of each older size come out right."""
    ledger = place.fill(count)
    ledger.checkpoint()
    running, roots = CompactRange(), []
    for line in place.lines():
        roots.append(running.root())
        running.push(bytes.fromhex(decode_event(line).event_hash))
    root = head_of(ledger).root
    assert root == running.root()
    for seq in range(0, count, 1 + count // 50):
        leaf = bytes.fromhex(decode_event(ledger.line(seq)).event_hash)
        verify_inclusion(leaf, seq, count, ledger.prove(seq), root)
        if seq:
            verify_consistency(seq, count, roots[seq], root, ledger.prove_consistency(seq))
    assert ledger.prove_consistency(0) == ledger.prove_consistency(count) == []


def test_positions_beyond_the_checkpoint_are_unknown(place):
    """A proof is made for what is signed, a line given for what is committed; nothing else."""
    ledger = place.fill(3)
    for call in (ledger.prove, ledger.line):
        for seq in (-1, 3):
            with pytest.raises(PositionUnknown):
                call(seq)
    with pytest.raises(PositionUnknown):
        ledger.prove(2)
    with pytest.raises(PositionUnknown):
        ledger.prove_consistency(1)
    assert decode_event(ledger.line(2)).seq == 2


def test_lines_of_any_length_are_found_by_position(place):
    """Halving finds short and long lines alike, the first and the last."""
    ledger = place.open()
    for number in range(200):
        ledger.append(frame(number))
        ledger.append(FrameDrop(
            plane="worker", peer="unknown", code="frame_malformed", where="x" * (number * 5)
        ))
    ledger.commit()
    lines = place.lines()
    for seq in range(400):
        assert ledger.line(seq) == lines[seq]


def test_events_are_given_from_any_position(place):
    """Folding may begin anywhere and sees each committed event once, across segments."""
    ledger = place.fill(5)
    ledger.roll()
    place.fill(4, ledger=ledger)
    ledger.append(frame())
    assert [event.seq for event in ledger.events()] == list(range(10))
    assert [event.seq for event in ledger.events(5)] == list(range(5, 10))
    assert [event.seq for event in ledger.events(7)] == [7, 8, 9]
    assert [event.seq for event in ledger.events(10)] == []


def test_a_changed_line_is_not_folded(place):
    """Reading events stops at a line that is not what was written."""
    ledger = place.fill(5)
    data = place.segment().read_bytes()
    place.segment().write_bytes(data.replace(b'"bytes":3', b'"bytes":4'))
    with pytest.raises(LedgerDamaged, match="event 3"):
        list(ledger.events())


def test_rolling_begins_a_segment_named_by_its_first_event(place):
    """The old segment ends with `ledger.roll`; the new one continues chain, tree and proofs."""
    ledger = place.fill(300)
    assert not ledger.roll_due
    ledger.roll()
    assert ledger.head_size == 301
    place.fill(300, ledger=ledger)
    ledger.checkpoint()
    assert [path.name for path in sorted((place.ledger / "segments").iterdir())] == [
        "000000000000.ndjson", "000000000301.ndjson",
    ]
    last = decode_event(ledger.line(300))
    assert (last.event_type, last.fields.segment) == ("ledger.roll", 301)
    assert decode_event(ledger.line(301)).prev_hash == last.event_hash
    for seq in (0, 300, 301, 600):
        ledger.prove(seq)
    ledger.close()
    again = place.open()
    assert again.size == 601
    assert again.prove(301)
    ledger = again
    ledger._segment.size = SEGMENT_BYTES_MAX
    assert ledger.roll_due


def test_a_closed_ledger_opens_without_recovery(place):
    """After `ledger.close` and close() nothing is reported, and the chain goes on."""
    ledger = place.fill(3)
    ledger.append(LedgerClose(reason="stopped"))
    ledger.close()
    assert verify_checkpoint(
        (place.anchor / "head").read_text(), parse_verifier_key(VERIFIER_KEY), check_signature
    ).size == 4
    again = place.open()
    assert (again.size, again.head_size, again.recovered) == (4, 4, None)
    place.fill(1, ledger=again)
    assert [event.seq for event in again.events()] == list(range(5))


def test_both_modes_checkpoint_only_what_is_flushed(place):
    """In mode `process` the flush comes with the checkpoint, before the signature."""
    calls = []

    class Watching(type(place.open()._volume)):
        def fdatasync(self, descriptor):
            calls.append("fdatasync")
            super().fdatasync(descriptor)

    place.opened[-1].close()
    ledger = place.open(durability="process", volume=Watching())
    calls.clear()
    place.fill(3, ledger=ledger)
    assert calls == []
    ledger.checkpoint()
    assert calls == ["fdatasync", "fdatasync"]
    ledger.close()
    ledger = place.open(volume=Watching())
    calls.clear()
    place.fill(3, ledger=ledger)
    assert calls == ["fdatasync"]


def test_a_proof_from_a_damaged_tree_is_not_handed_out(place):
    """A flipped hash in the tiles gives an error, and the next start makes the tiles again."""
    ledger = place.fill(700)
    ledger.checkpoint()
    tiles = place.ledger / "tiles" / "L0"
    data = bytearray(tiles.read_bytes())
    data[32 * 10] ^= 1
    tiles.write_bytes(data)
    with pytest.raises(TilesDamaged):
        ledger.prove(11)
    ledger.close()
    again = place.open()
    assert len(again.prove(11)) == 10


def test_the_story_of_the_flush_is_told_to_the_watchdog(place):
    """The begin of a running flush is visible while it runs and only then."""
    seen = []
    first = place.open()

    class Looking(type(first._volume)):
        def fdatasync(self, descriptor):
            seen.append(holder[0].flush_started_mono_us if holder else None)
            super().fdatasync(descriptor)

    first.close()
    holder = []
    ledger = place.open(volume=Looking(), monotonic_us=lambda: 7)
    holder.append(ledger)
    seen.clear()
    place.fill(1, ledger=ledger)
    # Not the time that events were stamped with: a turn reads the clocks before it works.
    assert seen == [7]
    assert ledger.flush_started_mono_us is None


def test_reading_a_line_needs_no_name(place):
    """A stray file among the segments costs no reader of this process anything."""
    ledger = place.fill(300)
    ledger.roll()
    place.fill(2, ledger=ledger)
    ledger.checkpoint()
    (place.ledger / "segments" / "000000000301.ndjson~").touch()
    assert [decode_event(ledger.line(seq)).seq for seq in (0, 301, 7, 302)] == [0, 301, 7, 302]
    assert ledger.prove(300)
    assert len(list(ledger.events())) == 303


def test_commits_open_no_file_and_rolls_leave_none_open(place):
    """Whatever an event's position, a commit needs no new descriptor; a full segment is let go."""
    opened = []

    class Counting(type(place.open()._volume)):
        def open(self, path, flags):
            opened.append(path)
            return super().open(path, flags)

    place.opened[-1].close()
    ledger = place.open(volume=Counting())
    opened.clear()
    place.fill(70_000, ledger=ledger)
    assert opened == []
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        place.fill(1, ledger=ledger)
        ledger.roll()
        ledger.line(3)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    ledger.close()
    assert len(os.listdir("/proc/self/fd")) < before


def test_the_request_id_is_found_again(place):
    """What was appended comes back field for field."""
    ledger = place.fill(2)
    assert next(ledger.events(1)).fields.request_id == REQUEST_ID


def test_an_event_is_proven_against_each_checkpoint_that_covers_it(place):
    """Across segments and restarts each signed size is found again, and no other."""
    ledger, notes = place.open(), {}
    for number in range(24):
        place.fill(1 + number % 3, ledger=ledger)
        if number == 12:
            ledger.roll()
        elif number == 18:
            place.abandon(ledger)
            ledger = place.open()
        notes[ledger.committed] = ledger.checkpoint()
    assert ledger.first_seqs[1] in notes
    for size in range(ledger.committed + 2):
        if size not in notes and size:
            for ask, *about in ([ledger.note], [ledger.prove, 0], [ledger.prove_consistency, 0]):
                with pytest.raises(SizeUnsigned):
                    ask(*about, size)
            continue
        assert ledger.note(size) == notes.get(size, ledger.note(0))
        root = parse_checkpoint(parse_note(ledger.note(size)).text).root
        for seq in range(0, size, 7):
            leaf = bytes.fromhex(decode_event(ledger.line(seq)).event_hash)
            verify_inclusion(leaf, seq, size, ledger.prove(seq, size), root)
        with pytest.raises(PositionUnknown, match="lacks event"):
            ledger.prove(size, size)
        with pytest.raises(PositionUnknown, match="fewer than"):
            ledger.prove_consistency(size + 1, size)


@pytest.mark.parametrize(("damage", "size"), [
    (lambda entry: entry.replace(b"\n8\n", b"\nx\n"), 8),
    (lambda entry: entry.replace(b"\n8\n", b"\n7\n"), 7),
    (lambda entry: entry.replace(b"=\n\n", b"\n\n="), 8),
    (lambda entry: entry[:-9] + entry[-8:-5] + entry[-9:-8] + entry[-5:], 8),
], ids=["no size", "another size", "no note", "no signature"])
def test_a_damaged_entry_of_the_log_is_no_size_that_was_never_signed(place, damage, size):
    """Where the entry of a size is not what was written, that is said."""
    ledger = place.open()
    for _ in range(9):
        place.fill(2, ledger=ledger)
        ledger.checkpoint()
    log = place.ledger / "checkpoints.log"
    written = log.read_bytes()
    begin = written.rindex(b"\n", 0, written.index(b"\n8\n")) + 1
    end = written.index(b"\n", written.index("—".encode(), begin)) + 1
    changed = damage(written[begin:end])
    assert len(changed) == end - begin
    assert changed != written[begin:end]
    log.write_bytes(written[:begin] + changed + written[end:])

    with pytest.raises(LedgerDamaged):
        ledger.note(size)
    assert ledger.note(10)
