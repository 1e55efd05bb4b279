"""The benches behind `scripts/bench`: what this gateway costs, beside what the machine allows."""

__all__: list[str] = []
