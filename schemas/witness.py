"""The witness: which probes a worker runs before it may be given calls, and how each must come out.

Rules this file keeps: both sides read this one table. `control` shows that the path works at all;
every other probe must be denied or killed by the kernel. A capability that is granted turns its own
probe into one that is allowed, and nothing else.

It leaves running the probes to `sandbox_worker` and judging the report to `broker.core`.
Source: specification INV-PNP-05 and INV-PNP-08.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, Literal

Outcome = Literal["denied", "killed", "allowed"]

CONTROL: Final = "control"
PROBES: Final[tuple[str, ...]] = (
    "control", "file_open", "file_write", "directory_list", "connect", "abstract_socket", "fork",
    "exec", "signal", "shared_memory", "executable_memory", "descriptor", "clock", "entropy",
    "ptrace",
)
"""Every probe by name, in the order they run; each in a fresh call process, never plugin code."""

_CAPABILITY_OF: Final[dict[str, str]] = {"clock": "clock.read", "entropy": "random.read"}


def failed_probes(
    outcomes: Mapping[str, Outcome], grants: Collection[str]
) -> tuple[str, ...]:
    """Name the probes that are missing or did not come out as they must.

    Args:
        outcomes: probe name to what happened.
        grants: the effective capabilities of this worker.
    """
    failed = []
    for probe in PROBES:
        allowed = probe == CONTROL or _CAPABILITY_OF.get(probe) in grants
        outcome = outcomes.get(probe)
        if outcome is None or (outcome == "allowed") != allowed:
            failed.append(probe)
    return tuple(failed) + tuple(sorted(set(outcomes) - set(PROBES)))


def escaped(outcomes: Mapping[str, Outcome], failed: Collection[str]) -> tuple[str, ...]:
    """Name the failed probes that got through: the jail did not hold, whoever is to blame.

    What is left of `failed` shows nothing about the jail: a probe that was not run, a control
    that was denied.
    """
    return tuple(probe for probe in failed if outcomes.get(probe) == "allowed")
