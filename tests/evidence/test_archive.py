"""Archiving old segments of a ledger with a real past: what went proves, and what stays does too.

The past is one of the simulation: every kind of event, crashes, several segments, vouched states.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from broker import archiving
from broker.archiving import Archived, CannotArchive, OfflinePast, archive
from broker.effects import Evidence, Origin
from broker.evidence.audit import Audit
from broker.evidence.events import UnreadableLedger, archived_before, read_events
from broker.evidence.export import export
from broker.evidence.reading import LedgerReader
from broker.evidence.verify import verify_directory
from broker.home import Home
from broker.kept import StateFolder, take_up_past
from broker.ledger.errors import LedgerDamaged, LedgerLocked, PositionArchived
from broker.ledger.segments import list_segments
from broker.serve import SystemClock
from schemas.events import InvokeAccept, LedgerOpen, line_hash
from schemas.proof import parse_verifier_key
from schemas.refusals import RefusalCode
from tests.simulation.pasts import remembered
from tests.support.simulated_home import simulated_home

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a past that nobody changes."""
    return simulated_home(tmp_path_factory.mktemp("past") / "home")


@pytest.fixture
def home(pristine: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    shutil.copytree(pristine.path, tmp_path / "home")
    return pristine._replace(path=str(tmp_path / "home"))


def state_of(home: Home) -> tuple[object, list[str]]:
    """Begin as a start does; gives what is remembered and which files were passed over."""
    clock = SystemClock()
    ledger = archiving.open_ledger(home, clock)
    try:
        past = OfflinePast(home, ledger, clock)
        states = StateFolder(home.states, home.ledger)
        passed_over = take_up_past(past, past.inventory, ledger, states)
        return remembered(past), passed_over
    finally:
        ledger.close()


def audit(*directories: str) -> None:
    """Audit a ledger with its archives, the ledger last."""
    judged = Audit()
    for event in read_events(directories[-1], None, directories[:-1]):
        judged.take(event)
    assert [one for one in judged.report().verdicts if not one.ok] == []


def holds(home: Home, script: object) -> dict:
    """Verify a home's ledger with both verifiers, key and anchor given."""
    report = verify_directory(home.ledger, verifier_key=home.verifier_key,
                              anchor_directory=home.anchor)
    assert report.problem is None
    other = script.verify(home.ledger, home.verifier_key, home.anchor)
    assert other["problem"] is None
    assert other["begins"] == report.begins
    return report


def test_what_stays_and_what_went_prove_alone_and_together(home, script, tmp_path) -> None:
    """Both verifiers, proofs, the audit, exports, and the whole laid together again."""
    first_seqs = list_segments(home.ledger)
    key = parse_verifier_key(home.verifier_key)
    whole = [line for _, line in LedgerReader(home.ledger, key).lines()]
    before = state_of(home)[0]
    old = LedgerReader(home.ledger, key).checkpoint

    done = archive(home, first_seqs[-1] + 5, str(tmp_path / "archives"))

    assert done == Archived(done.directory, 0, first_seqs[-1])
    assert list_segments(home.ledger) == first_seqs[-1:]
    assert holds(home, script).begins == done.ends
    assert archived_before(home.ledger) == done.ends
    told = [event for event in read_events(home.ledger, None, [done.directory])
            if isinstance(event.fields, LedgerOpen)][-1].fields
    assert (told.archived_before, told.archived_to) == (done.ends, done.directory)
    audit(done.directory, home.ledger)
    with pytest.raises(UnreadableLedger, match="name the archives"):
        audit(home.ledger)
    after, passed_over = state_of(home)
    assert passed_over == []
    assert (after.plugins, after.revoked_keys) == (before.plugins, before.revoked_keys)
    with LedgerReader(home.ledger, key) as kept, LedgerReader(done.directory, key) as moved:
        assert kept.consistency(old)
        assert kept.consistency(moved.checkpoint)
        for seq in (done.ends, done.ends + 3, kept.checkpoint.size - 1):
            kept.inclusion(seq, kept.line(seq))
        for seq in (0, 17, done.ends - 1):
            line = moved.line(seq)
            assert line == whole[seq]
            moved.inclusion(seq, line)
            kept.inclusion(seq, line)
            with pytest.raises(PositionArchived):
                kept.line(seq)
    export(home.ledger, key, str(tmp_path / "exported"))
    together = tmp_path / "together"
    shutil.copytree(home.ledger, together)
    for name in os.listdir(f"{done.directory}/segments"):
        shutil.copy(f"{done.directory}/segments/{name}", together / "segments")
    report = verify_directory(str(together), verifier_key=home.verifier_key)
    assert (report.problem, report.begins) == (None, 0)
    assert script.verify(str(together), home.verifier_key, None)["problem"] is None


def test_a_second_archive_goes_on_where_the_first_ended(home, script, tmp_path) -> None:
    """Each has a folder of its own, each verifies alone, the audit takes both."""
    first_seqs = list_segments(home.ledger)
    assert len(first_seqs) > 2
    one = archive(home, first_seqs[1], str(tmp_path / "archives"))
    two = archive(home, first_seqs[-1], str(tmp_path / "archives"))

    assert (one.begins, one.ends, two.begins, two.ends) == (
        0, first_seqs[1], first_seqs[1], first_seqs[-1])
    assert holds(home, script).begins == two.ends
    assert verify_directory(two.directory, verifier_key=home.verifier_key).begins == two.begins
    assert script.verify(two.directory, home.verifier_key, None)["problem"] is None
    audit(one.directory, two.directory, home.ledger)


def test_the_tree_is_made_again_from_the_hashes_that_stay(home, script, tmp_path) -> None:
    """With every tile gone the ledger opens, and its root is the signed one."""
    done = archive(home, 10**9, str(tmp_path / "archives"))
    shutil.rmtree(f"{home.ledger}/tiles")

    assert state_of(home)[1] == []
    assert holds(home, script).begins == done.ends
    assert os.path.getsize(f"{home.ledger}/tiles/L0") >= done.ends * 32


def test_who_asks_for_what_was_archived_is_told_where_it_lies(home, tmp_path) -> None:
    """A proof and a story whose lines are gone are refused with the archive's folder."""
    accepted = next(event for event in read_events(home.ledger)
                    if isinstance(event.fields, InvokeAccept))
    done = archive(home, 10**9, str(tmp_path / "archives"))
    ledger = archiving.open_ledger(home, SystemClock())
    past = OfflinePast(home, ledger, SystemClock())
    take_up_past(past, past.inventory, ledger, StateFolder(home.states, home.ledger))
    origin, name = Origin("front.admin", "c" * 16, b""), accepted.fields.request_id

    for ask in (Evidence(origin, name, "prove", number=accepted.seq),
                Evidence(origin, name, "show_request", target=name)):
        answer = past._answers.evidence(ask)
        assert answer.code is RefusalCode.EVENTS_ARCHIVED
        assert done.directory in answer.message
    assert past._answers.evidence(Evidence(origin, name, "prove", number=done.ends)).hashes
    # The checkpoint where the archive ends was signed with the segment's end, and is still there.
    for size, code in ((done.ends, RefusalCode.EVENTS_ARCHIVED), (1, RefusalCode.SIZE_UNKNOWN)):
        ask = Evidence(origin, name, "prove", number=0, size=size)
        assert past._answers.evidence(ask).code is code
    ask = Evidence(origin, name, "prove_consistency", number=accepted.seq, size=done.ends)
    assert past._answers.evidence(ask).hashes
    consistency = Evidence(origin, name, "prove_consistency", number=accepted.seq)
    assert past._answers.evidence(consistency).hashes
    ledger.close()


@pytest.mark.parametrize("folder", ["registry", "ledger", "both"])
def test_the_state_lies_twice_because_the_events_are_gone(home, tmp_path, folder) -> None:
    """Either copy of the state may be lost; without both a start refuses and says what to do."""
    done = archive(home, 10**9, str(tmp_path / "archives"))
    expected = state_of(home)[0]
    for name in ("registry", "ledger") if folder == "both" else (folder,):
        for path in Path(home.path, name).glob("state-*.json"):
            path.write_bytes(path.read_bytes()[:-1])

    if folder != "both":
        assert state_of(home)[0] == expected
        return
    with pytest.raises(LedgerDamaged, match="lay one, or the archived segments, back"):
        state_of(home)
    for name in os.listdir(f"{done.directory}/segments"):
        shutil.copy(f"{done.directory}/segments/{name}", f"{home.ledger}/segments")
    assert state_of(home)[0] == expected


def test_segments_that_are_merely_gone_are_missing(home, script, tmp_path) -> None:
    """Hashes laid in their place do not make an archive of a deletion: the ledger must say so."""
    first_seqs = list_segments(home.ledger)
    with LedgerReader(home.ledger, parse_verifier_key(home.verifier_key)) as reader:
        hashes = b"".join(bytes.fromhex(line_hash(line)) for _, line in reader.lines())
    for name in sorted(os.listdir(f"{home.ledger}/segments"))[:-1]:
        os.unlink(f"{home.ledger}/segments/{name}")
    Path(home.ledger, "before.hashes").write_bytes(hashes[: first_seqs[-1] * 32])

    with pytest.raises(LedgerDamaged, match="event 0 is missing"):
        state_of(home)
    report = verify_directory(home.ledger, verifier_key=home.verifier_key,
                              anchor_directory=home.anchor)
    assert report.problem.kind == "missing_segment"
    other = script.verify(home.ledger, home.verifier_key, home.anchor)
    assert other["problem"]["kind"] == "missing_segment"


def test_what_cannot_be_archived_moves_nothing(home, tmp_path) -> None:
    """No whole segment, a gateway that runs, an archive of something else under that name."""
    first_seqs = list_segments(home.ledger)
    for before in (1, first_seqs[1] - 1):
        with pytest.raises(CannotArchive, match=f"before {first_seqs[1]}"):
            archive(home, before, str(tmp_path / "archives"))
    ledger = archiving.open_ledger(home, SystemClock())
    with pytest.raises(LedgerLocked):
        archive(home, 10**9, str(tmp_path / "archives"))
    ledger.close()
    folder = tmp_path / "archives" / f"{0:012d}-{first_seqs[-1]:012d}"
    folder.parent.mkdir(mode=0o700)
    (folder / "segments").mkdir(parents=True)
    with pytest.raises(CannotArchive, match="does not hold the events 0 to"):
        archive(home, 10**9, str(tmp_path / "archives"))

    assert list_segments(home.ledger) == first_seqs


FULL = """
import os, sys
from broker.archiving import CannotArchive, archive
from broker.evidence.verify import verify_directory
from broker.home import load_home
from broker.ledger.segments import list_segments
home = load_home(sys.argv[1])
before = list_segments(home.ledger)
try:
    archive(home, 10**9, sys.argv[2] + "/archives")
except OSError as error:
    assert "No space left" in str(error), error
assert list_segments(home.ledger) == before
os.unlink(sys.argv[2] + "/filler")
archive(home, 10**9, sys.argv[2] + "/archives")
assert list_segments(home.ledger) == before[-1:]
report = verify_directory(home.ledger, verifier_key=home.verifier_key,
                          anchor_directory=home.anchor)
assert report.problem is None, report
print("held")
"""
VOLUME = """
set -e
mkdir "$1"
mount -t tmpfs -o size=4m,mode=700 none "$1"
dd if=/dev/zero of="$1/filler" bs=1k count=3950 status=none
exec "$2" -c "$3" "$4" "$1"
"""


@pytest.mark.system
def test_an_archive_on_a_full_volume_removes_nothing(home, tmp_path) -> None:
    """A real volume that is full: the command fails, and with room the same command finishes."""
    # Only root may mount outside a user namespace of its own.
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", "--mount", *user, "sh", "-c", VOLUME, "volume",
         str(tmp_path / "volume"), sys.executable, FULL, home.path],
        cwd=ROOT, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, capture_output=True,
        text=True, timeout=60, check=False,
    )
    assert done.stdout == "held\n", done.stderr


def killed(home: Home, target: str, wanted: int) -> int | None:
    """Archive in a process of its own that is killed before its n-th open, rename or unlink.

    Gives None when it was killed, else how many there were.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def counting(event: str, _arguments: object) -> None:
            nonlocal count
            if event in ("open", "os.rename", "os.remove", "os.mkdir"):
                count += 1
                if count == wanted:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(counting)
        try:
            archive(home, 10**9, target)
            os.write(writer, b"%d" % count)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        number = told.read()
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (0 if number else -signal.SIGKILL)
    return int(number) if number else None


def test_killed_at_any_step_nothing_is_lost_and_the_rerun_finishes(home, script, tmp_path):
    """kill -9 before a system call: all is there, or all but what was archived and said."""
    trial = home._replace(path=str(tmp_path / "trial"))
    shutil.copytree(home.path, trial.path)
    steps = killed(trial, str(tmp_path / "unbroken"), 10**6)
    whole = state_of(home)[0].plugins
    begun = set()
    for number in (*range(1, steps, steps // 3), *range(steps - 8, steps, 3)):
        copy = home._replace(path=str(tmp_path / f"copy-{number}"))
        shutil.copytree(home.path, copy.path)
        target = tmp_path / f"archives-{number}"
        assert killed(copy, str(target), number) is None
        assert state_of(copy)[0].plugins == whole
        begins = holds(copy, script).begins
        begun.add(begins)
        folders = [str(one) for one in target.glob("*") if one.suffix != ".part"]
        if len(list_segments(copy.ledger)) > 1:
            folders = [archive(copy, 10**9, str(target)).directory]

        assert holds(copy, script).begins == list_segments(copy.ledger)[-1]
        audit(*folders, copy.ledger)
    assert len(begun) > 2, "no kill came between two removals"
