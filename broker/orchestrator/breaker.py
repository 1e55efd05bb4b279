"""Soft circuit breakers: a method of a plugin that keeps failing is given a rest.

Rules this file keeps: states change by `broker.lifecycle.BREAKER` only; only failures that the
plugin caused count; while half open a bounded number of calls tries whether it is well again; times
are monotonic, in us.

It leaves refusals and events to `broker.orchestrator.gate`. Source: specification section 4,
layer 3.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from broker.config import BreakerConfig
from broker.lifecycle import BREAKER, BreakerEvent, BreakerState

Key = tuple[str, str]
"""A plugin and one of its methods."""


class Change(NamedTuple):
    """One transition; `retry_after_ms` is how long an open breaker rests."""

    before: BreakerState
    after: BreakerState
    reason: str
    retry_after_ms: int | None = None


@dataclass(slots=True)
class Breaker:
    """One method's luck. `recent` holds the last outcomes, True for a failure of the plugin."""

    version: str
    state: BreakerState = "closed"
    in_a_row: int = 0
    trips: int = 0
    rest_until_us: int = 0
    trying: int = 0
    well: int = 0
    recent: deque[bool] = field(default_factory=deque)


class Breakers:
    """All breakers; one is made with the first failure and forgotten when it is as good as new."""

    def __init__(self, config: BreakerConfig) -> None:
        """Begin with all closed."""
        self.config = config
        self._breakers: dict[Key, Breaker] = {}

    def __contains__(self, key: Key) -> bool:
        """Say whether a method failed of late: nothing else needs its successes counted."""
        return key in self._breakers

    def not_closed(self) -> list[tuple[Key, Breaker]]:
        """Give the breakers that refuse or try, in order of their names."""
        return sorted(
            (item for item in self._breakers.items() if item[1].state != "closed"),
            key=lambda item: item[0],
        )

    def retry_after_ms(self, key: Key, version: str, now_us: int) -> int | None:
        """Say for how long a call is not let through; None when it is, as another version's is."""
        breaker = self._breakers.get(key)
        if breaker is None or breaker.state == "closed" or breaker.version != version:
            return None
        if breaker.state == "open" and now_us < breaker.rest_until_us:
            return (breaker.rest_until_us - now_us) // 1000 + 1
        if breaker.trying >= self.config.probes_max:
            return self.config.rest_ms
        return None

    def let_through(self, key: Key, version: str, now_us: int) -> tuple[bool, Change | None]:
        """Count a call that is let through.

        Returns:
            Whether it is one of those that try a half-open breaker, and the change it makes.
        """
        breaker = self._breakers.get(key)
        if breaker is None:
            return False, None
        change = None
        if breaker.version != version:
            before = breaker.state
            self._breakers.pop(key)
            return False, None if before == "closed" else Change(before, "closed", "new version")
        if breaker.state == "open" and now_us >= breaker.rest_until_us:
            change = self._step(breaker, "rested", "its rest is over")
            breaker.trying = breaker.well = 0
        if breaker.state != "half_open":
            return False, change
        breaker.trying += 1
        return True, change

    def ended(
        self, key: Key, version: str, now_us: int, *, failed: bool | None, trying: bool,
        at_once: bool = False,
    ) -> Change | None:
        """Count how a call ended.

        Args:
            key: the plugin and the method.
            version: which version answered.
            now_us: monotonic time.
            failed: True when the plugin failed, False when it answered, None when neither.
            trying: whether it was let through to try a half-open breaker.
            at_once: whether this one failure is enough.
        """
        breaker = self._breakers.get(key)
        if breaker is None or breaker.version != version:
            if not failed:
                return None
            breaker = self._breakers[key] = Breaker(version)
        if trying:
            breaker.trying = max(0, breaker.trying - 1)
        if failed is None:
            return None
        if breaker.state == "half_open":
            return self._tried(key, breaker, now_us, failed=failed) if trying else None
        if breaker.state == "open":
            return None
        config = self.config
        breaker.recent.append(failed)
        if len(breaker.recent) > config.window_calls:
            breaker.recent.popleft()
        breaker.in_a_row = breaker.in_a_row + 1 if failed else 0
        failures = sum(breaker.recent)
        if failures == 0:
            del self._breakers[key]
            return None
        if failed and at_once:
            return self._open(breaker, now_us, "trip", "two outputs for one input")
        if breaker.in_a_row >= config.consecutive_max:
            return self._open(breaker, now_us, "trip", f"{breaker.in_a_row} failures in a row")
        full = len(breaker.recent) == config.window_calls
        if full and failures * 1000 >= config.failure_permille_max * config.window_calls:
            return self._open(
                breaker, now_us, "trip", f"{failures} of {config.window_calls} calls failed"
            )
        return None

    def _tried(
        self, key: Key, breaker: Breaker, now_us: int, *, failed: bool
    ) -> Change | None:
        if failed:
            return self._open(breaker, now_us, "failed", "it failed again")
        breaker.well += 1
        if breaker.well < self.config.probes_max:
            return None
        del self._breakers[key]
        return self._step(breaker, "well", f"{breaker.well} calls went well")

    def _open(self, breaker: Breaker, now_us: int, event: BreakerEvent, reason: str) -> Change:
        config = self.config
        breaker.trips += 1
        rest_ms = min(config.rest_ms_max, config.rest_ms * 2 ** min(breaker.trips - 1, 20))
        breaker.rest_until_us = now_us + rest_ms * 1000
        breaker.in_a_row = 0
        breaker.recent.clear()
        return self._step(breaker, event, reason)._replace(retry_after_ms=rest_ms)

    def _step(self, breaker: Breaker, event: BreakerEvent, reason: str) -> Change:
        before = breaker.state
        breaker.state = BREAKER[before, event]
        return Change(before, breaker.state, reason)
