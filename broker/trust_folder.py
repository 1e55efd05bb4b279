"""`trust/` of a home: the root in force, those that were, and one that is just being taken.

    root.dsse.json          in force, or brought by an operator for the next start
    root-VERSION.dsse.json  each one that was in force: its keys must sign the next
    root.dsse.json.new      a root that is being taken over the wire

Rules this file keeps:
- The ledger decides which root is in force: the one it pins, or one that was brought and follows.
- A root taken over the wire lies here twice, durable, before the ledger pins it, and is renamed
  into place once it is pinned. A start that finds `.new` was preceded by a crash in between, and
  goes on from the pinned root that is kept; `.new` that was never pinned is thrown away.
- An older root without `.new` was put there by somebody: that start is refused.

It leaves signatures and succession to `broker.trust.roots`.
Source: docs/ARCHITECTURE.md, section "Start".
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from broker.configured import HomeRefused, read_bounded
from broker.durable import replace_file
from broker.keys import sync_directory
from broker.trust.errors import TrustRefused
from broker.trust.roots import (
    KEPT_TRUST_FILE,
    TRUST_FILE,
    Root,
    check_succession,
    pinned_root,
)
from schemas.refusals import RefusalCode

ENVELOPE_BYTES_MAX: Final = 4 * 1024 * 1024
UNFINISHED: Final = ".new"


class TrustFolder:
    """The folder `trust/` of one home."""

    def __init__(self, home: str) -> None:
        """Use the folder of an existing home."""
        self.path = os.path.join(home, TRUST_FILE)
        self._kept = os.path.join(home, KEPT_TRUST_FILE)

    def keep(self, envelope: bytes, version: int) -> None:
        """Keep a root that is about to be pinned; durable when this returns.

        Raises:
            OSError: the volume refused.
        """
        replace_file(self._kept.format(version=version), envelope)
        replace_file(self.path + UNFINISHED, envelope)

    def install(self) -> None:
        """Lay the root that was kept last in its place, once the ledger pins it.

        Raises:
            OSError: the volume refused; the next start does it.
        """
        # Of two roots that were taken in one turn the second is there already.
        with contextlib.suppress(FileNotFoundError):
            os.rename(self.path + UNFINISHED, self.path)
        sync_directory(os.path.dirname(self.path))

    def settle(self, present: Root, pinned_version: int, pinned_sha256: str) -> Root:
        """Find the root in force at a start; keep it, for the one after it.

        Args:
            present: the root that lies in its place.
            pinned_version: version of the root that the ledger saw last, 0 when there was none.
            pinned_sha256: SHA-256 of that root's signed bytes, empty when there was none.

        Raises:
            HomeRefused: `trust_version_not_raised`, `trust_invalid` or `domain_mismatch`.
        """
        try:
            return self._settled(present, pinned_version, pinned_sha256)
        except TrustRefused as error:
            where = f"{error.where}: " if error.where else ""
            raise HomeRefused(error.code, f"{self.path}: {where}{error.sentence}") from None
        except OSError as error:
            raise HomeRefused(
                RefusalCode.HOME_INVALID, f"{error.filename or self.path}: {error.strerror}"
            ) from None

    def _settled(self, present: Root, pinned_version: int, pinned_sha256: str) -> Root:
        root, unfinished = present, self.path + UNFINISHED
        previous = self._kept_envelope(pinned_version)
        crashed = os.path.lexists(unfinished)
        if crashed and present.trust.version < pinned_version and previous is not None:
            root = pinned_root(previous, present.trust.domain, pinned_version, pinned_sha256)
            replace_file(self.path, root.envelope)
        if crashed:
            os.unlink(unfinished)
        check_succession(pinned_version, pinned_sha256, root, previous)
        if self._kept_envelope(root.trust.version) != root.envelope:
            # Renaming over a link replaces the link.
            replace_file(self._kept.format(version=root.trust.version), root.envelope)
        return root

    def _kept_envelope(self, version: int) -> bytes | None:
        path = self._kept.format(version=version)
        if not os.path.lexists(path):
            return None
        return read_bounded(path, ENVELOPE_BYTES_MAX, RefusalCode.TRUST_INVALID)
