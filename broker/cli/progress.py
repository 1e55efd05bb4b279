"""A progress bar on stderr, for what takes longer than a second and is watched by somebody.

Rules this file keeps: nothing is drawn where stderr is no terminal, and nothing stays on it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

SILENT_S = 1.0
"""What is done within this time needs no bar, in seconds."""


@contextlib.contextmanager
def bar(word: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function to tell how much of how much is done; it draws when it is time.

    Args:
        word: what is being done.
    """
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        draw: Callable[[int, int], None] | None = None

        def tell(done: int, total: int) -> None:
            nonlocal draw
            if draw is None and time.monotonic() - began >= SILENT_S and sys.stderr.isatty():
                draw = stack.enter_context(_drawn(word))
            if draw is not None:
                draw(done, total)

        yield tell


@contextlib.contextmanager
def _drawn(word: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(word)
        yield lambda done, total: progress.update(task, completed=done, total=total)
