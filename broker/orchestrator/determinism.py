"""Determinism: what a method gave for an input must be what it gave for it before.

Rules this file keeps: only fingerprints are kept, never payloads; the index is bounded, a fold of
the ledger, so that a restart forgets nothing that the bound does not; the first answer stands.

It leaves withholding to `broker.invocations`. Source: specification INV-PNP-03.
"""

from __future__ import annotations

from collections import Counter
from typing import Final

import msgspec

from schemas.events import InvokeAccept, InvokeEnd

ENTRIES_MAX: Final = 100_000
"""About 20 MB."""
SHARDS: Final = 256


class Seen(msgspec.Struct, frozen=True, gc=False):
    """What an input gave before, and the event that says so."""

    output_fingerprint: str
    seq: int


Shard = dict[tuple[str, str], Seen]


class History:
    """The index. Fingerprints are keyed by method already, see `calls.fingerprint`.

    It lies in shards, by the first two digits of the input's fingerprint. In each the entry whose
    answer came again longest ago goes first, and one that a picture holds is copied before it is
    changed: a picture of a hundred thousand entries costs next to nothing and never changes. They
    are plain dicts of what the collector does not follow, so that it follows none of them.
    """

    def __init__(self, entries_max: int = ENTRIES_MAX) -> None:
        """Begin with nothing seen."""
        self._entries_max = max(1, entries_max // SHARDS)
        self._shards: list[Shard] = [{} for _ in range(SHARDS)]
        self._pictured: set[int] = set()
        self.open: dict[str, tuple[str, str]] = {}
        self.compared: Counter[str] = Counter()

    def accepted(self, fields: InvokeAccept) -> None:
        """Take in that a call was accepted: its method and its input's fingerprint."""
        if fields.input_fingerprint is not None:
            surface = surface_of(fields.plugin, fields.version, fields.method)
            self.open[fields.request_id] = surface, fields.input_fingerprint

    def ended(self, fields: InvokeEnd, seq: int) -> None:
        """Take in how it ended; an answer is remembered unless there was one before."""
        key = self.open.pop(fields.request_id, None)
        if key is None or fields.output_fingerprint is None or fields.outcome != "result":
            return
        self.compared[key[0]] += fields.replica is not None
        shard = self._changing(key)
        seen = shard.pop(key) if key in shard else Seen(fields.output_fingerprint, seq)
        shard[key] = seen
        while len(shard) > self._entries_max:
            del shard[next(iter(shard))]

    def _changing(self, key: tuple[str, str]) -> Shard:
        """Give the shard of an entry, one that no picture holds."""
        place = _place(key)
        if place in self._pictured:
            self._pictured.remove(place)
            self._shards[place] = self._shards[place].copy()
        return self._shards[place]

    def contradiction(self, request_id: str, output_fingerprint: str) -> Seen | None:
        """Give what the same input gave before, if it was something else."""
        key = self.open.get(request_id)
        seen = self._shards[_place(key)].get(key) if key is not None else None
        if seen is None or seen.output_fingerprint == output_fingerprint:
            return None
        return seen

    def picture(self) -> list[Shard]:
        """Give the answers seen, in shards, as they are now, whatever becomes of them."""
        self._pictured = set(range(SHARDS))
        return [*self._shards]

    def take_up(self, rows: list[tuple[str, str, str, int]]) -> None:
        """Begin with answers that were written down: method, input, output and position of each."""
        for surface, fingerprint, output, seq in rows:
            key = surface, fingerprint
            self._shards[_place(key)][key] = Seen(output, seq)


def _place(key: tuple[str, str]) -> int:
    return int(key[1][:2], 16)


def surface_of(plugin: str, version: str, method: str) -> str:
    """Name a method of a version, whose answers are held against each other."""
    return f"{plugin}@{version} {method}"
