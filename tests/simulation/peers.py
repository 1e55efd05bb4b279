"""What the world knows of a worker's process, and how a prober's ends."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from broker.arrivals import Readable
from schemas.events import PluginRegister
from schemas.messages import Ping, Probe, Run
from tests.simulation.fakes import LAUNCHER_FD, require

if TYPE_CHECKING:
    from tests.simulation.world import World

ENDS: tuple[tuple[bytes, int, int], ...] = (
    *[(b'{"fits":true}', 0, 0)] * 5, (b'{"schema":"x","sentence":"slow"}', 0, 0), (b"", 0, 24),
    (b"\xff", 0, 0), (b"", 5, 0), (b'{"fits":true}', 0, 11),
)
"""How a prober may end: what it said, its status and the signal that ended it."""


@dataclass
class Peer:
    """One worker process as the world plays it."""

    incarnation: str
    pool_size: int
    role: str
    loads: bool = True
    said: bool = False
    probes: list[Probe] = field(default_factory=list)
    pings: list[Ping] = field(default_factory=list)
    runs: dict[int, Run] = field(default_factory=dict)
    aborted: list[int] = field(default_factory=list)
    draining: bool = False


def end_trial(world: World, end: tuple[bytes, int, int] = ENDS[0]) -> None:
    """Let the prober that runs, if one does, end in a way; a bad word must register nothing."""
    if not world.launcher.trials:
        return
    world.launcher.tried(*end)
    before = len(world.ledger.events)
    world.turn([Readable(LAUNCHER_FD)])
    registered = any(isinstance(event.fields, PluginRegister)
                     for event in world.ledger.events[before:])
    require(not registered or end == ENDS[0], "a schema that is not admitted was registered")
