"""Every order in which a small world can go, a few steps deep; `scripts/exhaustive` goes deeper."""

from __future__ import annotations

import pytest

from tests.simulation.exhaustive import Small, freeze, search, thaw

DEPTHS = {"nothing": 3, "one runs": 2, "both run": 2}


@pytest.mark.parametrize("start", DEPTHS)
def test_no_order_breaks_an_invariant(start: str) -> None:
    """From each start, whatever two or three things happen next, every invariant holds and, when
    time passes, every call has ended exactly once."""
    found = search(start, DEPTHS[start])

    assert not found.failure
    assert found.depth == DEPTHS[start]
    assert found.states > 150
    assert found.rested > 120


def test_a_copy_goes_on_as_its_original() -> None:
    """A world and its copy have the same outlook after the same things, and share nothing."""
    world = Small()
    world.happen("invoke P")
    copy, other = thaw(freeze(world)), thaw(freeze(world))

    for action in ("ready", "report", "answer P"):
        world.happen(action)
        copy.happen(action)

    assert repr(copy.outlook()) == repr(world.outlook())
    assert copy.ledger.events == world.ledger.events
    assert repr(other.outlook()) != repr(world.outlook())
