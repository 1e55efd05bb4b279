"""Where plugin output goes in a development domain: to the supervisor, which knows a terminal.

Rules: what is written leaves at once, so that an author sees the last words of a call that hangs;
it is cut here so that an honest plugin which prints much does not break its bound, and again by
the supervisor, which believes nothing. It is loaded in a development domain only.
"""

from __future__ import annotations

import sys

from sandbox_worker import denials

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

TEXT_LETTERS_MAX = 32 * 1024
"""What one call may print, in letters; the rest is dropped."""

PLUGIN_FILE = "plugin.py"
_PIECE_LETTERS = 1000
"""The longest text of one frame: 4 bytes a letter stay below what a frame may hold."""


class Printer:
    """Stands for stdout and stderr; `send` takes each piece of text."""

    def __init__(self, send: Callable[[str], object]) -> None:
        """Print nothing yet."""
        self._send = send
        # One letter too many tells the supervisor that there was more.
        self._left = TEXT_LETTERS_MAX + 1

    def write(self, text: str) -> int:
        """Send a text; what is too much is taken and dropped."""
        kept = text[: self._left].encode(errors="replace").decode()
        self._left -= len(kept)
        for start in range(0, len(kept), _PIECE_LETTERS):
            self._send(kept[start : start + _PIECE_LETTERS])
        return len(text)

    def flush(self) -> None:
        """Nothing is held."""

    def log(self, text: str) -> None:
        """Write one line: `ctx.log`."""
        self.write(f"{text}\n")

    def show(self, error: BaseException) -> None:
        """Write a traceback from the plugin's first line on, as Python does at a program's end."""
        denied, trace = denials.last, error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != PLUGIN_FILE:
            trace = trace.tb_next
        sys.__excepthook__(type(error), error.with_traceback(trace), trace)
        # Python looked for the source's lines, which the plugin did not.
        denials.last = denied
