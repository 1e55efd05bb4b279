"""Inside a forking process of the floors: fork, exit, wait, and say how long it took.

It is started as the worker starts its zygote, so nothing may be imported here that the zygote does
not import. A command is a line with a number of seconds; the answer is one line
`CALLS P50_US P99_US CPU_US`, times of one fork, exit and wait, processor time a call.
"""

from __future__ import annotations

import gc
import os
import sys
import time


def main(preload: str) -> None:
    """Load what a zygote has loaded, then serve commands until the input ends."""
    if preload != "bare":
        from sandbox_worker import call, zygote  # noqa: F401  Its imports are what is wanted.

        for name in filter(None, preload.split(",")[1:]):
            __import__(name)
        call.warm_up()
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    gc.collect()
    gc.disable()
    gc.freeze()
    os.write(1, b"ready\n")
    while True:
        line = sys.stdin.readline()
        if not line:
            return
        os.write(1, _run(float(line)).encode())


def _run(seconds: float) -> str:
    """Fork, let exit and wait, one child after the other, for a while."""
    times: list[float] = []
    before = os.times()
    start = now = time.perf_counter()
    while now < start + seconds:
        began = time.perf_counter()
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        now = time.perf_counter()
        times.append((now - began) * 1e6)
    calls, elapsed = len(times), now - start
    after = os.times()
    used = sum(after[:4]) - sum(before[:4])
    times.sort()
    p50, p99 = times[calls // 2], times[calls * 99 // 100]
    return f"{calls / elapsed} {p50} {p99} {used * 1e6 / calls}\n"
