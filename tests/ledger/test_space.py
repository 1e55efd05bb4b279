"""Little room and none: the mark, the ballast, and starts on a volume that is really full."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.ledger import space
from broker.ledger.errors import LedgerFailure, LedgerUnwritable
from broker.ledger.space import BALLAST_BYTES, Space
from tests.ledger.conftest import frame
from tests.ledger.test_recovery import FailingOnce

LEDGER = """
from tests.ledger.conftest import Place, frame
place = Place(root)
ballast = place.ledger / "ballast"
ledger = place.open(low_space_bytes=2 << 20)
assert ballast.stat().st_blocks * 512 >= 8 << 20
assert not ledger.space_low()
fill(1 << 20)
place.clock_us = itertools.count(1_790_000_001_000_000)
assert ledger.space_low(), "below the mark"
place.fill(100, ledger=ledger)
ledger.checkpoint()
place.fill(50, ledger=ledger)
place.abandon(ledger)
with place.segment().open("ab") as file:
    file.write(b"torn")
fill(0)
for _ in range(2):
    # The volume has no byte left but the ballast: the start takes that, once.
    again = place.open(low_space_bytes=2 << 20)
    assert again.size == 150 and not ballast.exists() and again.space_low()
    place.abandon(again)
again = place.open(low_space_bytes=2 << 20)
assert [path.read_bytes() for path in (place.ledger / "quarantine").iterdir()] == [b"torn"]
place.fill(100, ledger=again)
again.checkpoint()
assert [event.seq for event in again.events()] == list(range(250))
(root / "filler").unlink()
place.clock_us = itertools.count(1_790_000_002_000_000)
assert not again.space_low(), "room again"
again.close()
last = place.open(low_space_bytes=2 << 20)
assert ballast.stat().st_blocks * 512 >= 8 << 20, "kept back again"
fill(0)
try:
    while True:
        place.fill(2_000, ledger=last)
except LedgerFailure as failure:
    assert "No space left" in str(failure), failure
assert not ballast.exists(), "the next start has its room"
place.abandon(last)
place.open(low_space_bytes=2 << 20).close()
"""
GATEWAY = """
from broker.client_errors import Refused
from schemas.events import FrameOut, GatewayDegraded, InvokeRefuse
from tests.support.gateway import RunningGateway, wait_for
gateway = RunningGateway(root, config='[ledger]\\nlow_space_bytes = 4194304\\n').start()
def code():
    with pytest.raises(Refused) as refused:
        gateway.omega().invoke("nobody", "work", "x")
    return str(refused.value.code)
assert code() == "unknown_plugin"
fill(1 << 20)
wait_for("the gateway to see it", lambda: code() == "low_space")
with pytest.raises(Refused, match="(?i)space"):
    gateway.operator().enable_plugin("nobody", "1.0.0")
assert gateway.operator().status().degraded == ("low_space",)
(root / "filler").unlink()
wait_for("room again", lambda: code() == "unknown_plugin")
assert gateway.operator().status().degraded == ()
assert gateway.stop() == 0
gateway.audit()
events = [event.fields for event in gateway.events()]
changes = [one for one in events if isinstance(one, GatewayDegraded)]
assert [(one.reason, one.degraded) for one in changes] == [
    ("low_space", True), ("low_space", False)]
refused = [one for one in events if isinstance(one, InvokeRefuse) and one.code == "low_space"]
assert refused and all(one.retry_after_ms for one in refused)
"""
PREAMBLE = """
import itertools, os, pytest, sys
from pathlib import Path
from broker.ledger.errors import LedgerFailure
root = Path(sys.argv[1])
def fill(left):
    # Write until just so many bytes are free; the last ones a page at a time.
    with open(root / "filler", "ab", buffering=0) as file:
        try:
            while True:
                volume = os.fstatvfs(file.fileno())
                free = volume.f_bavail * volume.f_frsize
                if free <= left:
                    return
                file.write(bytes(min(1 << 20, free - left)))
        except OSError:
            assert left == 0
"""
SCRIPT = 'mount -t tmpfs -o size=40m,mode=700 none "$1" && exec "$2" -c "$3" "$1"'


@pytest.mark.system
@pytest.mark.parametrize("program", [LEDGER, GATEWAY], ids=["ledger", "gateway"])
def test_a_small_volume_runs_low_and_full_and_has_room_again(tmp_path, program):
    """On a real small volume: refused while there is room, started when full, kept back again."""
    # Only root may mount outside a user namespace of its own.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    arguments = ["unshare", "--mount", *user, "sh", "-c", SCRIPT, "sh",
                 str(tmp_path), sys.executable, PREAMBLE + program]
    done = subprocess.run(
        arguments, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


def test_low_is_left_later_than_entered(tmp_path, monkeypatch):
    """Between the mark and an eighth above it, the answer stays what it was; looks are rare."""
    free = [1000]
    monkeypatch.setattr(space, "free_bytes", lambda _directory: free[0])
    watched = Space(str(tmp_path), 1000)
    answers = []
    for number, left in enumerate([1000, 999, 1000, 1124, 1125, 1000, 999]):
        free[0] = left + BALLAST_BYTES
        answers.append(watched.low(number * space.LOOK_US))
    assert answers == [False, True, True, True, False, False, True]
    free[0] = BALLAST_BYTES + 5000
    assert watched.low(6 * space.LOOK_US + space.LOOK_US - 1)
    assert not watched.low(7 * space.LOOK_US)


def test_without_a_configured_mark_it_is_two_segments_or_a_twentieth(tmp_path):
    """The default grows with the volume."""
    volume = os.statvfs(tmp_path)
    assert space.low_mark_bytes(str(tmp_path)) == max(
        128 * 1024 * 1024, volume.f_blocks * volume.f_frsize // 20)


def test_a_ballast_that_was_not_made_whole_is_made_again(place):
    """A hole, or a start that was killed while it made the ballast, holds nothing back."""
    place.ledger.mkdir()
    with (place.ledger / "ballast").open("wb") as file:
        file.truncate(BALLAST_BYTES)
    place.open()
    assert (place.ledger / "ballast").stat().st_blocks * 512 >= BALLAST_BYTES


@pytest.mark.parametrize(("error", "released"), [
    (errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EIO, False),
])
def test_the_ballast_is_given_free_for_want_of_room_only(place, error, released):
    """A full volume or quota frees it, at a start and in a commit; a broken one does not."""
    ballast = place.ledger / "ballast"
    place.abandon(place.fill(1))
    with pytest.raises(LedgerUnwritable):
        place.open(volume=FailingOnce("rename", 1, error))
    assert ballast.exists() is not released
    ledger = place.open()
    assert ballast.exists()
    volume = FailingOnce("fdatasync", 1, error)
    ledger._volume = ledger._segment._volume = volume
    ledger.append(frame())
    with pytest.raises(LedgerFailure):
        ledger.commit()
    assert ballast.exists() is not released
