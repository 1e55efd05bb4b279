"""Restoring: a new ledger says from which it comes, and brings nothing back that was taken back."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import msgspec
import pytest

from broker.archiving import archive, open_ledger
from broker.configured import HomeRefused
from broker.evidence.audit import Audit
from broker.evidence.events import read_events
from broker.evidence.verify import verify_directory
from broker.home import Home, load_home
from broker.inventory import Inventory
from broker.ledger.errors import LedgerLocked
from broker.ledger.segments import list_segments, segment_path
from broker.restoring import CannotRestore, Restored, finish_interrupted, restore
from broker.serve import SystemClock
from schemas.events import (
    EventFields,
    LedgerOpen,
    PluginQuarantine,
    PluginRegister,
    Revoke,
    StateSnapshot,
)
from tests.evidence.test_archive import state_of
from tests.support.simulated_home import simulated_home

REASON = "the disk was lost"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A home with a past that nobody changes."""
    return simulated_home(tmp_path_factory.mktemp("past") / "home")


@pytest.fixture
def home(pristine: Home, tmp_path: Path) -> Home:
    """A copy of it."""
    shutil.copytree(pristine.path, tmp_path / "home")
    return pristine._replace(path=str(tmp_path / "home"))


def folded(directory: str) -> Inventory:
    """Fold a ledger's inventory."""
    return Inventory.fold(read_events(directory))


def serviceable(home: Home) -> tuple[str, str]:
    """Name a version that may still be taken back."""
    return next(
        (entry.plugin, entry.version) for record in folded(home.ledger).plugins.values()
        for entry in record.versions.values()
        if entry.state in ("registered", "disabled", "enabled")
    )


def append(home: Home, *events: EventFields) -> None:
    """Ledger some events."""
    ledger = open_ledger(home, SystemClock())
    for fields in events:
        ledger.append(fields)
    ledger.close()


def holds(home: Home, done: Restored) -> Home:
    """Load a restored home; its ledger verifies, audits and starts."""
    fresh = load_home(home.path, environment={"XDG_RUNTIME_DIR": os.path.dirname(home.path)})
    assert fresh.config.log_id == done.log_id != home.config.log_id
    assert fresh.verifier_key == done.verifier_key
    report = verify_directory(fresh.ledger, verifier_key=done.verifier_key,
                              anchor_directory=fresh.anchor)
    assert report.problem is None
    judged = Audit()
    for event in read_events(fresh.ledger):
        judged.take(event)
    assert [one for one in judged.report().verdicts if not one.ok] == []
    assert state_of(fresh)[1] == []
    return fresh


def test_what_was_taken_back_stays_taken_back(home: Home) -> None:
    """Revocations, quarantines, versions, trust and keys are those of before; nothing serves."""
    plugin, version = serviceable(home)
    append(home, Revoke(kind="client_key", id="9" * 16, reason="lost", actor="c" * 16),
           Revoke(kind="publisher_key", id="8" * 16, reason="lost", actor="c" * 16),
           PluginQuarantine(plugin=plugin, version=version, reason="probe_succeeded"))
    before = folded(home.ledger)
    assert any(entry.state in ("revoked", "quarantined")
               for record in before.plugins.values() for entry in record.versions.values())

    done = restore(home, REASON)

    fresh = holds(home, done)
    opened = next(read_events(fresh.ledger)).fields
    assert isinstance(opened, LedgerOpen)
    assert (opened.restored_from, opened.restore_reason) == (home.config.log_id, REASON)
    after = folded(fresh.ledger)
    assert after.revoked_keys == before.revoked_keys
    assert after.revoked_publisher_keys == before.revoked_publisher_keys
    assert after.known_keys == before.known_keys
    assert (after.trust_version, after.trust_sha256) == (before.trust_version, before.trust_sha256)
    for plugin, record in before.plugins.items():
        if record.versions:
            again = after.plugins[plugin]
            assert (again.highest, again.enabled, again.grants) == (record.highest, None, set())
            for version, entry in record.versions.items():
                state = "registered" if entry.state in ("enabled", "disabled") else entry.state
                assert again.versions[version].state == state
    kept = verify_directory(f"{done.forks}/ledger", verifier_key=home.verifier_key,
                            anchor_directory=f"{done.forks}/anchor")
    assert kept.problem is None


def test_an_older_copy_does_not_forget_what_the_damaged_ledger_still_says(
    home: Home, tmp_path: Path
) -> None:
    """The backup is from before a revocation; the ledger that it replaces is damaged elsewhere."""
    backup = tmp_path / "backup"
    shutil.copytree(home.ledger, backup)
    plugin, version = serviceable(home)
    append(home, Revoke(kind="plugin_version", id=f"{plugin}@{version}", reason="bad",
                        actor="c" * 16),
           Revoke(kind="client_key", id="9" * 16, reason="lost", actor="c" * 16))
    path = Path(segment_path(home.ledger, list_segments(home.ledger)[-1]))
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], b"damage\n", *lines[2:]]))
    with pytest.raises(CannotRestore, match="flipped"):
        restore(home, REASON)

    done = restore(home, REASON, str(backup))

    after = folded(holds(home, done).ledger)
    assert after.plugins[plugin].versions[version].state == "revoked"
    assert "9" * 16 in after.revoked_keys


def test_an_archived_ledger_is_restored_with_its_archives(home: Home, tmp_path: Path) -> None:
    """Without them the first events are not there, and nothing is changed."""
    archived = archive(home, 10**9, str(tmp_path / "archives"))
    with pytest.raises(CannotRestore, match="name the archives"):
        restore(home, REASON)

    holds(home, restore(home, REASON, None, (archived.directory,)))


def test_only_a_restored_ledger_may_begin_so(home: Home) -> None:
    """Without `restored_from`, or after the first snapshot, the gateway registers nothing."""
    fresh = holds(home, restore(home, REASON))
    events = [*read_events(fresh.ledger)]
    place = next(n for n, event in enumerate(events) if isinstance(event.fields, PluginRegister))
    snapshot = next(n for n, event in enumerate(events) if isinstance(event.fields, StateSnapshot))
    claimed = msgspec.structs.replace(events[0].fields, restored_from=None)
    late = [*events[:place], events[snapshot], events[place]]
    for told in ([msgspec.structs.replace(events[0], fields=claimed), *events[1:]], late):
        judged = Audit()
        for event in told:
            judged.take(event)
        broken = {one.name: one.seq for one in judged.report().verdicts if not one.ok}
        assert broken["AUD-04"] == events[place].seq


def test_a_running_gateway_is_not_restored(home: Home) -> None:
    """The ledger's lock is the gateway's."""
    ledger = open_ledger(home, SystemClock())
    with pytest.raises(LedgerLocked):
        restore(home, REASON)
    ledger.close()


def test_killed_at_any_step_the_home_is_the_old_one_or_waits_for_the_rerun(
    home: Home, tmp_path: Path
) -> None:
    """kill -9 before a system call: never half a ledger in the place of one."""
    whole = tmp_path / "whole"
    shutil.copytree(home.path, whole)
    steps = killed(home._replace(path=str(whole)), 10**6)
    waited = 0
    for number in (5, steps // 3, *range(steps - 34, steps, 4)):
        copy = home._replace(path=str(tmp_path / f"copy-{number}"))
        shutil.copytree(home.path, copy.path)
        assert killed(copy, number) is None
        if os.path.lexists(f"{copy.path}/restored"):
            with pytest.raises(HomeRefused, match="run it again"):
                load_home(copy.path)
            waited += 1
            assert finish_interrupted(copy.path)
        present = load_home(copy.path, environment={"XDG_RUNTIME_DIR": str(tmp_path)})
        report = verify_directory(present.ledger, verifier_key=present.verifier_key,
                                  anchor_directory=present.anchor)
        assert report.problem is None
        assert state_of(present)[1] == []
    assert waited > 2


def killed(home: Home, wanted: int) -> int | None:
    """Restore in a process that is killed before its n-th open, rename, unlink or mkdir."""
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
            restore(home, REASON)
            os.write(writer, b"%d" % count)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as told:
        number = told.read()
    status = os.waitpid(child, 0)[1]
    assert os.waitstatus_to_exitcode(status) == (0 if number else -signal.SIGKILL)
    return int(number) if number else None
