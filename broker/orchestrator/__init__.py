"""Layer 3: what may run when. Pure: admission, calls and the fleet of workers."""

__all__: list[str] = []
