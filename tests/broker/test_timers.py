"""Timers: what rings, in what order, and that calls which are over leave none behind."""

from __future__ import annotations

import pytest

from broker.state import TIMERS_OVER_MIN
from tests.scenarios.stage import Stage

CALLS = 4 * TIMERS_OVER_MIN


@pytest.fixture
def stage() -> Stage:
    """A gateway with a worker that is ready."""
    stage = Stage()
    for line in ("register alpha 1.0.0", "enable alpha 1.0.0", "invoke first alpha", "ready w1",
                 "ready w1", "answer w1 first"):
        stage.play(line)
    return stage


def test_calls_that_are_over_leave_no_timers(stage: Stage) -> None:
    """However many were answered within one timeout, what waits stays in proportion to what is
    open; and what is open still ends at its deadline."""
    stage.play("invoke open alpha")
    for number in range(CALLS):
        stage.play(f"invoke r{number} alpha")
        stage.play(f"answer w1 r{number}")

    assert stage.core.state.calls.keys() == {stage.id_of("open")}
    assert len(stage.core.state._timers) < 2 * TIMERS_OVER_MIN
    told = stage.play("advance 2000")
    assert any("invoke.end" in line and "request_id=open" in line and "outcome=deadline" in line
               for line in told)
