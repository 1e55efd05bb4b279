"""Every attempt at leaving the jail, by class. Nothing here runs anything."""

from __future__ import annotations

from tests.escape.attempts.attempt import Attempt
from tests.escape.attempts.kernel import KERNEL, PRIVILEGES
from tests.escape.attempts.memory import ABIS, BOMBS, IPC, MEMORY, TIME
from tests.escape.attempts.processes import PROCESSES, SIGNALS
from tests.escape.attempts.reach import DESCRIPTORS, FILES, SOCKETS

ATTEMPTS: tuple[Attempt, ...] = (
    *FILES, *SOCKETS, *PROCESSES, *SIGNALS, *MEMORY, *IPC, *KERNEL, *PRIVILEGES, *DESCRIPTORS,
    *BOMBS, *TIME, *ABIS,
)  # fmt: skip
"""All that a layer of the jail holds; what the supervisor holds is in `interpreter`."""
