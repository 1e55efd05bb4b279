"""How many handshakes a TCP front may be asked for, and whom it turns away meanwhile. Pure.

A handshake costs the broker four Curve25519 operations and a round of ZAP, before it knows who
asks. So each connection that a front took is charged to a token bucket of the front's and to one of
its source address's. What libzmq takes between two looks is charged too, if need be as debt: the
sum over time keeps to the rate, however late we look.

Rules this file keeps: an address that spent its share is turned away until it has some again, the
rest goes on; a front that has little left takes connections only from addresses from which an
admitted key was heard, and one that has nothing left from nobody. Each comes back only after a
pause, so that nothing changes many times a second. All tables are bounded. Time is an argument. It
leaves turning away to `broker.gate`.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

FRONT_BURST_S: Final = 2.0
"""A front saves up what this many seconds bring."""
RESERVE_S: Final = 0.5
"""And keeps the last of it, this many seconds' worth, for addresses that are known."""
ADDRESS_SHARE: Final = 0.5
"""One address gets at most this share of the rate, and saves it up for `ADDRESS_BURST_S`."""
ADDRESS_BURST_S: Final = 1.0
PAUSE_S: Final = 0.25
"""Who was turned away waits at least until this many seconds' worth is there again."""
ADDRESSES_MAX: Final = 1_024
REFUSED_MAX: Final = 64
KNOWN_MAX: Final = 64

Taken = Literal["everybody", "known", "nobody"]


class Admission(NamedTuple):
    """Whose connections a front takes: by source address, and never who is in `refused`."""

    taken: Taken
    refused: tuple[str, ...]
    known: tuple[str, ...]


class _Bucket:
    """Credit that grows with time up to a bound; below nothing it is debt."""

    def __init__(self, per_s: float, burst_s: float, now_s: float) -> None:
        self.credit = self._most = per_s * burst_s
        self._per_s = per_s
        self._at_s = now_s

    def after(self, now_s: float, spent: int = 0) -> float:
        """Give the credit of this moment, less what is spent in it."""
        gained = max(now_s - self._at_s, 0.0) * self._per_s
        self._at_s = now_s
        self.credit = min(self._most, self.credit + gained) - spent
        return self.credit


class HandshakeBudget:
    """What is left for one front and for each address that came lately."""

    def __init__(self, per_s: int, now_s: float) -> None:
        """Begin with full buckets; `per_s` is handshakes a second, `now_s` monotonic."""
        self._per_s = per_s
        self._front = _Bucket(per_s, FRONT_BURST_S, now_s)
        self._addresses: dict[str, _Bucket] = {}
        self._refused: dict[str, None] = {}
        self._known: dict[str, None] = {}
        self._taken: Taken = "everybody"

    def charge(self, address: str, now_s: float) -> None:
        """Take note of one connection from an address; empty when nobody can tell any more."""
        self._front.after(now_s, 1)
        if not address:
            return
        bucket = self._addresses.pop(address, None)
        if bucket is None:
            bucket = _Bucket(self._per_s * ADDRESS_SHARE, ADDRESS_BURST_S, now_s)
        # Who came last stands last; who did not come for longest is forgotten first.
        self._addresses[address] = bucket
        if bucket.after(now_s, 1) < 0 and len(self._refused) < REFUSED_MAX:
            self._refused[address] = None
        if len(self._addresses) > ADDRESSES_MAX:
            self._forget(next(iter(self._addresses)))

    def heard(self, address: str) -> None:
        """Take note that a client whose key is admitted spoke from an address."""
        self._known.pop(address, None)
        self._known[address] = None
        if len(self._known) > KNOWN_MAX:
            del self._known[next(iter(self._known))]

    def admission(self, now_s: float) -> Admission:
        """Say whose connections the front takes from now on."""
        pause = self._per_s * ADDRESS_SHARE * PAUSE_S
        for address in list(self._refused):
            if self._addresses[address].after(now_s) >= pause:
                del self._refused[address]
        self._taken = self._next(self._front.after(now_s))
        return Admission(self._taken, tuple(self._refused), tuple(self._known))

    def _next(self, credit: float) -> Taken:
        reserve, pause = self._per_s * RESERVE_S, self._per_s * PAUSE_S
        if credit < 0 or (self._taken == "nobody" and credit < pause):
            return "nobody"
        if credit < reserve or (self._taken != "everybody" and credit < reserve + pause):
            return "known"
        return "everybody"

    def _forget(self, address: str) -> None:
        del self._addresses[address]
        self._refused.pop(address, None)
