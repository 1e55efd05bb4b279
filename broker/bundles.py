"""`registry/bundles/`: every registered bundle under its SHA-256, written once.

Rules this file keeps: a bundle is whole or absent, durable before its event; what lies there is
read again only against the digest that the ledger holds. It leaves that check to
`broker.trust.validation.load_registered`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from typing import Final

from broker.durable import replace_file
from broker.regular import regular

_OURS: Final = re.compile(r"[0-9a-f]{64}(\.part)?")


class BundleFolder:
    """The folder of bundles of one home."""

    def __init__(self, directory: str) -> None:
        """Use an existing folder."""
        self._directory = directory

    def path(self, bundle_sha256: str) -> str:
        """Give the path of one bundle's file."""
        return os.path.join(self._directory, bundle_sha256)

    def store(self, bundle_sha256: str, data: bytes) -> None:
        """Keep a bundle; durable when this returns.

        Raises:
            OSError: the volume refused.
        """
        replace_file(self.path(bundle_sha256), data)

    def sweep(self, registered: Collection[str]) -> None:
        """Remove what a registration that never came to its event has left, whole or in part.

        Args:
            registered: the digests of every bundle that was ever registered.
        """
        for name in os.listdir(self._directory):
            if _OURS.fullmatch(name) and name not in registered:
                os.unlink(self.path(name))

    def read(self, bundle_sha256: str, *, bytes_max: int) -> bytes | None:
        """Read a bundle's file, or None when it is absent, unreadable or too long."""
        try:
            with open(self.path(bundle_sha256), "rb", opener=regular) as file:
                data = file.read(bytes_max + 1)
        except OSError:
            return None
        return data if len(data) <= bytes_max else None
