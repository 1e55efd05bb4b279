"""`bench load`: what steps and cancels cost, and what is left of capacity when more is asked.

`invoke` is one call of the real worker, `pipeline_step` one step of the same calls as a chain of
eight, `cancel` the time from asking to the answer while a call process spins. Capacity is the
broker's with a stub worker, 32 in flight; `offered_F` sends F times as much at an even pace,
whatever the answers say, and counts answers within their deadline. `per_s` is that goodput, `ratio`
its share of capacity; p50 and p99 are of the accepted calls. `fair_…` and `memory` are those of
`benchmarks.held`.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import statistics
import time
from collections.abc import Callable
from typing import Final

import zmq

from benchmarks import held
from benchmarks.bus import Result
from benchmarks.document import DOCUMENT
from benchmarks.gateway import PLUGIN, InvokeTraffic, gateway
from benchmarks.measure import BenchFailed, Row, closed_loop, percentiles
from benchmarks.processes import cpu_us
from broker.client import OmegaClient, Refused
from broker.client_session import Call, new_request_id
from schemas import codec
from schemas.messages import Budget, Refusal, Step, StepOutput
from schemas.messages import Result as Answer
from schemas.payloads import JSONPayload

FACTORS: Final = (0.1, 0.5, 0.9, 1.0, 2.0, 5.0, 10.0)
STEPS: Final = 8
DEADLINE_MS: Final = 1_000
NAMES: Final = ("invoke", "pipeline_step", "cancel", *(f"offered_{factor:g}" for factor in FACTORS),
                *held.NAMES)


def run(
    root: str, folder: str, *, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None],
) -> Result:
    """Measure everything; see `benchmarks.bus.run`.

    Raises:
        BenchFailed: a contestant does not work.
    """
    rows: list[Row] = []
    load: dict[str, float] = {}
    if only & {"invoke", "pipeline_step", "cancel"}:
        tell("starting a gateway with a real worker")
        with gateway(root, folder, durability="power", worker="sandbox") as (_, broker):
            rows += _calls(os.path.join(folder, "home-sandbox-power"), broker, rounds, seconds,
                           only, tell)
    factors = [factor for factor in FACTORS if f"offered_{factor:g}" in only]
    if factors:
        tell("starting a gateway with a stub worker")
        with gateway(root, folder, durability="power", worker="stub") as (socket, broker):
            rows += _offered(socket, broker, factors, rounds, seconds, load, tell)
    if only & {"fair_alone", "fair_beside"}:
        tell("starting a gateway with two real workers")
        beside = os.path.join(folder, "beside")
        os.mkdir(beside)
        rows += held.fairness(root, beside, rounds, seconds, load, tell)
    return Result(rows, load, held.memory(root, folder, tell) if "memory" in only else {})


# --- one after the other ---


def _calls(
    home: str, broker: int, rounds: int, seconds: float, only: frozenset[str],
    tell: Callable[[str], None],
) -> list[Row]:
    payload = JSONPayload(DOCUMENT)
    chain = [
        Step(name=f"s{number}", plugin=PLUGIN, method="echo",
             input=payload if number == 0 else StepOutput(step=f"s{number - 1}"))
        for number in range(STEPS)
    ]
    budget = Budget(calls=STEPS, cpu_ms=600_000, output_bytes=1 << 20)
    times: dict[str, list[float]] = {"invoke": [], "pipeline_step": [], "cancel": []}
    used = dict.fromkeys(times, 0.0)
    with OmegaClient.from_home(home) as omega, OmegaClient.from_home(home) as other:
        def invoke() -> float:
            return _timed(lambda: omega.invoke(PLUGIN, "echo", payload))

        def pipeline() -> float:
            return _timed(lambda: omega.invoke_pipeline(chain, budget=budget)) / STEPS

        for _ in range(5):
            invoke()
        measures: dict[str, Callable[[], float]] = {
            "invoke": invoke, "pipeline_step": pipeline, "cancel": lambda: _cancel(omega, other),
        }
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}")
            for name in (name for name in measures if name in only):
                before, end = cpu_us([broker]), time.perf_counter() + seconds
                while time.perf_counter() < end or not times[name]:
                    times[name].append(measures[name]())
                used[name] += cpu_us([broker]) - before
    base = statistics.median(times["invoke"]) if times["invoke"] else None
    rows = []
    for name, taken in times.items():
        if taken:
            p50, p99 = percentiles(taken)
            ratio = p50 / base if base and name == "pipeline_step" else None
            calls = len(taken) * (STEPS if name == "pipeline_step" else 1)
            rows.append(Row(name, 1, p50, p99, 1e6 / p50, used[name] / calls, ratio))
    return rows


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e6


def _cancel(omega: OmegaClient, other: OmegaClient) -> float:
    """Begin a call that never ends, wait until it runs, and time the cancel; in us."""
    request_id = new_request_id()
    begun: list[object] = []
    # Its own progress note says that the plugin's code runs.
    call = Call(PLUGIN, "spin", JSONPayload(DOCUMENT))
    request = omega._session.invoke(call, request_id, begun.append)  # noqa: SLF001 - open at once
    omega._send(request)  # noqa: SLF001 - the call must go on while another client speaks
    while not begun:
        omega._receive()  # noqa: SLF001 - as `invoke` does
    taken = _timed(lambda: other.cancel(request_id))
    with contextlib.suppress(Refused):
        omega._wait(request_id, 10.0, time.monotonic() + 10.0)  # noqa: SLF001 - its refusal
    return taken


# --- more than there is ---


def _offered(
    socket: zmq.Socket[bytes], broker: int, factors: list[float], rounds: int, seconds: float,
    load: dict[str, float], tell: Callable[[str], None],
) -> list[Row]:
    closed_loop(socket, InvokeTraffic(), 32, min(0.3, seconds), lambda: 0.0)
    samples = [closed_loop(socket, InvokeTraffic(), 32, seconds, lambda: 0.0)
               for _ in range(rounds)]
    capacity = statistics.median(sample.per_s for sample in samples)
    tell(f"capacity {capacity:,.0f} calls a second")
    rows = []
    for factor in factors:
        tell(f"offering {factor:g} times as much")
        before = cpu_us([broker])
        loader = time.process_time()
        times, sent = _pace(socket, capacity * factor, seconds * rounds)
        name = f"offered_{factor:g}"
        load[name] = (time.process_time() - loader) * 1e6 / max(1, sent)
        p50, p99 = percentiles(times) if times else (0.0, 0.0)
        good = len(times) / (seconds * rounds)
        rows.append(Row(name, 0, p50, p99, good, (cpu_us([broker]) - before) / max(1, sent),
                        good / capacity))
    return rows


def _pace(
    socket: zmq.Socket[bytes], per_s: float, seconds: float
) -> tuple[list[float], int]:
    """Send at an even pace; gives the times of answers within their deadline, and what was sent."""
    traffic = InvokeTraffic(DEADLINE_MS)
    began_at: dict[str, float] = {}
    times: list[float] = []
    clock, sent = time.perf_counter, itertools.count()
    start = clock()
    end, number = start + seconds, 0
    while (now := clock()) < end or (began_at and now < end + 2):
        if now < end and number < (now - start) * per_s:
            identifier, frame = traffic.request()
            try:
                socket.send(frame, zmq.NOBLOCK)
            except zmq.Again:
                # The gateway takes no more: what is not sent is not offered again.
                number = int((now - start) * per_s) + 1
                continue
            number += 1
            next(sent)
            began_at[traffic.identifier(identifier)] = now
            if number % 8:
                continue
        try:
            while True:
                reply = codec.decode_reply(socket.recv(zmq.NOBLOCK))
                asked = began_at.pop((reply.request_id if reply else "") or "", None)
                if isinstance(reply, Answer) and asked is not None:
                    took = clock() - asked
                    if took * 1000 <= DEADLINE_MS and asked + took <= end:
                        times.append(took * 1e6)
                elif not isinstance(reply, Answer | Refusal | None):
                    raise BenchFailed(f"the gateway sent {type(reply).__name__}")
        except zmq.Again:
            socket.poll(1)
    return times, next(sent)


