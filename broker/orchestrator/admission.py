"""Admission: a request id once, a bounded number of calls, and bounded words about bad frames.

Rules this file keeps: the window of request ids is bounded in time and number and is refilled from
the ledger at a start; bad frames beyond a rate are counted, one event a second; time is an argument
in us.

It leaves the refusal's form to `broker.core`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import msgspec

from schemas.events import FrameDrop, Plane

_HEX_BYTES: Final = 32


class KeptRequests(msgspec.Struct, frozen=True):
    """A window written down, oldest first: when each id was used, the ids end to end in hex, and
    the positions of their ends."""

    times_us: list[int]
    ids: str
    ends: list[int | None]


class RequestWindow:
    """The request ids of one key within the window, each with the position of its end, if any."""

    def __init__(self, *, entries_max: int, window_us: int) -> None:
        """Begin empty, with a bound in entries and one in us."""
        self.reconfigure(entries_max=entries_max, window_us=window_us)
        # When each was used, and the ids end to end in hex, oldest first: both are written down as
        # they are, and the collector has nothing to follow.
        self._used_us: deque[int] = deque()
        self._ids = bytearray()
        self._ends: dict[bytes, int | None] = {}

    def reconfigure(self, *, entries_max: int, window_us: int) -> None:
        """Hold to other bounds from the next id on; what was forgotten stays so."""
        self._entries_max = entries_max
        self._window_us = window_us

    def admit(self, key: bytes, now_us: int) -> bool:
        """Remember a request id, see `request_key`; False when it was used within the window."""
        horizon = now_us - self._window_us
        used_us = self._used_us
        while used_us and (used_us[0] <= horizon or len(used_us) >= self._entries_max):
            used_us.popleft()
            del self._ends[bytes.fromhex(self._ids[:_HEX_BYTES].decode())]
            del self._ids[:_HEX_BYTES]
        if key in self._ends:
            return False
        self._ends[key] = None
        used_us.append(now_us)
        self._ids += key.hex().encode()
        return True

    def ended(self, key: bytes, seq: int) -> None:
        """Remember where the end of a request lies in the ledger."""
        if key in self._ends:
            self._ends[key] = seq

    def end_of(self, key: bytes) -> int | None:
        """Give the position of a request's end, or None while it is open or was no invocation."""
        return self._ends.get(key)

    def kept(self) -> KeptRequests:
        """Give the window to be written down."""
        # Ids enter and leave every collection in one order, so each is taken as it is.
        return KeptRequests([*self._used_us], self._ids.decode(), [*self._ends.values()])

    def take_up(self, kept: KeptRequests, horizon_us: int) -> None:
        """Begin with what was written down, without what was used before a moment."""
        for place, (used_us, end) in enumerate(zip(kept.times_us, kept.ends, strict=True)):
            if used_us >= horizon_us:
                name = kept.ids[place * _HEX_BYTES : (place + 1) * _HEX_BYTES]
                self._used_us.append(used_us)
                self._ids += name.encode()
                self._ends[bytes.fromhex(name)] = end

    def __contains__(self, key: bytes) -> bool:
        """Say whether this id was used within the window."""
        return key in self._ends


def request_key(request_id: str) -> bytes:
    """Give the 16 bytes of a UUID, by which windows know it: a third of its text's memory."""
    return bytes.fromhex(request_id.replace("-", ""))


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
