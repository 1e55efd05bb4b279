"""The zygote: a small trusted process that jails itself and forks one call process per call.

It starts as `python -s -S -P -c "from sandbox_worker.zygote import main; main()"` with an
environment that the supervisor wrote whole, reads one setup document from standard input, and
talks over one sequenced-packet socket. It becomes three processes: an outer stub that waits, the
zygote as pid 1 of its own pid namespace, and call processes below that.

Rules: the order of steps is the safety argument, read `main` and `_inner` from top to bottom; a
step that does not hold ends it with a reason; plugin source is compiled only after the jail is
closed and is never executed here; nothing heavy is imported, because each page of this process is
paid for by every fork. It leaves its work to `forks.py` and all decisions to the supervisor.
"""

from __future__ import annotations

import marshal
import os
import sys

from sandbox_worker import call, compact, forks, modules
from sandbox_worker.forks import CHILDREN, CONTROL, DOMAIN
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
    from types import CodeType
    from typing import Literal, NoReturn, TypedDict

    from sandbox_worker.jail.first import FirstJail

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


NAMESPACES: tuple[Namespace, ...] = ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts")
UNAVAILABLE, LOAD_FAILED, JAILED = b"X", b"L", b"J"
"""First bytes of what a zygote says while it starts; the last is `forks.READY`."""

_SCHED_BATCH = 3
_SIGCHLD, _SIG_BLOCK, _EAGAIN = 17, 0, 11


def main() -> NoReturn:
    """Read the setup, leave the host, fork the zygote proper and wait for it."""
    setup: Setup = marshal.loads(sys.stdin.buffer.read())  # noqa: S302  From the supervisor.
    null = os.open("/dev/null", os.O_RDWR)
    for number in (0, 1):
        os.dup2(null, number)
    control = setup["control"]
    packaged, first = setup["packaged"], None
    try:
        modules.load(setup["modules"], development=setup["development"])
        if packaged is not None:
            from sandbox_worker.jail.first import FirstJail, stand_in_library

            stand_in_library()
            for name in packaged["libraries"]:
                linux.load_library(name)
        compact.share_code()
        os.sched_setscheduler(0, _SCHED_BATCH, os.sched_param(0))
        identity.become_sandbox_user()
        namespaces.unshare_all()
        identity.die_with_parent(setup["supervisor"])
        # One scope for stub and zygote: the signal of the stub's death must pass.
        landlock.restrict(landlock.ruleset(files=False))
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


def _refuse(control: int, error: SandboxUnavailable | OSError) -> NoReturn:
    if isinstance(error, OSError):
        hint = remedies.FORK if error.errno == _EAGAIN else _HINT
        error = SandboxUnavailable("zygote", error.errno or 0, hint)
    text = f"{error.feature}\0{error.hint}".encode()
    try:
        os.write(control, UNAVAILABLE + error.errno.to_bytes(4, "big") + text)
    finally:
        # The other of the two processes may have said so first, and the supervisor be gone.
        os._exit(1)


def _wait_outside(child: int, base_filter: bytes) -> NoReturn:
    """The outer stub: pass on how the zygote ended, able to do nothing else."""
    identity.drop_capabilities()
    identity.hide()
    identity.no_new_privileges()
    landlock.restrict(landlock.ruleset(files=True, scopes=False))
    seccomp.install(base_filter)
    # The control socket above all: its end of file tells the zygote that the supervisor is gone.
    linux.require("close_range", _HINT, linux.CLOSE_RANGE, 0, 0xFFFFFFFF, 0)
    _, status = os.waitpid(child, 0)
    os._exit(os.waitstatus_to_exitcode(status) & 0x7F)


def _inner(
    setup: Setup, control: int, pages: list[tuple[int, int]], first: FirstJail | None
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
        _settle_descriptors(control, domain)
        control = CONTROL
        if not setup["clock"]:
            clock.hide_time(pages)
        seccomp.install(setup["base_filter"])
        seccomp.expect_installed()
    except (SandboxUnavailable, OSError) as error:
        _refuse(control, error)
    except modules.CannotLoadError as error:
        os.write(control, LOAD_FAILED + ascii(str(error)).encode())
        os._exit(1)
    os.write(CONTROL, JAILED + linux.packed(8, abi, *spaces))
    modules.redirect(None)
    code = _compile(setup["source"])
    printer = modules.printer(call.wrote) if setup["development"] else None
    # Only now: a compiler that warns prints, and here nobody would expect it.
    modules.redirect(printer)
    forks.serve(setup, code, printer)


def _settle_descriptors(control: int, domain: int) -> None:
    """Leave exactly six: null on 0 to 2, control, ruleset, and the signalfd."""
    high = [os.dup(number) for number in (control, domain)]
    mask = linux.Memory((1 << _SIGCHLD - 1).to_bytes(8, "little"))
    linux.call(linux.RT_SIGPROCMASK, _SIG_BLOCK, mask, 0, 8)
    high.append(linux.call(linux.SIGNALFD4, -1, mask, 8, 0o2000000))
    os.dup2(0, 2)
    for number, source in zip((CONTROL, DOMAIN, CHILDREN), high, strict=True):
        os.dup2(source, number, inheritable=False)
    linux.require("close_range", _HINT, linux.CLOSE_RANGE, CHILDREN + 1, 0xFFFFFFFF, 0)


def _compile(source: str) -> CodeType:
    """Compile the source in the closed jail: the compiler is the first thing it could attack."""
    try:
        # From text: the parser of a byte string would look codecs up by the source's own word.
        return compile(source, "plugin.py", "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, MemoryError, RecursionError, OverflowError) as error:
        line = getattr(error, "lineno", None)
        os.write(CONTROL, LOAD_FAILED + f"{type(error).__name__} in line {line}".encode())
        # The supervisor may not have attested this process yet, and ends it when it has heard.
        os.read(CONTROL, 1)
        os._exit(1)
