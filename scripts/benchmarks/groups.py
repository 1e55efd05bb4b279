"""Writers of events in groups: the ledger, and SQLite with the same lines and the same chain.

Rules this file keeps: a group is what a gateway's turn is: everything appended, made durable once,
then all of it released; an event waits from the moment it is there until its group is released.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from typing import Literal, Protocol

from benchmarks.calls import events_of_calls
from benchmarks.measure import Sample, percentiles
from broker.ledger.commit import Ledger
from schemas.events import GENESIS_HASH, EventFields, encode_event

WARM_GROUPS = 20


class Writer(Protocol):
    """Somebody who makes groups of events durable."""

    def group(self, fields: list[EventFields]) -> None:
        """Append events and return when all of them are durable."""

    def after(self) -> None:
        """Do what may be done after the group was released."""

    def close(self) -> None:
        """Give the files free."""


class LedgerWriter:
    """The gateway's ledger, used as its loop uses it."""

    def __init__(self, ledger: Ledger) -> None:
        """Write to an open ledger."""
        self._ledger = ledger

    def group(self, fields: list[EventFields]) -> None:
        """Append events and commit once."""
        for one in fields:
            self._ledger.append(one)
        self._ledger.commit()

    def after(self) -> None:
        """Sign a checkpoint and end the segment when it is time."""
        if self._ledger.roll_due:
            self._ledger.roll()
        if self._ledger.checkpoint_due():
            self._ledger.checkpoint()

    def close(self) -> None:
        """Close the ledger."""
        self._ledger.close()


class SqliteWriter:
    """A table of lines and hashes; one transaction a group, nothing signed, no tree."""

    def __init__(
        self, directory: str, log_id: str, synchronous: Literal["FULL", "OFF"]
    ) -> None:
        """Make a database in WAL mode."""
        self._log_id = log_id
        self._seq, self._previous = 0, GENESIS_HASH
        self._database = sqlite3.connect(
            os.path.join(directory, "ledger.sqlite"), isolation_level=None
        )
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute(f"PRAGMA synchronous={synchronous}")
        self._database.execute(
            "CREATE TABLE events (seq INTEGER PRIMARY KEY, line BLOB, hash BLOB) STRICT"
        )

    def group(self, fields: list[EventFields]) -> None:
        """Chain events and insert them in one transaction."""
        rows = []
        for one in fields:
            line, self._previous = encode_event(
                one, log_id=self._log_id, seq=self._seq, ts_us=time.time_ns() // 1000,
                mono_us=time.monotonic_ns() // 1000, prev_hash=self._previous,
            )
            rows.append((self._seq, line, bytes.fromhex(self._previous)))
            self._seq += 1
        self._database.execute("BEGIN")
        self._database.executemany("INSERT INTO events VALUES (?, ?, ?)", rows)
        self._database.execute("COMMIT")

    def after(self) -> None:
        """Nothing: SQLite moves its WAL within a commit."""

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def grouped(writer: Writer, depth: int, seconds: float) -> Sample:
    """Keep `depth` events in flight: as many are there anew as soon as a group was released.

    Args:
        writer: who makes them durable.
        depth: how many events a group has.
        seconds: how long.
    """
    fields = events_of_calls()
    for _ in range(WARM_GROUPS):
        writer.group(_take(fields, depth))
        writer.after()
    made = [_take(fields, depth) for _ in range(max(64, 4096 // depth))]
    times: list[float] = []
    clock = time.perf_counter
    cpu, start = time.process_time(), clock()
    stop = start + seconds
    now, number = start, 0
    while now < stop:
        arrived = now
        writer.group(made[number % len(made)])
        now = clock()
        times.append((now - arrived) * 1e6)
        writer.after()
        number += 1
    elapsed, events = now - start, len(times) * depth
    used = (time.process_time() - cpu) / events * 1e6
    return Sample(*percentiles(times), events / elapsed, used)


def _take(fields: Iterator[EventFields], count: int) -> list[EventFields]:
    return [next(fields) for _ in range(count)]
