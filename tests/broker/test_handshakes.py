"""The budget of handshakes: what a front takes over time, and who pays for a flood."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.handshakes import (
    ADDRESSES_MAX,
    KNOWN_MAX,
    REFUSED_MAX,
    Admission,
    HandshakeBudget,
)

RATE = 100
FRONT_MOST = 2 * RATE
ADDRESS_MOST = RATE // 2
OPEN = Admission("everybody", (), ())


def takes(admission: Admission, address: str) -> bool:
    """Whether somebody from an address gets a connection."""
    if address in admission.refused or admission.taken == "nobody":
        return False
    return admission.taken == "everybody" or address in admission.known


def spend(budget: HandshakeBudget, count: int, now_s: float, *, addresses: int = 100_000) -> None:
    """Let so many come at once, each from the next of so many addresses."""
    for number in range(count):
        budget.charge(f"10.0.{number % addresses // 250}.{number % addresses % 250}", now_s)


@given(st.lists(st.tuples(st.floats(0, 0.5), st.integers(0, 120), st.integers(0, 40))))
def test_over_any_time_no_more_come_in_than_the_burst_and_the_rate(
    story: list[tuple[float, int, int]],
) -> None:
    """Whoever comes when, from wherever: all that got in are at most what was saved up, the rate
    times the time, and the one batch that came between two looks; one address gets half."""
    budget, now_s = HandshakeBudget(RATE, 0.0), 0.0
    budget.heard("10.0.0.0")
    taken: dict[str, int] = {}
    largest = 0
    for pause_s, count, number in story:
        now_s += pause_s
        address = f"10.0.0.{number}"
        if takes(budget.admission(now_s), address):
            for _ in range(count):
                budget.charge(address, now_s)
            taken[address] = taken.get(address, 0) + count
            largest = max(largest, count)
        assert sum(taken.values()) <= FRONT_MOST + RATE * now_s + largest + 1
        assert max(taken.values(), default=0) <= ADDRESS_MOST + RATE / 2 * now_s + largest + 1


def test_one_address_spends_its_share_and_nobody_elses() -> None:
    """After a flood from one address that address waits, until it has a pause's worth again;
    everybody else is taken all the time."""
    budget = HandshakeBudget(RATE, 0.0)
    for _ in range(ADDRESS_MOST):
        budget.charge("10.0.0.1", 0.0)
    assert budget.admission(0.0) == OPEN

    budget.charge("10.0.0.1", 0.0)

    assert budget.admission(0.0) == Admission("everybody", ("10.0.0.1",), ())
    assert budget.admission(0.2).refused == ("10.0.0.1",)
    assert budget.admission(0.3) == OPEN


def test_what_came_between_two_looks_is_paid_back() -> None:
    """A thousand that came while nobody looked keep the front shut for as long as a thousand are
    worth: debt is not forgotten."""
    budget = HandshakeBudget(RATE, 0.0)
    spend(budget, FRONT_MOST + 1000, 0.0)

    assert budget.admission(0.0).taken == "nobody"
    assert budget.admission(10.2).taken == "nobody"
    assert budget.admission(10.3).taken == "known"
    assert budget.admission(10.7).taken == "known"
    assert budget.admission(10.8).taken == "everybody"
    assert budget.admission(1e6).taken == "everybody"


def test_the_last_of_a_front_is_kept_for_addresses_that_are_known() -> None:
    """Where an admitted key was heard, clients still come in while strangers wait."""
    budget = HandshakeBudget(RATE, 0.0)
    budget.heard("192.168.0.1")
    spend(budget, FRONT_MOST - 40, 0.0)

    admission = budget.admission(0.0)

    assert admission == Admission("known", (), ("192.168.0.1",))
    assert takes(admission, "192.168.0.1")
    assert not takes(admission, "192.168.0.2")


def test_a_connection_that_nobody_can_place_is_the_fronts() -> None:
    """Who is gone before anybody asks from where costs the front, and no address."""
    budget = HandshakeBudget(RATE, 0.0)
    for _ in range(FRONT_MOST + 1):
        budget.charge("", 0.0)

    assert budget.admission(0.0) == Admission("nobody", (), ())


def test_every_table_is_bounded() -> None:
    """However many addresses come, are turned away or become known, only so many are kept: those
    that came last."""
    budget = HandshakeBudget(1_000_000, 0.0)
    for number in range(3 * ADDRESSES_MAX):
        budget.heard(f"10.1.{number // 250}.{number % 250}")
    spend(budget, 3 * ADDRESSES_MAX, 0.0)
    assert len(budget._addresses) == ADDRESSES_MAX
    assert len(budget.admission(0.0).known) == KNOWN_MAX
    assert budget.admission(0.0).known[-1] == "10.1.12.71"

    budget = HandshakeBudget(10, 0.0)
    spend(budget, 3000, 0.0, addresses=300)
    assert len(budget.admission(0.0).refused) == REFUSED_MAX
    spend(budget, 2 * ADDRESSES_MAX, 0.0)
    assert budget.admission(0.0).refused == ()
