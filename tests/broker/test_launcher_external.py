"""Workers that an operator starts: the launch file, who gets it, and what is refused."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from broker.keys import KeyFileRefused
from broker.launchers.external import ExternalLauncher, become_worker, take_document
from schemas.launch import LAUNCH_BYTES_MAX
from tests.broker.launched import Incarnation, wait_for, zmq_context

ROOT = Path(__file__).parents[2]
PLUGIN = "plugin-under-test"
WAITING = f"""
import sys
from broker.launchers.external import become_worker
print("waiting", flush=True)
become_worker(sys.argv[1], "{PLUGIN}")
"""


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run directory as the home makes it."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.jail
def test_waiting_operator_becomes_the_worker(run_directory: Path, tmp_path: Path) -> None:
    """A worker that was started first gets the document when it comes, and the file is gone."""
    waiting = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(run_directory)], cwd=ROOT, stdout=subprocess.PIPE
    )
    try:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == b"waiting\n"
        with zmq_context() as context:
            one = Incarnation(tmp_path, context)
            ExternalLauncher(str(run_directory)).launch("0" * 32, PLUGIN, one.document)
            assert one.ready().pid == waiting.pid
            assert os.listdir(run_directory / "launch") == []
            command = Path(f"/proc/{waiting.pid}/cmdline").read_text().split("\0")
            assert "--life-fd" not in command
            assert not any(one.name in word for word in command)
    finally:
        waiting.send_signal(signal.SIGKILL)
        waiting.wait()


def test_document_is_its_owners_alone_and_taken_once(run_directory: Path) -> None:
    """The file has mode 0600 in a 0700 folder; of many takers exactly one gets the bytes."""
    before = os.umask(0)
    ExternalLauncher(str(run_directory)).launch("0" * 32, PLUGIN, b"document")
    os.umask(before)
    path = run_directory / "launch" / f"{PLUGIN}.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    taken: list[bytes | None] = []
    gate = threading.Barrier(8)

    def take() -> None:
        gate.wait()
        taken.append(take_document(str(run_directory), PLUGIN))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=bool) == [None] * 7 + [b"document"]
    assert os.listdir(path.parent) == []


def test_newer_document_replaces_one_that_nobody_took(run_directory: Path) -> None:
    """The last offer counts, and only its own incarnation takes it back.

    A new broker clears the folder when it is told to, not by being made.
    """
    first, second = "1" * 32, "2" * 32
    launcher = ExternalLauncher(str(run_directory))
    launcher.launch(first, PLUGIN, b"first")
    launcher.launch(second, PLUGIN, b"second")
    launcher.withdraw(first)
    assert take_document(str(run_directory), PLUGIN) == b"second"
    launcher.launch(first, PLUGIN, b"third")
    launcher.withdraw(first)
    launcher.withdraw(first)
    assert take_document(str(run_directory), PLUGIN) is None
    launcher.launch(second, PLUGIN, b"stale")
    another = ExternalLauncher(str(run_directory))
    assert os.listdir(run_directory / "launch") == [f"{PLUGIN}.json"]
    another.clear()
    assert take_document(str(run_directory), PLUGIN) is None


def plant(path: Path, what: str) -> None:
    """Put something at the document's place that the broker never writes."""
    match what:
        case "open to others":
            path.write_bytes(b"{}")
            path.chmod(0o644)
        case "a symbolic link":
            (path.parent / "target").write_bytes(b"{}")
            (path.parent / "target").chmod(0o600)
            path.symlink_to(path.parent / "target")
        case "a pipe":
            os.mkfifo(path, 0o600)
        case "too long":
            path.write_bytes(b"x" * (LAUNCH_BYTES_MAX + 1))
            path.chmod(0o600)
        case "of another owner":
            path.write_bytes(b"{}")
            path.chmod(0o600)
            os.chown(path, 65534, 65534)


@pytest.mark.parametrize(
    "what", ["open to others", "a symbolic link", "a pipe", "too long", "of another owner"]
)
def test_file_that_the_broker_did_not_write_is_refused(run_directory: Path, what: str) -> None:
    """Anything but a small 0600 file of this user is refused with its path, and removed."""
    if what == "of another owner" and os.getuid() != 0:
        # Only root can give a file away; what an ordinary user cannot make cannot be met either.
        return
    ExternalLauncher(str(run_directory))
    path = run_directory / "launch" / f"{PLUGIN}.json"
    plant(path, what)
    with pytest.raises(KeyFileRefused, match=str(path)):
        take_document(str(run_directory), PLUGIN)
    assert not path.is_symlink()
    assert not path.exists()


def test_folder_open_to_others_is_refused(run_directory: Path) -> None:
    """A launch folder that others may enter is refused before anything is written to it."""
    (run_directory / "launch").mkdir(mode=0o755)
    (run_directory / "launch").chmod(0o755)
    with pytest.raises(KeyFileRefused):
        ExternalLauncher(str(run_directory))


@pytest.mark.parametrize("plugin", ["../run/launch/plugin-under-test", "Plugin", "", "plugin\n"])
def test_plugin_that_is_no_id_is_refused(run_directory: Path, plugin: str) -> None:
    """A worker waits for a plugin id only, never for a path."""
    with pytest.raises(ValueError, match="regex"):
        become_worker(str(run_directory), plugin)


def test_waiting_ends_with_the_operator(run_directory: Path) -> None:
    """A worker that waits for its document ends on SIGINT and SIGTERM like any program."""
    for number in (signal.SIGINT, signal.SIGTERM):
        waiting = subprocess.Popen(
            [sys.executable, "-c", WAITING, str(run_directory)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert waiting.stdout is not None
        poll = select.poll()
        poll.register(waiting.stdout, select.POLLIN)
        assert poll.poll(10_000)
        waiting.send_signal(number)
        assert wait_for(lambda one=waiting: one.poll() is not None) < 5
