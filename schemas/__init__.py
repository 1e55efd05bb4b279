"""The languages the gateway speaks: messages, events, manifests and their one spelling.

Pure data and codecs. Imports neither `broker` nor `sandbox_worker`, touches no socket, file or
clock.
"""

__all__: list[str] = []
