"""What the supervisor knows of one call process, from its fork to its end.

It holds no rule: what may follow what is the supervisor's.
"""

from __future__ import annotations

import _socket
from collections.abc import Sequence
from dataclasses import dataclass

from sandbox_worker.replies import Answered, Failed, Inbox, Probed
from schemas.messages import FailureCode, Probe, Run

NOTHING, _NO_INBOX = memoryview(b""), Inbox(0)
"""What a slot holds until it is given an order, in place of its own."""


@dataclass(eq=False, slots=True)
class Slot:
    """One call process, idle until it is given an order."""

    number: int
    job: _socket.socket
    order: Run | Probe | None = None
    probes: Sequence[str] = ()
    deadline: float = float("inf")
    deadline_code: FailureCode = "deadline_exceeded"
    allowed_ms: int = 0
    started: float = 0.0
    inbox: Inbox = _NO_INBOX
    outbox: memoryview = NOTHING
    reply: Answered | Failed | Probed | None = None
    ended_by: FailureCode | None = None
    used: int | None = None
    allowed: int | None = None
    waiting: bool = False
    killed: bool = False
    reaped: bool = False
    writer: int = 0
    used_us: int = 0
    replied: float = 0.0
    told_at: float = float("-inf")
