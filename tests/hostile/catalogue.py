"""Every attack, in the order in which one broker bears them."""

from __future__ import annotations

from tests.hostile.attack import Attack
from tests.hostile.frames import FRAMES
from tests.hostile.keys import KEYS
from tests.hostile.strangers import STRANGERS
from tests.hostile.workers import WORKERS

ATTACKS: tuple[Attack, ...] = (*STRANGERS, *KEYS, *FRAMES, *WORKERS)
