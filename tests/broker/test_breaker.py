"""Circuit breakers and quotas: what is counted, when, and for whom."""

from __future__ import annotations

import pytest

from broker.config import BreakerConfig
from broker.orchestrator.breaker import Breakers
from broker.orchestrator.quotas import QuotaBook
from schemas.policy import PluginQuotas, Quotas

KEY = ("a-plugin", "work")
CONFIG = BreakerConfig(
    consecutive_max=3, window_calls=6, failure_permille_max=500, rest_ms=1_000, rest_ms_max=3_000,
    probes_max=2,
)


def end(breakers: Breakers, now_us: int, outcomes: str, *, trying: bool = False) -> list[str]:
    """End calls: `x` failed, `o` answered, `-` neither; gives the states that were entered."""
    changes = [
        breakers.ended(KEY, "1.0.0", now_us, trying=trying,
                       failed={"x": True, "o": False, "-": None}[outcome])
        for outcome in outcomes
    ]
    return [change.after for change in changes if change is not None]


@pytest.mark.parametrize(("outcomes", "opens"), [
    ("xx", False), ("xxx", True), ("xx-x", True), ("xxoxx", False), ("xxoxox", True),
    ("xoxoxo", True), ("xoxoo", False), ("xooooo", False), ("ooxooxooxoox", False), ("---", False),
])
def test_a_breaker_opens_by_a_row_or_by_a_rate(outcomes: str, opens: bool) -> None:
    """Three failures in a row, or half of the last six; what is no outcome counts as nothing."""
    assert end(Breakers(CONFIG), 0, outcomes) == (["open"] if opens else [])


def test_rests_grow_until_it_is_well_again() -> None:
    """Each failed try doubles the rest up to the bound; two good tries close it, and it is new."""
    breakers, now = Breakers(CONFIG), 0
    end(breakers, now, "xxx")
    for rest_ms in (1_000, 2_000, 3_000, 3_000):
        assert breakers.retry_after_ms(KEY, "1.0.0", now) == rest_ms + 1
        now += rest_ms * 1000
        assert breakers.retry_after_ms(KEY, "1.0.0", now) is None
        assert breakers.let_through(KEY, "1.0.0", now)[0]
        assert end(breakers, now, "x", trying=True) == ["open"]
    now += 3_000_000

    assert [breakers.let_through(KEY, "1.0.0", now)[0] for _ in range(2)] == [True, True]
    assert breakers.retry_after_ms(KEY, "1.0.0", now) == 1_000
    assert end(breakers, now, "oo", trying=True) == ["closed"]
    assert breakers.not_closed() == []
    assert end(breakers, now, "xx") == []


def test_a_try_that_says_nothing_gives_its_place_back() -> None:
    """A cancelled try neither closes nor opens, and the next call may try."""
    breakers = Breakers(CONFIG)
    end(breakers, 0, "xxx")
    for _ in range(5):
        assert breakers.let_through(KEY, "1.0.0", 1_000_000)[0]
        assert end(breakers, 1_000_000, "-", trying=True) == []


def test_another_version_begins_anew() -> None:
    """What an old version did is no reason to refuse the new one."""
    breakers = Breakers(CONFIG)
    end(breakers, 0, "xxx")

    assert breakers.retry_after_ms(KEY, "1.1.0", 1) is None
    trying, change = breakers.let_through(KEY, "1.1.0", 1)

    assert not trying
    assert change is not None
    assert (change.before, change.after) == ("open", "closed")


def test_every_quota_is_counted_and_given_back() -> None:
    """Calls in flight and waiting are given back at their end, windows at theirs."""
    book = QuotaBook()
    quotas = Quotas(
        in_flight_max=3, queued_max=2, calls_per_second_max=5, cpu_ms_per_window_max=100,
        output_bytes_per_window_max=1_000, window_ms=10_000,
    )

    def refused(now_us: int) -> str | None:
        found = book.exceeded(quotas, "key", "plug", now_us)
        return found.quota if found else None

    for _ in range(2):
        assert refused(0) is None
        counted = book.began(quotas, "key", "plug", 0)
    assert refused(0) == "queued"
    book.waits(counted, -1)
    book.began(quotas, "key", "plug", 0)
    book.waits(counted, -1)
    assert refused(0) == "in_flight"
    for _ in range(2):
        book.left(counted, 0, queued=False, cpu_ms=40, output_bytes=10)
    assert refused(0) is None
    for _ in range(2):
        book.began(quotas, "key", "plug", 0)
        book.left(counted, 0, queued=True, cpu_ms=0, output_bytes=0)
    assert refused(999_999) == "calls_per_second"
    assert refused(1_000_000) is None
    book.left(counted, 1_000_000, queued=True, cpu_ms=20, output_bytes=0)
    assert refused(9_999_999) == "cpu_ms"
    assert refused(10_000_000) is None
    book.began(quotas, "key", "plug", 10_000_000)
    book.left(counted, 10_000_000, queued=True, cpu_ms=0, output_bytes=1_000)
    assert refused(11_000_000) == "output_bytes"


def test_what_a_policy_says_of_a_plugin_is_never_what_another_one_said() -> None:
    """Asked in any order, of whatever quotas, a book answers as one that was never asked before."""
    book = QuotaBook()
    policies = [
        Quotas(weight=2),
        Quotas(plugins={"slow*": PluginQuotas(weight=7), "*": PluginQuotas(weight=3)}),
        Quotas(plugins={"*": PluginQuotas(weight=3), "slow*": PluginQuotas(weight=7)}),
        Quotas(weight=2, plugins={"slow-one": PluginQuotas(weight=9)}),
    ]
    for quotas in policies * 2 + policies[::-1]:
        for plugin in ("slow-one", "slow-two", "fast", "slow-one"):
            assert book.weight_of(quotas, plugin) == QuotaBook().weight_of(quotas, plugin)
            assert book.began(quotas, "key", plugin, 0) == QuotaBook().began(
                quotas, "key", plugin, 0)


def test_a_refusal_tells_its_window_and_belongs_to_one_key_and_plugin() -> None:
    """The quotas of a plugin hold for it alone, and no key pays for another."""
    book = QuotaBook()
    quotas = Quotas(plugins={"slow*": PluginQuotas(calls_per_second_max=1)})
    book.began(quotas, "key", "slow-one", 500)

    found = book.exceeded(quotas, "key", "slow-one", 700)

    assert found is not None
    assert (found.quota, found.used, found.allowed, found.plugin) \
        == ("calls_per_second", 1, 1, "slow-one")
    assert (found.window_begin_us, found.window_end_us) == (500, 1_000_500)
    assert book.exceeded(quotas, "key", "slow-two", 700) is None
    assert book.exceeded(quotas, "key", "other", 700) is None
    assert book.exceeded(quotas, "another", "slow-one", 700) is None
