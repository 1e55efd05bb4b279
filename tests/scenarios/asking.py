"""What every part of a stage's commands asks the stage for."""

from __future__ import annotations

import msgspec

from broker.arrivals import Arrival


class Asking:
    """Ids, names and a front; the stage gives them."""

    def uuid(self, name: str | None = None) -> str:
        """Make a request id."""
        raise NotImplementedError

    def id_of(self, name: str) -> str:
        """Give the id that a name stands for."""
        raise NotImplementedError

    def from_operator(self, message: msgspec.Struct, key: str) -> Arrival:
        """Put a message on front.admin."""
        raise NotImplementedError
