"""The supervisor's side of the zygote: start it, attest it, rehearse a call, ask for forks.

Rules: the zygote's environment is written whole; nothing is inherited but one pipe and one
socket; every answer during the start has a deadline; a zygote counts as started only when it was
attested from outside and a rehearsed call process reported its effects, was attested too, failed
at every probe and died of SIGSYS at the last. What the zygote says is fixed-size binary: it is
trusted, its children are not, and nothing of theirs passes through it.
"""

from __future__ import annotations

import _socket
import contextlib
import errno
import hashlib
import marshal
import os
import secrets
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from sandbox_worker import forks, packages, rehearsal, vitals, zygote
from sandbox_worker.bundle import Bundle, LaunchRefusedError, modules_to_load
from sandbox_worker.handing import names_handed
from sandbox_worker.jail import policy
from sandbox_worker.jail.attest import attest
from sandbox_worker.jail.identity import SANDBOX_ID
from sandbox_worker.jail.linux import SandboxUnavailable, expect
from sandbox_worker.jobs import job_bytes
from sandbox_worker.probes import PROBES
from schemas import remedies
from schemas.launch import LaunchDocument
from schemas.messages import Attestation
from schemas.names import CapabilityName, Purpose

_FIRST_TO_GO = "1000"
"""See proc_pid_oom_score_adj(5)."""

START_S = 20.0
"""Longest start of a zygote, rehearsal included, in seconds."""

COMPILE_CPU_S = 3
"""Processor time of a zygote until its plugin is compiled, in seconds. The largest honest source
takes half a second."""
COMPILE_CHECK_S = 0.1

SOFT_PROBES = tuple(name for name in PROBES if name not in ("ptrace", "control"))
_COMMAND = "from sandbox_worker.zygote import main; main()"
_CREDENTIALS = struct.Struct("=iII")


@dataclass(frozen=True)
class Exit:
    """How one call process ended: wait status, processor time in us, largest resident kB, and the
    largest address space in kB where it was still there to be asked."""

    number: int
    status: int
    cpu_us: int
    max_rss_kb: int
    widest_kb: int = 0


@dataclass(frozen=True)
class ForkFailure:
    """The kernel refused a fork."""

    number: int
    errno: int


@dataclass
class Forker:
    """A started zygote.

    Attributes:
        control: the packet socket to the zygote; readable when something ended.
        pid: the zygote's pid outside.
        pidfd: the same as a descriptor, which names no other process when that one is gone.
        stub: the process that waits for it.
        stub_pidfd: the same as a descriptor; readable when it has ended.
        attestation: what was seen from outside.
    """

    control: socket.socket
    pid: int
    stub: subprocess.Popen[bytes]
    stub_pidfd: int
    attestation: Attestation | None = None
    pidfd: int | None = None

    def fork(
        self, numbers: list[int], *, rehearse: bool = False, hurried: bool = False,
        handed: Sequence[int] = (),
    ) -> list[_socket.socket]:
        """Ask for call processes; each gets one end of a socket whose other end is returned.

        Args:
            numbers: fresh call process numbers, at most `forks.FORKS_MAX`.
            hurried: whether their jobs are there already, or as good as that.
            rehearse: whether they read their effects back and say so.
            handed: descriptors for the one call process asked for; they stay open here.

        Raises:
            ConnectionError: the zygote is gone.
        """
        ours, theirs = [], []
        for _ in numbers:
            # The plain kind: nothing is asked of it that the other adds, at three system calls.
            mine, its = _socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            # The kernel names the writer only to a socket that asked before it wrote.
            mine.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            ours.append(mine)
            theirs.append(its)
        kind = forks.REHEARSE if rehearse else forks.HURRY if hurried else forks.FORK
        message = struct.pack(f"=Q{len(numbers)}Q", kind, *numbers)
        given = [*(one.fileno() for one in theirs), *handed]
        rights = struct.pack(f"={len(given)}i", *given)
        self.control.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        for its in theirs:
            its.close()
        return ours

    def kill(self, number: int) -> None:
        """Have the zygote kill one call process; it may have ended already, or the zygote too."""
        # What ended the zygote ended its children, and `ended` tells of it.
        with contextlib.suppress(ConnectionError):
            self.control.send(struct.pack("=QQ", forks.KILL, number))

    def ended(self) -> list[Exit | ForkFailure] | None:
        """What the zygote reports now; None when the zygote itself is gone."""
        try:
            message = self.control.recv(forks.MESSAGE_BYTES_MAX, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionError:
            return None
        return _endings(message)

    def close(self) -> None:
        """End the zygote and everything below it."""
        self.control.close()
        # Its stub ends with it, and the pid namespace with its first process. One that did not
        # come as far as a pid is left to the closed socket.
        if self.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            os.close(self.pidfd)
        self.stub.wait()
        os.close(self.stub_pidfd)


def _endings(message: bytes) -> list[Exit | ForkFailure] | None:
    """The endings that one message of a zygote tells of; None for what is not such a message."""
    if len(message) < 2 * forks.WORD_BYTES:
        return None
    kind, *words = struct.unpack(f"={len(message) // forks.WORD_BYTES}Q", message)
    if kind == forks.FORK_FAILED:
        return [ForkFailure(*words)]
    if kind != forks.EXITED:
        return None
    step = forks.RECORD_WORDS
    return [Exit(*words[at : at + step]) for at in range(0, len(words), step)]


def start(launch: LaunchDocument, bundle: Bundle) -> Forker:
    """Start, attest and rehearse the zygote of one plugin.

    Raises:
        SandboxUnavailable: a part of the jail is missing or did not hold.
        LaunchRefusedError: the plugin cannot be loaded.
    """
    try:
        return _start(launch, bundle)
    except OSError as error:
        # No process, no socket, or no answer in time; the last comes without an errno.
        code = error.errno or errno.ETIMEDOUT
        remedy = remedies.FORK if code in (errno.EAGAIN, errno.ENOMEM) else remedies.OUTER
        raise SandboxUnavailable("zygote", code, remedy) from error


def _start(launch: LaunchDocument, bundle: Bundle) -> Forker:
    deadline = time.monotonic() + START_S
    base = policy.base_filter()
    clock, random = _granted(launch.grants)
    counts = {len(names_handed(method, launch.grants))
              for method in bundle.manifest.methods.values()}  # fmt: skip
    strict = {count: policy.call_filter(clock=clock, random=random, descriptors=count)
              for count in sorted({0, *counts})}  # fmt: skip
    standard, others = modules_to_load(bundle.manifest, launch.modules)
    packaged = _packaged(launch, others) if others else None
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    setup: zygote.Setup = {
        "control": theirs.fileno(),
        "supervisor": os.getpid(),
        "source": bundle.source,
        "modules": standard,
        "packaged": packaged,
        "resources": bundle.resources,
        "development": bundle.manifest.domain == "development",
        "clock": clock,
        "random": random,
        "memory_mb": launch.limits.memory_mb,
        "cpu_ms": launch.limits.cpu_ms,
        "base_filter": base,
        "strict_filters": strict,
    }
    with theirs:
        stub = subprocess.Popen(
            [sys.executable, "-s", "-S", "-P", "-X", "disable-remote-debug", "-c", _COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env=_environment(bundle, launch.role),
        )
    assert stub.stdin is not None
    forker = Forker(ours, 0, stub, os.pidfd_open(stub.pid))
    try:
        _offer_memory(stub.pid)
        with contextlib.suppress(BrokenPipeError), stub.stdin:
            stub.stdin.write(marshal.dumps(dict(setup)))
        facts = _await_jailed(forker, deadline, packaged)
        found = attest(forker.pid, uid=_uid(), filters=1)
        _await_loaded(forker, deadline)
        # Each kind of call process there will be; what it is handed here holds nothing.
        with open(os.devnull, "rb") as null:
            for count in strict:
                handed = [null.fileno()] * count
                filters = _rehearse(forker, _held(clock=clock, random=random), handed, deadline)
        forker.attestation = _attestation(
            forker, facts, found, filters, base=base, strict=strict[0]
        )
    except BaseException:
        forker.close()
        raise
    return forker


def _packaged(launch: LaunchDocument, modules: list[str]) -> zygote.Packaged:
    """Compare the folder of approved packages with its lock, for the zygote to import from."""
    if launch.packages is None:
        raise packages.PackagesChangedError(f"packages: policy names no folder for {modules[0]}")
    found = packages.compare(launch.packages)
    return {
        "folder": found.folder,
        "inode": (found.device, found.inode),
        "libraries": found.libraries,
        "modules": modules,
    }


def _granted(grants: tuple[CapabilityName, ...]) -> tuple[bool, bool]:
    return "clock.read" in grants, "random.read" in grants


def _uid() -> int:
    """The uid that jailed processes have outside."""
    return SANDBOX_ID if os.getuid() == 0 else os.getuid()


def _held(*, clock: bool, random: bool) -> tuple[str, ...]:
    granted = {"clock": clock, "entropy": random}
    return tuple(name for name in SOFT_PROBES if not granted.get(name, False))


def _offer_memory(pid: int) -> None:
    """Let the kernel end the zygote and its calls first when the machine's memory runs out.

    Each of them is bounded, their sum is not, and it must not be the broker that pays. Called
    before the process gets its setup, so that whatever it forks inherits it.
    """
    try:
        with open(f"/proc/{pid}/oom_score_adj", "r+", encoding="ascii") as score:
            score.write(_FIRST_TO_GO)
            score.seek(0)
            held = score.read().strip() == _FIRST_TO_GO
    except OSError as error:
        raise SandboxUnavailable("memory score", error.errno or 0, remedies.OUTER) from None
    expect("memory score", held, remedies.OUTER)


def _environment(bundle: Bundle, role: Purpose) -> dict[str, str]:
    """The zygote's whole environment. The hash seed is fixed when a method promises determinism,
    and for a replica it is another one each time."""
    deterministic = any(method.deterministic for method in bundle.manifest.methods.values())
    seed = secrets.randbelow(2**32)
    if deterministic:
        seed = 0 if role == "primary" else 1 + secrets.randbelow(2**32 - 1)
    homes = [os.path.dirname(os.path.dirname(os.path.abspath(path)))
             for path in (zygote.__file__, msgspec.__file__)]  # fmt: skip
    return {
        "LC_ALL": "C.UTF-8",
        "LD_BIND_NOW": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": str(seed),
        "PYTHONPATH": os.pathsep.join(homes),
        "PYTHON_JIT": "0",
        "TZ": "UTC",
    }


def _receive(forker: Forker, deadline: float) -> tuple[bytes, int]:
    """One message of a starting zygote and the pid of its sender, as the kernel vouches for it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    forker.control.settimeout(left)
    try:
        message, ancillary, _, _ = forker.control.recvmsg(
            forks.MESSAGE_BYTES_MAX, socket.CMSG_SPACE(_CREDENTIALS.size)
        )
    except TimeoutError:
        return _receive(forker, deadline)
    finally:
        forker.control.settimeout(None)
    if message[:1] == zygote.UNAVAILABLE:
        feature, _, hint = message[5:].decode(errors="replace").partition("\0")
        if hint == remedies.USER_NAMESPACES:
            hint = remedies.user_namespaces(_settings())
        raise SandboxUnavailable(feature, int.from_bytes(message[1:5], "big"), hint)
    pid = 0
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pid = _CREDENTIALS.unpack(data)[0]
    return message, pid


def _settings() -> dict[str, str]:
    """The settings of this machine that may forbid user namespaces."""
    found = {}
    for path, _, _ in remedies.SETTINGS:
        with contextlib.suppress(OSError), open(path, encoding="utf-8") as setting:
            found[path] = setting.read().strip()
    return found


def _await_jailed(
    forker: Forker, deadline: float, packaged: zygote.Packaged | None
) -> tuple[int, ...]:
    """Landlock ABI and namespace ids, once the zygote says its jail is closed."""
    message, pid = _receive(forker, deadline)
    if message[:1] == zygote.LOAD_FAILED:
        raise LaunchRefusedError(message[1:].decode())
    if not message and packaged is not None:
        raise LaunchRefusedError("the zygote ended while it imported approved packages")
    if message[:1] != zygote.JAILED:
        raise SandboxUnavailable("zygote", 0, remedies.DEFECT)
    forker.pid, forker.pidfd = pid, os.pidfd_open(pid)
    return struct.unpack("=8Q", message[1:])


def _await_loaded(forker: Forker, deadline: float) -> None:
    """Wait until the plugin is compiled, watching how long the compiler works.

    A few lines can make it work for hours: each nested `finally` doubles the one inside. A limit of
    its own would not end the zygote, because the first process of a pid namespace ignores SIGXCPU.
    """
    while not select.select([forker.control], [], [], COMPILE_CHECK_S)[0]:
        try:
            used_us = vitals.cpu_us(forker.pid)
        except OSError:
            # It has ended, and its socket is about to say so.
            continue
        if time.monotonic() > deadline or used_us > COMPILE_CPU_S * 1_000_000:
            raise LaunchRefusedError(
                f"compiling the plugin takes more than {COMPILE_CPU_S} s of processor time"
            )
    message, _ = _receive(forker, deadline)
    if message[:1] == zygote.LOAD_FAILED:
        raise LaunchRefusedError(f"the plugin does not compile: {message[1:].decode()}")
    if message[:1] != forks.READY:
        raise LaunchRefusedError("the zygote ended while it compiled the plugin")


def _attestation(
    forker: Forker, facts: tuple[int, ...], found: dict[str, str], filters: int, *,
    base: bytes, strict: bytes,
) -> Attestation:  # fmt: skip
    return Attestation(
        zygote_pid=forker.pid,
        uid=_uid(),
        landlock_abi=facts[0],
        no_new_privileges=int(found["NoNewPrivs"]),
        seccomp_mode=int(found["Seccomp"]),
        seccomp_filters_zygote=int(found["Seccomp_filters"]),
        seccomp_filters_call=filters,
        capabilities_effective=found["CapEff"],
        capabilities_bounding=found["CapBnd"],
        threads=int(found["Threads"]),
        base_filter_sha256=hashlib.sha256(base).hexdigest(),
        strict_filter_sha256=hashlib.sha256(strict).hexdigest(),
        namespaces={name: facts[1 + at] for at, name in enumerate(zygote.NAMESPACES)},
        interpreter=f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}",
    )


def _rehearse(
    forker: Forker, probes: tuple[str, ...], handed: list[int], deadline: float
) -> int:
    """Two call processes that look at themselves: one probes, one must die of SIGSYS.

    Returns:
        How many filters a call process has.
    """
    status, frame, filters = _rehearse_one(forker, 1, [*probes, "control"], handed, deadline)
    wanted = [[name, "denied"] for name in probes] + [["control", "allowed"]]
    if (status, frame) != (0, ["probed", wanted]):
        told = frame[-1] if isinstance(frame, list) else []
        # The filter refuses each; but a clock may be readable without a system call.
        if [pair for pair in told if pair not in wanted] == [["clock", "allowed"]]:
            raise SandboxUnavailable("time pages", 0, remedies.TIME_PAGES)
        raise SandboxUnavailable("seccomp", 0, remedies.SECCOMP)
    status, _, _ = _rehearse_one(forker, 2, ["ptrace"], handed, deadline)
    if status != signal.SIGSYS:
        raise SandboxUnavailable("seccomp", 0, remedies.SECCOMP)
    return filters


def _rehearse_one(
    forker: Forker, number: int, probes: list[str], handed: list[int], deadline: float
) -> tuple[int, object, int]:
    """Wait status and last frame of one call process, and how many filters it had."""
    (job,) = forker.fork([number], rehearse=True, handed=handed)
    filters = 0
    with contextlib.closing(job):
        job.settimeout(max(0.1, deadline - time.monotonic()))
        frame, pid = _frame(job)
        if frame == ["rehearsed"]:
            filters = int(attest(pid, uid=_uid(), filters=2)["Seccomp_filters"])
            job.sendall(job_bytes(("probe", probes)))
            frame, _ = _frame(job)
    message, _ = _receive(forker, deadline)
    (ending,) = _endings(message) or (None,)
    if isinstance(ending, ForkFailure):
        raise SandboxUnavailable("fork", ending.errno, remedies.FORK)
    match frame:
        case ["unavailable", str(feature), int(code)]:
            raise SandboxUnavailable(feature, code, rehearsal.REMEDIES[feature])
    if ending is None or not filters:
        raise SandboxUnavailable("call process", 0, remedies.DEFECT)
    return ending.status, frame, filters


def _frame(job: _socket.socket) -> tuple[object, int]:
    """One frame of a rehearsed call process, and its pid outside; None at end of file."""
    data, ancillary, _, _ = job.recvmsg(4, socket.CMSG_SPACE(_CREDENTIALS.size))
    if len(data) < 4:
        return None, 0
    pid = next((_CREDENTIALS.unpack(item)[0] for _, _, item in ancillary), 0)
    size = int.from_bytes(data, "big")
    body = job.recv(min(size, forks.MESSAGE_BYTES_MAX), socket.MSG_WAITALL)
    return msgspec.msgpack.decode(body), pid
