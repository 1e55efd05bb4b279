"""The fleet's arithmetic: how the host's waiting call processes are divided among its workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from broker.config import LimitsConfig, TimesConfig, WorkersConfig
from broker.orchestrator.fleet import Fleet, Worker
from schemas.names import Purpose


def fleet_of(warm_max: int, workers_max: int, pool_size: int) -> Fleet:
    """Make an empty fleet with these bounds."""
    limits = LimitsConfig(warm_processes_max=warm_max, workers_max=workers_max)
    return Fleet(TimesConfig(), WorkersConfig(pool_size=pool_size), limits)


def add(fleet: Fleet, name: str, concurrency: int, role: Purpose = "primary") -> Worker:
    """Start a worker of its own plugin, as the broker does."""
    worker = Worker(
        incarnation=name, plugin=name, version="1.0.0", grants=(), concurrency=concurrency,
        pool_size=fleet.pool_share(concurrency), started_us=0, role=role,
    )  # fmt: skip
    fleet.add(worker)
    return worker


@given(
    st.integers(1, 40), st.integers(1, 12), st.integers(1, 8),
    st.lists(st.tuples(st.booleans(), st.integers(1, 16)), max_size=60),
)  # fmt: skip
def test_no_division_passes_the_hosts_bound(
    warm_max: int, workers_max: int, pool_size: int, steps: list[tuple[bool, int]]
) -> None:
    """Whoever comes and goes in which order: the shares never add up to more than there may be,
    none is larger than asked, and while everybody could have one, everybody has."""
    fleet = fleet_of(warm_max, workers_max, pool_size)
    living: list[Worker] = []
    for number, (comes, concurrency) in enumerate(steps):
        # One successor may stand above the bound of workers.
        if comes and len(living) <= workers_max:
            living.append(add(fleet, str(number), concurrency))
        elif living:
            fleet.remove(living.pop(concurrency % len(living)))
        shares = [worker.pool_size for worker in living]
        assert sum(shares) <= warm_max
        assert all(0 <= share <= pool_size for share in shares)
        if warm_max > workers_max:
            assert all(share >= 1 for share in shares)


def test_a_bound_that_was_lowered_holds_for_those_who_come() -> None:
    """Who has more than there may be now keeps it until the end; the next gets nothing."""
    fleet = fleet_of(12, 8, 4)
    first = add(fleet, "first", 16)
    lower = LimitsConfig(warm_processes_max=2, workers_max=8)
    fleet.reconfigure(TimesConfig(), WorkersConfig(pool_size=4), lower)
    second = add(fleet, "second", 16)
    fleet.remove(first)
    third = add(fleet, "third", 16)

    assert (first.pool_size, second.pool_size, third.pool_size) == (4, 0, 1)


def test_the_first_get_what_they_ask_for_and_the_last_one_process() -> None:
    """Twelve for eight workers: what is more than one for each goes to whoever comes first, and
    a successor above the bound of workers still finds one."""
    fleet = fleet_of(12, 8, 4)
    shares = [add(fleet, str(number), 16).pool_size for number in range(9)]

    assert shares == [4, 1, 1, 1, 1, 1, 1, 1, 1]
    assert sum(shares) == 12


def test_replicas_are_bounded_by_their_own_number() -> None:
    """One of two replicas leaves room for another, two do not; a primary is still let in."""
    limits = LimitsConfig(workers_max=4)
    fleet = Fleet(TimesConfig(), WorkersConfig(replicas_max=2), limits)
    full = []
    for name in ("first", "second"):
        full.append(fleet.full("replica"))
        add(fleet, name, 1, "replica")

    assert [*full, fleet.full("replica"), fleet.full("primary")] == [False, False, True, False]


def test_a_replica_makes_room_before_any_primary() -> None:
    """Whoever wants room gets it from an idle replica first; a replica gets it from none else."""
    fleet = fleet_of(12, 8, 4)
    primary, replica = add(fleet, "one", 1), add(fleet, "two", 1, "replica")
    primary.state = replica.state = "ready"
    primary.called_us, replica.called_us = 1, 2

    assert fleet.longest_idle("primary") is replica
    assert fleet.longest_idle("replica") is replica
    fleet.remove(replica)
    assert fleet.longest_idle("primary") is primary
    assert fleet.longest_idle("replica") is None
