"""The command line of operators and of OMEGA's people: `omega-gateway`."""

__all__: list[str] = []
