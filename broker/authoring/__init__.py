"""What plugin authors use: `omega-plugin`. Nothing here runs inside a gateway."""

__all__: list[str] = []
