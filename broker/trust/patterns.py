"""Patterns: which regular expressions a schema may hold, so that a text costs what it is long.

A pattern is admitted when it is deterministic: it begins with `^`, and whatever has been read, the
next character belongs to at most one place of the pattern. Then one place is all that a matcher has
to remember. Without that rule a linear-time engine still costs text times pattern, which on a
quarter of a mebibyte is seconds.

Rules this file keeps:
- The notation is an allow-list: characters, `.`, classes, groups, `|`, `?`, `*`, `+`, `{n,m}`,
  `\\d \\w \\s` and their opposites, `^` first and `$` last.
- All characters beyond ASCII count as one, so a pattern is refused rather than misjudged.
- The check is linear in the pattern: of each part it keeps how it can begin and how it can go on.

It leaves the meaning of a pattern, and the size of its compiled form, to the engine.
Source: ECMA-262, Patterns; XML Schema part 1, Unique Particle Attribution, for the rule.
"""

from __future__ import annotations

from typing import Final, NamedTuple

GROUP_DEPTH_MAX: Final = 32

_BEYOND: Final = 1 << 128
"""Stands for every character beyond ASCII; a set of characters is one integer, a bit for each."""
_ALL: Final = 2 * _BEYOND - 1
_NEVER_PLAIN: Final = frozenset("*+?{}[]()|^$")
_NUMBERED: Final = frozenset("0123456789")


def _of(characters: str) -> int:
    return sum({1 << min(ord(character), 128) for character in characters})


_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_SHORTHANDS: Final = {
    "d": _of("0123456789") | _BEYOND,
    "w": _of("0123456789_" + _LETTERS + _LETTERS.upper()) | _BEYOND,
    "s": _of(" \t\n\r\f\v") | _BEYOND,
}
"""With what an engine that reads them by Unicode would add."""
_CONTROLS: Final = {"t": "\t", "n": "\n", "r": "\r", "f": "\f", "v": "\v"}


class PatternRefused(ValueError):
    """A pattern is not admitted; the sentence says why and where."""


class _Part(NamedTuple):
    """Of a part of a pattern: may it be empty, what can it begin with, and what can follow inside
    it on its last character."""

    empty: bool
    first: int
    after: int


_NOTHING: Final = _Part(empty=True, first=0, after=0)


def check_pattern(pattern: str) -> None:
    """Accept a deterministic pattern.

    Args:
        pattern: the text of a `pattern`, or of a name in `patternProperties`.

    Raises:
        PatternRefused: with a sentence for a person.
    """
    _Reader(pattern).read()


class _Reader:
    """One pass over a pattern."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def read(self) -> None:
        if not self._take("^"):
            raise self._refused("begins with ^")
        self._sequence(0)
        self._take("$")
        if self._at < len(self._text):
            raise self._refused("has ^ first, $ last, and a choice with | in a group")

    def _refused(self, rule: str) -> PatternRefused:
        return PatternRefused(f"a pattern {rule} (character {self._at + 1})")

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        found = self._peek() == character
        self._at += found
        return found

    def _next(self) -> str:
        character = self._peek()
        if not character:
            raise self._refused("does not end in the middle")
        self._at += 1
        return character

    def _apart(self, left: int, right: int) -> None:
        if left & right:
            raise self._refused(
                "is deterministic: whatever was read, the next character belongs to one place of it"
            )

    def _choice(self, depth: int) -> _Part:
        whole = self._sequence(depth)
        while self._take("|"):
            other = self._sequence(depth)
            self._apart(whole.first, other.first)
            whole = _Part(
                whole.empty or other.empty, whole.first | other.first, whole.after | other.after
            )
        return whole

    def _sequence(self, depth: int) -> _Part:
        whole = _NOTHING
        while self._peek() not in ("", "|", ")", "$"):
            whole = self._joined(whole, self._repeated(self._atom(depth)))
        return whole

    def _joined(self, left: _Part, right: _Part) -> _Part:
        self._apart(left.after, right.first)
        if left.empty:
            self._apart(left.first, right.first)
        return _Part(
            left.empty and right.empty,
            left.first | right.first if left.empty else left.first,
            left.after | right.first | right.after if right.empty else right.after,
        )

    def _atom(self, depth: int) -> _Part:
        character = self._next()
        if character == "(":
            if self._take("?") and not self._take(":"):
                raise self._refused("has no look-around, flags or names: only ( ) and (?: )")
            if depth == GROUP_DEPTH_MAX:
                raise self._refused(f"has at most {GROUP_DEPTH_MAX} groups in one another")
            group = self._choice(depth + 1)
            if not self._take(")"):
                raise self._refused("closes its groups, and has $ only at its end")
            return group
        if character == "[":
            return _Part(empty=False, first=self._class(), after=0)
        if character in _NEVER_PLAIN:
            raise self._refused(f"has \\ before a {character} that is meant as itself")
        return _Part(empty=False, first=self._one(character), after=0)

    def _one(self, character: str) -> int:
        if character == ".":
            return _ALL
        return self._escaped() if character == "\\" else _of(character)

    def _escaped(self) -> int:
        character = self._next()
        if character.lower() in _SHORTHANDS:
            found = _SHORTHANDS[character.lower()]
            return found if character.islower() else _ALL & ~found | _BEYOND
        if character in _CONTROLS:
            return _of(_CONTROLS[character])
        if character.isalnum() or not character.isascii():
            raise self._refused("has no look-around, references or other escapes with a letter")
        return _of(character)

    def _class(self) -> int:
        inverted, found = self._take("^"), 0
        if self._peek() == "]":
            raise self._refused("has no empty class")
        while not self._take("]"):
            low = self._next()
            # Inside a class engines differ on brackets and doubled signs: set operations, to some.
            if low == "[" or (low in "&-~" and self._peek() == low):
                raise self._refused("has \\ before [ and doubled signs in a class")
            bits = self._escaped() if low == "\\" else _of(low)
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = self._next()
                if low == "\\" or high in "[\\" or low > high:
                    raise self._refused("has ranges of two plain characters, the lower first")
                bits = (_of(high) << 1) - _of(low)
            found |= bits
        return _ALL & ~found | _BEYOND if inverted else found

    def _repeated(self, part: _Part) -> _Part:
        least, most = self._count()
        if most == 1:
            return part._replace(empty=part.empty or least == 0)
        # In `a{3}` only the last one can be followed by something else, in `a{2,3}` any can.
        again = self._joined(part, part)
        if least == most:
            return again
        return _Part(least == 0 or part.empty, part.first, part.after | part.first)

    def _count(self) -> tuple[int, int | None]:
        """Read a repetition: the least and the most, None without an upper bound."""
        for sign, least, most in (("?", 0, 1), ("*", 0, None), ("+", 1, None)):
            if self._take(sign):
                return least, most
        if not self._take("{"):
            return 1, 1
        counts = ["", ""]
        for number in (0, 1):
            while self._peek() in _NUMBERED:
                counts[number] += self._next()
            if number == 0 and not self._take(","):
                counts[1] = counts[0]
                break
        if not self._take("}") or not counts[0] or (counts[1] and not _ordered(*counts)):
            raise self._refused("has repetitions {n}, {n,} and {n,m} with m at least n and 1")
        return int(counts[0]), int(counts[1]) if counts[1] else None


def _ordered(least: str, most: str) -> bool:
    return max(len(least), len(most)) <= 4 and 1 <= int(most) >= int(least)
