"""State files in memory, as slow to be written as the world likes.

A state that was begun is made while the loop goes on; so events come in between, and crashes.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from broker.folded import Folded, vouched
from broker.shell import Written
from tests.simulation.fakes import FakeLedger, require


@dataclass
class _Begun:
    seq: int
    parts: Iterator[bytes]
    made: list[bytes] = field(default_factory=list)
    failed: bool = False
    placed: bool = False


class FakeStates:
    """Folded states by position, in memory. One that was begun is written while others go on.

    Each time the loop asks, a few of its parts are made; when all are there the file is in place,
    and only when the loop asks again it hears of it. So events come in between, and crashes.
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self.data: dict[int, bytes] = {}
        self.chance = chance or random.Random(0)
        self.died: Counter[str] = Counter()
        self.begun: _Begun | None = None

    def write(self, seq: int, parts: Iterable[bytes]) -> str | None:
        """Keep a state."""
        self.data[seq] = b"".join(parts)
        return hashlib.sha256(self.data[seq]).hexdigest()

    @property
    def busy(self) -> bool:
        """Whether a state is being written."""
        return self.begun is not None

    def begin(self, seq: int, parts: Iterable[bytes]) -> None:
        """Begin to keep a state."""
        require(not self.busy, "two states are written at once")
        self.begun = _Begun(seq, iter(parts))

    def written(self) -> Written | None:
        """Write a little more, or say what became of it."""
        begun = self.begun
        require(begun is not None, "the loop asks for a state that was not begun")
        if begun.placed or begun.failed:
            self.begun = None
            digest = hashlib.sha256(b"".join(begun.made)).hexdigest()
            return Written(begun.seq, None if begun.failed else digest)
        begun.failed = self.chance.random() < 0.02
        for _ in range(self.chance.randint(0, 3)):
            part = next(begun.parts, None)
            if part is None:
                begun.placed, self.data[begun.seq] = True, b"".join(begun.made)
                break
            begun.made.append(part)
        return None

    def die(self) -> None:
        """The process ends: what is not in place is gone, what is stays without its event."""
        if self.begun is not None:
            self.died["in place" if self.begun.placed else "unfinished"] += 1
        self.begun = None

    def newest(self, ledger: FakeLedger) -> Folded | None:
        """Find the newest state that the ledger vouches for."""
        for seq in sorted(self.data, reverse=True):
            data = self.data[seq]
            digest = hashlib.sha256(data).hexdigest()
            for event in ledger.events[seq:]:
                folded = vouched(event.fields, seq, ledger.log_id, data, digest)
                if folded is not None:
                    return folded
        return None
