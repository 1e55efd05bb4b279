"""The launcher and the workers it starts: real processes, real deaths."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from broker.launchers import orders, process
from broker.launchers.local import LauncherLost, LocalLauncher, Started, StartFailed
from sandbox_worker.jail import bpf, identity, policy, seccomp
from schemas.launch import LAUNCH_BYTES_MAX
from tests.broker.launched import (
    Incarnation,
    Launched,
    alive,
    descendants,
    wait_for,
    zmq_context,
)
from tests.sandbox_worker.jail.inside import inside
from tests.support.gateway import held
from tests.support.timing import GONE_S, best_of

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.jail


@pytest.fixture
def launched() -> Iterator[Launched]:
    """A launcher that is closed afterwards, and with it every worker."""
    one = Launched()
    yield one
    pids = descendants(one.launcher.pid) | {one.launcher.pid}
    one.launcher.close()
    wait_for(lambda: not any(map(alive, pids)))


def status_of(pid: int) -> dict[str, str]:
    """A process's status fields."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_worker_starts_from_its_document_and_is_reported(
    launched: Launched, tmp_path: Path
) -> None:
    """A launch document becomes a ready worker whose pid is the one that was reported."""
    with zmq_context() as context:
        one = Incarnation(tmp_path, context)
        launched.launcher.launch(one.name, one.document)
        assert one.ready().pid == launched.started(one.name)


def test_worker_gets_a_whole_environment_and_nothing_else(
    launched: Launched, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Environment, arguments and descriptors of a worker are the launcher's, not the caller's."""
    monkeypatch.setenv("OMEGA_SECRET_OF_THE_CALLER", "leak")
    inherited = os.open("/etc/hostname", os.O_RDONLY)
    os.set_inheritable(inherited, True)
    with zmq_context() as context:
        other, one = Incarnation(tmp_path, context), Incarnation(tmp_path, context)
        launched.launcher.launch(other.name, other.document)
        other.ready()
        launched.launcher.launch(one.name, one.document)
        pid = launched.started(one.name)
        # Stopped, it cannot seal itself; before that its files may be looked at.
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: "sandbox_worker" in Path(f"/proc/{pid}/cmdline").read_text())
        environment = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
        command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        folder = f"/proc/{pid}/fd"
        targets = {name: os.readlink(f"{folder}/{name}") for name in os.listdir(folder)}
    os.close(inherited)
    names = {line.partition("=")[0] for line in environment}
    assert names == {"PYTHONPATH", "LD_BIND_NOW", "LC_ALL", "TZ"}
    assert command[1:6] == ["-s", "-S", "-P", "-X", "disable-remote-debug"]
    assert command[6:8] == ["-m", "sandbox_worker"]
    assert "/etc/hostname" not in targets.values()
    assert not any(target.startswith("socket:") for target in targets.values())
    assert targets["0"] == targets["1"] == "/dev/null"


def test_refused_document_ends_in_an_exit_report(launched: Launched) -> None:
    """A worker that refuses its document is reported as started, then as ended with its status."""
    name = secrets.token_hex(16)
    launched.launcher.launch(name, b"{}")
    assert launched.started(name) > 0
    ended = launched.exited(name)
    assert (ended.status, ended.signal) == (5, 0)
    assert [type(report) for report in launched.reports] == [Started, type(ended)]


def test_kill_ends_a_worker_and_everything_below_it(launched: Launched, tmp_path: Path) -> None:
    """After `kill` the supervisor, its zygote and its call processes are gone; others live on."""
    with zmq_context() as context:
        other = Incarnation(tmp_path, context)
        launched.launcher.launch(other.name, other.document)
        other.ready()

        def kill_once() -> float:
            one = Incarnation(tmp_path, context)
            launched.launcher.launch(one.name, one.document)
            one.ready()
            below = descendants(launched.started(one.name))
            assert len(below) >= 2
            launched.launcher.kill(one.name)
            assert launched.exited(one.name).signal == signal.SIGKILL
            return wait_for(lambda: not any(map(alive, below)))

        assert best_of(kill_once) < GONE_S
        assert alive(launched.started(other.name))


def test_exit_reports_leave_no_zombie_and_no_descriptor(launched: Launched) -> None:
    """Twenty workers that refuse their document are all reported and all reaped."""
    descriptors = len(os.listdir(f"/proc/{launched.launcher.pid}/fd"))
    names = [secrets.token_hex(16) for _ in range(20)]
    for name in names:
        launched.launcher.launch(name, b"no document")
    for name in names:
        launched.exited(name)
    assert descendants(launched.launcher.pid) == set()
    assert len(os.listdir(f"/proc/{launched.launcher.pid}/fd")) == descriptors


def test_one_incarnation_runs_once(launched: Launched, tmp_path: Path) -> None:
    """A second start of a running incarnation is refused, and the first is not disturbed."""
    with zmq_context() as context:
        one = Incarnation(tmp_path, context)
        for _ in range(2):
            launched.launcher.launch(one.name, one.document)
        failed = launched.wait(StartFailed, one.name)
        assert isinstance(failed, StartFailed)
        assert "already" in failed.reason
        one.ready()
        launched.launcher.kill(secrets.token_hex(16))
        assert alive(launched.started(one.name))


def test_document_of_the_largest_size_arrives(launched: Launched) -> None:
    """A document of 64 KiB is handed over whole: the worker refuses its content, not its length."""
    name = secrets.token_hex(16)
    launched.launcher.launch(name, b" " * LAUNCH_BYTES_MAX)
    assert launched.exited(name).status == 5


def test_launcher_is_sealed(launched: Launched) -> None:
    """The launcher has no new privileges and, of root's capabilities, only those workers drop."""
    status = status_of(launched.launcher.pid)
    assert status["NoNewPrivs"] == "1"
    allowed = 0b1_1110_0100 if os.getuid() == 0 else 0
    assert int(status["CapEff"], 16) == allowed
    assert int(status["CapPrm"], 16) == allowed


class Pids(msgspec.Struct):
    """What a process that only holds a launcher says of those it started."""

    launcher: int
    workers: list[int]


@contextlib.contextmanager
def broker_alone(folder: Path, workers: int) -> Iterator[tuple[subprocess.Popen[bytes], Pids]]:
    """A process that holds a launcher with so many ready workers, and their pids."""
    command = [sys.executable, "-m", "tests.broker.launched", str(folder), str(workers)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as broker:
        assert broker.stdout is not None
        try:
            yield broker, msgspec.json.decode(broker.stdout.readline(), type=Pids)
        finally:
            broker.kill()


def test_broker_killed_takes_launcher_and_workers_with_it(tmp_path: Path) -> None:
    """Within 500 ms of kill -9 of the broker, no launcher, supervisor, zygote or call is left."""

    def kill_once() -> float:
        with broker_alone(tmp_path, 3) as (broker, pids):
            everybody = descendants(broker.pid)
            assert {pids.launcher, *pids.workers} < everybody
            assert len(everybody) >= 10
            broker.kill()
            return wait_for(lambda: not any(map(alive, everybody)))

    assert best_of(kill_once) < GONE_S


def test_workers_follow_the_broker_even_without_the_launcher(tmp_path: Path) -> None:
    """With the launcher stopped, the broker's death alone still ends every worker in 500 ms."""

    def kill_once() -> float:
        with broker_alone(tmp_path, 2) as (broker, pids):
            below = descendants(pids.launcher)
            with held(pids.launcher):
                broker.kill()
                took_s = wait_for(lambda: not any(map(alive, below)))
            wait_for(lambda: not alive(pids.launcher))
            return took_s

    assert best_of(kill_once) < GONE_S


def test_lost_launcher_is_noticed(tmp_path: Path) -> None:
    """When the launcher dies the broker learns it from the descriptor it watches."""
    launcher = LocalLauncher.start(worker_stderr=False)
    waiter = select.poll()
    waiter.register(launcher.fd, select.POLLIN)
    os.kill(launcher.pid, signal.SIGKILL)
    assert waiter.poll(5000)
    with pytest.raises(LauncherLost):
        launcher.receive()
    with pytest.raises(LauncherLost):
        launcher.kill(secrets.token_hex(16))
    launcher.close()


def test_orders_that_are_none_end_the_launcher(tmp_path: Path) -> None:
    """An unknown order, a too long one or bytes that are none end the launcher and its workers."""
    for packet in (b"\xc1", b"\x81\xa4type\xa3run", b"x" * (orders.PACKET_BYTES_MAX + 1)):
        launched = Launched()
        with zmq_context() as context:
            one = Incarnation(tmp_path, context)
            launched.launcher.launch(one.name, one.document)
            one.ready()
            pid = launched.started(one.name)
            # The raw socket, as a broker that was taken over would use it.
            raw = socket.socket(fileno=os.dup(launched.launcher.fd))
            raw.send(packet)
            wait_for(lambda gone=pid: not alive(gone), 5.0)
            raw.close()
        launched.launcher.close()


def test_many_orders_never_block(launched: Launched) -> None:
    """More orders than a socket buffer holds wait in the broker and arrive in the end."""
    os.kill(launched.launcher.pid, signal.SIGSTOP)
    names = [secrets.token_hex(16) for _ in range(12)]
    for name in names:
        launched.launcher.launch(name, b"x" * LAUNCH_BYTES_MAX)
    os.kill(launched.launcher.pid, signal.SIGCONT)
    for name in names:
        assert launched.exited(name).status == 5


def test_worker_environment_names_existing_roots_only() -> None:
    """PYTHONPATH holds the folders of our packages and of the two libraries a worker needs."""
    roots = process.worker_environment()["PYTHONPATH"].split(os.pathsep)
    assert all(Path(root).is_dir() for root in roots)
    for package in ("sandbox_worker", "schemas", "msgspec", "zmq"):
        assert any((Path(root) / package / "__init__.py").exists() for root in roots)


def test_a_process_that_cannot_be_watched_is_not_left_behind() -> None:
    """Where pidfd_open fails the start fails with its reason, and the process is gone again."""

    def attempt() -> object:
        rule = bpf.Rule(bpf.errno_action(errno.ENOSYS))
        identity.no_new_privileges()
        seccomp.install(bpf.assemble({policy.numbers()["pidfd_open"]: rule}, bpf.ALLOW))
        one, name = Launched(), secrets.token_hex(16)
        one.launcher.launch(name, b"{}")
        failed = one.wait(StartFailed, name)
        left = sorted(descendants(one.launcher.pid))
        one.launcher.close()
        return [failed.reason, left]

    assert inside(attempt) == ["cannot start a process: Function not implemented", []]
