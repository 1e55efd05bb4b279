"""Raw Linux system calls: the only file that touches `ctypes`, and only its core in C.

Rules this file keeps: it decides nothing, it only calls; every failing call raises with its errno;
calls that the call process makes are prepared beforehand, so that a forked child runs no
argument conversion and allocates almost nothing. The numbers are those of x86_64; a test compares
them with `syscalls_x86_64.txt`.
"""

from __future__ import annotations

# Each mapping and page of the zygote is paid for by every fork; the package around this core, and
# what it imports, is a third of them.
import _ctypes
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable

READ = 0
WRITE = 1
CLOSE = 3
POLL = 7
MMAP = 9
MPROTECT = 10
RT_SIGPROCMASK = 14
MADVISE = 28
SOCKET = 41
RECVMSG = 47
WAIT4 = 61
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


# There is no other name for the base, and for type checkers alone it takes a parameter.
class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001
    _type_ = "l"


class _Char(_ctypes._SimpleCData):  # type: ignore[type-arg]  # noqa: SLF001
    _type_ = "c"


# FUNCFLAG_PYTHONAPI keeps the interpreter lock: one thread, and releasing it costs a page.
class _Quick(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_PYTHONAPI
    _restype_ = _Long


class _Exact(_ctypes.CFuncPtr):
    _flags_ = _Quick._flags_ | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_program = _ctypes.dlopen(None, 0)  # type: ignore[arg-type]  # None is this program.
_address = _ctypes.dlsym(_program, "syscall")
_syscall = _Exact(_address)
# Keeping errno costs a dictionary of the thread on each call; call processes only ask whether.
quick: Callable[..., int] = _Quick(_address)
"""Make one prepared call and give its result, -1 for any error."""

_longs: dict[int, _Long] = {}
_kept: list[tuple[int | Memory, ...]] = []
Prepared = tuple["int | _Long", ...]


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

    __slots__ = ("_fixed", "address", "buffer", "keep")

    def __init__(self, content: bytes | int, keep: Memory | None = None) -> None:
        """Hold `content`, or that many zero bytes; `keep` is memory that `content` points to."""
        self.buffer = bytearray(content)
        self._fixed = _Char.from_buffer(self.buffer)
        self.address = _ctypes.addressof(self._fixed)
        self.keep = keep

    def read(self) -> bytes:
        """What the memory holds now."""
        return bytes(self.buffer)

    def write(self, text: bytes) -> None:
        """Put a text that ends with a zero byte at the beginning; it must be shorter."""
        self.buffer[: len(text) + 1] = text + b"\0"


def packed(size: int, *numbers: int) -> bytes:
    """Numbers side by side, each in so many bytes, as the kernel reads structures."""
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def prepared(*words: int | Memory) -> Prepared:
    """One system call, its number first, with its arguments converted and kept for good."""
    _kept.append(words)
    return _words(*words)


def _words(*words: int | Memory) -> Prepared:
    """Memory by its address; what is not a positive int of C's as an object of ctypes.

    The seventh word lies on the stack, where an int would fill only half of its place.
    """
    numbers = [word.address if isinstance(word, Memory) else word for word in words]
    # Equal objects are one object, so that a fork copies fewer pages.
    return tuple(
        number if 0 <= number < 1 << 31 and place < 6
        else _longs.setdefault(number, _Long(number))
        for place, number in enumerate(numbers)
    )  # fmt: skip


def succeeds(steps: tuple[Prepared, ...]) -> bool:
    """Run prepared calls in order, up to the first that fails, and say whether none did."""
    for step in steps:  # noqa: SIM110  A generator would be one more frame in every call process.
        if quick(*step) < 0:
            return False
    return True


def call(number: int, *arguments: int | Memory) -> int:
    """Make one system call; arguments are integers or `Memory`, passed by address.

    Raises:
        OSError: with the kernel's errno.
    """
    result: int = _syscall(*_words(number, *arguments))
    if result < 0:
        errno = _ctypes.get_errno()
        raise OSError(errno, os.strerror(errno))
    return result


def load_library(name: str) -> None:
    """Load a library of the system for good. Raises OSError where there is none."""
    _ctypes.dlopen(name, 0)


def failure(step: Prepared) -> int:
    """Run one prepared call and give its errno, 0 where it succeeded."""
    return _ctypes.get_errno() if _syscall(*step) < 0 else 0


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
