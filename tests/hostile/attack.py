"""One attack: a name, what it does, and under which code the ledger must count it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from tests.hostile.siege import Siege


class Attack(NamedTuple):
    """Something a hostile peer does.

    Attributes:
        name: of the attack, unique.
        run: does it once, and asserts that it arrived where that shows at once.
        code: under which code the ledger counts it; empty where it is no dropped frame.
        seconds: how long the broker may take to be rid of it.
    """

    name: str
    run: Callable[[Siege], None]
    code: str = ""


def attack(name: str, code: str = "") -> Callable[[Callable[[Siege], None]], Attack]:
    """Make an attack of a function."""
    return lambda run: Attack(name, run, code)
