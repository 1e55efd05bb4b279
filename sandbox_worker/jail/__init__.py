"""The jail: one file per kernel mechanism, each of which reads its own effect back.

Every step either holds or raises `SandboxUnavailable`. There is no weaker mode and no switch that
leaves a step out. These modules are imported inside the zygote, where each import costs every
later fork, so they use builtin modules, `ctypes` and the sentences of `schemas.remedies` only.
"""

__all__: list[str] = []
