"""Call processes that have answered and stand still for a moment before they are ended.

Taking a process down and forking the next keeps a processor busy for about a millisecond, just when
the threads that carry the answer ask for one.

Rules: a process comes here stopped, so it uses nothing more; its socket is not read again; none
rests longer than `REST_S`. Time is an argument, in seconds.
"""

from __future__ import annotations

from sandbox_worker import vitals
from sandbox_worker.slot import Slot

REST_S = 0.002
"""How long an answer has to leave; the other half of a quick call takes about as long."""


class Resting:
    """The stopped call processes of one worker.

    Attributes:
        due: when `end` has something to do, on the caller's clock.
    """

    __slots__ = ("_slots", "due")

    def __init__(self) -> None:
        """Begin with none."""
        self._slots: list[Slot] = []
        self.due = float("inf")

    def add(self, slot: Slot, now: float) -> None:
        """Keep a process that `vitals.take` stopped."""
        self._slots.append(slot)
        self.due = min(self.due, now + REST_S)

    def end(self) -> None:
        """End all of them; their zygote reaps them and reports it."""
        for slot in self._slots:
            vitals.kill(slot.writer)
            slot.job.close()
        self._slots.clear()
        self.due = float("inf")
