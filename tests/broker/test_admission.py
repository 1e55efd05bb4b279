"""Admission: a request id once within its window, and bounded words about bad frames."""

from __future__ import annotations

from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.orchestrator import windows
from broker.orchestrator.admission import DropBudget
from broker.orchestrator.windows import (
    FORGOTTEN_TOGETHER,
    PIECE_IDS,
    KeptRequests,
    RequestWindow,
    request_key,
)
from schemas.events import FrameDrop
from schemas.refusals import RefusalCode


def _id(number: int) -> bytes:
    return request_key(str(UUID(int=number, version=4)))


def test_a_request_id_passes_once_within_the_window() -> None:
    """A second use is refused until the window is over, then the id is free again."""
    window = RequestWindow(entries_max=10, window_us=1_000)

    assert window.admit(_id(1), 0)
    assert not window.admit(_id(1), 0)
    assert not window.admit(_id(1), 999)
    assert window.admit(_id(1), 1_000)


def test_the_window_is_bounded_in_number() -> None:
    """Beyond its bound the window forgets the oldest id and keeps the newest."""
    window = RequestWindow(entries_max=3, window_us=1_000)
    for number in range(5):
        assert window.admit(_id(number), number)

    assert [_id(number) in window for number in range(5)] == [False, False, True, True, True]


def test_the_end_of_a_request_is_remembered_with_it() -> None:
    """A duplicate can be told which event ended the first one, as long as that one is known."""
    window = RequestWindow(entries_max=2, window_us=1_000)
    window.admit(_id(1), 0)
    assert window.end_of(_id(1)) is None
    window.ended(_id(1), 17)
    window.ended(_id(9), 18)

    assert window.end_of(_id(1)) == 17
    assert window.end_of(_id(9)) is None
    window.admit(_id(2), 0)
    window.admit(_id(3), 0)
    assert window.end_of(_id(1)) is None


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 100)), max_size=60))
def test_every_drop_is_told_or_counted(drops: list[tuple[str, int]]) -> None:
    """No bad frame is lost: each is told on its own or is in the count, bytes included."""
    budget = DropBudget(per_second_max=3)
    told = {"a": 0, "b": 0}
    for peer, size in drops:
        if budget.tell(_drop(peer * 16, size), 5):
            told[peer] += 1
    counted = {drop.peer[0]: drop.count for drop in budget.settle(1_000_005)}

    for peer in "ab":
        mine = [size for name, size in drops if name == peer]
        assert told[peer] == min(3, len(mine))
        assert told[peer] + counted.get(peer, 0) == len(mine)
    assert budget.due_us() is None


def test_counts_come_once_a_second_and_the_budget_is_full_again() -> None:
    """The count is due a second after the first drop; afterwards drops are told again."""
    budget = DropBudget(per_second_max=1)
    drop = _drop("c" * 16, 7)
    assert budget.tell(drop, 100)
    assert not budget.tell(drop, 200)
    assert budget.due_us() == 1_000_100
    assert list(budget.settle(1_000_099)) == []
    assert list(budget.settle(1_000_100)) == [drop]
    assert budget.tell(drop, 1_000_200)


def test_strangers_share_one_event_a_second() -> None:
    """Whatever their number, the ledger grows by two lines a second."""
    budget = DropBudget(per_second_max=20)

    told = [budget.tell(_drop("unknown", 0, 3), 100 + number) for number in range(1000)]

    assert told.count(True) == 1
    assert [drop.count for drop in budget.settle(1_000_100)] == [3 * 999]


def _drop(peer: str, size: int, count: int = 1) -> FrameDrop:
    """One thing that was not let in."""
    return FrameDrop(plane="front.omega", peer=peer, code=RefusalCode.FRAME_MALFORMED, bytes=size,
                     count=count)


def kept(window: RequestWindow) -> KeptRequests:
    """Write a window down and read it again."""
    return msgspec.json.decode(b"".join(window.picture().written()), type=KeptRequests)


@pytest.mark.parametrize("count", [5, PIECE_IDS, PIECE_IDS + 1, 2 * PIECE_IDS + 5])
def test_a_window_that_was_written_down_goes_on_as_it_was(count: int) -> None:
    """After ids left by number and by time, what is taken up again is the same window."""
    entries_max = count - 2
    window = RequestWindow(entries_max=entries_max, window_us=10 * count + 50)
    for number in range(count):
        window.admit(_id(number), number * 10)
        window.ended(_id(number), number)
    window.admit(_id(count), count * 10 + 75)

    again = RequestWindow(entries_max=entries_max, window_us=10 * count + 50)
    again.take_up(kept(window), 0)

    assert kept(again) == kept(window)
    assert len(again) == len(window) == len(kept(window).ends)
    assert all(again.end_of(_id(number)) == window.end_of(_id(number)) for number in range(count))
    assert again.end_of(_id(count)) is None
    later = RequestWindow(entries_max=entries_max, window_us=10 * count + 50)
    later.take_up(kept(window), count * 10 - 15)
    assert _id(count - 2) not in later
    assert _id(count - 1) in later


def test_what_becomes_too_old_at_once_is_forgotten_bit_by_bit() -> None:
    """However many ids a day ends for: one request forgets a bounded number, each of them is free
    from that moment on, and in the end all are forgotten, those that were used again are not."""
    window = RequestWindow(entries_max=10_000, window_us=1_000)
    for number in range(5_000):
        window.admit(_id(number), 0)
    again = [0, 100, 3_000, 4_999]

    assert window.admit(_id(5_000), 1_000)
    assert len(window) == 5_001 - FORGOTTEN_TOGETHER
    assert [window.admit(_id(number), 1_001) for number in again] == [True] * len(again)
    assert [window.admit(_id(number), 1_002) for number in again] == [False] * len(again)
    taken_up = RequestWindow(entries_max=10_000, window_us=1_000)
    taken_up.take_up(kept(window), 0)
    for number in range(5_001, 5_201):
        assert window.admit(_id(number), 1_003)
        taken_up.admit(_id(number), 1_003)

    assert len(window) == 1 + len(again) + 200
    assert all(_id(number) in window for number in again)
    assert kept(taken_up) == kept(window)


def test_a_picture_of_a_window_does_not_change() -> None:
    """Ids that come, end and go afterwards are not in it, whichever part of it they touch."""
    window = RequestWindow(entries_max=PIECE_IDS + 10, window_us=10**9)
    for number in range(PIECE_IDS + 10):
        window.admit(_id(number), number)
    picture, expected = window.picture(), kept(window)

    for number in range(PIECE_IDS + 10):
        window.ended(_id(number), number)
        window.admit(_id(PIECE_IDS + 10 + number), number)

    assert msgspec.json.decode(b"".join(picture.written()), type=KeptRequests) == expected
    assert kept(window) != expected


class Plain:
    """A window as one would write it who has time: every id ever taken, oldest first."""

    def __init__(self, entries_max: int, window_us: int) -> None:
        """Begin empty."""
        self.entries_max, self.window_us = entries_max, window_us
        self.taken: list[tuple[int, int]] = []
        self.forgotten = 0

    def admit(self, number: int, now_us: int) -> bool:
        """Take an id unless one that is not forgotten was used within the window."""
        horizon = now_us - self.window_us
        latest = dict(self.taken[self.forgotten :])
        if latest.get(number, horizon) > horizon:
            return False
        for _ in range(FORGOTTEN_TOGETHER):
            left = self.taken[self.forgotten :]
            known = len({one for one, _ in left})
            if not known or (left[0][1] > horizon and known < self.entries_max):
                break
            self.forgotten += 1
        self.taken.append((number, now_us))
        return True


_PLAYS = st.lists(st.tuples(
    st.sampled_from(["admit"] * 8 + ["restart", "bounds"]), st.integers(0, 150), st.integers(0, 60)
), max_size=250)


@given(_PLAYS, st.sampled_from([1, 2, 7, 8, 9, 100]))
def test_a_window_is_what_a_plain_list_says(
    plays: list[tuple[str, int, int]], piece_ids: int
) -> None:
    """Ids new and old, times that go on, restarts under the same bounds and others, at the edges
    of pieces: what is admitted and what is remembered, and in which order, is what a list says
    that forgets nothing; a duplicate forgets nothing either."""
    bounds, now_us = (10, 300), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "PIECE_IDS", piece_ids)
        window, plain = RequestWindow(entries_max=bounds[0], window_us=bounds[1]), Plain(*bounds)
        for play, number, step in plays:
            now_us += step
            if play == "admit":
                before = kept(window)
                admitted = window.admit(_id(number), now_us)
                assert admitted == plain.admit(number, now_us)
                assert admitted or kept(window) == before
            else:
                if play == "bounds":
                    bounds = (number // 10 + 1, step * 20 + 1)
                    plain.entries_max, plain.window_us = bounds
                again = RequestWindow(entries_max=bounds[0], window_us=bounds[1])
                again.take_up(kept(window), 0)
                assert kept(again) == kept(window)
                window = again
            left = plain.taken[plain.forgotten :]
            assert kept(window).times_us == [used_us for _, used_us in left]
            assert kept(window).ids == "".join(_id(one).hex() for one, _ in left)
            assert len(window) == len({one for one, _ in left})
