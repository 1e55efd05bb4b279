"""What this machine is and what it allows: the figures that stand beside every table."""

from __future__ import annotations

import os
import platform
import time

import zmq

from benchmarks.measure import percentiles

_FLUSHES = 200
_FLUSH_BYTES = 900


def describe(folder: str) -> dict[str, str | int | float]:
    """Name the machine and measure the flush of a ledger-sized write in a folder.

    Args:
        folder: where the bench's ledgers lie.
    """
    return {
        "cpu_model": _cpu_model(),
        "cores": os.cpu_count() or 1,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libzmq": zmq.zmq_version(),
        "filesystem": _filesystem(folder),
        "flush_p50_us": flush_p50_us(folder),
        "load_average": os.getloadavg()[0],
    }


def flush_p50_us(folder: str) -> float:
    """Append 900 bytes and fdatasync, many times; p50 in us."""
    path = os.path.join(folder, "flush")
    times = []
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(_FLUSHES):
            start = time.perf_counter()
            os.write(descriptor, b"x" * _FLUSH_BYTES)
            os.fdatasync(descriptor)
            times.append((time.perf_counter() - start) * 1e6)
    finally:
        os.close(descriptor)
        os.unlink(path)
    return percentiles(times)[0]


def _cpu_model() -> str:
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.machine()


def _filesystem(folder: str) -> str:
    """The type of the file system a folder lies on: that of its longest mount point."""
    best, kind = "", "unknown"
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as file:
        for line in file:
            point, found = line.split()[1:3]
            inside = folder == point or folder.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best):
                best, kind = point, found
    return kind
