"""What happens when a system call fails or the file is not as we left it: the ledger latches."""

from __future__ import annotations

import errno
import os

import pytest

from broker.ledger.errors import LedgerFailure, LedgerRefused
from tests.ledger.conftest import frame
from tests.ledger.test_recovery import FailingOnce


def run(ledger, acknowledged):
    """Do what a gateway does, noting after each commit what may be acknowledged."""
    for _ in range(3):
        for _ in range(100):
            ledger.append(frame(ledger.size))
        ledger.commit()
        acknowledged.append(ledger.size)
        ledger.checkpoint()
    ledger.roll()
    acknowledged.append(ledger.size)
    ledger.append(frame())
    ledger.commit()
    acknowledged.append(ledger.size)


def assert_latched(ledger, segment):
    """Nothing is accepted any more, and nothing reaches the file."""
    before = segment.read_bytes() if segment.exists() else b""
    for step in (lambda: ledger.append(frame()), ledger.commit, ledger.checkpoint, ledger.roll):
        for _ in range(2):
            with pytest.raises(LedgerFailure):
                step()
    assert (segment.read_bytes() if segment.exists() else b"") == before


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["open", "write", "pwrite", "fdatasync", "fsync", "rename"])
def test_each_failing_call_latches_and_loses_nothing_acknowledged(place, name, error):
    """Whichever call fails, nothing is accepted afterwards, and the next start has all of it."""
    nth = 0
    while True:
        nth += 1
        volume = FailingOnce(name, -1, error)
        ledger = place.open(volume=volume)
        volume.left = nth
        acknowledged = [ledger.size]
        try:
            run(ledger, acknowledged)
            break
        except LedgerFailure as failure:
            sentence = str(failure)
        assert os.strerror(error) in sentence
        assert volume.left == 0
        assert_latched(ledger, place.segment())
        ledger.close()
        again = place.open()
        assert again.size >= acknowledged[-1]
        assert [event.seq for event in again.events()] == list(range(again.size))
        again.close()
    assert nth > 3


def test_a_write_that_takes_nothing_latches(place):
    """A write of no bytes without an error is a surprise."""
    first = place.open()

    class Deaf(type(first._volume)):
        deaf = False

        def write(self, descriptor, data):
            return 0 if self.deaf else super().write(descriptor, data)

    first.close()
    volume = Deaf()
    ledger = place.open(volume=volume)
    volume.deaf = True
    ledger.append(frame())
    with pytest.raises(LedgerFailure, match="took 0 of"):
        ledger.commit()
    assert_latched(ledger, place.segment())


def test_short_writes_are_continued(place):
    """A write that takes only a part is followed by the rest, in order."""
    first = place.open()

    class Slow(type(first._volume)):
        def write(self, descriptor, data):
            return super().write(descriptor, data[:100])

    first.close()
    ledger = place.open(volume=Slow())
    place.fill(5, ledger=ledger)
    ledger.close()
    assert place.open().size == 5


def replace_segment(path):
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)


SURPRISES = {
    "the live file is removed": os.unlink,
    "the live file is replaced by a copy": replace_segment,
    "the live file is moved away": lambda path: path.rename(path.with_suffix(".old")),
    "the live file gets a second name": lambda path: os.link(path, path.with_suffix(".two")),
    "somebody appends to the live file": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "the live file is cut": lambda path: os.truncate(path, path.stat().st_size - 1),
}


@pytest.mark.parametrize("what", SURPRISES)
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_file_that_is_not_as_we_left_it_latches(place, durability, what):
    """Between two commits somebody touches the segment: the second one fails, for ever."""
    ledger = place.fill(3, ledger=place.open(durability=durability))
    segment = place.segment()
    SURPRISES[what](segment)
    ledger.append(frame())
    with pytest.raises(LedgerFailure):
        ledger.commit()
    assert_latched(ledger, segment)


def test_a_surprise_during_the_write_latches_too(place):
    """A foreign append that slips in beside our write is seen before anything is acknowledged."""
    first = place.fill(3)

    class Crowded(type(first._volume)):
        def fdatasync(self, descriptor):
            super().fdatasync(descriptor)
            if armed:
                os.write(descriptor, b"foreign\n")

    armed = []
    first.close()
    ledger = place.open(volume=Crowded())
    armed.append(True)
    ledger.append(frame())
    with pytest.raises(LedgerFailure, match="were written"):
        ledger.commit()
    with pytest.raises(LedgerFailure):
        ledger.commit()


@pytest.mark.parametrize("name", ["checkpoints.log", "head"])
def test_a_checkpoint_file_that_is_not_as_we_left_it_latches(place, name):
    """Neither the log of checkpoints nor the anchor may be touched by somebody else."""
    ledger = place.fill(3)
    ledger.checkpoint()
    path = place.anchor / name if name == "head" else place.ledger / name
    path.write_bytes(path.read_bytes()[:-1])
    place.fill(1, ledger=ledger)
    with pytest.raises(LedgerFailure):
        ledger.checkpoint()
    assert_latched(ledger, place.segment())


def test_an_exception_of_ours_inside_a_commit_latches_too(place):
    """No way out of the middle of a commit leaves a ledger that accepts more."""
    first = place.open()

    class Interrupted(type(first._volume)):
        armed = False

        def fdatasync(self, descriptor):
            if self.armed:
                raise KeyboardInterrupt
            super().fdatasync(descriptor)

    first.close()
    volume = Interrupted()
    ledger = place.open(volume=volume)
    volume.armed = True
    ledger.append(frame())
    with pytest.raises(KeyboardInterrupt):
        ledger.commit()
    with pytest.raises(LedgerFailure, match="did not end"):
        ledger.append(frame())


def test_closing_a_failed_ledger_gives_it_free(place):
    """After a failure close() writes nothing and the next process can take over."""
    ledger = place.fill(3)
    data = place.segment().read_bytes()
    os.truncate(place.segment(), len(data) - 1)
    ledger.append(frame())
    with pytest.raises(LedgerFailure):
        ledger.commit()
    ledger.close()
    ledger.close()
    place.segment().write_bytes(data)
    assert place.open().size == 3


def test_a_closed_ledger_accepts_nothing(place):
    """Nothing can be appended after close()."""
    ledger = place.fill(1)
    ledger.close()
    with pytest.raises(LedgerFailure, match="closed"):
        ledger.append(frame())


def test_a_refusal_names_its_code():
    """Each kind of refusal carries a code of the closed list."""
    codes = {kind.__name__: kind.code.value for kind in LedgerRefused.__subclasses__()}
    assert codes == {
        "LedgerLocked": "ledger_locked", "LedgerDamaged": "ledger_damaged",
        "LedgerTruncated": "ledger_truncated", "LedgerUnwritable": "ledger_unwritable",
    }
