"""What all tests share: property tests are bounded by examples, not by a clock that others use;
commands under test hear an interrupt."""

from __future__ import annotations

import signal

from hypothesis import settings

settings.register_profile("gateway", deadline=None, print_blob=True)
settings.load_profile("gateway")

# A run in the background of a shell begins with interrupts ignored, and whatever it starts would
# inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
