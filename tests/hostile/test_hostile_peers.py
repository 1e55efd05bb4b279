"""Hostile peers at a real broker while ten good clients work: nobody else notices anything.

One broker bears all attacks, one after the other. How much later the good clients are answered
meanwhile is measured by `scripts/hostile`; here they must all be answered, without one error.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.hostile.attack import Attack
from tests.hostile.catalogue import ATTACKS
from tests.hostile.siege import MEMORY_MB_MAX, Siege, siege
from tests.hostile.traps import TRAPS

TESTS = Path(__file__).parents[1]
SPARE_FILES = 6
"""What one worker on its way needs."""


@pytest.fixture(scope="module")
def besieged() -> Iterator[Siege]:
    """One broker with ten good clients for all attacks."""
    with siege() as running:
        assert not running.progress().errors
        yield running


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_an_attack_costs_nobody_else_anything(besieged: Siege, attack: Attack) -> None:
    """Every good client is answered during and after it, none of them wrongly; the broker lives
    within its bounds; and the ledger counts what was not let in."""
    before, files = besieged.drops().copy(), besieged.files()
    besieged.report()

    attack.run(besieged)

    noticed = besieged.progress()
    assert not noticed.errors
    assert besieged.alive()
    if attack.code:
        besieged.raised(attack.code, before)
    assert besieged.memory_mb() < MEMORY_MB_MAX
    besieged.until("descriptors to come back", lambda: besieged.files() <= files + SPARE_FILES)


def test_the_ledger_of_a_siege_is_sound(besieged: Siege) -> None:
    """After all attacks the broker ends in order, and its ledger passes every audit."""
    assert besieged.gateway.stop() == 0
    besieged.gateway.audit()


def test_every_trap_has_its_test_or_its_reason() -> None:
    """All 48 are there once, what they name exists, and every attack is named by a trap or is one
    of the malformed inputs that belong to none."""
    names = {attack.name for attack in ATTACKS}
    assert len(TRAPS) == len({trap.id for trap in TRAPS}) == 48
    assert len(names) == len(ATTACKS)
    for trap in TRAPS:
        assert bool(trap.attacks or trap.tests) != bool(trap.reason), trap.id
        assert set(trap.attacks) <= names, trap.id
        for test in trap.tests:
            file, _, name = test.partition("::")
            assert name in _functions(TESTS / file), f"{trap.id}: {test}"
    assert names - {name for trap in TRAPS for name in trap.attacks} <= {
        "what a worker may not say", "strangers on a worker's socket", "a flood of bad frames",
        "requests that come twice",
    }


@cache
def _functions(file: Path) -> set[str]:
    return {
        node.name for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
