"""What can go wrong with the ledger.

    LedgerError
    ├─ LedgerRefused        the ledger was not opened; its bytes are as they were found
    │  ├─ LedgerLocked      another process writes it
    │  ├─ LedgerDamaged     its bytes are not what was written
    │  ├─ LedgerTruncated   it is shorter than a checkpoint that was signed over it
    │  └─ LedgerUnwritable  the volume does not let us write
    ├─ LedgerFailure        a write or flush did not do what it must; nothing is accepted any more
    ├─ PositionUnknown      there is no proof for this event or size
    │  ├─ PositionArchived  its line was moved to an archive
    │  └─ SizeUnsigned      no checkpoint was signed over exactly this size
    └─ TilesDamaged         the stored tree misses the signed root; the next start rebuilds it
"""

from __future__ import annotations

from typing import ClassVar

from schemas.refusals import RefusalCode


class LedgerError(Exception):
    """Something about the ledger; the sentence says what."""


class LedgerRefused(LedgerError):
    """The ledger was not opened."""

    code: ClassVar[RefusalCode] = RefusalCode.LEDGER_DAMAGED


class LedgerLocked(LedgerRefused):
    """Another process writes this ledger or its anchor."""

    code: ClassVar[RefusalCode] = RefusalCode.LEDGER_LOCKED


class LedgerDamaged(LedgerRefused):
    """The ledger's bytes are not what was written."""


class LedgerTruncated(LedgerRefused):
    """The ledger is shorter than a checkpoint that was signed over it."""

    code: ClassVar[RefusalCode] = RefusalCode.LEDGER_TRUNCATED


class LedgerUnwritable(LedgerRefused):
    """The volume does not let us write what opening needs."""

    code: ClassVar[RefusalCode] = RefusalCode.LEDGER_UNWRITABLE


class LedgerFailure(LedgerError):
    """A write or flush did not do what it must; the ledger accepts nothing any more."""

    code: ClassVar[RefusalCode] = RefusalCode.LEDGER_UNWRITABLE


class PositionUnknown(LedgerError):
    """The checkpoint does not cover this event or size."""


class PositionArchived(PositionUnknown):
    """The event's line was moved to an archive; its hash is still in the tree."""


class SizeUnsigned(PositionUnknown):
    """No checkpoint was signed over exactly this many events."""


class TilesDamaged(LedgerError):
    """The stored tree does not lead to the signed root; the next start rebuilds it."""


def told(error: Exception, directory: str) -> str:
    """Say what failed, with the file that the system refused or else the ledger's directory."""
    if not isinstance(error, OSError):
        return f"{directory}: {error}"
    place = error.filename if isinstance(error.filename, str) else directory
    return f"{place}: {error.strerror or error}"
