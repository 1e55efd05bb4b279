"""The worker: one process per plugin version, which runs plugin code only inside a kernel jail.

Imports `schemas` and never `broker`. Nothing here starts a plugin by itself: a call arrives, a
fresh process is forked for it, and that process ends with it.
"""

__all__: list[str] = []
