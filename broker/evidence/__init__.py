"""Layer 5, reading: verifying and proving what the ledger holds, apart from the writer."""

__all__: list[str] = []
