"""Plays every transcript of this folder and compares what happens, line by line.

A transcript is a title, then commands behind `> ` with the ledger's events and the replies they
produce. With `OMEGA_SCENARIOS_REWRITE=1` the expected lines are written anew: commit only what you
understand.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.scenarios.stage import Stage

TRANSCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))
PREPARED = ("register alpha 1.0.0", "enable alpha 1.0.0")


def replay(text: str) -> str:
    """Play the commands of a transcript and give the transcript as it comes out."""
    stage = Stage()
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            out.append(line)
        elif line.startswith("> "):
            if line == "> prepared":
                for command in PREPARED:
                    stage.play(command)
                out += ["", line]
                continue
            out += ["", line, *stage.play(line[2:])]
    return "\n".join(out) + "\n"


@pytest.mark.parametrize("path", TRANSCRIPTS, ids=[path.stem for path in TRANSCRIPTS])
def test_a_transcript_comes_out_as_written(path: Path) -> None:
    """The gateway does in each step exactly what the transcript says."""
    expected = path.read_text()

    actual = replay(expected)

    if os.environ.get("OMEGA_SCENARIOS_REWRITE"):
        path.write_text(actual)
    assert expected == actual


def test_there_is_a_transcript_for_each_race() -> None:
    """Every row of the race table has its transcript."""
    names = {path.stem for path in TRANSCRIPTS}

    assert names >= {
        "race_cancel_first", "race_result_before_cancel", "race_deadline_first",
        "race_revoke_in_flight", "race_disable_in_flight", "race_upgrade_in_flight",
        "race_latch_with_sends_queued", "race_crash_after_commit", "race_upgrade_and_disable",
        "race_upgrade_and_another", "race_upgrade_and_revoke", "race_upgrade_and_crash",
        "race_replica_and_cancel", "race_replica_and_deadline", "race_replica_and_revoke",
        "race_replica_and_disable", "race_replica_and_latch", "race_replica_and_drain",
    }
