"""Layer 5, writing: the append-only, hash-chained, provable log and the tree over it.

`broker.ledger.commit` has the `Ledger` that the gateway holds. `broker.ledger.merkle` is pure, and
clients verify with it too, so nothing is imported here.
"""

__all__: list[str] = []
