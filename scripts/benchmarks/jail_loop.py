"""Inside the forking process that measures layers: fork, close a jail or a part of it, exit, wait.

It is started as the worker starts its zygote and puts the zygote's filter on. A command is a line
with a variant and a number of seconds: `full` is the whole jail of a call process, `without_LAYER`
the same with one layer left out, `none` a bare child. Nothing here ever runs a plugin.
"""

from __future__ import annotations

import gc
import marshal
import os
import sys
import time

from sandbox_worker import call, zygote  # noqa: F401  What a zygote has loaded.
from sandbox_worker.jail import identity, landlock, linux, seccomp
from sandbox_worker.jail.linux import Prepared

DOMAIN = 60
MEMORY_MB, CPU_MS = 256, 2000
VARIANTS = (
    "full", "without_landlock", "without_descriptors", "without_limits", "without_timer",
    "without_filter", "none",
)  # fmt: skip
_LAYERS = {
    linux.LANDLOCK_RESTRICT_SELF: "landlock",
    linux.CLOSE_RANGE: "descriptors",
    linux.PRLIMIT64: "limits",
    linux.TIMER_CREATE: "timer",
    linux.TIMER_SETTIME: "timer",
    linux.SECCOMP: "filter",
}


def main() -> None:
    """Prepare the steps, then serve commands until the input ends."""
    base, strict = marshal.loads(bytes.fromhex(sys.stdin.readline()))
    identity.no_new_privileges()
    domain = landlock.ruleset(files=True)
    os.dup2(domain, DOMAIN)
    os.close(domain)
    jail = call.prepare(DOMAIN, strict, range(0), memory_mb=MEMORY_MB, cpu_ms=CPU_MS)
    steps = (*jail.before, *jail.after, *jail.seal)
    chosen = {variant: _without(steps, variant) for variant in VARIANTS}
    call.warm_up()
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.collect()
    gc.freeze()
    seccomp.install(base)
    os.write(1, b"ready\n")
    while line := os.read(0, 256):
        variant, seconds = line.split()
        os.write(1, _run(chosen[variant.decode()], float(seconds)).encode())


def _without(steps: tuple[Prepared, ...], variant: str) -> tuple[Prepared, ...]:
    if variant == "none":
        return ()
    left_out = variant.removeprefix("without_")
    return tuple(step for step in steps if _LAYERS[int(step[0])] != left_out)


def _run(steps: tuple[Prepared, ...], seconds: float) -> str:
    """One child after the other for a while. Gives calls, calls a second, p50 and p99 in us."""
    times: list[float] = []
    start = now = time.perf_counter()
    while now < start + seconds:
        began = time.perf_counter()
        if os.fork() == 0:
            os._exit(0 if linux.succeeds(steps) else 1)
        _, status = os.wait()
        if status:
            raise RuntimeError("a layer could not be put on")
        now = time.perf_counter()
        times.append((now - began) * 1e6)
    calls, elapsed = len(times), now - start
    times.sort()
    return f"{calls} {calls / elapsed} {times[calls // 2]} {times[calls * 99 // 100]}\n"
