"""How a call process closes its jail when somebody looks: each effect read back, each fault named.

The first call process of a zygote takes the same prepared steps in the same order as every later
one, but asks the kernel for the reason when one fails, and afterwards what it could have been lied
to about: limits, timer, closed descriptors. What it finds goes to the supervisor, which then
refuses to start. Rules: no plugin code has run yet, so what is sent from here is our own word;
nothing here runs again once a worker is ready.
"""

from __future__ import annotations

from sandbox_worker.jail import linux, rlimits
from schemas import remedies

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from sandbox_worker.call import Jail
    from sandbox_worker.jail.linux import Prepared

Fault = tuple[str, int]
"""What did not hold, and the kernel's errno, 0 where it claimed success."""

REMEDIES = {
    "landlock": remedies.LANDLOCK,
    "close_range": remedies.OUTER,
    "dup3": remedies.OUTER,
    "resource limits": remedies.LIMITS,
    "processor timer": remedies.OUTER,
    "seccomp": remedies.SECCOMP,
}
_FEATURES = {
    linux.LANDLOCK_RESTRICT_SELF: "landlock",
    linux.CLOSE_RANGE: "close_range",
    linux.DUP3: "dup3",
    linux.PRLIMIT64: "resource limits",
    linux.TIMER_CREATE: "processor timer",
    linux.TIMER_SETTIME: "processor timer",
    linux.SECCOMP: "seccomp",
}


def close_jail(jail: Jail, job: int) -> Fault | None:
    """Close this process's jail for good.

    Args:
        jail: the prepared steps.
        job: the first descriptor that stays; `jail.end` is the first behind that does not.

    Returns:
        The first thing that did not hold, None when everything did.
    """
    fault = _first_failing(jail.before)
    if fault is None and linux.succeeds(jail.forbidden):
        # A layer of its own forbids to signal the parent.
        fault = ("landlock", 0)
    return (
        fault
        or _first_failing(jail.after)
        or _first_without_effect(jail, job)
        or _first_failing(jail.seal)
    )


def _first_failing(steps: tuple[Prepared, ...]) -> Fault | None:
    for step in steps:
        if errno := linux.failure(step):
            return _FEATURES.get(int(step[0]), "call process"), errno
    return None


def _first_without_effect(jail: Jail, job: int) -> Fault | None:
    for kind, value in jail.limits:
        if rlimits.soft_limit(kind) != value:
            return "resource limits", 0
    if not 0 < rlimits.timer_remaining_ns() <= jail.cpu_ms * 1_000_000:
        return "processor timer", 0
    for number in (*range(job), *range(jail.end, rlimits.ZYGOTE_DESCRIPTORS)):
        if linux.succeeds((linux.prepared(linux.CLOSE, number),)):
            return "close_range", 0
    return None
