"""Which request ids a gateway must remember: a second invocation under one of them is a fault.

Rules this file keeps: a gateway forgets ids by number and by age, within the bounds that its run
pinned in `ledger.open`; no id is held against it that it may have forgotten. Numbers are counted
over all keys, and an age counts up to half of the window, because from one run to the next only
the wall clock tells it. So memory is bounded too.

It leaves the finding to `broker.evidence.invariants_calls`. Source: docs/decisions/0037.
"""

from __future__ import annotations

from collections import deque
from typing import Final

from schemas.events import Event, InvokeAccept, LedgerOpen

USUAL_ENTRIES: Final = 1_000_000
USUAL_WINDOW_MS: Final = 86_400_000
"""The window of a gateway that pins none."""


class AcceptedRequests:
    """The ids of invocations that were accepted and are surely remembered."""

    def __init__(self) -> None:
        """Begin before the first event, with the bounds of a gateway that pins none."""
        self._take_bounds(None, None)
        self._steady_offset_us = 0
        self._asked = 0
        self._known: dict[str, int] = {}
        # How many ids had been used, when in us, and the id, oldest first.
        self._order: deque[tuple[int, int, str]] = deque()

    def open(self, fields: LedgerOpen, event: Event) -> None:
        """Go on under the bounds of another run: what was forgotten under others stays so."""
        self._steady_offset_us = event.ts_us - event.mono_us
        self._forget(event)
        self._take_bounds(fields.request_window, fields.request_window_ms)

    def asked(self) -> None:
        """Count the use of an id by a client's request."""
        self._asked += 1

    def accept(self, fields: InvokeAccept, event: Event) -> None:
        """Remember the id of an accepted invocation."""
        if fields.pipeline is not None:
            self._asked += 1
        self._known[fields.request_id] = self._asked
        self._order.append((self._asked, self._time_us(event), fields.request_id))

    def remembers(self, request_id: str, event: Event) -> bool:
        """Say whether an id was accepted before so that the gateway must still know it."""
        self._forget(event)
        return request_id in self._known

    def _time_us(self, event: Event) -> int:
        """Tell the time as the gateway does: wall at the start of its run, from there on steady."""
        return self._steady_offset_us + event.mono_us

    def _take_bounds(self, entries: int | None, window_ms: int | None) -> None:
        self._entries = USUAL_ENTRIES if entries is None else entries
        self._sure_us = (USUAL_WINDOW_MS if window_ms is None else window_ms) * 1000 // 2

    def _forget(self, event: Event) -> None:
        order, sure_from_us = self._order, self._time_us(event) - self._sure_us
        while order and (
            self._asked - order[0][0] >= self._entries or order[0][1] <= sure_from_us
        ):
            number, _, request_id = order.popleft()
            # A gateway that is at fault accepts one again that it should know.
            if self._known.get(request_id) == number:
                del self._known[request_id]
