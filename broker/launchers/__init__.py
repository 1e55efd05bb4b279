"""How workers come to life: by our own launcher process, or by an operator's hand.

`local` is the broker's side of the launcher, `process` the launcher itself, `orders` what the two
say to each other, `external` the file through which an operator starts a worker.
"""

__all__: list[str] = []
