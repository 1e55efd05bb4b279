"""Request ids: each names one request within the window, which is bounded in time and number.

Rules this file keeps:
- The window is refilled from the ledger at a start; time is an argument in us.
- A picture of it costs next to nothing, however many ids there are: they lie in pieces, and a piece
  that a picture holds is copied before it is changed. So a picture never changes.

It leaves refusals to `broker.core`, and writing a picture down to `broker.folded`.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

PIECE_IDS: Final = 1024
"""Copying a piece takes some microseconds, and a million ids are a thousand of them."""
FORGOTTEN_TOGETHER: Final = 64
"""How many ids a new one forgets at most: all of a busy hour may become too old at one moment."""
_KEY_BYTES: Final = 16
_OPEN: Final = -1


class KeptRequests(msgspec.Struct, frozen=True):
    """A window written down, oldest first: when each id was used, the ids end to end in hex, and
    the positions of their ends."""

    times_us: list[int]
    ids: str
    ends: list[int | None]


class _Piece:
    """Ids in the order of their use, end to end; numbers that the collector need not follow."""

    __slots__ = ("ends", "ids", "pictured", "used_us")

    def __init__(self, used_us: array[int], ids: bytearray, ends: array[int]) -> None:
        self.used_us, self.ids, self.ends = used_us, ids, ends
        self.pictured = False


class Picture:
    """A window as it was at one moment."""

    def __init__(self, pieces: list[_Piece], forgotten: int) -> None:
        """Take the window's pieces; of the first one, so many ids are forgotten."""
        self._pieces, self._forgotten = pieces, forgotten

    def written(self) -> Iterator[bytes]:
        """Give a `KeptRequests` as JSON, in parts that each take less than a millisecond."""
        begins = [self._forgotten, *[0] * len(self._pieces)]
        both = [*zip(self._pieces, begins, strict=False)]
        yield b'{"times_us":['
        for number, (piece, begin) in enumerate(both):
            yield _numbers(piece.used_us[begin:], number)
        yield b'],"ids":"'
        for piece, begin in both:
            yield piece.ids[begin * _KEY_BYTES :].hex().encode()
        yield b'","ends":['
        for number, (piece, begin) in enumerate(both):
            yield _numbers(piece.ends[begin:], number).replace(b"-1", b"null")
        yield b"]}"


def _numbers(numbers: array[int], place: int) -> bytes:
    """Write some elements of a list, behind those of the parts before."""
    return b"," * bool(place) + msgspec.json.encode(numbers.tolist())[1:-1]


class RequestWindow:
    """The request ids of one key within the window, each with the position of its end, if any."""

    def __init__(self, *, entries_max: int, window_us: int) -> None:
        """Begin empty, with a bound in entries and one in us."""
        self._entries_max = entries_max
        self._window_us = window_us
        self._pieces: deque[_Piece] = deque()
        # The number of the first piece's first id, counted from the first id ever, and how many of
        # that piece's ids were forgotten.
        self._begin, self._forgotten = 0, 0
        self._numbers: dict[bytes, int] = {}

    def admit(self, key: bytes, now_us: int) -> bool:
        """Remember a request id, see `request_key`; False when it was used within the window."""
        horizon, numbers = now_us - self._window_us, self._numbers
        if key in numbers:
            place, within = self._position(key)
            if self._pieces[place].used_us[within] > horizon:
                return False
        for _ in range(FORGOTTEN_TOGETHER):
            if not numbers or (
                self._pieces[0].used_us[self._forgotten] > horizon
                and len(numbers) < self._entries_max
            ):
                break
            self._forget()
        self._add(key, now_us, _OPEN)
        return True

    def _add(self, key: bytes, now_us: int, end: int) -> None:
        pieces = self._pieces
        if not pieces or len(pieces[-1].ends) == PIECE_IDS:
            pieces.append(_Piece(array("q"), bytearray(), array("q")))
        piece = self._changing(len(pieces) - 1)
        self._numbers[key] = self._begin + (len(pieces) - 1) * PIECE_IDS + len(piece.ends)
        piece.used_us.append(now_us)
        piece.ids += key
        piece.ends.append(end)

    def _forget(self) -> None:
        """Forget the oldest id, unless it was used again after the window was over."""
        begin = self._forgotten * _KEY_BYTES
        key = bytes(self._pieces[0].ids[begin : begin + _KEY_BYTES])
        if self._numbers[key] == self._begin + self._forgotten:
            del self._numbers[key]
        self._forgotten += 1
        if self._forgotten == PIECE_IDS:
            self._pieces.popleft()
            self._begin, self._forgotten = self._begin + PIECE_IDS, 0

    def _position(self, key: bytes) -> tuple[int, int]:
        """Say in which piece an id that is remembered lies, and where in it."""
        return divmod(self._numbers[key] - self._begin, PIECE_IDS)

    def _changing(self, place: int) -> _Piece:
        """Give a piece that no picture holds."""
        piece = self._pieces[place]
        if piece.pictured:
            piece = self._pieces[place] = _Piece(piece.used_us[:], piece.ids[:], piece.ends[:])
        return piece

    def ended(self, key: bytes, seq: int) -> None:
        """Remember where the end of a request lies in the ledger."""
        if key in self._numbers:
            place, within = self._position(key)
            self._changing(place).ends[within] = seq

    def end_of(self, key: bytes) -> int | None:
        """Give the position of a request's end, or None while it is open or was no invocation."""
        if key not in self._numbers:
            return None
        place, within = self._position(key)
        end = self._pieces[place].ends[within]
        return None if end == _OPEN else end

    def picture(self) -> Picture:
        """Give the window as it is now, whatever becomes of it."""
        for piece in self._pieces:
            piece.pictured = True
        return Picture([*self._pieces], self._forgotten)

    def take_up(self, kept: KeptRequests, horizon_us: int) -> None:
        """Begin with what was written down, without what was used before a moment."""
        keys = bytes.fromhex(kept.ids)
        for place, (used_us, end) in enumerate(zip(kept.times_us, kept.ends, strict=True)):
            if used_us >= horizon_us:
                key = keys[place * _KEY_BYTES : (place + 1) * _KEY_BYTES]
                self._add(key, used_us, _OPEN if end is None else end)

    def __len__(self) -> int:
        """How many ids are remembered."""
        return len(self._numbers)

    def __contains__(self, key: bytes) -> bool:
        """Say whether this id is remembered; one that is too old may not be forgotten yet."""
        return key in self._numbers


def request_key(request_id: str) -> bytes:
    """Give the 16 bytes of a UUID, by which windows know it: a third of its text's memory."""
    return bytes.fromhex(request_id.replace("-", ""))
