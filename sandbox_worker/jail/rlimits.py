"""Resource limits: those of the zygote, and those that each call process adds.

Rules: limits only fall; a limit of the zygote is read back, one of a call process is checked by the
self-test; the CPU timer ends a call within a tick, RLIMIT_CPU (whole seconds) stands behind it.
RLIMIT_NPROC counts the host's uid, so only a call process has it, at 0: behind the filter, which
refuses fork itself. See getrlimit(2), timer_create(2).
"""

from __future__ import annotations

from sandbox_worker.jail import linux
from sandbox_worker.jail.linux import Memory, Prepared, expect, packed
from schemas.remedies import LIMITS, OUTER

ZYGOTE_DESCRIPTORS = 128
"""Room for the job sockets of one message and nothing like a leak."""

ZYGOTE_BYTES = 1 << 30
"""Address space of the zygote: what a source may cost while it is compiled."""

# Numbers of getrlimit(2) on this machine: the module that names them would be mapped for good.
CPU, FSIZE, CORE, NPROC, NOFILE, MEMLOCK, AS, MSGQUEUE = 0, 1, 4, 6, 7, 8, 9, 12
_CLOCK_PROCESS_CPUTIME = 2
_SIGEV_SIGNAL = 0
_SIGKILL = 9


def limit_zygote() -> None:
    """No core dump, no file growth, no locked memory, no message queue; bounded memory."""
    wanted = dict.fromkeys((CORE, FSIZE, MEMLOCK, MSGQUEUE), 0)
    for kind, limit in (wanted | {NOFILE: ZYGOTE_DESCRIPTORS, AS: ZYGOTE_BYTES}).items():
        pair = Memory(packed(8, limit, limit))
        linux.require("resource limits", LIMITS, linux.PRLIMIT64, 0, kind, pair, 0)
        expect("resource limits", soft_limit(kind) == limit, OUTER)


def call_limits(memory_mb: int, cpu_ms: int, descriptors: int) -> tuple[Prepared, ...]:
    """The limits of one call process, prepared.

    Args:
        memory_mb: address space in MiB, the interpreter's own mappings included.
        cpu_ms: processor time; RLIMIT_CPU gets the next whole second after it.
        descriptors: one more than the largest number it may have.
    """
    seconds = cpu_ms // 1000 + 1
    pairs = {
        AS: (memory_mb << 20, memory_mb << 20),
        CPU: (seconds, seconds + 1),
        NOFILE: (descriptors, descriptors),
        NPROC: (0, 0),
    }
    return tuple(
        linux.prepared(linux.PRLIMIT64, 0, kind, Memory(packed(8, *pair)), 0)
        for kind, pair in pairs.items()
    )


def cpu_timer(cpu_ms: int) -> tuple[Prepared, ...]:
    """A timer on the process's own CPU clock that kills it; prepared.

    The timer is the first of its process, so its id is 0: timers are not inherited over fork.
    """
    event = Memory(packed(8, 0) + packed(4, _SIGKILL, _SIGEV_SIGNAL) + bytes(48))
    timer = Memory(4)
    seconds, rest_ms = divmod(cpu_ms, 1000)
    spec = Memory(packed(8, 0, 0, seconds, rest_ms * 1_000_000))
    return (
        linux.prepared(linux.TIMER_CREATE, _CLOCK_PROCESS_CPUTIME, event, timer),
        linux.prepared(linux.TIMER_SETTIME, 0, 0, spec, 0),
    )


def timer_remaining_ns() -> int:
    """What is left on the CPU timer; 0 if it is not armed. For the self-test, before the filter."""
    state = Memory(32)
    linux.call(linux.TIMER_GETTIME, 0, state)
    _, _, seconds, nanoseconds = memoryview(state.buffer).cast("q")
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def soft_limit(kind: int) -> int:
    """The limit of this process as the kernel has it, read back before the filter is on."""
    pair = Memory(16)
    linux.call(linux.PRLIMIT64, 0, kind, 0, pair)
    return int.from_bytes(pair.read()[:8], "little")
