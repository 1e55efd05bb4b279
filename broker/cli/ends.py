"""The exit codes, and the error of a command that knows its own.

Rules this file keeps: standard library only; the numbers are the contract of docs and scripts.
It leaves everybody else's errors to `broker.cli.problems`.
"""

from __future__ import annotations

from typing import Final

FAILURE: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
NOT_AUTHORISED: Final = 4
INVALID: Final = 5
TRUST: Final = 6
LEDGER: Final = 7
DEGRADED: Final = 8
UNWRITABLE: Final = 74

RELOAD: Final = (
    "let the gateway read its keys again: `kill -HUP` it, or `systemctl reload omega-gateway`"
)
"""A next step that several commands end with."""


class CommandError(Exception):
    """A command cannot do what it was asked."""

    def __init__(self, exit_code: int, sentence: str, next_step: str = "") -> None:
        """Keep what to do next and the exit code beside the sentence."""
        super().__init__(sentence)
        self.exit_code = exit_code
        self.next_step = next_step
