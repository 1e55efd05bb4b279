"""Layer 2: what may be registered, who said so, and whether the bytes are what was signed.

Pure: no file, clock or socket. `validation` is the one entry; the other files hold one rule each.
"""

__all__: list[str] = []
