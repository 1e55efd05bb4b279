"""Admission: bounded words about bad frames.

Rules this file keeps: bad frames beyond a rate are counted, one event a second; time is an argument
in us.

It leaves the refusal's form to `broker.core`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from schemas.events import FrameDrop, Plane


@dataclass(slots=True)
class _Second:
    began_us: int
    told: int = 0
    counted: int = 0
    bytes: int = 0
    last: FrameDrop | None = None


class DropBudget:
    """How many drops of one peer are told one by one; the rest is counted.

    Connections that never were authenticated share one peer, `unknown`: of them one event a second
    and plane is told, whatever their number.
    """

    def __init__(self, *, per_second_max: int) -> None:
        """Begin with a bound in events a second for each authenticated peer."""
        self.per_second_max = per_second_max
        self._seconds: dict[tuple[Plane, str], _Second] = {}

    def tell(self, drop: FrameDrop, now_us: int) -> bool:
        """Say whether this drop is told on its own; otherwise it is counted."""
        second = self._seconds.setdefault((drop.plane, drop.peer), _Second(now_us))
        if second.told < (1 if drop.peer == "unknown" else self.per_second_max):
            second.told += 1
            return True
        second.counted += drop.count
        second.bytes += drop.bytes
        second.last = drop
        return False

    def due_us(self) -> int | None:
        """Say when the next count is due, or None."""
        if not self._seconds:
            return None
        return min(second.began_us for second in self._seconds.values()) + 1_000_000

    def settle(self, now_us: int) -> Iterator[FrameDrop]:
        """Give one event for every second that is over and counted something.

        Its code and place are those of the last drop that was counted.
        """
        over = [key for key, s in self._seconds.items() if s.began_us + 1_000_000 <= now_us]
        for key in over:
            second = self._seconds.pop(key)
            if second.last is not None:
                yield msgspec.structs.replace(
                    second.last, count=second.counted, bytes=second.bytes
                )
