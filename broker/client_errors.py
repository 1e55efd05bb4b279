"""What a client can be told besides an answer.

    GatewayError
    ├── Refused          the gateway said no, with a code and a receipt
    ├── Unreachable      no gateway answered, or the connection was lost
    ├── NotAuthorised    the gateway does not admit this key
    ├── TimedOut         no answer came within the time
    └── LedgerForked     the gateway's ledger is not the one this client knows

Rules this file keeps: each sentence is written for the person who will read it.
"""

from __future__ import annotations

from schemas.messages import Refusal
from schemas.refusals import REFUSALS, RefusalCode


class GatewayError(Exception):
    """The gateway could not be used as asked."""


class Refused(GatewayError):
    """The gateway refused; `refusal` is all it said, `sentence` its own words about it."""

    def __init__(self, refusal: Refusal) -> None:
        """Keep the refusal and say its sentence."""
        where = f" (at {refusal.where})" if refusal.where else ""
        self.sentence = f"{refusal.code}: {refusal.message}{where}"
        said = f"; the plugin said: {refusal.plugin_message!r}" if refusal.plugin_message else ""
        super().__init__(self.sentence + said)
        self.refusal = refusal

    @property
    def code(self) -> RefusalCode:
        """The refusal's code; `omega-gateway explain CODE` tells all about it."""
        return self.refusal.code

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later without anybody changing anything."""
        return REFUSALS[self.refusal.code].retryable


class Unreachable(GatewayError):
    """No gateway answers at the endpoint, or it went away before it answered."""


class NotAuthorised(GatewayError):
    """The gateway does not admit this client's key."""


class TimedOut(GatewayError):
    """The gateway gave no answer within the time; `request_id` finds out what became of it."""

    def __init__(self, request_id: str, timeout_s: float) -> None:
        """Remember the request; `timeout_s` is what was waited, in seconds."""
        super().__init__(f"no answer to request {request_id} within {timeout_s:g} s")
        self.request_id = request_id


class LedgerForked(GatewayError):
    """The ledger does not continue the one this client has seen: keep all evidence and stop."""
