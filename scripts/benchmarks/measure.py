"""Load generators and what they measure: closed loop with a window, and one call at a time paced.

Rules this file keeps: frames are made before they are needed or by joining bytes, so that the load
costs as little as possible, and its own processor time is measured too; every reply is checked; a
reply that does not come ends the bench with a sentence.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple, Protocol

import zmq

REPLY_MS_MAX = 15_000
"""Longest wait for one reply; a bench that stalls says so instead of hanging."""


class BenchFailed(Exception):
    """The bench cannot go on; the text is a sentence for the reader."""


class Traffic(Protocol):
    """What is sent, and how a reply is recognised."""

    def request(self) -> tuple[int, bytes]:
        """Give the next request: its number, and its frame."""

    def accept(self, reply: bytes) -> int:
        """Check a reply and give the number of its request.

        Raises:
            BenchFailed: it is not the answer that was asked for.
        """


class Peer(Protocol):
    """Where requests go and replies come from: a socket, or something that stands for several."""

    def send(self, data: bytes) -> object:
        """Send one request. Raises `zmq.Again` when nobody takes it in time."""

    def recv(self) -> bytes:
        """Receive one reply. Raises `zmq.Again` when none comes in time."""


class Sample(NamedTuple):
    """One round of one row. Times in us; `cpu_us` and `load_us` are processor time a call."""

    p50_us: float
    p99_us: float
    per_s: float
    cpu_us: float
    load_us: float = 0.0


class Row(NamedTuple):
    """One line of the result: medians over the rounds, and the ratio to the row's floor."""

    name: str
    in_flight: int
    p50_us: float
    p99_us: float
    per_s: float
    cpu_us: float
    ratio: float | None


def median_of(samples: list[Sample]) -> Sample:
    """Take the median of each figure on its own."""
    return Sample(*(statistics.median(column) for column in zip(*samples, strict=True)))


def percentiles(times_us: list[float]) -> tuple[float, float]:
    """Give p50 and p99."""
    if not times_us:
        raise BenchFailed("no call ended within a round; give it more --seconds")
    ordered = sorted(times_us)
    return ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]


def closed_loop(
    socket: Peer,
    traffic: Traffic,
    in_flight: int,
    seconds: float,
    cpu_us: Callable[[], float],
) -> Sample:
    """Keep a number of requests in flight for a while.

    Args:
        socket: a connected DEALER.
        traffic: what is sent.
        in_flight: the window.
        seconds: how long; what is then still in flight is waited for, outside the figures.
        cpu_us: gives the processor time so far, in us, of what is measured.
    """
    began_at: dict[int, float] = {}
    times: list[float] = []
    clock = time.perf_counter
    cpu_before, load_before, start = cpu_us(), time.process_time(), clock()
    stop = start + seconds
    for _ in range(in_flight):
        number, frame = traffic.request()
        began_at[number] = clock()
        _send(socket, frame)
    now = start
    while now < stop:
        number = traffic.accept(_receive(socket))
        now = clock()
        times.append((now - began_at.pop(number)) * 1e6)
        number, frame = traffic.request()
        began_at[number] = now
        _send(socket, frame)
    elapsed, calls = now - start, len(times)
    used, load = cpu_us() - cpu_before, (time.process_time() - load_before) * 1e6
    for _ in range(len(began_at)):
        traffic.accept(_receive(socket))
    return Sample(*percentiles(times), calls / elapsed, used / calls, load / calls)


def paced(
    socket: Peer,
    traffic: Traffic,
    interval_s: float,
    seconds: float,
    cpu_us: Callable[[], float],
) -> Sample:
    """Send one request every `interval_s` and wait for its reply before the next."""
    times: list[float] = []
    clock = time.perf_counter
    cpu_before, load_before, start = cpu_us(), time.process_time(), clock()
    while clock() - start < seconds or not times:
        _, frame = traffic.request()
        began = clock()
        _send(socket, frame)
        traffic.accept(_receive(socket))
        times.append((clock() - began) * 1e6)
        time.sleep(max(0.0, interval_s - (clock() - began)))
    elapsed, calls = clock() - start, len(times)
    used, load = cpu_us() - cpu_before, (time.process_time() - load_before) * 1e6
    return Sample(*percentiles(times), calls / elapsed, used / calls, load / calls)


def _send(socket: Peer, frame: bytes) -> None:
    try:
        socket.send(frame)
    except zmq.Again:
        raise BenchFailed("a peer took no request for 15 s") from None


def _receive(socket: Peer) -> bytes:
    try:
        return socket.recv()
    except zmq.Again:
        raise BenchFailed("a reply did not come within 15 s") from None
