"""The bounds of one trial of schemas, apart: the launcher knows them and nothing else of trials.

It leaves to `broker.trust.trials` what is tried and to the kernel, by way of the launcher, that the
bounds hold. Source: docs/decisions/0029.
"""

from __future__ import annotations

from typing import Final

TRIAL_CPU_S: Final = 2
"""Processor time of one prober, its own start included; the kernel ends it."""
TRIAL_WALL_S: Final = 20
"""How long a prober may take by the clock on the wall."""
TRIAL_MEMORY_BYTES: Final = 512 * 1024 * 1024
"""Address space of one prober, its own code included."""
COMPILE_MS_MAX: Final = 250
"""Processor time to build all schemas of one version: the loop builds them once more."""
VALIDATION_MS_MAX: Final = 250
"""Processor time to hold one document of the largest size against one schema."""
