"""The zygote: a small trusted process that jails itself and forks one call process per call.

It starts as `python -s -S -P -c "from sandbox_worker.zygote import main; main()"` with an
environment that the supervisor wrote whole, reads one setup document from standard input, and
talks over one sequenced-packet socket. It becomes three processes: an outer stub that waits, the
zygote as pid 1 of its own pid namespace, and call processes below that.

Rules: the order of steps is the safety argument, read `main`, `_inner` and `_serve` from top to
bottom; a step that does not hold ends it with a reason; plugin source is compiled only after the
jail is closed and is never executed here; nothing heavy is imported, because each page of this
process is paid for by every fork. It leaves all decisions about calls to the supervisor.
"""

from __future__ import annotations

import _socket
import array
import gc
import marshal
import os
import resource
import select
import struct
import sys

from sandbox_worker import call, denials, method, modules
from sandbox_worker.jail import (
    clock,
    identity,
    landlock,
    linux,
    mounts,
    namespaces,
    rlimits,
    seccomp,
)
from sandbox_worker.jail.linux import SandboxUnavailable
from schemas import remedies
from schemas.remedies import OUTER as _HINT

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Never true when running: the zygote stays lean.
    from collections.abc import Callable
    from types import CodeType
    from typing import Literal, NoReturn, TypedDict

    from sandbox_worker.jail.first import FirstJail
    from sandbox_worker.printing import Printer

    Jails = dict[int, call.Jail]
    Namespace = Literal["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"]

    class Packaged(TypedDict):
        """Approved packages: a folder that was compared, and the modules to import from it."""

        folder: str
        inode: tuple[int, int]
        libraries: list[str]
        modules: list[str]

    class Setup(TypedDict):
        """The setup document, marshalled by the supervisor."""

        control: int
        supervisor: int
        source: str
        modules: list[str]
        packaged: Packaged | None
        resources: dict[str, bytes]
        development: bool
        clock: bool
        random: bool
        memory_mb: int
        cpu_ms: int
        base_filter: bytes
        strict_filters: dict[int, bytes]


CONTROL, DOMAIN, CHILDREN = 3, 4, 5
"""Descriptors of a running zygote: control socket, Landlock ruleset, signalfd for dead children."""

NAMESPACES: tuple[Namespace, ...] = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
UNAVAILABLE, LOAD_FAILED, JAILED, READY, EXITED, FORK_FAILED = b"X", b"L", b"J", b"R", b"E", b"N"
FORK, REHEARSE, KILL = b"F", b"V", b"K"
"""First bytes of the messages to and from the supervisor."""

MESSAGE_BYTES_MAX = 4096
FORKS_MAX = 32
"""Job sockets in one message."""

GARBAGE_OBJECTS = 50_000
"""New objects that make a call process look for garbage; its memory is bounded anyway."""

EXIT_RECORD = struct.Struct("=QiQQ")
"""Call number, wait status, processor time in us, largest resident size in kB."""

_HIDDEN = ("ctypes", "_ctypes", "ctypes._endian", "sandbox_worker.jail.linux", "_socket", "array")
_SCHED_BATCH = 3
_SIGCHLD, _SIG_BLOCK, _EAGAIN = 17, 0, 11


def main() -> NoReturn:
    """Read the setup, leave the host, fork the zygote proper and wait for it."""
    setup: Setup = marshal.loads(sys.stdin.buffer.read())  # noqa: S302  From the supervisor.
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    control = _socket.socket(fileno=setup["control"])
    packaged, first = setup["packaged"], None
    try:
        modules.load(setup["modules"], development=setup["development"])
        if packaged is not None:
            from sandbox_worker.jail.first import FirstJail, stand_in_library

            stand_in_library()
            for name in packaged["libraries"]:
                linux.load_library(name)
        os.sched_setscheduler(0, _SCHED_BATCH, os.sched_param(0))
        identity.become_sandbox_user()
        namespaces.unshare_all()
        identity.die_with_parent(setup["supervisor"])
        pages = clock.time_pages()
        if packaged is not None:
            first = FirstJail(packaged["folder"], packaged["inode"])
        child = os.fork()
        if child == 0:
            _inner(setup, control, pages, first)
        if first is not None:
            first.take_away()
        _wait_outside(child, setup["base_filter"])
    except (SandboxUnavailable, OSError) as error:
        _refuse(control, error)


def _refuse(control: _socket.socket, error: SandboxUnavailable | OSError) -> NoReturn:
    if isinstance(error, OSError):
        hint = remedies.FORK if error.errno == _EAGAIN else _HINT
        error = SandboxUnavailable("zygote", error.errno or 0, hint)
    text = f"{error.feature}\0{error.hint}".encode()
    try:
        os.write(control.fileno(), UNAVAILABLE + error.errno.to_bytes(4, "big") + text)
    finally:
        # The other of the two processes may have said so first, and the supervisor be gone.
        os._exit(1)


def _wait_outside(child: int, base_filter: bytes) -> NoReturn:
    """The outer stub: pass on how the zygote ended, able to do nothing else."""
    identity.drop_capabilities()
    identity.hide()
    identity.no_new_privileges()
    landlock.restrict(landlock.ruleset(files=True))
    seccomp.install(base_filter)
    # The control socket above all: its end of file tells the zygote that the supervisor is gone.
    linux.require("close_range", _HINT, linux.CLOSE_RANGE, 0, 0xFFFFFFFF, 0)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def _inner(
    setup: Setup, control: _socket.socket, pages: list[tuple[int, int]], first: FirstJail | None
) -> NoReturn:
    """The zygote proper: close the jail, compile the plugin, serve forks."""
    packaged = setup["packaged"]
    try:
        identity.die_with_parent(0)
        namespaces.close_inner()
        spaces = [os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES]
        if first is None:
            mounts.enter_empty_root()
        else:
            first.enter()
        identity.drop_capabilities()
        identity.no_new_privileges()
        rlimits.limit_zygote()
        identity.hide()
        identity.disable_speculation()
        if first is not None and packaged is not None:
            first.restrict()
            modules.load_packaged(packaged["modules"], first)
        modules.forget_host(clock_granted=setup["clock"], random_granted=setup["random"])
        abi = landlock.abi()
        domain = landlock.ruleset(files=True)
        landlock.restrict(domain)
        landlock.expect_no_files()
        if first is not None:
            first.expect_left()
        control = _settle_descriptors(control, domain)
        if not setup["clock"]:
            clock.hide_time(pages)
        jails = {count: _prepare(setup, count) for count in setup["strict_filters"]}
        seccomp.install(setup["base_filter"])
        seccomp.expect_installed()
    except (SandboxUnavailable, OSError) as error:
        _refuse(control, error)
    except modules.CannotLoadError as error:
        os.write(control.fileno(), LOAD_FAILED + ascii(str(error)).encode())
        os._exit(1)
    os.write(CONTROL, JAILED + struct.pack("=Q7Q", abi, *spaces))
    modules.redirect(None)
    for name in _HIDDEN:
        if name not in setup["modules"]:
            sys.modules.pop(name, None)
    call.warm_up()
    printer = modules.printer(call.wrote) if setup["development"] else None
    plugin = _compile(setup, printer)
    # Only now: a compiler that warns prints, and here nobody would expect it.
    modules.redirect(printer)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_OBJECTS)
    os.write(CONTROL, READY)
    _serve(control, jails, plugin)


def _settle_descriptors(control: _socket.socket, domain: int) -> _socket.socket:
    """Leave exactly six: null on 0 to 2, control, ruleset, and the signalfd."""
    high = [os.dup(number) for number in (control.fileno(), domain)]
    mask = linux.Memory((1 << _SIGCHLD - 1).to_bytes(8, "little"))
    linux.call(linux.RT_SIGPROCMASK, _SIG_BLOCK, mask, 0, 8)
    high.append(linux.call(linux.SIGNALFD4, -1, mask, 8, 0o2000000))
    os.dup2(0, 2)
    for number, source in zip((CONTROL, DOMAIN, CHILDREN), high, strict=True):
        os.dup2(source, number, inheritable=False)
    linux.require("close_range", _HINT, linux.CLOSE_RANGE, CHILDREN + 1, 0xFFFFFFFF, 0)
    control.detach()
    return _socket.socket(fileno=CONTROL)


def _prepare(setup: Setup, count: int) -> call.Jail:
    """Convert every system call of a call process that is handed `count` descriptors, once.

    They come behind its job socket, and move down when the ruleset is on, whose number one takes.
    """
    memory_mb, cpu_ms, end = setup["memory_mb"], setup["cpu_ms"], call.JOB + 1 + count
    after = (
        *(linux.prepared(linux.DUP3, CHILDREN + 2 + n, call.JOB + 1 + n, os.O_CLOEXEC)
          for n in range(count)),
        linux.prepared(linux.CLOSE_RANGE, 0, 2, 0),
        linux.prepared(linux.CLOSE_RANGE, end, 0xFFFFFFFF, 0),
        *rlimits.call_limits(memory_mb, cpu_ms, end),
        *rlimits.cpu_timer(cpu_ms),
    )
    limits = ((resource.RLIMIT_AS, memory_mb << 20), (resource.RLIMIT_CPU, cpu_ms // 1000 + 1),
              (resource.RLIMIT_NOFILE, end))  # fmt: skip
    return call.Jail(
        before=(landlock.prepared_restrict(DOMAIN),),
        # In its own Landlock domain a call process cannot signal its parent.
        forbidden=(linux.prepared(linux.KILL, 1, 0),),
        after=after,
        seal=(seccomp.prepared_install(setup["strict_filters"][count]),),
        limits=limits,
        cpu_ms=cpu_ms,
        end=end,
    )


def _compile(setup: Setup, printer: Printer | None) -> method.Plugin:
    """Compile the source in the closed jail: the compiler is the first thing it could attack."""
    try:
        # From text: the parser of a byte string would look codecs up by the source's own word.
        code: CodeType = compile(
            setup["source"], "plugin.py", "exec", dont_inherit=True, optimize=0
        )
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        line = getattr(error, "lineno", None)
        os.write(CONTROL, LOAD_FAILED + f"{type(error).__name__} in line {line}".encode())
        # The supervisor may not have attested this process yet, and ends it when it has heard.
        os.read(CONTROL, 1)
        os._exit(1)
    reseed: Callable[[], None] | None = None
    if "random" in sys.modules and not setup["random"]:
        # Its own at-fork hook would have seeded it with entropy that the call may not have.
        seed = sys.modules["random"].seed

        def reseed() -> None:
            seed(0)

    heard = bool(setup["modules"] or setup["packaged"]) or denials.worth_hearing(code)
    return method.Plugin(
        code, setup["resources"], reseed, call.progress, printer=printer, heard=heard
    )


def _serve(control: _socket.socket, jails: Jails, plugin: method.Plugin) -> NoReturn:
    """Fork on request, reap and report, kill on request; end when the supervisor is gone.

    Descriptors behind the job sockets of a request are what its one call process is handed.
    """
    calls: dict[int, int] = {}
    take_job = {
        number: (linux.prepared(linux.DUP3, number, call.JOB, os.O_CLOEXEC),)
        for number in range(CHILDREN + 1, rlimits.ZYGOTE_DESCRIPTORS)
    }
    waiter = select.poll()
    waiter.register(CONTROL, select.POLLIN)
    waiter.register(CHILDREN, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in waiter.poll()]
        if CHILDREN in ready:
            os.read(CHILDREN, MESSAGE_BYTES_MAX)
            _reap(calls)
        if CONTROL not in ready:
            continue
        message, sockets = _receive(control)
        if not message:
            os._exit(0)
        kind, body = message[:1], message[1:]
        numbers = struct.unpack(f"={len(body) // 8}Q", body)
        if kind == KILL:
            for pid in [pid for pid, number in calls.items() if number in numbers]:
                os.kill(pid, 9)
            continue
        jail = jails[len(sockets) - len(numbers)]
        for number, job in zip(numbers, sockets, strict=False):
            try:
                pid = os.fork()
                if pid == 0:
                    call.serve(take_job[job], jail, plugin, rehearsal=kind == REHEARSE)
                calls[pid] = number
            except OSError as error:
                # One call's misfortune: too many processes, or no memory for another.
                os.write(CONTROL, FORK_FAILED + struct.pack("=Qi", number, error.errno or 0))
        for descriptor in sockets:
            os.close(descriptor)


def _receive(control: _socket.socket) -> tuple[bytes, list[int]]:
    sockets = array.array("i")
    message, ancillary, _, _ = control.recvmsg(
        MESSAGE_BYTES_MAX, _socket.CMSG_SPACE(FORKS_MAX * sockets.itemsize)
    )
    for _, _, data in ancillary:
        sockets.frombytes(data[: len(data) - len(data) % sockets.itemsize])
    return message, list(sockets)


def _reap(calls: dict[int, int]) -> None:
    """Report everything that ended, in as few messages as fit."""
    records = []
    while calls:
        pid, status, usage = os.wait4(-1, os.WNOHANG)
        if pid == 0:
            break
        cpu_us = int((usage.ru_utime + usage.ru_stime) * 1_000_000)
        records.append(EXIT_RECORD.pack(calls.pop(pid), status, cpu_us, usage.ru_maxrss))
    step = (MESSAGE_BYTES_MAX - 1) // EXIT_RECORD.size
    for start in range(0, len(records), step):
        os.write(CONTROL, EXITED + b"".join(records[start : start + step]))
