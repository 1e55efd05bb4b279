"""A state is written while the loop goes on: what comes meanwhile, fails, or dies changes nothing.

Real files, a real ledger, the real thread; it is held at a gate where a test must know how far it
is.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import msgspec
import pytest

from broker import durable
from broker.kept import StateFolder
from broker.ledger.commit import Ledger
from broker.ledger.errors import LedgerDamaged
from broker.ledger.segments import BEFORE_FILE
from schemas.events import Revoke, StateSnapshot, line_hash
from tests.broker.test_kept import OPERATOR, Home, call, home, place
from tests.ledger.conftest import LOG_ID, opening
from tests.simulation.pasts import remembered
from tests.support.pasts import register

__all__ = ["home", "place"]

PATIENCE_S = 20


class Gated(StateFolder):
    """A folder whose thread stops after the first part of a state until the gate is open."""

    def __init__(self, home: Home) -> None:
        super().__init__(str(home.folder), str(home.place.ledger))
        self.gate = threading.Event()

    def begin(self, seq: int, parts: Iterable[bytes]) -> None:
        """Begin to write, and stop at the gate."""
        super().begin(seq, self._through(parts))

    def _through(self, parts: Iterable[bytes]) -> Iterator[bytes]:
        for part in parts:
            yield part
            assert self.gate.wait(PATIENCE_S)


@pytest.fixture
def gated(home: Home) -> Iterator[Gated]:
    """The home's folder, with a gate."""
    home.states = Gated(home)
    home.restart()
    yield home.states
    home.states.gate.set()
    home.states.close()


def roll(home: Home) -> int:
    """End a segment as the loop does; gives the position of the next event to be pictured."""
    home.ledger.roll()
    home.gateway._keeper.rolled()
    home.gateway._keeper.go_on()
    home.ledger.commit()
    return home.ledger.size - 1


def settle(home: Home) -> None:
    """Let the loop go on until nothing is being written."""
    until = time.monotonic() + PATIENCE_S
    while home.states.busy:
        assert time.monotonic() < until
        os.sched_yield()
        home.gateway._keeper.go_on()
    home.ledger.commit()
    home.ledger.checkpoint()


def snapshots(home: Home) -> list[tuple[int, bool]]:
    """Give the positions of all snapshots, and which of them vouch for a file."""
    return [(event.seq, event.fields.state_sha256 is not None) for event in home.ledger.events()
            if isinstance(event.fields, StateSnapshot)]


def test_what_comes_meanwhile_is_not_in_it(home: Home, gated: Gated) -> None:
    """Calls, versions and ends of older calls come while a state is written: a start that begins
    with it and takes in what follows knows what the fold of all events knows."""
    begins = roll(home)
    then = msgspec.structs.replace(remembered(home.gateway), log_id=LOG_ID, seq=begins + 1)
    home.append(*call(5), register("beta", "1.0.0"), register("alpha", "3.0.0"),
                *itertools.islice(call(4), 1, None))
    assert home.gateway._keeper.go_on() is None
    assert home.seqs() == [home.third, home.second]
    gated.gate.set()
    settle(home)

    assert snapshots(home)[-2:] == [(begins, False), (home.ledger.size - 1, True)]
    expected = home.whole()
    taken, passed_over = home.states.newest(home.ledger)
    assert (taken.seq, passed_over) == (begins + 1, [])
    requests = {key: msgspec.structs.replace(kept, times_us=[])
                for key, kept in taken.requests.items()}
    assert msgspec.structs.replace(taken, requests=requests) == then
    assert home.restart() == (expected, [])


def test_a_segment_that_ends_meanwhile_waits_for_its_turn(home: Home, gated: Gated) -> None:
    """One state at a time: however many segments end, the next picture is of the moment when the
    one before is done, and both are vouched for."""
    first = roll(home) + 1
    for number in (5, 6, 7):
        home.append(*call(number))
        roll(home)
    gated.gate.set()
    settle(home)

    second, third = home.seqs()[:2]
    assert (second > first, third) == (True, first)
    assert [seq for seq, vouches in snapshots(home) if vouches][-2:] == [
        second - 1, home.ledger.size - 1
    ]
    assert home.states.newest(home.ledger)[0].seq == second
    assert home.restart() == (home.whole(), [])


def test_a_state_that_the_volume_does_not_take_is_told(home: Home, gated: Gated) -> None:
    """The snapshot that would vouch for it has no digest; the next start folds longer."""
    Path(home.states.path(home.ledger.size + 2) + ".part").mkdir()
    gated.gate.set()
    roll(home)
    settle(home)

    assert snapshots(home)[-1] == (home.ledger.size - 1, False)
    assert home.seqs() == [home.third, home.second]
    assert home.restart() == (home.whole(), [])


def test_what_the_thread_cannot_do_ends_the_loop(home: Home, gated: Gated) -> None:
    """A fault of ours is not taken for a full disk: it is raised where the loop asks."""
    def broken() -> Iterator[bytes]:
        yield b"{"
        raise ZeroDivisionError

    gated.gate.set()
    gated.begin(home.ledger.size, broken())
    with pytest.raises(ZeroDivisionError):
        settle(home)
    assert home.seqs() == [home.third, home.second]


@pytest.mark.parametrize("done", [False, True])
def test_an_end_gives_up_what_nobody_vouches_for(home: Home, gated: Gated, done: bool) -> None:
    """Whether the thread is in the middle or through: it ends, and leaves no file behind."""
    roll(home)
    if done:
        gated.gate.set()
        gated._writing.sha256.result(PATIENCE_S)
    closing = threading.Thread(target=gated.close)
    closing.start()
    assert gated._given_up.wait(PATIENCE_S)
    gated.gate.set()
    closing.join(PATIENCE_S)

    assert not closing.is_alive()
    names = {path.name for path in home.folder.iterdir()}
    assert names == {f"state-{seq}.json" for seq in (home.third, home.second)}
    assert home.restart() == (home.whole(), [])


def test_without_a_thread_the_gateway_goes_on(home: Home, gated: Gated) -> None:
    """A machine that gives no further thread when a segment ends: the snapshot has no digest, and
    the next segment's state is written once there is one again."""
    before = threading.stack_size(1 << 46)
    try:
        roll(home)
    finally:
        threading.stack_size(before)
    settle(home)
    assert snapshots(home)[-1] == (home.ledger.size - 1, False)
    assert home.seqs() == [home.third, home.second]
    gated.gate.set()
    roll(home)
    settle(home)

    assert snapshots(home)[-1] == (home.ledger.size - 1, True)
    assert home.restart() == (home.whole(), [])


def test_a_pipe_in_the_place_of_a_state_holds_up_nobody(home: Home, gated: Gated) -> None:
    """A pipe that nobody reads is no file: the state counts as not written, and the end comes."""
    gated.gate.set()
    os.mkfifo(home.states.path(home.ledger.size + 2) + ".part")
    roll(home)
    settle(home)
    gated.close()

    assert snapshots(home)[-1] == (home.ledger.size - 1, False)


def test_an_end_has_its_own_reason(home: Home, gated: Gated) -> None:
    """What cannot be removed at an end is no error of the end: where the ledger failed, exit 74
    stands. A folder lies where the state should, which no unlink(2) takes, like all of a volume
    that has become read-only."""
    roll(home)
    in_place = Path(home.states.path(gated._writing.seq))
    in_place.mkdir()
    gated.gate.set()
    gated.close()

    in_place.rmdir()
    assert home.restart() == (home.whole(), [])


def test_a_state_whose_segment_was_archived_is_none(home: Home, gated: Gated) -> None:
    """Its event lies in the next segment, which is still here; the events in between are not. With
    nothing newer left a start refuses: it never serves without what was taken back in between."""
    begins = roll(home) + 1
    home.append(Revoke(kind="client_key", id="e" * 16, reason="lost", actor=OPERATOR))
    home.ledger.roll()
    home.gateway._keeper.rolled()
    gated.gate.set()
    settle(home)
    ends = home.ledger.first_seqs[-1]
    told = [seq for seq, vouches in snapshots(home) if vouches]
    assert begins < ends < next(seq for seq in told if seq >= begins)
    (home.place.ledger / BEFORE_FILE).write_bytes(
        b"".join(bytes.fromhex(line_hash(line)) for line in home.place.lines()[:ends]))
    home.append(msgspec.structs.replace(opening(), archived_before=ends, archived_to="/archive"))
    for path in sorted((home.place.ledger / "segments").iterdir())[:-1]:
        path.unlink()
    assert "e" * 16 in home.restart()[0].revoked_keys
    for seq in home.seqs():
        if seq > begins:
            Path(home.states.path(seq)).unlink()

    assert home.seqs()[0] == begins
    with pytest.raises(LedgerDamaged, match="lay one, or the archived segments, back"):
        home.restart()


def in_thread(*_: object) -> bool:
    """Whether it is the thread that does something."""
    return threading.current_thread().name.startswith("state-writer")


def die(owner: object, name: str, when: Callable[..., bool], *, after: bool = False) -> None:
    """Kill this process where it would call something, or has."""
    inner = getattr(owner, name)

    def outer(*arguments: object) -> object:
        doomed = when(*arguments)
        if doomed and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = inner(*arguments)
        if doomed:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, outer)


def vouching(ledger: Ledger) -> bool:
    """Whether the event that vouches for a state that was written meanwhile waits to be durable."""
    lines = [line for line in ledger._lines if b'"state_sha256"' in line]
    return bool(lines)


STEPS: dict[str, tuple[Callable[[], None], bool, bool]] = {
    "it is being written": (lambda: die(os, "fdatasync", in_thread), False, False),
    "it is written": (lambda: die(os, "fsync", in_thread), False, False),
    "it is flushed": (lambda: die(os, "rename", in_thread), False, False),
    "it is in its place": (lambda: die(os, "rename", in_thread, after=True), True, False),
    "its place is durable": (
        lambda: die(StateFolder, "write", in_thread, after=True), True, False),
    "its event is not durable": (lambda: die(Ledger, "commit", vouching), True, False),
    "its event is durable": (lambda: die(Ledger, "commit", vouching, after=True), True, True),
}
"""Where the process dies, whether the file is there, and whether the next start takes it."""


@pytest.mark.parametrize("step", STEPS)
def test_a_process_that_is_killed_at_any_step_costs_a_longer_fold(home: Home, step: str) -> None:
    """After kill -9 when: the state file counts if its event is durable, else the one before does;
    nothing unfinished stays, and what is remembered is the fold of all events."""
    dies, there, taken = STEPS[step]
    home.ledger.close()
    pid = os.fork()
    if pid == 0:
        try:
            home.ledger = home.place.open()
            home.gateway = home.make()
            home.take_up()
            durable.FLUSHED_TOGETHER_BYTES = 1
            dies()
            roll(home)
            home.append(register("beta", "1.0.0"), *call(5))
            settle(home)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    home.ledger = home.place.open()
    home.states.sweep()
    assert not list(home.folder.glob("*.part"))
    assert (home.seqs()[0] > home.third) == there

    expected = home.whole()
    found, passed_over = home.restart()

    assert found == expected
    assert (home.states.newest(home.ledger)[0].seq > home.third) == taken
    assert bool(passed_over) == (there and not taken)
