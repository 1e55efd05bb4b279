"""A home whose ledger tells a simulated past: many runs, calls, crashes, segments and states."""

from __future__ import annotations

import functools
import re
from pathlib import Path

from nacl.signing import SigningKey

from broker.home import Home, create_home, load_home
from broker.ledger.commit import Ledger
from schemas.events import Event, LedgerClose, LedgerRoll
from tests.simulation.fakes import SEGMENT_EVENTS
from tests.simulation.world import World

SEED = 7


@functools.cache
def simulated(seed: int = SEED) -> World:
    """Play one seed, long enough for several segments, and close its ledger in order."""
    world = World(seed)
    while world.ledger.segment < 2 * SEGMENT_EVENTS:
        world.step()
    world.finish()
    world.gateway.append(LedgerClose(reason="drained"))
    world.ledger.commit()
    return world


def simulated_home(path: Path, seed: int = SEED) -> Home:
    """Make a home and write that past into its ledger, with the state files that belong to it."""
    create_home(str(path), "development", None, environment={"XDG_RUNTIME_DIR": str(path.parent)})
    world = simulated(seed)
    settings = path / "gateway.toml"
    settings.write_text(re.sub(
        r'log_id = ".*"', f'log_id = "{world.ledger.log_id}"', settings.read_text()
    ))
    home = load_home(str(path), environment={"XDG_RUNTIME_DIR": str(path.parent)})
    now = (0, 0)
    ledger = Ledger.open(
        home.ledger, home.anchor, log_id=home.config.log_id, durability="process",
        signing_key=SigningKey(bytes.fromhex(home.keys.ledger.secret)), now=lambda: now,
    )
    for event in world.ledger.events:
        now = event.ts_us, event.mono_us
        if isinstance(event.fields, LedgerRoll):
            ledger.roll()
        else:
            ledger.append(event.fields)
    ledger.close()
    for seq, data in world.states.data.items():
        (path / "registry" / f"state-{seq}.json").write_bytes(data)
    return home


def last_segment(events: list[Event]) -> int:
    """Give the first event of the last segment."""
    return max(event.seq + 1 for event in events if isinstance(event.fields, LedgerRoll))
