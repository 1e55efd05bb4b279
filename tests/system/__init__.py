"""Real sockets, real processes, real files: the gateway as its users meet it."""
