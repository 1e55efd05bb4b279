"""Raw Linux system calls: the only file that touches `ctypes`.

Rules this file keeps: it decides nothing, it only calls; every failing call raises with its errno;
calls that the call process makes are prepared beforehand, so that a forked child runs no
argument conversion and allocates almost nothing. The numbers are those of x86_64; a test compares
them with `syscalls_x86_64.txt`.
"""

from __future__ import annotations

import ctypes
import os

CLOSE = 3
MMAP = 9
MPROTECT = 10
RT_SIGPROCMASK = 14
SOCKET = 41
KILL = 62
PTRACE = 101
CAPGET = 125
CAPSET = 126
PERSONALITY = 135
PIVOT_ROOT = 155
PRCTL = 157
MOUNT = 165
UMOUNT2 = 166
TIMER_CREATE = 222
TIMER_SETTIME = 223
TIMER_GETTIME = 224
SETHOSTNAME = 170
UNSHARE = 272
SIGNALFD4 = 289
PRLIMIT64 = 302
SECCOMP = 317
GETRANDOM = 318
DUP3 = 292
CLOSE_RANGE = 436
OPEN_TREE = 428
MOVE_MOUNT = 429
OPENAT2 = 437
MOUNT_SETATTR = 442
LANDLOCK_CREATE_RULESET = 444
LANDLOCK_ADD_RULE = 445
LANDLOCK_RESTRICT_SELF = 446

PR_SET_PDEATHSIG = 1
PR_GET_PDEATHSIG = 2
PR_SET_DUMPABLE = 4
PR_GET_DUMPABLE = 3
PR_CAPBSET_READ = 23
PR_CAPBSET_DROP = 24
PR_GET_SECUREBITS = 27
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4
PR_SET_SPECULATION_CTRL = 53
PR_SPEC_STORE_BYPASS = 0
PR_SPEC_INDIRECT_BRANCH = 1
PR_SPEC_FORCE_DISABLE = 8

# PyDLL keeps the interpreter lock: the zygote has one thread, and releasing costs a fault.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
# Keeping errno costs a dictionary of the thread on each call; call processes only ask whether.
_quick_syscall = ctypes.PyDLL(None).syscall
_quick_syscall.restype = ctypes.c_long
_longs: dict[int, ctypes.c_long] = {}
_kept: list[tuple[int | Memory, ...]] = []
Prepared = tuple["int | ctypes.c_long", ...]


class SandboxUnavailable(Exception):
    """The sandbox cannot be built here, or a step of it claimed to work and did not.

    Args:
        feature: what is missing, in the words of the documentation ("landlock", "user namespaces").
        errno: the kernel's error number, or 0 where the call succeeded without its effect.
        hint: what to change on the machine, one of `schemas.remedies`.
    """

    def __init__(self, feature: str, errno: int, hint: str) -> None:
        """Compose the sentence from the three."""
        super().__init__(f"{feature}: {os.strerror(errno) if errno else 'no effect'}; {hint}")
        self.feature = feature
        self.errno = errno
        self.hint = hint


class Memory:
    """Bytes at a fixed address, for arguments that the kernel reads or fills."""

    __slots__ = ("address", "buffer", "keep")

    def __init__(self, content: bytes | int, keep: Memory | None = None) -> None:
        """Hold `content`, or that many zero bytes; `keep` is memory that `content` points to."""
        size = content if isinstance(content, int) else len(content)
        self.buffer = ctypes.create_string_buffer(content, size)
        self.address = ctypes.addressof(self.buffer)
        self.keep = keep

    def read(self) -> bytes:
        """What the memory holds now."""
        return self.buffer.raw


def prepared(number: int, *arguments: int | Memory) -> Prepared:
    """One system call with its arguments converted, to be run with `succeeds`, for good."""
    _kept.append(arguments)
    return _words(number, *arguments)


def _words(*words: int | Memory) -> Prepared:
    """Memory by its address; what is not a positive int of C's as an object of ctypes.

    The seventh word lies on the stack, where an int would fill only half of its place.
    """
    numbers = [word.address if isinstance(word, Memory) else word for word in words]
    # Equal objects are one object, so that a fork copies fewer pages.
    return tuple(
        number if 0 <= number < 1 << 31 and place < 6
        else _longs.setdefault(number, ctypes.c_long(number))
        for place, number in enumerate(numbers)
    )  # fmt: skip


def succeeds(steps: tuple[Prepared, ...]) -> bool:
    """Run prepared calls in order, up to the first that fails, and say whether none did."""
    for step in steps:  # noqa: SIM110  A generator would be one more frame in every call process.
        if _quick_syscall(*step) < 0:
            return False
    return True


def call(number: int, *arguments: int | Memory) -> int:
    """Make one system call; arguments are integers or `Memory`, passed by address.

    Raises:
        OSError: with the kernel's errno.
    """
    result: int = _syscall(*_words(number, *arguments))
    if result < 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def load_library(name: str) -> None:
    """Load a library of the system for good. Raises OSError where there is none."""
    ctypes.CDLL(name)


def failure(step: Prepared) -> int:
    """Run one prepared call and give its errno, 0 where it succeeded."""
    return ctypes.get_errno() if _syscall(*step) < 0 else 0


def prctl(option: int, value: int = 0, other: int = 0) -> int:
    """prctl(2), with zeros for the arguments not given."""
    return call(PRCTL, option, value, other, 0, 0)


def require(feature: str, hint: str, number: int, *arguments: int | Memory) -> int:
    """Like `call`, but a failure is a `SandboxUnavailable` that names the feature."""
    try:
        return call(number, *arguments)
    except OSError as error:
        raise SandboxUnavailable(feature, error.errno or 0, hint) from None


def expect(feature: str, effect: bool, hint: str) -> None:
    """Refuse a step that reported success and had no effect."""
    if not effect:
        raise SandboxUnavailable(feature, 0, hint)
