"""`ledger tail`: the last lines, and with -f every later one, whatever the writer does."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.cli.ledger import Tail
from tests.cli.command import PATIENCE_S, environment, gateway
from tests.ledger.conftest import Place, place

__all__ = ["place"]


@contextmanager
def following(home: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run `ledger tail -f`; it ends with 0 when it is interrupted."""
    process = subprocess.Popen(
        [sys.executable, "-m", "broker.cli.main", "ledger", "tail", "-f", *arguments],
        env=environment(home), stdout=subprocess.PIPE,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_it_follows_over_the_ends_of_segments(place: Place):
    """No line is lost or told twice while segments are ended and begun, and none is told torn."""
    ledger = place.fill(3)
    ledger.roll()
    with following(place.ledger.parent, "-n", "2", "--output", "ndjson") as process:
        assert process.stdout is not None
        heard = [process.stdout.readline() for _ in range(2)]
        for _ in range(25):
            place.fill(3, ledger=ledger)
            ledger.roll()
        path = place.segment()
        path.write_bytes(b'{"event_hash":"torn')
        path.write_bytes(b"")
        place.fill(1, ledger=ledger)
        heard += [process.stdout.readline() for _ in range(25 * 4 + 1)]
        assert heard == place.lines()[2:]


def test_nothing_is_lost_while_a_segment_ends(place: Place):
    """What is written between a look at the lines and a look at the segments is told too."""
    ledger = place.open(durability="process")
    place.fill(1, ledger=ledger)
    folder = place.ledger / "segments"
    reader = Tail(str(folder), sorted(path.name for path in folder.iterdir()))
    heard = reader.last(1)

    def write() -> None:
        for _ in range(60):
            place.fill(2, ledger=ledger)
            ledger.roll()

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        heard += reader.new()
    writer.join()
    heard += reader.new()
    assert heard == place.lines()


def test_it_follows_in_words(place: Place):
    """As a table each line is one sentence with position, time and type."""
    ledger = place.fill(1)
    with following(place.ledger.parent, "-n", "1", "--output", "table") as process:
        assert process.stdout is not None
        assert process.stdout.readline().decode().split()[2] == "ledger.open"
        place.fill(1, ledger=ledger)
        ledger.roll()
        place.fill(1, ledger=ledger)
        words = [process.stdout.readline().decode().split() for _ in range(3)]
    assert [(line[0], line[2]) for line in words] == [
        ("1", "frame.in"), ("2", "ledger.roll"), ("3", "frame.in")
    ]


def test_the_last_lines_reach_back_over_segments(place: Place):
    """However many are asked for, they are the last ones, oldest first."""
    ledger = place.fill(3)
    ledger.roll()
    place.fill(2, ledger=ledger)
    for count in range(8):
        done = gateway("ledger", "tail", "-n", str(count), "--output", "ndjson",
                       home=place.ledger.parent)
        assert done.out.encode() == b"".join(place.lines()[-count:] if count else [])


@pytest.mark.parametrize("arguments", [("-f", "--output", "json")])
def test_following_is_no_single_object(place: Place, arguments):
    """What has no end cannot be one JSON object: a usage error."""
    place.fill(1)
    assert gateway("ledger", "tail", *arguments, home=place.ledger.parent).code == 2
