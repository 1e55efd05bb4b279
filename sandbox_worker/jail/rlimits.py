"""Resource limits: those of the zygote, and those that each call process adds.

Rules: limits only fall; a limit of the zygote is read back, one of a call process is checked by the
self-test; the CPU timer ends a call within a tick, RLIMIT_CPU (whole seconds) stands behind it.
RLIMIT_NPROC is left alone, since it counts the host's uid: the filter refuses fork itself. See
getrlimit(2), timer_create(2).
"""

from __future__ import annotations

import errno
import resource
import struct

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, Prepared, expect
from schemas.remedies import LIMITS, OUTER

ZYGOTE_DESCRIPTORS = 128
"""Room for the job sockets of one message and nothing like a leak."""

ZYGOTE_BYTES = 1 << 30
"""Address space of the zygote: what a source may cost while it is compiled."""

_ZERO = (
    resource.RLIMIT_CORE,
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_MEMLOCK,
    resource.RLIMIT_MSGQUEUE,
)
_CLOCK_PROCESS_CPUTIME = 2
_SIGEV_SIGNAL = 0
_SIGKILL = 9


def limit_zygote() -> None:
    """No core dump, no file growth, no locked memory, no message queue; bounded memory."""
    wanted = dict.fromkeys(_ZERO, (0, 0))
    wanted[resource.RLIMIT_NOFILE] = (ZYGOTE_DESCRIPTORS, ZYGOTE_DESCRIPTORS)
    wanted[resource.RLIMIT_AS] = (ZYGOTE_BYTES, ZYGOTE_BYTES)
    for kind, pair in wanted.items():
        try:
            resource.setrlimit(kind, pair)
        except (OSError, ValueError) as error:
            # The resource module turns EPERM into a ValueError.
            code = error.errno if isinstance(error, OSError) else errno.EPERM
            raise linux.SandboxUnavailable("resource limits", code or 0, LIMITS) from None
        expect("resource limits", resource.getrlimit(kind) == pair, OUTER)


def call_limits(memory_mb: int, cpu_ms: int, descriptors: int) -> tuple[Prepared, ...]:
    """The limits of one call process, prepared.

    Args:
        memory_mb: address space in MiB, the interpreter's own mappings included.
        cpu_ms: processor time; RLIMIT_CPU gets the next whole second after it.
        descriptors: one more than the largest number it may have.
    """
    seconds = cpu_ms // 1000 + 1
    pairs = {
        resource.RLIMIT_AS: (memory_mb << 20, memory_mb << 20),
        resource.RLIMIT_CPU: (seconds, seconds + 1),
        resource.RLIMIT_NOFILE: (descriptors, descriptors),
    }
    return tuple(
        linux.prepared(linux.PRLIMIT64, 0, kind, Memory(struct.pack("=QQ", *pair)), 0)
        for kind, pair in pairs.items()
    )


def cpu_timer(cpu_ms: int) -> tuple[Prepared, ...]:
    """A timer on the process's own CPU clock that kills it; prepared.

    The timer is the first of its process, so its id is 0: timers are not inherited over fork.
    """
    event = Memory(struct.pack("=QiiQQQQQQ", 0, _SIGKILL, _SIGEV_SIGNAL, 0, 0, 0, 0, 0, 0))
    timer = Memory(4)
    seconds, rest_ms = divmod(cpu_ms, 1000)
    spec = Memory(struct.pack("=qqqq", 0, 0, seconds, rest_ms * 1_000_000))
    return (
        linux.prepared(linux.TIMER_CREATE, _CLOCK_PROCESS_CPUTIME, event, timer),
        linux.prepared(linux.TIMER_SETTIME, 0, 0, spec, 0),
    )


def timer_remaining_ns() -> int:
    """What is left on the CPU timer; 0 if it is not armed. For the self-test, before the filter."""
    state = Memory(32)
    linux.call(linux.TIMER_GETTIME, 0, state)
    _, _, seconds, nanoseconds = struct.unpack("=qqqq", state.read())
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def soft_limit(kind: int) -> int:
    """The limit of this process as the kernel has it; for the rehearsal, before the filter."""
    pair = Memory(16)
    linux.call(linux.PRLIMIT64, 0, kind, 0, pair)
    return int.from_bytes(pair.read()[:8], "little")
