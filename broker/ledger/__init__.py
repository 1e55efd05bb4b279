"""Layer 5, writing: the append-only, hash-chained, provable log and the tree over it.

`Ledger` is what the gateway holds. `broker.ledger.merkle` is pure and is also what clients verify
with; so that they need not load the writer, the names below are loaded when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from broker.ledger.commit import Appended, Ledger
    from broker.ledger.watchdog import FlushWatchdog

__all__ = ["Appended", "FlushWatchdog", "Ledger"]

_MODULES = {"Appended": "commit", "FlushWatchdog": "watchdog", "Ledger": "commit"}


def __getattr__(name: str) -> object:
    """Load one of the names in `__all__`."""
    if name not in _MODULES:
        raise AttributeError(name)
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
