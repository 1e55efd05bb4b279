"""What the loop is given of the outside world, as the small interfaces it needs.

Rules this file keeps: interfaces and values only; whatever keeps to them may stand behind the loop,
which is how the simulation plays it without a file or a socket.

It leaves using them to `broker.gateway` and making them to `broker.serve`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, Protocol

from broker.reload import Settings


class BundleStore(Protocol):
    """Where bundles lie, by digest."""

    def store(self, bundle_sha256: str, data: bytes) -> None:
        """Keep a bundle, durable when this returns."""

    def path(self, bundle_sha256: str) -> str:
        """Give the path of a bundle's file."""


class Written(NamedTuple):
    """A state that is durable now, with its digest; None when the volume did not take it."""

    seq: int
    sha256: str | None


class StateStore(Protocol):
    """Where folded states lie, by position."""

    def write(self, seq: int, parts: Iterable[bytes]) -> str | None:
        """Keep a state, durable when this returns; gives its digest, or None if it cannot be."""

    @property
    def busy(self) -> bool:
        """Whether a state was begun and `written` did not say yet what became of it."""

    def begin(self, seq: int, parts: Iterable[bytes]) -> None:
        """Begin to keep a state while the loop goes on; not while it is `busy`."""

    def written(self) -> Written | None:
        """Say once what became of the state that was begun; None while that is not known."""


class TrustStore(Protocol):
    """Where the home keeps its trust root."""

    def keep(self, envelope: bytes, version: int) -> None:
        """Keep a root beside the one in force, durable when this returns."""

    def install(self) -> None:
        """Lay the root that was kept last where the next start looks for the one in force."""


class Signalled(NamedTuple):
    """How many requests to stop came, and the settings to go on under if they were read again."""

    stops: int
    settings: Settings | None = None


class SignalSource(Protocol):
    """Signals to the process, as something to watch."""

    @property
    def fd(self) -> int:
        """The descriptor that becomes readable when there are signals."""

    def take(self) -> Signalled:
        """Give what came since the last time."""


class Clock(Protocol):
    """The two clocks, in us. The ledger stamps events with what `tick` read last."""

    def tick(self) -> int:
        """Read both clocks and give the monotonic time."""

    def wall_us(self) -> int:
        """Give the wall time of the last tick."""
