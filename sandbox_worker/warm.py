"""How many call processes wait ahead of their calls: as many as the load asks for. Pure.

Rules: a pool that a call leaves empty doubles, so that a burst soon finds processes waiting; what a
whole period did not need goes by halves; one more than was needed stays while there are calls, and
one while there are none; the bound is the broker's, who divides what the host may hold. Time is an
argument, in seconds.
"""

from __future__ import annotations

PERIOD_S = 1.0
"""How long a process must not have been needed before it goes."""


class Warm:
    """The size of one worker's pool.

    Attributes:
        target: how many processes should wait.
        due: when `settle` has something to do, on the caller's clock.
    """

    __slots__ = ("_fewest", "_most", "due", "target")

    def __init__(self, most: int) -> None:
        """Begin with one process, or none where `most` is 0."""
        self._most = most
        self._fewest = 0
        self.target = min(1, most)
        self.due = float("inf")

    def taken(self, left: int, now: float) -> None:
        """A call has its process, and `left` others wait for the next."""
        if left == 0:
            self.target = min(self._most, 2 * self.target)
        self._fewest = min(self._fewest, left)
        if self.due == float("inf") and self.target > 1:
            self._fewest, self.due = left, now + PERIOD_S

    def settle(self, waiting: int, now: float) -> None:
        """End a period, and begin the next with `waiting` processes while there are several."""
        spare = self._fewest - 1
        if spare > 0:
            self.target -= (spare + 1) // 2
        self._fewest = min(waiting, self.target)
        self.due = now + PERIOD_S if self.target > 1 else float("inf")
