"""The author's terminal: what a plugin prints in a development domain, made harmless, line by line.

Every letter was written by hostile code. Rules: only printable letters and line ends reach the
terminal, each line behind a name that a plugin cannot forge away; one call has a bounded number of
letters; a terminal that does not read loses lines and never holds up the worker. In a production
domain there is no terminal, and a call process that writes to one has broken the protocol.
"""

from __future__ import annotations

import contextlib
import os
import select

from sandbox_worker.printing import TEXT_LETTERS_MAX
from sandbox_worker.replies import printable

_STDERR = 2
_LINE_LETTERS_MAX = 1000
_MORE = f"(printed more than {TEXT_LETTERS_MAX} letters; the rest is dropped, return it instead)"


class Terminal:
    """Lines of one worker's calls. `plugin` is written before each; a `silent` one shows none,
    since what a replica prints was printed before."""

    def __init__(self, plugin: str, *, silent: bool = False) -> None:
        """Show nothing yet."""
        self._plugin = plugin
        self._silent = silent
        self._open: dict[int, tuple[str, int]] = {}

    def take(self, number: int, text: str) -> None:
        """Show the lines that a call's text ends; the rest waits for its end.

        Args:
            number: names the call, and stands before its lines.
            text: what it wrote.
        """
        held, left = self._open.get(number, ("", TEXT_LETTERS_MAX))
        if left < 0:
            return
        *lines, held = (held + text[:left]).split("\n")
        if len(held) > _LINE_LETTERS_MAX:
            lines.append(held)
            held = ""
        if len(text) > left:
            lines += [held, _MORE]
        for line in lines:
            self._show(number, line)
        self._open[number] = (held, left - len(text))

    def end(self, number: int) -> None:
        """Show what a call left without a line end, and forget the call."""
        held, left = self._open.pop(number, ("", 0))
        if held and left >= 0:
            self._show(number, held)

    def _show(self, number: int, line: str) -> None:
        if self._silent:
            return
        for start in range(0, max(len(line), 1), _LINE_LETTERS_MAX):
            part = printable(line[start : start + _LINE_LETTERS_MAX])
            # With room for one page a write does not block; without, the line is lost.
            if select.select([], [_STDERR], [], 0)[1]:
                # A terminal that went away is no reason to end anything.
                with contextlib.suppress(OSError):
                    os.write(_STDERR, f"{self._plugin} {number}| {part}\n".encode())
