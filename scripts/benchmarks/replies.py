"""One call process at a time, without a socket to a broker: from the write of its job to its reply.

A process is forked, has time to close its jail and to wait for its job, and is then measured: the
clock runs from the supervisor's write to its last read byte. What comes before and after, fork,
jail, figures and reap, costs a machine's capacity but nobody's waiting.
"""

from __future__ import annotations

import contextlib
import itertools
import select
import time
from collections.abc import Callable, Iterator

from benchmarks.measure import REPLY_MS_MAX, BenchFailed, Sample, percentiles
from benchmarks.processes import cpu_us
from benchmarks.worker import Plan, write_bundle
from sandbox_worker import forker, vitals
from sandbox_worker.bundle import read_bundle
from sandbox_worker.forker import Forker
from sandbox_worker.jobs import job_bytes, run_job
from sandbox_worker.replies import Answered, Inbox
from schemas.manifest import Method, PayloadSpec
from schemas.messages import Run

_FIRST_NUMBER = 1000
_RECEIVE_BYTES = 1 << 18


@contextlib.contextmanager
def replies(root: str, folder: str, plan: Plan) -> Iterator[Callable[[float, float], Sample]]:
    """Start a zygote and give what measures its call processes.

    Yields:
        A function of the seconds between two calls and the seconds to go on for.
    """
    launch = write_bundle(root, folder, plan)
    started = forker.start(launch, read_bundle(launch))
    numbers = itertools.count(_FIRST_NUMBER)
    order = Run(
        call=1, method=plan.method, payload=plan.payload, timeout_ms=10_000,
        request_id="00000000-0000-4000-8000-000000000000",
    )  # fmt: skip
    method = Method(PayloadSpec("json"), PayloadSpec("json"))
    data = job_bytes((*run_job(order, method, {}), ()))

    def measure(interval_s: float, seconds: float) -> Sample:
        times: list[float] = []
        before, start = cpu_us([started.pid]), time.perf_counter()
        while time.perf_counter() - start < seconds or not times:
            times.append(_one(started, next(numbers), data, plan, interval_s))
        used, elapsed = cpu_us([started.pid]) - before, time.perf_counter() - start
        return Sample(*percentiles(times), len(times) / elapsed, used / len(times))

    try:
        yield measure
    finally:
        started.close()


def _one(started: Forker, number: int, data: bytes, plan: Plan, interval_s: float) -> float:
    """One call, in us."""
    (job,) = started.fork([number])
    inbox, buffer, frames = Inbox(1 << 20), bytearray(_RECEIVE_BYTES), []
    waiter = select.poll()
    waiter.register(job, select.POLLIN)
    time.sleep(interval_s)
    began = time.perf_counter()
    job.send(data)
    while not frames:
        if not waiter.poll(REPLY_MS_MAX):
            raise BenchFailed("a call process did not reply within 15 s")
        size, writer = vitals.receive(job, buffer)
        frames = inbox.feed(memoryview(buffer)[:size])
    ended = time.perf_counter()
    vitals.take(writer)
    job.close()
    frame = frames[0]
    if not isinstance(frame, Answered) or getattr(frame.payload, "data", b"") != plan.answer:
        raise BenchFailed(f"a call process gave another answer: {frame}")
    while not started.ended():
        select.select([started.control], [], [], 1)
    return (ended - began) * 1e6
