"""How the broker and its launcher give up, for good, what they will never need.

Order of the broker's seal: one thread, no capabilities, no_new_privs, Landlock, seccomp; then each
effect is tried. What stays possible: reading and writing beneath the given directories, reading
its own code and /proc, listening on the given TCP ports. What ends: every other read and write,
every connection over TCP, every signal to another process, running or forking anything, and what
Landlock does not govern (modes, owners, times, extended attributes, datagrams, limits of other
processes).

Rules this file keeps: it runs before the first socket, because a Landlock layer binds one thread
and those it starts later; it handles a fixed list of rights, those of ABI 6, never "what this
kernel knows"; a step that fails, or claims success without effect, ends in `SealUnavailable`.
There is no lesser seal. Standard library and `schemas.remedies` only.

It leaves to `serve` when to call it, and to `sandbox_worker.jail` how plugins are held.
Sources: landlock(7), seccomp(2), capabilities(7), prctl(2), linux/filter.h.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import socket
import struct
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from schemas.remedies import LANDLOCK as _LANDLOCK_HINT
from schemas.remedies import OUTER as _OUTER_HINT
from schemas.remedies import SECCOMP as _SECCOMP_HINT

ABI_MIN: Final = 6
FILE_RIGHTS: Final = (1 << 16) - 1
"""Every file right up to ABI 5, handled so that what is not allowed below is refused."""
READ_RIGHTS: Final = (1 << 2) | (1 << 3)
"""READ_FILE and READ_DIR."""
WRITE_RIGHTS: Final = READ_RIGHTS | sum(1 << bit for bit in (1, 4, 5, 7, 8, 9, 13, 14))
"""And WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_DIR, MAKE_REG, MAKE_SOCK, REFER, TRUNCATE."""
BIND_TCP: Final = 1
TCP_RIGHTS: Final = 3
SCOPES: Final = 3
"""Abstract unix sockets and signals stay inside the layer."""

LAUNCHER_CAPABILITIES: Final = frozenset({2, 5, 6, 7, 8})
"""DAC_READ_SEARCH, KILL, SETGID, SETUID, SETPCAP: what a worker of root gives up step by step."""

REFUSED: Final = """
    execve:59 execveat:322 fork:57 vfork:58 ptrace:101 process_vm_readv:310
    process_vm_writev:311 process_madvise:440 process_mrelease:448 kcmp:312 pidfd_getfd:438
    chmod:90 fchmod:91 fchmodat:268 fchmodat2:452 chown:92 fchown:93 lchown:94 fchownat:260
    utime:132 utimes:235 futimesat:261 utimensat:280 setxattr:188 lsetxattr:189 fsetxattr:190
    setxattrat:463 removexattr:197 lremovexattr:198 fremovexattr:199 removexattrat:466
    file_setattr:469 mount:165 umount2:166 pivot_root:155 chroot:161 move_mount:429 fsopen:430
    fsconfig:431 fsmount:432 fspick:433 open_tree:428 open_tree_attr:467 mount_setattr:442
    unshare:272 setns:308 bpf:321 perf_event_open:298 userfaultfd:323 io_uring_setup:425
    io_uring_enter:426 io_uring_register:427 add_key:248 request_key:249 keyctl:250
    name_to_handle_at:303 open_by_handle_at:304 memfd_secret:447 fanotify_init:300 shmget:29
    shmat:30 shmctl:31 msgget:68 msgsnd:69 msgrcv:70 msgctl:71 semget:64 semop:65 semtimedop:220
    semctl:66 mq_open:240 mq_unlink:241 setpriority:141 ioprio_set:251 sched_setattr:314
    sched_setaffinity:203 sched_setparam:142 migrate_pages:256 move_pages:279 init_module:175
    finit_module:313 delete_module:176 kexec_load:246 kexec_file_load:320 reboot:169 swapon:167
    swapoff:168 settimeofday:164 clock_settime:227 adjtimex:159 clock_adjtime:305 sethostname:170
    setdomainname:171 acct:163 quotactl:179 quotactl_fd:443 syslog:103 personality:135 iopl:172
    ioperm:173 modify_ldt:154 vhangup:153 socketpair:53"""
"""System calls that a sealed broker may not make at all, as name:number of x86_64."""

_SOCKET, _IOCTL, _CONNECT, _CLONE, _PRLIMIT64, _CLONE3 = 41, 16, 42, 56, 302, 435
_SCHED_SETSCHEDULER, _SENDTO, _SENDMSG, _SENDMMSG = 144, 44, 46, 307
_MSG_FASTOPEN = 0x20000000
_CAPSET, _PRCTL, _SECCOMP, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 126, 157, 317, 444, 445, 446
_CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT, _AMBIENT_CLEAR, _CAP_SETPCAP = 24, 38, 47, 4, 8
_TRIED = (59, 90, 92, 188)
"""execve, chmod, chown, setxattr."""
_CLONE_THREAD = 0x10000
_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
"""TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX; others could set flags of files."""

_SYSTEM_CODE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib")
"""Shared libraries, which even the C library loads late."""

_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_Instruction = tuple[int, int, int, int]

_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class SealUnavailable(Exception):
    """The process cannot be sealed here, or a step claimed to work and did not.

    Args:
        feature: what is missing, in the words of the documentation.
        number: the kernel's errno, or 0 where the call succeeded without its effect.
        hint: one sentence that says what to change on the machine.
    """

    def __init__(self, feature: str, number: int, hint: str) -> None:
        """Keep the parts for an event and make the sentence for a person."""
        super().__init__(f"{feature}: {os.strerror(number) if number else 'no effect'}; {hint}")
        self.feature = feature
        self.errno = number
        self.hint = hint


def seal_broker(*, writable: Sequence[str], tcp_ports: Sequence[int]) -> None:
    """Seal this process as the broker. Call it once, before the first socket or thread.

    Args:
        writable: absolute paths of the home, anchor and run directories.
        tcp_ports: the TCP ports it may listen on; none means no TCP socket at all.

    Raises:
        SealUnavailable: a step failed or had no effect; the process must end.
    """
    _expect_one_thread()
    _drop_capabilities(frozenset())
    _no_new_privileges()
    beneath = dict.fromkeys(code_directories(), READ_RIGHTS) | dict.fromkeys(writable, WRITE_RIGHTS)
    _restrict(FILE_RIGHTS, beneath, tcp_ports)
    _install_filter(_broker_filter(tcp=bool(tcp_ports)))
    _expect_refused("landlock", _LANDLOCK_HINT, lambda: os.close(os.open("/dev/null", os.O_WRONLY)))
    _expect_refused("seccomp", _SECCOMP_HINT, _try_fork)
    for number in _TRIED:
        # With null pointers an unfiltered call ends in EFAULT and does nothing.
        _expect_refused("seccomp", _SECCOMP_HINT, functools.partial(call, number, 0, 0, 0))
    _expect_status("Seccomp", _SECCOMP_HINT, "2")


def code_directories() -> list[str]:
    """Where code lies that may still be loaded: the interpreter's, the packages', the system's.

    And /proc, where the kernel says what this process holds. Nobody's keys lie in any of them.
    """
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    paths = {sysconfig.get_path(name) for name in names} | {*_SYSTEM_CODE, "/proc"}
    paths.update(path for path in sys.path if path.endswith(("/site-packages", "/dist-packages")))
    for name, module in tuple(sys.modules.items()):
        # A package that is installed for editing lies where it is edited.
        if "." not in name and (search := getattr(module, "__path__", None)):
            paths.update(search)
    return sorted(path for path in paths if os.path.isdir(path))


def refuse_connections() -> None:
    """Let this process open no connection at all, unix sockets included, from now on.

    The broker calls it after its start-up self-test, which is its only connection: Landlock up to
    ABI 8 does not govern connecting to a unix socket that has a path.

    Raises:
        SealUnavailable: as `seal_broker`.
    """
    _install_filter(_assemble([(_EQUAL, 0, 1, _CONNECT), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]))
    _expect_refused("seccomp (connect)", _SECCOMP_HINT, lambda: call(_CONNECT, -1, 0, 0))


def refuse_networks() -> None:
    """Let this process make no further network socket, once every endpoint listens.

    A TCP socket that was never bound may still listen, at a port that the kernel chooses: Landlock
    asks at bind(2), not at listen(2).

    Raises:
        SealUnavailable: as `seal_broker`.
    """
    unix_only = _only(_SOCKET, errno.EPERM, (0, 0xFFFFFFFF, (socket.AF_UNIX,)))
    _install_filter(_assemble(unix_only))
    _expect_refused("seccomp (socket)", _SECCOMP_HINT, lambda: call(_SOCKET, socket.AF_INET, 1, 0))


def seal_launcher() -> None:
    """Seal this process as the launcher: no TCP, no signal and no abstract socket outside.

    Without a filter, which its workers would pay for in every call, Landlock holds this alone: not
    datagrams, not multipath TCP, not a first packet that carries data (MSG_FASTOPEN).

    The layer handles no file right, because one that does would forbid every mount to all
    descendants, and their jails are made of mounts.

    Raises:
        SealUnavailable: as `seal_broker`.
    """
    _expect_one_thread()
    _drop_capabilities(LAUNCHER_CAPABILITIES)
    _no_new_privileges()
    _restrict(0, {}, ())
    _expect_refused("landlock", _LANDLOCK_HINT, _try_bind)


def seal_prober() -> None:
    """Seal this process as a prober: it opens no file, makes no socket and runs nothing any more.

    Raises:
        SealUnavailable: as `seal_broker`.
    """
    _expect_one_thread()
    _drop_capabilities(frozenset())
    _no_new_privileges()
    _restrict(FILE_RIGHTS, {}, ())
    _install_filter(_broker_filter(tcp=False))
    refuse_connections()
    _expect_refused("landlock", _LANDLOCK_HINT, lambda: os.close(os.open("/", os.O_RDONLY)))
    _expect_refused("seccomp", _SECCOMP_HINT, _try_fork)


def landlock_abi() -> int:
    """The kernel's Landlock version; refuses one below `ABI_MIN`."""
    version = _require("landlock", _LANDLOCK_HINT, _CREATE_RULESET, 0, 0, 1)
    if version < ABI_MIN:
        raise SealUnavailable(f"landlock ABI {ABI_MIN}", errno.EOPNOTSUPP, _LANDLOCK_HINT)
    return version


def call(number: int, *arguments: int | bytes) -> int:
    """Make one system call of x86_64; bytes are passed by address.

    Raises:
        OSError: with the kernel's errno.
    """
    words = [word if isinstance(word, bytes) else ctypes.c_long(word) for word in arguments]
    result: int = _syscall(ctypes.c_long(number), *words)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _require(feature: str, hint: str, number: int, *arguments: int | bytes) -> int:
    try:
        return call(number, *arguments)
    except OSError as error:
        raise SealUnavailable(feature, error.errno or 0, hint) from None


def _expect_one_thread() -> None:
    tasks = len(os.listdir("/proc/self/task"))
    if tasks != 1:
        hint = f"{tasks} threads run already and would escape the layer; seal before they start."
        raise SealUnavailable("one thread", errno.EBUSY, hint)


def _drop_capabilities(keep: frozenset[int]) -> None:
    """Keep at most these capabilities. The bounding set can only be lowered with SETPCAP."""
    effective = int(_status()["CapEff"], 16)
    checked = ["CapInh", "CapPrm", "CapEff", "CapAmb"]
    if effective & 1 << _CAP_SETPCAP:
        checked.append("CapBnd")
        with open("/proc/sys/kernel/cap_last_cap", encoding="utf-8") as last:
            gone = set(range(int(last.read()) + 1)) - keep
        for number in gone:
            _require("capabilities", _OUTER_HINT, _PRCTL, _CAPBSET_DROP, number, 0, 0, 0)
    _require("capabilities", _OUTER_HINT, _PRCTL, _CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    allowed = sum(1 << number for number in keep)
    low, high = effective & allowed & 0xFFFFFFFF, (effective & allowed) >> 32
    header, sets = struct.pack("=Ii", 0x20080522, 0), struct.pack("=6I", low, low, 0, high, high, 0)
    _require("capabilities", _OUTER_HINT, _CAPSET, header, sets)
    status = _status()
    if any(int(status[name], 16) & ~allowed for name in checked):
        raise SealUnavailable("capabilities", 0, _OUTER_HINT)


def _no_new_privileges() -> None:
    _require("no_new_privs", _OUTER_HINT, _PRCTL, _SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _expect_status("NoNewPrivs", _OUTER_HINT, "1")


def _restrict(rights: int, beneath: Mapping[str, int], tcp_ports: Sequence[int]) -> None:
    """Put one Landlock layer on this thread: TCP and scopes always, files when `rights` says."""
    landlock_abi()
    attribute = struct.pack("=QQQ", rights, TCP_RIGHTS, SCOPES)
    ruleset = _require("landlock", _LANDLOCK_HINT, _CREATE_RULESET, attribute, len(attribute), 0)
    try:
        for path, allowed in beneath.items():
            try:
                directory = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                hint = f"{path} must be a directory that the broker may write to."
                raise SealUnavailable("landlock", error.errno or 0, hint) from None
            try:
                rule = struct.pack("=Qi", allowed, directory)
                _require("landlock", _LANDLOCK_HINT, _ADD_RULE, ruleset, 1, rule, 0)
            finally:
                os.close(directory)
        for port in tcp_ports:
            rule = struct.pack("=QQ", BIND_TCP, port)
            _require("landlock", _LANDLOCK_HINT, _ADD_RULE, ruleset, 2, rule, 0)
        _require("landlock", _LANDLOCK_HINT, _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _broker_filter(*, tcp: bool) -> bytes:
    """The program: `REFUSED` fails with EPERM, a few calls are looked at, the rest passes."""
    families: tuple[int, ...] = (socket.AF_UNIX,)
    if tcp:
        families += (socket.AF_INET, socket.AF_INET6)
    whole = 0xFFFFFFFF
    code = [
        # clone3 hides its flags behind a pointer, so libc must fall back to clone.
        (_EQUAL, 0, 1, _CLONE3),
        (_RETURN, 0, 0, _ERRNO | errno.ENOSYS),
        *_only(_CLONE, errno.EPERM, (0, _CLONE_THREAD, (_CLONE_THREAD,))),
        *_only(_IOCTL, errno.ENOTTY, (1, whole, _IOCTLS)),
        # EOPNOTSUPP: libzmq aborts on another errno when it lists the machine's interfaces.
        # By its number: Landlock knows TCP, but not multipath TCP, which connects as well.
        *_only(_SOCKET, errno.EOPNOTSUPP, (0, whole, families), (1, 0xF, (socket.SOCK_STREAM,)),
               (2, whole, (0, socket.IPPROTO_TCP))),
        # A first packet with data connects without connect(2), and Landlock is not asked.
        *_only(_SENDTO, errno.EPERM, (3, _MSG_FASTOPEN, (0,))),
        *_only(_SENDMSG, errno.EPERM, (2, _MSG_FASTOPEN, (0,))),
        *_only(_SENDMMSG, errno.EPERM, (3, _MSG_FASTOPEN, (0,))),
        # A thread of libzmq sets the policy it already has (normal or batch).
        *_only(_SCHED_SETSCHEDULER, errno.EPERM, (1, whole, (0, 3))),
        *_only(_PRLIMIT64, errno.EPERM, (0, whole, (0,))),
    ]
    for entry in REFUSED.split():
        number = int(entry.partition(":")[2])
        code += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno.EPERM)]
    return _assemble(code)


def _only(
    number: int, otherwise: int, *conditions: tuple[int, int, tuple[int, ...]]
) -> list[_Instruction]:
    """Allow one call when every `argument & mask` is among its values, else refuse it."""
    code: list[_Instruction] = [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _ERRNO | otherwise)]
    for argument, mask, values in reversed(conditions):
        to_refusal = len(code) - 1
        *others, last = values
        tests = [(_EQUAL, len(others) - index, 0, value) for index, value in enumerate(others)]
        # The arguments looked at are 32 bits wide in the kernel: the low word is all of them.
        loads = [(_LOAD, 0, 0, 16 + 8 * argument), (_AND, 0, 0, mask)]
        code = [*loads, *tests, (_EQUAL, 0, to_refusal, last), *code]
    return [(_EQUAL, 0, len(code), number), *code]


def _assemble(code: list[_Instruction]) -> bytes:
    """A whole program: foreign architectures and x32 numbers kill, what `code` passes is allowed.

    `code` finds the call's number loaded, and each of its blocks returns or leaves it loaded.
    """
    program = [
        (_LOAD, 0, 0, 4),
        (_EQUAL, 1, 0, _ARCH_X86_64),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),
        (_AT_LEAST, 0, 1, _X32_BIT),
        (_RETURN, 0, 0, _KILL),
        *code,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _install_filter(program: bytes) -> None:
    memory = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=H6xQ", len(program) // 8, ctypes.addressof(memory))
    # Mode filter, flag TSYNC: every thread or none; a positive result names the thread in the way.
    if _require("seccomp", _SECCOMP_HINT, _SECCOMP, 1, 1, header):
        raise SealUnavailable("seccomp", errno.EBUSY, "A thread carries a filter of its own.")


def _expect_refused(feature: str, hint: str, attempt: Callable[[], object]) -> None:
    """Make an attempt that the seal must refuse; any other outcome is a refusal to go on."""
    try:
        attempt()
    except PermissionError:
        return
    except OSError as error:
        raise SealUnavailable(feature, error.errno or 0, hint) from None
    raise SealUnavailable(feature, 0, hint)


def _try_fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def _try_bind() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))


def _status() -> dict[str, str]:
    with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _expect_status(name: str, hint: str, value: str) -> None:
    """Read back from the kernel what it holds this process to."""
    if _status()[name] != value:
        raise SealUnavailable(name, 0, hint)
