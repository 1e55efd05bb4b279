"""The gateway process: a pure core that decides and a thin shell that performs."""

__all__: list[str] = []
