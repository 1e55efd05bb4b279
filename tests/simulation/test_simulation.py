"""Thousands of seeded runs of the real loop and core; the whole set must reach every table cell.

`OMEGA_SIMULATION_SEEDS` and `OMEGA_SIMULATION_STEPS` make it longer; seeds that ever failed lie in
seeds.txt and run every time.
"""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections import Counter
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from broker import core, effects, inventory, invocations, lifecycle
from broker.orchestrator import breaker, fleet, pipelines, upgrades
from tests.simulation.world import run

SEEDS = int(os.environ.get("OMEGA_SIMULATION_SEEDS", "2000"))
STEPS = int(os.environ.get("OMEGA_SIMULATION_STEPS", "300"))
CHUNK = 50
KEPT = Path(__file__).with_name("seeds.txt")

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


class Recorded(dict[KeyT, ValueT]):
    """A transition table that notes which of its cells were taken."""

    def __init__(self, table: dict[KeyT, ValueT], name: str, taken: set[tuple[str, KeyT]]) -> None:
        super().__init__(table)
        self._name = name
        self._taken = taken

    def _note(self, key: KeyT) -> None:
        if dict.__contains__(self, key):
            self._taken.add((self._name, key))

    def get(self, key, default=None):
        """Look a cell up."""
        self._note(key)
        return super().get(key, default)

    def __getitem__(self, key):
        """Take a cell."""
        self._note(key)
        return super().__getitem__(key)

    def __contains__(self, key):
        """Ask for a cell."""
        self._note(key)
        return super().__contains__(key)


class Outcome(NamedTuple):
    """What a chunk of seeds met."""

    taken: set[tuple[str, tuple[str, str]]]
    effects: set[str]
    crashes: int
    vouched: Counter[str]
    died: Counter[str]
    events: int
    failure: str


def play(seeds: list[int]) -> Outcome:
    """Play some seeds with recording tables; stop at the first failure and tell its seed."""
    taken: set[tuple[str, tuple[str, str]]] = set()
    invocations.CALL = Recorded(lifecycle.CALL, "call", taken)
    pipelines.PIPELINE = Recorded(lifecycle.PIPELINE, "pipeline", taken)
    pipelines.STEP = Recorded(lifecycle.STEP, "step", taken)
    breaker.BREAKER = Recorded(lifecycle.BREAKER, "breaker", taken)
    fleet.WORKER = Recorded(lifecycle.WORKER, "worker", taken)
    inventory.VERSION = Recorded(lifecycle.VERSION, "version", taken)
    upgrades.UPGRADE = Recorded(lifecycle.UPGRADE, "upgrade", taken)
    core.GATEWAY = Recorded(lifecycle.GATEWAY, "gateway", taken)
    invocations.GATEWAY = core.GATEWAY
    kinds: set[str] = set()
    crashes = events = 0
    vouched, died = Counter[str](), Counter[str]()
    for seed in seeds:
        try:
            world = run(seed, STEPS)
        except Exception:  # noqa: BLE001 - any exception is the finding; its seed is what matters.
            trace = f"seed {seed}:\n{traceback.format_exc()}"
            return Outcome(taken, kinds, crashes, vouched, died, events, trace)
        kinds |= world.effects
        crashes += world.crashes
        vouched += world.vouched
        died += world.states.died
        events += len(world.ledger.events)
    return Outcome(taken, kinds, crashes, vouched, died, events, "")


@pytest.fixture(scope="module")
def outcomes() -> list[Outcome]:
    """Play all seeds on all cores, once."""
    kept = [int(line) for line in KEPT.read_text().split() if line.isdecimal()]
    seeds = kept + list(range(SEEDS))
    chunks = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    with multiprocessing.get_context("spawn").Pool() as pool:
        return pool.map(play, chunks, chunksize=1)


def test_every_invariant_holds_in_every_run(outcomes: list[Outcome]) -> None:
    """No seed breaks an invariant or makes the core raise."""
    failures = [outcome.failure for outcome in outcomes if outcome.failure]
    assert not failures, failures[0]


def test_every_table_cell_and_every_effect_is_reached(
    outcomes: list[Outcome], record_property: pytest.RecordProperty, capsys: pytest.CaptureFixture
) -> None:
    """The runs together take each legal transition and meet each kind of effect at least once."""
    taken = set().union(*(outcome.taken for outcome in outcomes))
    cells = {(name, cell) for name, table in lifecycle.TRANSITIONS.items() for cell in table}
    kinds = set().union(*(outcome.effects for outcome in outcomes))
    expected = {kind.__name__ for kind in effects.Effect.__args__}
    crashes = sum(outcome.crashes for outcome in outcomes)
    with capsys.disabled():
        print(f"\n{SEEDS} seeds of {STEPS} steps: {len(taken & cells)} of {len(cells)} cells, "
              f"{len(kinds)} of {len(expected)} effects, {crashes} crashes, "
              f"{sum(outcome.events for outcome in outcomes)} events")
        for name, (state, event) in sorted(cells):
            mark = "x" if (name, (state, event)) in taken else " "
            print(f"  [{mark}] {name}: {state} + {event}")
    assert kinds == expected
    assert not cells - taken
    assert crashes > 0
    begun = sum((outcome.vouched for outcome in outcomes), Counter[str]())
    assert begun["at once"] + begun["later"] > crashes // 2
    assert begun["later"], "no start began with a state that was written while others went on"
    died = sum((outcome.died for outcome in outcomes), Counter[str]())
    assert set(died) == {"unfinished", "in place"}, "no crash between a state and its event"
