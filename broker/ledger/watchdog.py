"""Ends the process when a flush hangs: a gateway that cannot ledger must not linger half alive.

A thread of its own, because the loop is what hangs. It takes no lock and reads one number.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Final

EXIT_LEDGER: Final = 74
"""Exit status when the ledger could not be written (EX_IOERR of sysexits.h)."""
FLUSH_MS_MAX: Final = 10_000


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class FlushWatchdog:
    """Looks at when the running flush began and exits with 74 when that is too long ago."""

    def __init__(
        self, flush_started_mono_us: Callable[[], int | None], *,
        flush_ms_max: int = FLUSH_MS_MAX, monotonic_us: Callable[[], int] = _monotonic_us,
    ) -> None:
        """Watch from `start` on.

        Args:
            flush_started_mono_us: gives `Ledger.flush_started_mono_us`.
            flush_ms_max: longest a commit or checkpoint may take, in ms.
            monotonic_us: the clock that the ledger was opened with, its monotonic half.
        """
        self._started = flush_started_mono_us
        self._flush_us_max = flush_ms_max * 1000
        self._monotonic_us = monotonic_us
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="flush-watchdog", daemon=True)

    def start(self) -> None:
        """Begin watching. Landlock and seccomp hold per thread: seal the process first."""
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(self._flush_us_max / 8_000_000):
            started = self._started()
            if started is not None and self._monotonic_us() - started > self._flush_us_max:
                os.write(2, b"the ledger's flush hangs; nothing can be ledgered: exit 74\n")
                os._exit(EXIT_LEDGER)
