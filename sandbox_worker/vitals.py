"""What the kernel says of a call process that has replied: which process wrote, and what it used.

A result does not wait until its process was reaped, so its figures are read from the living
process. Every one comes from the kernel: the pid from the credentials that it attaches to what
was written, processor time from that process's own clock, the largest memory from /proc. Nothing
is taken from a process's word.

Rules: room for exactly one record of credentials lies beside what is read, so that a descriptor
sent with it is dropped by the kernel; a process is ended or stopped as soon as its figures were
read, which keeps it from using more; a process that is gone has no figures here, and its exit
report does.
Source: unix(7), clock_getcpuclockid(3), proc_pid_status(5).
"""

from __future__ import annotations

import _socket
import contextlib
import os
import signal
import socket
import time

_CREDENTIALS_BYTES = 12
"""A `struct ucred`: pid, uid and gid."""
_SPACE = socket.CMSG_SPACE(_CREDENTIALS_BYTES)
_SCHEDULED = 2
"""CPUCLOCK_SCHED of the kernel: the nanoseconds a process ran, in user and system mode."""
_STATUS_BYTES = 4096
_WIDEST, _LARGEST = b"VmPeak:", b"VmHWM:"


def receive(job: _socket.socket, buffer: bytearray) -> tuple[int, int]:
    """Read what there is by now from a socket with SO_PASSCRED.

    Returns:
        How many bytes now lie in `buffer`, and the pid of their writer; 0 where there is none.

    Raises:
        OSError: BlockingIOError when there is nothing, ConnectionError when there never will be.
    """
    size, ancillary, _, _ = job.recvmsg_into([buffer], _SPACE, socket.MSG_DONTWAIT)
    return size, int.from_bytes(ancillary[0][2][:4], "little") if ancillary else 0


def cpu_us(pid: int) -> int:
    """Processor time of a living process, in us.

    Raises:
        OSError: it is gone.
    """
    return time.clock_gettime_ns((~pid << 3) | _SCHEDULED) // 1000


def kill(pid: int) -> None:
    """End a process that `take` stopped; it may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def end(pid: int) -> int:
    """End a process, and give the processor time that it used until then in us; 0 if it is gone.

    How large it was is left to its exit report: to read that here costs as much as everything else
    that is done for a reply.

    Args:
        pid: as `receive` gave it; 0 names no process.
    """
    if pid <= 0:
        # See `take`.
        return 0
    try:
        used_us = cpu_us(pid)
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return 0
    return used_us


def take(pid: int, end: signal.Signals = signal.SIGKILL) -> tuple[int, int, int] | None:
    """Read what a process used, and let it use no more; None when it is gone.

    Returns:
        Processor time in us, the largest memory and the largest address space in kB.

    Args:
        pid: as `receive` gave it; 0 names no process.
        end: SIGKILL, or SIGSTOP for one that is ended a little later.

    A pid can pass to another process only after the kernel gave out all others, and the
    supervisor's own layer lets it signal nothing but its zygote and call processes.
    """
    if pid <= 0:
        # To the kernel these would be our own clock and our own process group.
        return None
    try:
        descriptor = os.open(f"/proc/{pid}/status", os.O_RDONLY)
        try:
            _, _, rest = os.read(descriptor, _STATUS_BYTES).partition(_WIDEST)
        finally:
            os.close(descriptor)
        used_us = cpu_us(pid)
        os.kill(pid, end)
    except OSError:
        # It ended by itself between its reply and now: ENOENT, ESRCH or EINVAL.
        return None
    widest, found, rest = rest.partition(_LARGEST)
    if not found:
        return None
    return used_us, int(rest.split(None, 1)[0]), int(widest.split(None, 1)[0])
