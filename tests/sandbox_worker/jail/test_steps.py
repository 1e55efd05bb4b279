"""Each mechanism of the jail by itself, as root and as an ordinary user, on the real kernel."""

from __future__ import annotations

import os
import resource
import signal
import socket
import time
from collections.abc import Callable

import pytest

from sandbox_worker.jail import (
    attest,
    clock,
    identity,
    landlock,
    linux,
    mounts,
    namespaces,
    policy,
    rlimits,
    seccomp,
)
from tests.sandbox_worker.jail.inside import IDENTITIES, ORDINARY, Killed, inside

pytestmark = pytest.mark.jail


@pytest.fixture(params=IDENTITIES)
def who(request: pytest.FixtureRequest) -> str:
    """Root where the tests run as root, and an ordinary user always."""
    return str(request.param)


def _inner(function: Callable[[], object]) -> object:
    """As pid 1 of fresh namespaces, the way the zygote gets there."""
    identity.become_sandbox_user()
    namespaces.unshare_all()
    return inside(function)


def test_root_is_given_up_and_cannot_be_taken_back(who: str) -> None:
    """No uid, gid or group of root is left, and setuid(0) fails."""

    def attempt() -> object:
        identity.become_sandbox_user()
        with pytest.raises(OSError):
            os.setuid(0)
        return [os.getresuid(), os.getresgid(), os.getgroups() if who == "root" else []]

    assert inside(attempt, who) == [[ORDINARY] * 3, [ORDINARY] * 3, []]


def test_all_seven_namespaces_are_new(who: str) -> None:
    """The inner process is pid 1, has one mapped id, its own host name and no way to a second."""

    def attempt() -> object:
        names = ["user", "mnt", "net", "ipc", "uts", "cgroup", "pid"]
        outside = [os.readlink(f"/proc/self/ns/{name}") for name in names]

        def inner() -> object:
            namespaces.close_inner()
            now = [os.readlink(f"/proc/self/ns/{name}") for name in names]
            with pytest.raises(OSError):
                linux.call(linux.UNSHARE, namespaces.ALL)
            devices = [name for _, name in socket.if_nameindex()]
            return [os.getpid(), os.getuid(), os.uname().nodename, devices, now]

        return [outside, _inner(inner)]

    outside, (pid, uid, host, devices, within) = inside(attempt, who)

    assert (pid, uid, host) == (1, namespaces.INNER_ID, "sandbox")
    assert set(devices) <= {"lo", "tunl0", "sit0", "ip6tnl0", "gre0", "gretap0", "erspan0",
                            "ip_vti0", "ip6_vti0", "ip6gre0"}  # fmt: skip
    assert all(was != now for was, now in zip(outside, within, strict=True))


def test_the_root_is_empty_and_read_only(who: str) -> None:
    """Nothing is there, nothing can be made, and the way up leads nowhere."""

    def inner() -> object:
        mounts.enter_empty_root()
        with pytest.raises(OSError):
            os.open("/made", os.O_CREAT | os.O_WRONLY)
        with pytest.raises(FileNotFoundError):
            os.open("/etc/passwd", os.O_RDONLY)
        return os.listdir("/") + os.listdir("/../..")

    assert inside(lambda: _inner(inner), who) == []


def test_capabilities_are_gone_for_good(who: str) -> None:
    """Every set is empty and none can come back through execution."""

    def inner() -> object:
        identity.drop_capabilities()
        fields = attest.status("self")
        return [fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")]

    assert inside(lambda: _inner(inner), who) == ["0" * 16] * 5


def test_limits_of_the_zygote_cannot_rise(who: str) -> None:
    """Core, file size, locked memory and queues are zero, and raising one is refused."""

    def attempt() -> object:
        identity.become_sandbox_user()
        rlimits.limit_zygote()
        with pytest.raises((OSError, ValueError)):
            resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))
        return [resource.getrlimit(kind)[1] for kind in (resource.RLIMIT_CORE,
                resource.RLIMIT_FSIZE, resource.RLIMIT_MEMLOCK)]  # fmt: skip

    assert inside(attempt, who) == [0, 0, 0]


@pytest.mark.parametrize("cpu_ms", [50, 250, 1200])
def test_the_cpu_timer_ends_a_spinner_in_time(who: str, cpu_ms: int) -> None:
    """A busy process dies of SIGKILL within ten milliseconds and a tick of its limit."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)

    def attempt() -> object:
        assert linux.succeeds(rlimits.cpu_timer(cpu_ms))
        assert 0 < rlimits.timer_remaining_ns() <= cpu_ms * 1_000_000
        while True:
            pass

    with pytest.raises(Killed) as killed:
        inside(attempt, who)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used_ms = (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) * 1000

    assert killed.value.signal == signal.SIGKILL
    assert cpu_ms - 10 <= used_ms <= cpu_ms + 24


def test_landlock_takes_files_and_foreign_signals(who: str) -> None:
    """After the layer no directory opens and the parent cannot be signalled."""

    def attempt() -> object:
        identity.no_new_privileges()
        landlock.restrict(landlock.ruleset(files=True))
        landlock.expect_no_files()
        with pytest.raises(PermissionError):
            os.kill(os.getppid(), 0)
        return "held"

    assert inside(attempt, who) == "held"


def test_a_layer_without_file_rights_leaves_mounts_possible(who: str) -> None:
    """The supervisor's first layer closes signals while its zygote can still build a root."""

    def attempt() -> object:
        identity.no_new_privileges()
        landlock.restrict(landlock.ruleset(files=False))
        with pytest.raises(PermissionError):
            os.kill(os.getppid(), 0)

        def inner() -> object:
            mounts.enter_empty_root()
            return os.listdir("/")

        return _inner(inner)

    assert inside(attempt, who) == []


def test_the_staged_probe_sees_a_missing_landlock(who: str) -> None:
    """Without the layer the probe refuses, so a faked layer cannot pass."""

    def attempt() -> object:
        with pytest.raises(linux.SandboxUnavailable) as caught:
            landlock.expect_no_files()
        return caught.value.feature

    assert inside(attempt, who) == "landlock"


def test_time_stands_still_without_the_clock(who: str) -> None:
    """With zero pages and the filter every clock raises; before them it runs."""
    program = policy.program(policy.strict_rules(clock=False, random=False))

    def attempt() -> object:
        identity.no_new_privileges()
        before = time.monotonic()
        clock.hide_time(clock.time_pages())
        seccomp.install(program)
        refused = []
        for read in (time.time, time.monotonic, time.perf_counter, lambda: time.sleep(0.001)):
            try:
                read()
            except PermissionError:
                refused.append(True)
        return [before > 0, refused]

    assert inside(attempt, who) == [True, [True] * 4]


def test_a_process_dies_with_its_parent(who: str) -> None:
    """The death signal arrives, and a parent that is not the expected one is refused."""

    def attempt() -> object:
        reader, writer = os.pipe()
        parent = os.fork()
        if parent == 0:
            child = os.fork()
            if child == 0:
                identity.die_with_parent(os.getppid())
                os.write(writer, b"x")
                signal.pause()
            os.read(reader, 1)
            os._exit(0)
        os.waitpid(parent, 0)
        os.close(writer)
        # End of file comes when the last holder of the pipe is gone.
        return [len(os.read(reader, 1)), _wrong_parent()]

    def _wrong_parent() -> str:
        with pytest.raises(linux.SandboxUnavailable) as caught:
            identity.die_with_parent(2**22)
        return caught.value.feature

    assert inside(attempt, who) == [0, "parent death signal"]


def test_attestation_refuses_a_process_that_is_not_jailed() -> None:
    """An ordinary child fails on the first thing the kernel says about it."""
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        with pytest.raises(linux.SandboxUnavailable, match="attestation of NoNewPrivs"):
            attest.attest(child, uid=os.getuid(), filters=0)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
