"""The warm pool: it follows the load up at once and down by and by, within its bound."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_worker.warm import PERIOD_S, Warm
from schemas.messages import CallResult
from tests.sandbox_worker.harness import LIMITS, PATIENCE_S, Worker, worker
from tests.support.gateway import wait_for

ECHO = '''
from sandbox_worker.sdk import method

@method()
def main(ctx, text):
    return text.text
'''


def test_a_pool_begins_with_one_and_an_idle_one_asks_for_nothing() -> None:
    """One process waits, and no time is due."""
    warm = Warm(8)

    assert (warm.target, warm.due) == (1, float("inf"))


def test_a_pool_that_runs_dry_doubles_up_to_its_bound() -> None:
    """Calls that find nobody waiting make it grow; it never passes the broker's share."""
    warm = Warm(6)
    targets = []
    for _ in range(5):
        warm.taken(0, 10.0)
        targets.append(warm.target)

    assert targets == [2, 4, 6, 6, 6]
    assert warm.due == 10.0 + PERIOD_S


def test_what_a_period_did_not_need_goes_by_halves_and_a_spare_stays() -> None:
    """Of eight, three were needed at once: one more than those stays."""
    warm = Warm(8)
    for _ in range(3):
        warm.taken(0, 0.0)
    now, targets = warm.due, []
    warm.settle(8, now)
    for _ in range(6):
        warm.taken(warm.target - 3, now)
        now = warm.due
        warm.settle(warm.target, now)
        targets.append(warm.target)

    assert targets == [6, 5, 4, 4, 4, 4]


def test_a_pool_without_calls_shrinks_to_one_and_then_needs_no_waking() -> None:
    """Some periods after a burst one process waits, and no time is due any more."""
    warm = Warm(16)
    for _ in range(4):
        warm.taken(0, 0.0)
    targets = []
    while warm.due < float("inf"):
        warm.settle(warm.target, warm.due)
        targets.append(warm.target)

    assert targets[0] == 16
    assert targets[-1] == 1
    assert len(targets) <= 7


def test_a_share_of_none_keeps_none() -> None:
    """Where the host holds no more, calls are forked for one by one."""
    warm = Warm(0)
    warm.taken(0, 0.0)

    assert (warm.target, warm.due) == (0, float("inf"))


def _waiting(zygote: int) -> int:
    """How many call processes there are below a zygote."""
    children = Path(f"/proc/{zygote}/task/{zygote}/children")
    return len(children.read_text().split())


def _burst(one: Worker) -> None:
    """As many calls at once as there may be; each must be answered."""
    calls = {one.start(f"{number}") for number in range(LIMITS.concurrency)}
    while calls:
        report = one.receive()
        assert isinstance(report, CallResult), report
        calls.remove(report.call)


@pytest.mark.jail
@pytest.mark.system
def test_call_processes_come_with_the_load_and_go_with_it(tmp_path: Path) -> None:
    """One waits before and long after a burst, several right after it; calls never fail for it."""
    with worker(tmp_path, ECHO, limits=LIMITS, pool_size=4) as one:
        wait_for("one process to wait", lambda: _waiting(one.zygote) == 1)
        for _ in range(4):
            _burst(one)
        wait_for("a pool that met the load", lambda: _waiting(one.zygote) == 4)
        wait_for("a pool that went with it", lambda: _waiting(one.zygote) == 1)
        assert one.value("again") == "again"

    assert 6 * PERIOD_S < PATIENCE_S


@pytest.mark.jail
@pytest.mark.system
def test_a_worker_without_a_share_serves_all_the_same(tmp_path: Path) -> None:
    """No process waits, before or after; each call gets one of its own."""
    with worker(tmp_path, ECHO, pool_size=0) as one:
        assert _waiting(one.zygote) == 0
        _burst(one)
        wait_for("the last process to go", lambda: _waiting(one.zygote) == 0)
