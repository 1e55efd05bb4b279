"""How much memory this process has, and when that is too much.

libzmq hands a message over when its last frame is there, and bounds frames, not their number: who
has a key can let a message grow without end, and no option of libzmq's ends that. What ends it is
to end the connection, which gives its memory back to the process, though not to the system.

Rules this file keeps: the system is asked a few times a second at the most; what was too much once
is no reason again, only what comes on top of it. Ending connections is left to `broker.transport`.
Source: proc_pid_statm(5).
"""

from __future__ import annotations

import resource
from typing import Final

_ASKED_EVERY_S: Final = 0.2
_STEP: Final = 16
"""After an end, memory may grow by this part of the bound before there is another."""
CALM_S: Final = 5.0
"""When memory was within bounds for so long, the next excess begins with the first plane again."""


class Footprint:
    """The bound, and how far above it this process was before."""

    def __init__(self, memory_mb_max: int) -> None:
        """Begin within bounds; `memory_mb_max` is in MiB."""
        self._allowed = self._bound = memory_mb_max * 1024 * 1024
        self._asked_s = 0.0
        self._excess_s = 0.0
        self.excesses = 0
        """How many followed each other closely."""

    def excess(self, now_s: float) -> bool:
        """Say whether there is too much by now; `now_s` is monotonic."""
        if now_s - self._asked_s < _ASKED_EVERY_S:
            return False
        self._asked_s = now_s
        resident = resident_bytes()
        if resident <= self._allowed:
            return False
        self.excesses = self.excesses + 1 if now_s - self._excess_s < CALM_S else 1
        self._excess_s = now_s
        self._allowed = resident + self._bound // _STEP
        return True


def resident_bytes() -> int:
    """Give the memory of this process that is in use, in bytes."""
    with open("/proc/self/statm", "rb", buffering=0) as file:
        return int(file.read(200).split()[1]) * resource.getpagesize()


__all__ = ["CALM_S", "Footprint", "resident_bytes"]
