"""`bench ledger`: what evidence costs: writing it, verifying a million events, proving, recovering.

Writing stands beside SQLite that keeps the same lines with the same chain, one transaction for a
group: with WAL and `synchronous=FULL` it promises what mode `power` does, with `OFF` what mode
`process` does. The contestants take turns, round by round. Verification stands beside the least
that looks at every byte: a loop that cuts each line, hashes it and compares hash, link and
position; there `ratio` is of processor time, so it is that of one core.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import itertools
import os
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Final

import nacl.signing

from benchmarks.bus import Result
from benchmarks.calls import events_of_calls
from benchmarks.groups import LedgerWriter, SqliteWriter, Writer, grouped
from benchmarks.measure import BenchFailed, Row, Sample, median_of, percentiles
from broker.evidence.lines import admit
from broker.evidence.verify import verify_directory
from broker.evidence.walk import first_log_id
from broker.ledger.commit import Ledger
from broker.ledger.segments import SEGMENT_BYTES_MAX, list_segments, segment_path
from schemas.events import GENESIS_HASH, EventFields, LedgerOpen
from schemas.proof import VerifierKey

EVENTS: Final = 1_000_000
DEPTHS: Final = (1, 8, 64, 256)
PROOFS: Final = 200
LOG_ID: Final = "omega-gateway/development/0123456789abcdef"
SIGNING_KEY: Final = nacl.signing.SigningKey(bytes(range(32)))
VERIFIER_KEY: Final = str(VerifierKey(name=LOG_ID, public_key=bytes(SIGNING_KEY.verify_key)))
WRITERS: Final = {
    "ledger_power": "sqlite_full", "ledger_process": "sqlite_off",
    "sqlite_full": "sqlite_full", "sqlite_off": "sqlite_off",
}
"""Who writes, and beside whom it is measured."""
VERIFIERS: Final = (
    "verify_bare", "verify_loop", "verify_canonical", "verify_whole", "verify_all_cores",
)
PROVERS: Final = ("prove", "prove_evicted", "prove_consistency")
NAMES: Final = (*WRITERS, *VERIFIERS, *PROVERS, "recover_segment")
"""In the order in which they are measured: the last three kinds need a ledger of many events."""


def run(
    root: str, folder: str, *, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None], events: int = EVENTS,
) -> Result:
    """Measure everything.

    Args:
        root: the project's folder.
        folder: an existing folder; its volume is what flushes are made on.
        rounds: how often each row is measured.
        seconds: how long each writer writes at each depth in each round.
        only: the names wanted.
        tell: takes a word on what is being done.
        events: how many events are verified and proven.

    Raises:
        BenchFailed: a contestant does not work.
    """
    del root
    rows = _written(folder, rounds, seconds, only, tell)
    if only & {*VERIFIERS, *PROVERS}:
        tell(f"writing {events:,} events")
        directory = os.path.join(folder, "many")
        with contextlib.closing(_filled(directory, events)) as ledger:
            ledger.checkpoint()
            rows += _verified(ledger, directory, rounds, only, tell)
            rows += _proven(ledger, directory, only, tell)
        shutil.rmtree(directory)
    if "recover_segment" in only:
        rows.append(_recovered(folder, rounds, events, tell))
    return Result(rows, {})


# --- Writing ---


def _written(
    folder: str, rounds: int, seconds: float, only: frozenset[str], tell: Callable[[str], None]
) -> list[Row]:
    """Let each writer write groups of each size, in turns."""
    samples: dict[tuple[str, int], list[Sample]] = {
        (name, depth): [] for name in WRITERS if name in only for depth in DEPTHS
    }
    for number in range(rounds):
        tell(f"writing, round {number + 1} of {rounds}")
        for depth in DEPTHS:
            for name in (one for one in WRITERS if one in only):
                place = os.path.join(folder, f"{name}-{depth}-{number}")
                with contextlib.closing(_writer(name, place)) as writer:
                    samples[name, depth].append(grouped(writer, depth, seconds))
                shutil.rmtree(place)
    found = {key: median_of(values) for key, values in samples.items()}
    rows = []
    for (name, depth), sample in found.items():
        beside = found.get((WRITERS[name], depth))
        ratio = sample.per_s / beside.per_s if beside else None
        rows.append(Row(name, depth, *sample[:4], ratio))
    return rows


def _writer(name: str, place: str) -> Writer:
    os.mkdir(place)
    if name == "sqlite_full":
        return SqliteWriter(place, LOG_ID, "FULL")
    if name == "sqlite_off":
        return SqliteWriter(place, LOG_ID, "OFF")
    return LedgerWriter(_opened(place, "power" if name == "ledger_power" else "process"))


def _opened(place: str, durability: str) -> Ledger:
    return Ledger.open(
        os.path.join(place, "ledger"), os.path.join(place, "anchor"), log_id=LOG_ID,
        signing_key=SIGNING_KEY, durability="power" if durability == "power" else "process",
        now=_now,
    )


def _now() -> tuple[int, int]:
    return time.time_ns() // 1000, time.monotonic_ns() // 1000


# --- A ledger of many events ---


def _filled(directory: str, events: int) -> Ledger:
    """Write a ledger with full segments; nothing of it is measured."""
    os.mkdir(directory)
    ledger = _opened(directory, "process")
    ledger.append(_opening())
    fields = events_of_calls()
    while ledger.size < events:
        _append(ledger, fields, min(4096, events - ledger.size))
        if ledger.roll_due:
            ledger.roll()
    return ledger


def _append(ledger: Ledger, fields: Iterator[EventFields], count: int) -> None:
    for one in itertools.islice(fields, count):
        ledger.append(one)
    ledger.commit()
    if ledger.checkpoint_due():
        ledger.checkpoint()


def _opening() -> LedgerOpen:
    return LedgerOpen(
        gateway_version="0", api_version="1.0.0", domain="development", durability="process",
        python_version="3", zmq_version="4", kernel="6", verifier_key=VERIFIER_KEY,
        trust_sha256="0" * 64, trust_version=1, policy_sha256="0" * 64,
    )


# --- Verifying ---


def _verified(
    ledger: Ledger, directory: str, rounds: int, only: frozenset[str], tell: Callable[[str], None]
) -> list[Row]:
    """Verify the ledger in each way, in turns; times are a single event's."""
    place, cores = os.path.join(directory, "ledger"), len(os.sched_getaffinity(0))
    ways: dict[str, tuple[int, Callable[[], None]]] = {
        "verify_bare": (1, lambda: _bare(place)),
        "verify_loop": (1, lambda: _loop(place)),
        "verify_canonical": (1, lambda: _canonical(place)),
        "verify_whole": (1, lambda: _whole(directory, 1)),
        "verify_all_cores": (cores, lambda: _whole(directory, cores)),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in ways if name in only}
    for number in range(rounds):
        tell(f"verifying, round {number + 1} of {rounds}")
        for name, values in samples.items():
            values.append(_timed(ways[name][1], ledger.size))
    found = {name: median_of(values) for name, values in samples.items()}
    loop = found.get("verify_loop")
    return [
        Row(name, ways[name][0], *sample[:4], loop.cpu_us / sample.cpu_us if loop else None)
        for name, sample in found.items()
    ]


def _timed(work: Callable[[], None], events: int) -> Sample:
    """Do it once; give the time of one event. Nobody collects garbage, as in a verification."""
    gc.collect()
    gc.disable()
    began, cpu = time.perf_counter(), time.process_time()
    children = os.times()
    work()
    elapsed = time.perf_counter() - began
    gc.enable()
    after = os.times()
    used = time.process_time() - cpu + after.children_user + after.children_system - (
        children.children_user + children.children_system
    )
    each_us = elapsed / events * 1e6
    return Sample(each_us, each_us, events / elapsed, used / events * 1e6)


def _bare(place: str) -> None:
    """Hash every line and compare its hash, and nothing else."""
    for first_seq in list_segments(place):
        with open(segment_path(place, first_seq), "rb") as file:
            for line in file:
                digest = hashlib.sha256(b"\x00{" + line[81:-1]).hexdigest()
                if line[15:79] != digest.encode():
                    raise BenchFailed("a line does not have its hash")


def _loop(place: str) -> None:
    """Cut every line, hash it, compare hash, link and position, as recovery does; no JSON."""
    seq, previous = 0, GENESIS_HASH.encode()
    for first_seq in list_segments(place):
        with open(segment_path(place, first_seq), "rb") as file:
            for line in file:
                link = b',"prev_hash":"%b","seq":%d,"ts_us":' % (previous, seq)
                previous = hashlib.sha256(b"\x00{" + line[81:-1]).hexdigest().encode()
                if not line.startswith(b'{"event_hash":"%b",' % previous) or not line.startswith(
                    link, line.rfind(b',"prev_hash":"')
                ):
                    raise BenchFailed("a line is not the next event")
                seq += 1


def _canonical(place: str) -> None:
    """Check hash, link, position, spelling and members of every line; no tree, no signatures."""
    first_seqs = list_segments(place)
    log_id = first_log_id(segment_path(place, first_seqs[0]))
    seq, previous = 0, GENESIS_HASH
    for first_seq in first_seqs:
        with open(segment_path(place, first_seq), "rb") as file:
            rest = b""
            while chunk := file.read(128 * 1024):
                data = rest + chunk
                end = data.rfind(b"\n") + 1
                rest = data[end:]
                batch = admit(data[:end], seq, previous, log_id)
                if batch is None:
                    raise BenchFailed("a line is not canonical")
                seq, previous = seq + batch.events, batch.hashes[-32:].hex()


def _whole(directory: str, processes: int) -> None:
    """What `omega-gateway ledger verify` does from the start, with tree, checkpoints and anchor."""
    report = verify_directory(
        os.path.join(directory, "ledger"), verifier_key=VERIFIER_KEY,
        anchor_directory=os.path.join(directory, "anchor"), processes=processes,
    )
    if not report.ok:
        raise BenchFailed(f"the ledger does not verify: {report.problem}")


# --- Proving ---


def _proven(
    ledger: Ledger, directory: str, only: frozenset[str], tell: Callable[[str], None]
) -> list[Row]:
    """Make proofs at places all over the ledger. The process keeps nothing between two of them;
    for `prove_evicted` the kernel keeps nothing either, so each reads from the disk."""
    size = ledger.head_size
    places = [size * number // PROOFS for number in range(1, PROOFS)]
    ways: dict[str, Callable[[int], object]] = {
        "prove": ledger.prove, "prove_evicted": ledger.prove,
        "prove_consistency": ledger.prove_consistency,
    }
    rows = []
    for name in (one for one in PROVERS if one in only):
        tell(f"proving at {size:,} events: {name}")
        times, used = [], 0.0
        for place in places:
            if name == "prove_evicted":
                _forget(os.path.join(directory, "ledger"))
            began, cpu = time.perf_counter(), time.process_time()
            ways[name](place)
            times.append((time.perf_counter() - began) * 1e6)
            used += (time.process_time() - cpu) / len(places) * 1e6
        rows.append(Row(name, 1, *percentiles(times), len(times) / sum(times) * 1e6, used, None))
    return rows


def _forget(place: str) -> None:
    """Have the kernel forget what it keeps of the ledger's files, see posix_fadvise(2)."""
    for folder in ("segments", "tiles"):
        for name in os.listdir(os.path.join(place, folder)):
            descriptor = os.open(os.path.join(place, folder, name), os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


# --- Recovering ---


def _recovered(folder: str, rounds: int, events: int, tell: Callable[[str], None]) -> Row:
    """Open a ledger whose one full segment nobody closed; its bytes are read from the disk.

    A segment is full at 64 MiB, or where that is more than the events that were asked for.
    """
    directory = os.path.join(folder, "full")
    os.mkdir(directory)
    ledger = _opened(directory, "process")
    ledger.append(_opening())
    fields = events_of_calls()
    path = segment_path(os.path.join(directory, "ledger"), 0)
    while os.path.getsize(path) < SEGMENT_BYTES_MAX and ledger.size < events:
        _append(ledger, fields, 4096)
    ledger.close()
    times, cpu = [], time.process_time()
    for number in range(rounds):
        tell(f"recovering, round {number + 1} of {rounds}")
        began = time.perf_counter()
        opened = _opened(directory, "power")
        times.append((time.perf_counter() - began) * 1e6)
        if opened.recovered is None:
            raise BenchFailed("a ledger that nobody closed was taken for a closed one")
        opened.close()
    used = (time.process_time() - cpu) / rounds * 1e6
    shutil.rmtree(directory)
    return Row("recover_segment", 1, *percentiles(times), 1e6 / percentiles(times)[0], used, None)
