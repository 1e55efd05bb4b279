"""State files on a real disk beside a real ledger: whatever becomes of them, the state is right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from broker import kept
from broker.core import Core
from broker.folded import Folded
from broker.gateway import Gateway
from broker.inventory import Inventory
from broker.kept import FILES_KEPT, StateFolder, take_up_past
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerDamaged
from broker.policy import policy_digest
from broker.state import Edge, State
from schemas.events import (
    Event,
    EventFields,
    FrameIn,
    InvokeAccept,
    InvokeEnd,
    Revoke,
    TrustChange,
    line_hash,
)
from tests.ledger.conftest import LOG_ID, Place, opening, place
from tests.schemas.samples import DIGEST_A
from tests.simulation.fakes import FakeBundles, FakeSignals, FakeTransport, stand_ins
from tests.simulation.pasts import remembered
from tests.simulation.settings import CONFIG, POLICY
from tests.support.bundles import trust_root
from tests.support.pasts import disable, enable, register, request_id

__all__ = ["place"]

OMEGA, OPERATOR = "a" * 16, "c" * 16


class Home:
    """A ledger, its state files, and gateways that begin with them one after the other."""

    def __init__(self, place: Place, folder: Path) -> None:
        """Begin with nothing."""
        folder.mkdir()
        self.place, self.folder = place, folder
        self.ledger = place.open()
        self.states = StateFolder(str(folder), str(place.ledger))
        self.gateway = self.make()

    def make(self) -> Gateway:
        """Make a gateway that remembers nothing."""
        state = State(
            config=CONFIG, policy=POLICY, trust=trust_root(), trust_sha256="0" * 64,
            policy_sha256=policy_digest(POLICY), inventory=Inventory(), plugins={}, keys={},
            edge=Edge(new_incarnation=str, new_nonce=bytes, determinism_key=b"", log_id=LOG_ID),
        )
        return Gateway(
            **stand_ins(self.ledger, FakeTransport(self.ledger), None, None) | {"launcher": Fd()},
            core=Core(state), bundles=FakeBundles(), states=self.states, signals=FakeSignals(),
            clock=None,
        )

    def append(self, *events: EventFields) -> None:
        """Ledger some events and take them in."""
        begin = self.ledger.size
        for fields in events:
            self.ledger.append(fields)
        self.ledger.commit()
        for event in self.ledger.events(begin):
            self.gateway.restore(event)

    def roll(self) -> int:
        """End the segment; gives the position of the new one's state."""
        self.ledger.roll()
        seq = self.ledger.size
        self.gateway.snapshot()
        self.ledger.commit()
        return seq

    def restart(self) -> tuple[Folded, list[str]]:
        """Begin anew as a start does; gives what is remembered and which files were passed over."""
        self.ledger.close()
        self.ledger = self.place.open()
        self.gateway = self.make()
        passed_over = self.take_up()
        return remembered(self.gateway), passed_over

    def take_up(self) -> list[str]:
        """Let the gateway take in the ledger's past."""
        inventory = self.gateway._core.state.inventory
        return take_up_past(self.gateway, inventory, self.ledger, self.states)

    def seqs(self) -> list[int]:
        """Give the positions of the state files, newest first."""
        names = (path.stem.removeprefix("state-") for path in self.folder.glob("state-*.json"))
        return sorted(map(int, names), reverse=True)

    def whole(self) -> Folded:
        """Fold all events from the first on."""
        gateway = self.make()
        for event in self.ledger.events():
            gateway.restore(event)
        return remembered(gateway)


class Fd:
    """Stands where a launcher would."""

    fd = 0


def call(number: int, *, ended: bool = True) -> Iterator[EventFields]:
    """The events of one deterministic call."""
    name = request_id(number)
    yield FrameIn(plane="front.omega", peer=OMEGA, type="invoke", bytes=1, request_id=name)
    yield InvokeAccept(
        request_id=name, peer=OMEGA, plugin="alpha", version="1.0.0", bundle_sha256=DIGEST_A,
        method="work", input_kind="text", input_bytes=1, input_commitment="0" * 64,
        timeout_ms=1000, input_fingerprint=f"{number:064x}",
    )
    if ended:
        yield InvokeEnd(request_id=name, outcome="result", reached="answered",
                        output_fingerprint=f"{number + 1:064x}")


@pytest.fixture
def home(place: Place, tmp_path: Path) -> Home:
    """A past of three segments, with a state at the begin of the second and the third."""
    home = Home(place, tmp_path / "registry")
    home.append(opening(), TrustChange(version=3, sha256="1" * 64, actor="home"),
                register("alpha", "1.0.0"), register("alpha", "1.1.0"), enable("alpha", "1.0.0"),
                *call(1), *call(2, ended=False))
    home.second = home.roll()
    home.append(InvokeEnd(request_id=request_id(2), outcome="abandoned", reached="queued"),
                Revoke(kind="plugin_version", id="alpha@1.1.0", reason="bad", actor=OPERATOR),
                Revoke(kind="client_key", id="d" * 16, reason="lost", actor=OPERATOR), *call(3))
    home.third = home.roll()
    home.append(disable("alpha", "1.0.0"), *call(4))
    return home


def test_a_start_folds_only_what_the_newest_state_does_not_hold(home: Home) -> None:
    """The state is that of the full fold, and no event before the newest state is decoded."""
    expected = home.whole()
    decoded = []
    events = Ledger.events
    home.ledger.close()
    home.ledger = home.place.open()

    def noting(start: int = 0) -> Iterator[Event]:
        for event in events(home.ledger, start):
            decoded.append(event.seq)
            yield event

    home.ledger.events = noting
    home.gateway = home.make()

    assert home.take_up() == []
    assert remembered(home.gateway) == expected
    assert min(decoded) == home.third


def test_the_older_segments_need_not_even_be_right(home: Home) -> None:
    """A damaged event of the first segment is not read by a start; the full fold names it."""
    expected = home.whole()
    path = home.place.segment(0)
    data = bytearray(path.read_bytes())
    data[data.index(b'"version":"1.1.0"') + 12] ^= 1
    path.write_bytes(data)

    assert home.restart() == (expected, [])
    with pytest.raises(LedgerDamaged):
        home.whole()


def edit(path: Path) -> None:
    """Revoke nothing: a state in which what was taken back is in force again."""
    text = path.read_text()
    assert '"revoked"' in text
    path.write_text(text.replace('"revoked"', '"enabled"').replace('"dddddddddddddddd"', ""))


def flip(path: Path) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


FAULTS: dict[str, Callable[[Path, Path], None]] = {
    "deleted": lambda newest, _: newest.unlink(),
    "one bit": lambda newest, _: flip(newest),
    "cut": lambda newest, _: os.truncate(newest, 100),
    "empty": lambda newest, _: os.truncate(newest, 0),
    "edited": lambda newest, _: edit(newest),
    "stale": lambda newest, older: newest.write_bytes(older.read_bytes()),
    "a folder": lambda newest, _: newest.unlink() or newest.mkdir(),
    "a link to nowhere": lambda newest, _: newest.unlink() or newest.symlink_to("nowhere"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_state_file_costs_a_longer_fold(home: Home, fault: str) -> None:
    """The state before it is taken, the answer is the same, and the file is told."""
    expected = home.whole()
    newest = Path(home.states.path(home.third))
    FAULTS[fault](newest, Path(home.states.path(home.second)))

    found, passed_over = home.restart()

    assert found == expected
    assert passed_over == ([] if fault == "deleted" else [str(newest)])


def test_without_any_state_file_the_first_event_is_the_begin(home: Home) -> None:
    """All files gone, or all wrong: the full fold, as before there were any."""
    expected = home.whole()
    for seq in home.seqs():
        flip(Path(home.states.path(seq)))
    assert home.restart()[0] == expected
    for seq in home.seqs():
        Path(home.states.path(seq)).unlink()

    assert home.restart() == (expected, [])


@pytest.mark.parametrize("seq", [0, 3, 10**9])
def test_a_foreign_file_is_none(home: Home, seq: int) -> None:
    """A state at a position whose event vouches for nothing, or that does not exist, is not one."""
    expected = home.whole()
    newest = Path(home.states.path(home.third))
    foreign = Path(home.states.path(seq))
    foreign.write_bytes(newest.read_bytes())

    found, passed_over = home.restart()

    assert found == expected
    assert passed_over == ([str(foreign)] if seq > home.third else [])


def test_a_snapshot_that_was_never_signed_vouches_for_nothing(home: Home) -> None:
    """Where also the event was changed to fit an edited state, the tree does not hold it."""
    expected = home.whole()
    second, third = Path(home.states.path(home.second)), Path(home.states.path(home.third))
    edited = second.read_bytes().replace(b'"enabled":"1.0.0"', b'"enabled":"1.1.0"')
    assert edited != second.read_bytes()
    digests = [hashlib.sha256(data).hexdigest().encode() for data in (second.read_bytes(), edited)]
    second.write_bytes(edited)
    path = home.place.segment(1)
    lines = path.read_bytes().splitlines(keepends=True)
    body = lines[0].replace(*digests)
    event_hash = line_hash(body).encode()
    path.write_bytes(b'{"event_hash":"%b",' % event_hash + body[81:] + b"".join(lines[1:]))

    assert home.restart() == (expected, [])
    third.unlink()
    assert home.states.newest(home.ledger) == (None, [str(second)])
    with pytest.raises(LedgerDamaged):
        home.restart()


def test_an_old_registry_folder_brings_nothing_back(home: Home) -> None:
    """With the files of an earlier day, versions and revocations are still those of the ledger."""
    old = {path.name: path.read_bytes() for path in home.folder.iterdir()}
    home.append(register("alpha", "2.0.0"),
                Revoke(kind="plugin_version", id="alpha@2.0.0", reason="bad", actor=OPERATOR))
    home.roll()
    for path in home.folder.iterdir():
        path.unlink()
    for name, data in old.items():
        (home.folder / name).write_bytes(data)

    found, _ = home.restart()

    assert found == home.whole()
    assert found.plugins[0].highest == "2.0.0"
    assert [one.state for one in found.plugins[0].versions] == ["disabled", "revoked", "revoked"]


def test_a_state_that_cannot_be_written_is_not_vouched_for(home: Home) -> None:
    """A folder that takes nothing: the snapshot has no digest, and the next start folds longer."""
    expected_seqs = home.seqs()
    Path(home.states.path(home.ledger.size + 1) + ".part").mkdir()
    seq = home.roll()

    assert home.ledger.line(seq).find(b"state_sha256") == -1
    assert home.seqs() == expected_seqs
    assert home.restart() == (home.whole(), [])


def test_what_lies_in_an_old_states_place_does_not_void_a_new_one(home: Home) -> None:
    """A folder in the place of a state that has its day stays; later states are vouched for."""
    newest = Path(home.states.path(home.third))
    newest.unlink()
    newest.mkdir()
    last = [home.roll() for _ in range(FILES_KEPT + 1)][-1]

    assert b"state_sha256" in home.ledger.line(last)
    assert home.restart() == (home.whole(), [])


def test_a_state_that_no_start_would_read_is_not_vouched_for(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One beyond the bound of reading is not written either; so nothing is archived upon it."""
    monkeypatch.setattr(kept, "STATE_BYTES_MAX", 100)
    seq = home.roll()

    assert b"state_sha256" not in home.ledger.line(seq)
    assert home.seqs() == [home.third, home.second]


def test_many_files_that_nobody_vouches_for_cost_one_look_at_the_ledger(home: Home) -> None:
    """Each line is read once to know what the ledger vouches for, however many files there are."""
    for seq in range(home.third + 1, home.third + 200):
        Path(home.states.path(seq)).write_bytes(b"{}")
    home.append(*call(9), *call(10))
    home.ledger.checkpoint()
    looked: list[int] = []
    lines = home.ledger._lines_from

    def counting(start: int, end: int) -> Iterator[tuple[int, bytes]]:
        for seq, line in lines(start, end):
            looked.append(seq)
            yield seq, line

    home.ledger._lines_from = counting
    assert home.states.newest(home.ledger)[0].seq == home.third
    assert len(looked) <= 2 * (home.ledger.size - home.third)


def test_nothing_unfinished_stays_where_states_lie(home: Home) -> None:
    """Also what a killed archive left beside the ledger goes with the next start."""
    left = [folder / "state-9.json.part" for folder in (home.folder, home.place.ledger)]
    for path in left:
        path.write_bytes(b"{")
    home.states.sweep()

    assert not [path for path in left if path.exists()]


def test_the_newest_few_are_kept(home: Home) -> None:
    """Older files go with each new one."""
    seqs = [home.roll() for _ in range(FILES_KEPT + 1)]

    assert home.seqs() == seqs[: -FILES_KEPT - 1 : -1]
