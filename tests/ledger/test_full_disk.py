"""A real volume that is really full: the ledger latches, and the next start loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import os, sys
from pathlib import Path
from broker.ledger.errors import LedgerFailure, LedgerRefused
from tests.ledger.conftest import Place, frame
place = Place(Path(sys.argv[1]))
ledger = place.open(durability=sys.argv[2])
acknowledged = 0
try:
    while True:
        for _ in range(50):
            ledger.append(frame(ledger.size))
        ledger.commit()
        acknowledged = ledger.size
        if ledger.checkpoint_due():
            ledger.checkpoint()
except LedgerFailure as failure:
    assert "No space left" in str(failure), failure
for call in (ledger.commit, ledger.checkpoint, lambda: ledger.append(frame())):
    try:
        call()
    except LedgerFailure:
        continue
    raise AssertionError(call)
ledger.close()
try:
    place.open().close()
except LedgerRefused as refusal:
    assert refusal.code == "ledger_unwritable", refusal
os.unlink(sys.argv[1] + "/filler")
again = place.open()
assert again.size >= acknowledged > 0
assert [event.seq for event in again.events()] == list(range(again.size))
again.append(frame())
again.commit()
again.close()
print("held", acknowledged, again.size)
"""
SCRIPT = """
set -e
mount -t tmpfs -o size=600k none "$1"
dd if=/dev/zero of="$1/filler" bs=1k count=100 status=none
exec "$2" -c "$3" "$1" "$4"
"""


@pytest.mark.system
@pytest.mark.parametrize("durability", ["power", "process"])
def test_a_full_volume_latches_and_nothing_acknowledged_is_lost(tmp_path, durability):
    """Filled to the last byte, nothing more is accepted; with room again everything is there."""
    root = Path(__file__).parents[2]
    # Only root may mount outside a user namespace of its own.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    arguments = ["unshare", "--mount", *user, "sh", "-c", SCRIPT, "sh",
                 str(tmp_path), sys.executable, PROGRAM, durability]
    done = subprocess.run(
        arguments, cwd=root, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("held ")
