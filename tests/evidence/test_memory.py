"""A second run reads only what the first has not, and never believes more than it may."""

from __future__ import annotations

import os
from pathlib import Path

import nacl.signing
import pytest

from broker.evidence.crowd import walk_all
from broker.evidence.memory import memory_path
from broker.evidence.verify import VerificationReport, verify_directory
from broker.evidence.walk import SegmentTask, last_hash
from schemas.events import GENESIS_HASH, StateSnapshot
from schemas.proof import VerifierKey
from tests.evidence.conftest import both
from tests.ledger.conftest import LOG_ID, REQUEST_ID, VERIFIER_KEY, Place


@pytest.fixture
def written(place: Place) -> Place:
    """A ledger of three segments (0-6, 7-13, 14-19), still open."""
    ledger = place.fill(6)
    ledger.roll()
    place.fill(6, ledger=ledger)
    ledger.roll()
    place.fill(6, ledger=ledger)
    ledger.checkpoint()
    return place


def verified(place: Place, **more: object) -> VerificationReport:
    """Verify with a memory beside the ledger."""
    arguments = {"verifier_key": VERIFIER_KEY, "anchor_directory": str(place.anchor), **more}
    return verify_directory(
        str(place.ledger), memory=str(place.ledger.parent / "state" / "memory.json"), **arguments
    )


def test_a_second_run_reads_only_what_is_new(script, written):
    """What was sealed and signed is not read again, and the report counts it all the same."""
    first, second = verified(written), verified(written)
    assert (first.ok, first.known, second.ok, second.known) == (True, 0, True, 14)
    ledger = written.fill(5, ledger=written.opened[0])
    ledger.roll()
    written.fill(3, ledger=ledger)
    ledger.checkpoint()
    third, whole = verified(written), both(script, written)
    assert (third.ok, third.known, third.events) == (True, 14, whole["events"])
    assert (third.root, third.segments, third.checkpoints) == (
        whole["root"], whole["segments"], whole["checkpoints"]
    )
    assert verified(written).known == 26
    assert verified(written, from_start=True).known == 0


def test_damage_behind_the_memory_is_found(written):
    """New damage is found at the same place whether the run was shortened or not."""
    verified(written)
    written.fill(2, ledger=written.opened[0])
    path = written.segment()
    path.write_bytes(path.read_bytes().replace(b'"bytes":20', b'"bytes":21'))
    short = verified(written)
    assert short.problem is not None
    assert (short.known, short.problem.kind, short.problem.number) == (14, "flipped", 20)
    assert short.problem == verified(written, from_start=True).problem


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[200] ^= 1
    path.write_bytes(data)


def replaced(path: Path) -> None:
    """The same length and the same time of change as far as anybody can set them."""
    status = path.stat()
    spoil(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("change", [spoil, replaced])
def test_a_segment_that_was_touched_is_read_again(written, change):
    """A sealed segment that changed after it was verified is not believed, but found damaged."""
    verified(written)
    change(written.segment(0))
    report = verified(written)
    assert report.known == 0
    assert report.problem is not None
    assert (report.problem.kind, report.problem.number) == ("flipped", 0)


def test_a_memory_that_is_not_sure_is_none(written):
    """Other checkpoints, another key, a missing or foreign segment, a damaged memory: all read."""
    memory = written.ledger.parent / "state" / "memory.json"
    verified(written)
    whole = memory.read_bytes()
    log = written.ledger / "checkpoints.log"
    entries = log.read_bytes()
    log.write_bytes(entries.replace(b"\n7\n", b"\n6\n"))
    assert (verified(written).known, verified(written).ok) == (0, False)
    log.write_bytes(entries)
    assert verified(written).known == 14
    foreign = nacl.signing.SigningKey(bytes(32)).verify_key
    other = str(VerifierKey(name=LOG_ID, public_key=bytes(foreign)))
    report = verified(written, verifier_key=other)
    assert (report.known, report.ok, verified(written).known) == (0, False, 14)
    for wrong in (b"", b"{}", b"\xff", whole[:-1], whole.replace(b"verified/1", b"verified/2")):
        memory.write_bytes(wrong)
        assert (verified(written).known, verified(written).known) == (0, 14)
    written.segment(1).rename(written.ledger / "segments" / "000000000010.ndjson")
    report = verified(written)
    assert report.problem is not None
    assert (report.known, report.problem.kind, report.problem.number) == (0, "missing_segment", 7)


def test_a_copy_is_another_ledger_to_the_memory(written, tmp_path):
    """Where a memory lies follows from the folder, and not from the ledger's gateway."""
    environment = {"HOME": "/home/auditor"}
    paths = {memory_path(str(folder), environment) for folder in (written.ledger, tmp_path)}
    assert len(paths) == 2
    assert all(path.startswith("/home/auditor/.local/state/omega-gateway/") for path in paths)
    assert memory_path("/x", {"XDG_STATE_HOME": "/state"}).startswith("/state/omega-gateway/")


def test_a_memory_that_cannot_be_written_spoils_no_verdict(written):
    """The verdict stands, and it is said that the next run will read everything."""
    (written.ledger.parent / "state").write_bytes(b"a file")
    report = verified(written)
    assert (report.ok, report.remembered) == (True, False)


def test_several_processes_find_what_one_finds(written):
    """Segments walked in processes of their own give the same facts in the same order."""
    files = sorted(path.name for path in (written.ledger / "segments").iterdir())
    paths = [str(written.ledger / "segments" / file) for file in files]
    tasks = [
        SegmentTask(
            directory=str(written.ledger), file=f"segments/{file}", first_seq=int(file[:12]),
            previous=last_hash(paths[place - 1]) if place else GENESIS_HASH, log_id=LOG_ID,
            last=place == 2, sizes=[3, 9, 14],
        )
        for place, file in enumerate(files)
    ]
    told: list[int] = []
    many = list(walk_all(tasks, 2, told.append))
    assert many == list(walk_all(tasks, 1, told.append))
    assert [walked.events for walked in many] == [7, 7, 6]
    sizes = sum(path.stat().st_size for path in (written.ledger / "segments").iterdir())
    assert sum(told) == 2 * sizes


def test_a_large_ledger_is_verified_by_several_processes(script, place):
    """With enough to read other processes take part; the report is that of a single one."""
    ledger = place.fill(1)
    many = StateSnapshot(
        inventory_sha256="0" * 64, trust_sha256="0" * 64, policy_sha256="0" * 64,
        open_invocations=(REQUEST_ID,) * 1024,
    )
    for _ in range(4):
        for _ in range(110):
            ledger.append(many)
        ledger.roll()
    report = verify_directory(str(place.ledger), verifier_key=VERIFIER_KEY, processes=2)
    assert (report.ok, report.events) == (True, 445)
    assert report == verify_directory(str(place.ledger), verifier_key=VERIFIER_KEY)
    spoil(place.segment(2))
    report = verify_directory(str(place.ledger), verifier_key=VERIFIER_KEY, processes=2)
    assert report.problem is not None
    assert (report.problem.kind, report.problem.number) == ("flipped", 223)
