"""The broker's seal against the real kernel: what is refused, what remains, what fails closed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from broker import seal
from tests.support.gateway import free_port

ROOT = Path(__file__).parents[2]
NOBODY = 65534

REFUSED_OUTSIDE = {
    "make a file": "EACCES",
    "write a file": "EACCES",
    "truncate a file": "EACCES",
    "remove a file": "EACCES",
    "move a file in": "EACCES",
    "link a file in": "EXDEV",
    "make a folder": "EACCES",
    "make a symbolic link": "EACCES",
    "change a mode": "EPERM",
    "change an owner": "EPERM",
    "change times": "EPERM",
    "set an attribute": "EPERM",
    "set file flags": "ENOTTY",
}
REFUSED_PROCESSES = {
    "fork": "EPERM",
    "run a program": "EPERM",
    "run a program by Popen": "EPERM",
    "signal a process": "EPERM",
    "signal a process by pidfd": "EPERM",
    "limit a process": "EPERM",
    "new user namespace": "EPERM",
    "shared memory": "EPERM",
    "message queue": "EPERM",
    "trace a process": "EPERM",
    "read a process's memory": "EPERM",
    "take a process's descriptor": "EPERM",
    "compare with a process": "EPERM",
    "queue a signal": "EPERM",
    "signal a process's thread": "EPERM",
    "renice a process": "EPERM",
    "pin a process to a processor": "EPERM",
}
REFUSED_READING = {
    "read a key": "EACCES",
    "list the keys": "EACCES",
    "read a file": "EACCES",
    "read a process's environment": "EACCES",
    "open a process's memory": "EACCES",
    "read a process's mappings": "EACCES",
    "open a process's descriptor": "EACCES",
    "reach in through a process's root": "EACCES",
}
REFUSED_NETWORK = {
    "connect over tcp": "EACCES",
    "listen on another port": "EACCES",
    "send a datagram": "ENOTSUP",
    "connect to an abstract socket": "EPERM",
    "open a unix datagram socket": "ENOTSUP",
    "send a datagram out of a pair": "EPERM",
    "connect over tcp by a first packet": "EPERM",
    "connect over multipath tcp": "ENOTSUP",
    "listen over multipath tcp": "ENOTSUP",
}


class Place:
    """Folders and listeners of one test, and what is asked of a sealed process there."""

    def __init__(self, folder: Path, uid: int) -> None:
        self.uid = uid
        self.inside, self.outside = folder / "inside", folder / "outside"
        for path in (self.inside, self.outside):
            path.mkdir()
        for name in ("file", "spare", "moved"):
            (self.outside / name).write_bytes(b"content")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.free_port = free_port()
        self.abstract = socket.socket(socket.AF_UNIX)
        self.abstract.bind(f"\0omega-test-{os.getpid()}")
        self.abstract.listen()
        self.unix = socket.socket(socket.AF_UNIX)
        self.unix.bind(str(folder / "unix"))
        self.unix.listen()
        self.datagrams = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.datagrams.bind(str(folder / "datagrams"))
        if uid != os.getuid():
            for path in [folder, *folder.rglob("*")]:
                os.chown(path, uid, uid)

    def close(self) -> None:
        """Close the listeners."""
        for listener in (self.tcp, self.abstract, self.unix, self.datagrams):
            listener.close()

    def ask(
        self, attempts: list[str], *, how: str | None = "broker", port: int = 0
    ) -> dict[str, str]:
        """Make attempts in a fresh process, sealed as a broker or launcher, or not at all."""
        specification = {
            "uid": self.uid, "seal": how, "attempts": attempts, "port": port,
            "inside": str(self.inside), "outside": str(self.outside),
            "listener": self.tcp.getsockname()[1],
            "abstract": f"\0omega-test-{os.getpid()}",
            "unix": self.unix.getsockname(), "datagrams": self.datagrams.getsockname(),
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "tests.broker.sealed_attempts", json.dumps(specification)],
            cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        answer: dict[str, str] = json.loads(done.stdout)
        return answer


def users() -> list[int]:
    """As whom to try: this user, and for root an ordinary one too, if it can reach this Python."""
    if os.getuid() != 0:
        return [os.getuid()]
    become = ["setpriv", f"--reuid={NOBODY}", "--clear-groups", "test", "-r", os.__file__]
    return [0, NOBODY] if subprocess.run(become, check=False).returncode == 0 else [0]


@pytest.fixture(params=users())
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Two folders, three listeners and a user."""
    for parent in [tmp_path, *tmp_path.parents][:3]:
        # An ordinary user must be able to reach what root made for it.
        parent.chmod(parent.stat().st_mode | 0o711)
    one = Place(tmp_path, request.param)
    yield one
    one.close()


def test_sealed_broker_changes_nothing_outside_its_folders(place: Place) -> None:
    """Every way to change a file, mode, owner, times, attributes or flags is refused outside."""
    assert place.ask(list(REFUSED_OUTSIDE)) == REFUSED_OUTSIDE
    assert (place.outside / "file").read_bytes() == b"content"


def test_sealed_broker_runs_and_signals_nothing(place: Place) -> None:
    """It starts no process and reaches none, neither by signal nor by limits."""
    assert place.ask(list(REFUSED_PROCESSES)) == REFUSED_PROCESSES


def test_sealed_broker_reads_nobody_elses_keys(place: Place) -> None:
    """Outside its folders and its code nothing is read, of its own user's files neither, and no
    other process is looked into."""
    assert place.ask(list(REFUSED_READING)) == REFUSED_READING


def test_sealed_broker_connects_nowhere(place: Place) -> None:
    """With a port of its own it listens there only, and no packet leaves it."""
    asked = [*REFUSED_NETWORK, "listen on the port"]
    assert place.ask(asked, port=place.free_port) == {
        **REFUSED_NETWORK, "listen on the port": "done",
    }  # fmt: skip
    unused = place.ask(["connect over tcp", "listen on another port"])
    assert unused == {"connect over tcp": "ENOTSUP", "listen on another port": "ENOTSUP"}


def test_serving_broker_makes_no_network_socket(place: Place) -> None:
    """Once its endpoints listen it cannot even listen where the kernel chooses the port."""
    asked = ["listen on any port", "refuse networks", "listen on any port again"]
    assert place.ask(asked, port=place.free_port) == {
        "listen on any port": "done", "refuse networks": "done",
        "listen on any port again": "EPERM",
    }  # fmt: skip


def test_attempts_succeed_without_the_seal(place: Place) -> None:
    """The control: each refusal above is the seal's, not the machine's or the attempt's."""
    wanted = [*REFUSED_READING, *REFUSED_OUTSIDE, *REFUSED_PROCESSES, *REFUSED_NETWORK,
              "connect to a unix socket"]  # fmt: skip
    optional = {"multipath tcp": "mptcp/enabled", "first packet": "ipv4/tcp_fastopen"}
    for words, setting in optional.items():
        path = Path("/proc/sys/net", setting)
        if not path.exists() or path.read_text("ascii").strip() == "0":
            wanted = [name for name in wanted if words not in name]
    # A new user namespace last: it changes who the process is.
    wanted.sort(key=lambda name: name == "new user namespace")
    open_outcomes = place.ask(wanted, how=None)
    assert {name for name, outcome in open_outcomes.items() if outcome != "done"} == set()


def test_sealed_broker_can_do_its_work(place: Place) -> None:
    """Files beneath its folders, its code, threads and ZeroMQ over ipc and its port remain."""
    wanted = ["work inside", "read its own code", "start a thread", "talk over ipc"]
    assert place.ask(wanted) == dict.fromkeys(wanted, "done")
    assert place.ask(["talk over tcp"], port=place.free_port) == {"talk over tcp": "done"}


def test_last_filter_ends_connections_over_unix_sockets(place: Place) -> None:
    """A unix socket with a path can be reached until `refuse_connections`, on every thread."""
    before, after = place.ask(["connect to a unix socket"]), place.ask(
        ["refuse connections", "connect to a unix socket"]
    )
    assert before == {"connect to a unix socket": "done"}
    assert after["connect to a unix socket"] == "EPERM"


def test_every_number_of_the_table_is_refused(place: Place) -> None:
    """Each system call that the table names fails with EPERM in a sealed process."""
    assert place.ask(["every refused call"]) == {"every refused call": "done"}


def test_table_names_the_numbers_of_this_architecture() -> None:
    """Each name has the number that the kernel's table for x86_64 gives it."""
    lines = (ROOT / "sandbox_worker/jail/syscalls_x86_64.txt").read_text("ascii").splitlines()
    known = {name: number for number, name in (line.split() for line in lines)}
    ours = dict(entry.split(":") for entry in seal.REFUSED.split())
    assert {name: known.get(name) for name in ours} == ours
    assert len(ours) == len(seal.REFUSED.split())


def test_launcher_keeps_processes_and_files_and_loses_network_and_signals(place: Place) -> None:
    """Its layer forbids no mount and no program, but TCP and every signal outside."""
    refused = {"connect over tcp": "EACCES", "signal a process": "EPERM",
               "connect to an abstract socket": "EPERM"}  # fmt: skip
    kept = ["make a file", "fork", "run a program by Popen", "new user namespace"]
    outcomes = place.ask([*refused, *kept], how="launcher")
    assert outcomes == {**refused, **dict.fromkeys(kept, "done")}


FAULTS = {
    # What an outer sandbox may do to each call: fail it, or claim success without effect.
    "landlock is not in the kernel": (444, 38, "landlock", 38),
    "landlock accepts a layer and forgets it": (446, 0, "landlock", 0),
    "landlock refuses the layer": (446, 7, "landlock", 7),
    "landlock forgets a rule's refusal": (445, 22, "landlock", 22),
    "seccomp is not in the kernel": (317, 38, "seccomp", 38),
    "seccomp accepts a filter and forgets it": (317, 0, "seccomp", 0),
    "capabilities cannot be set": (126, 1, "capabilities", 1),
}

FAULT_PROGRAM = """
import sys
from broker import seal
number, answer, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
seal._no_new_privileges()
seal._install_filter(seal._assemble([(0x15, 0, 1, number), (6, 0, 0, 0x50000 | answer)]))
try:
    seal.seal_broker(writable=[folder], tcp_ports=[])
except seal.SealUnavailable as error:
    print(error.feature, error.errno, error.hint, sep="|")
"""


def run(program: str, *arguments: str) -> str:
    """Run a program text in a fresh interpreter and give what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("fault", FAULTS)
def test_seal_fails_closed(fault: str, tmp_path: Path) -> None:
    """A call that fails, or that claims to work and does not, ends in one named refusal."""
    number, answer, feature, code = FAULTS[fault]
    said = run(FAULT_PROGRAM, str(number), str(answer), str(tmp_path))
    assert said.split("|")[:2] == [feature, str(code)]
    assert len(said.split("|")[2]) > 20


def test_capabilities_that_stay_are_noticed(tmp_path: Path) -> None:
    """For root, a capset that claims success without effect is a refusal."""
    if os.getuid() != 0:
        # An ordinary user has none to lose; the same call then has its effect already.
        return
    assert run(FAULT_PROGRAM, "126", "0", str(tmp_path)).startswith("capabilities|0|")


def test_second_thread_is_noticed(tmp_path: Path) -> None:
    """A process with a second thread is not sealed, because that thread would escape the layer."""
    program = """
import sys, threading
from broker import seal
threading.Thread(target=threading.Event().wait, daemon=True).start()
try:
    seal.seal_broker(writable=[sys.argv[1]], tcp_ports=[])
except seal.SealUnavailable as error:
    print(error.feature)
"""
    assert run(program, str(tmp_path)) == "one thread"


@pytest.mark.parametrize(("folder", "hint"), [("/nonexistent/home", "/nonexistent"), ("/", "lsm=")])
def test_impossible_folders_are_noticed(folder: str, hint: str) -> None:
    """A folder that is missing, or so wide that the layer forbids nothing, is a refusal."""
    program = """
import sys
from broker import seal
try:
    seal.seal_broker(writable=[sys.argv[1]], tcp_ports=[])
except seal.SealUnavailable as error:
    print(error)
"""
    said = run(program, folder)
    assert said.startswith("landlock")
    assert hint in said
