"""A plugin of the benches that sleeps, and answers late."""

from __future__ import annotations

import time

from sandbox_worker.sdk import Context, TextPayload, method


@method()
def rest(_context: Context, milliseconds: TextPayload) -> TextPayload:
    """Answer after so many milliseconds."""
    time.sleep(int(milliseconds.text) / 1000)
    return milliseconds
