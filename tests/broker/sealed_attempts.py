"""Runs in a fresh process: attempts that a seal must refuse, or work that it must leave possible.

    python -m tests.broker.sealed_attempts SPECIFICATION

SPECIFICATION is JSON: the uid to become, whether and how to seal, the folders, and which attempts
to make. The answer is one JSON map from attempt to "done" or the name of the errno.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import zmq

from broker import seal
from sandbox_worker import seal as worker_seal

SPECIFICATION = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
INSIDE = Path(SPECIFICATION.get("inside", "/nonexistent"))
OUTSIDE = Path(SPECIFICATION.get("outside", "/nonexistent"))
PORT = int(SPECIFICATION.get("port", 0))
LISTENER = int(SPECIFICATION.get("listener", 0))


IPPROTO_MPTCP = 262
STARTED: list[subprocess.Popen[bytes]] = []
KEPT: list[ctypes.Array[ctypes.c_char]] = []
VECTORS: list[int] = []


def victim() -> int:
    """The pid of a process of the same user, started before the seal; it ends with this one."""
    return STARTED[0].pid


def other_process(name: str) -> None:
    """Open one of the victim's files in /proc."""
    os.close(os.open(f"/proc/{victim()}/{name}", os.O_RDONLY))


def raw(number: int, *arguments: int) -> int:
    """One system call by number."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(*map(ctypes.c_long, (number, *arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), "raw")
    return result


SIGNAL_INFORMATION = ctypes.create_string_buffer(struct.pack("=iii", 0, 0, -1), 128)


def connect_tcp() -> None:
    with socket.socket() as client:
        client.connect(("127.0.0.1", LISTENER))


def bind_tcp(port: int) -> None:
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", port))
        server.listen()


def connect_unix(address: str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(address)


def set_flags() -> None:
    """FS_IOC_SETFLAGS with a flag (nodump) that an owner may set; needs no write access."""
    import fcntl

    with open(INSIDE / "flags", "wb") as file:
        fcntl.ioctl(file.fileno(), 0x40086602, (0x40).to_bytes(8, "little"))


def send_datagram() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"", ("127.0.0.1", LISTENER))


def send_datagram_out_of_a_pair() -> None:
    """One end of a pair of datagram sockets may send to any address too."""
    for one in socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[:1]:
        one.sendto(b"x", SPECIFICATION["datagrams"])


def connect_by_first_packet() -> None:
    with socket.socket() as client:
        client.sendto(b"x", socket.MSG_FASTOPEN, ("127.0.0.1", LISTENER))


def multipath(*, connect: bool) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as one:
        if connect:
            one.connect(("127.0.0.1", LISTENER))
        else:
            one.bind(("127.0.0.1", 0))
            one.listen()


def listen_unbound() -> None:
    with socket.socket() as server:
        server.listen()


def talk_over(address: str) -> None:
    """Bind a ZeroMQ socket and let a message pass, both ends in this process."""
    context = zmq.Context()
    server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    server.linger = client.linger = 0
    server.bind(address)
    if address.startswith("ipc"):
        client.connect(address)
        client.send(b"hello")
        assert server.recv_multipart()[1] == b"hello"
    filters = {
        line.split()[1]
        for task in os.listdir("/proc/self/task")
        for line in Path(f"/proc/self/task/{task}/status").read_text().splitlines()
        if line.startswith("Seccomp_filters")
    }
    seal.refuse_connections()
    after = {
        line.split()[1]
        for task in os.listdir("/proc/self/task")
        for line in Path(f"/proc/self/task/{task}/status").read_text().splitlines()
        if line.startswith("Seccomp_filters")
    }
    assert len(os.listdir("/proc/self/task")) > 1
    assert {str(int(count) + 1) for count in filters} == after, (filters, after)
    context.destroy(linger=0)


def work_inside() -> None:
    """What a ledger does: make, write, rename across folders, truncate, sync, remove."""
    (INSIDE / "a").mkdir()
    (INSIDE / "b").mkdir()
    (INSIDE / "a" / "file").write_bytes(b"x" * 100)
    (INSIDE / "a" / "file").rename(INSIDE / "b" / "file")
    with open(INSIDE / "b" / "file", "r+b") as file:
        file.truncate(10)
        os.posix_fallocate(file.fileno(), 0, 4096)
        os.fdatasync(file.fileno())
    directory = os.open(INSIDE / "b", os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    (INSIDE / "b" / "file").unlink()
    (INSIDE / "a").rmdir()
    (INSIDE / "b").rmdir()


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    try:
        thread.start()
    except RuntimeError:
        raise OSError(errno.EPERM, "no thread") from None
    thread.join()


def fork() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


def signal_by_pidfd() -> None:
    signal.pidfd_send_signal(os.pidfd_open(victim()), 0)


def limit_a_process() -> None:
    resource.prlimit(victim(), resource.RLIMIT_CORE, (0, 0))


def memory_vectors() -> tuple[int, int, int, int]:
    """What process_vm_readv(2) takes after the pid: a byte of ours, and the first mapped of its."""
    with open(f"/proc/{victim()}/maps", encoding="ascii") as maps:
        start = int(maps.readline().split("-")[0], 16)
    byte = ctypes.create_string_buffer(1)
    ours, its = (ctypes.create_string_buffer(struct.pack("=QQ", address, 1))
                 for address in (ctypes.addressof(byte), start))  # fmt: skip
    KEPT[:] = [byte, ours, its]
    return ctypes.addressof(ours), 1, ctypes.addressof(its), 1


def become_connected() -> None:
    """As a worker whose broker has spoken."""
    worker_seal.close_connections()


def try_refused() -> None:
    """Each number of the table, with arguments that no kernel would accept."""
    outcomes = {}
    for entry in seal.REFUSED.split():
        name, number = entry.split(":")
        try:
            outcomes[name] = raw(int(number), -1, -1, -1, -1, -1, -1)
        except OSError as error:
            outcomes[name] = error.errno or 0
    assert set(outcomes.values()) == {errno.EPERM}, outcomes


ATTEMPTS: dict[str, Callable[[], object]] = {
    "make a file": lambda: (OUTSIDE / "new").write_bytes(b""),
    "write a file": lambda: open(OUTSIDE / "file", "ab").close(),
    "truncate a file": lambda: os.truncate(OUTSIDE / "file", 0),
    "remove a file": lambda: os.unlink(OUTSIDE / "spare"),
    "move a file in": lambda: os.rename(OUTSIDE / "moved", INSIDE / "moved"),
    "link a file in": lambda: os.link(OUTSIDE / "file", INSIDE / "linked"),
    "make a folder": lambda: os.mkdir(OUTSIDE / "folder"),
    "make a symbolic link": lambda: os.symlink("/", OUTSIDE / "symbolic"),
    "change a mode": lambda: os.chmod(OUTSIDE / "file", 0o644),
    "change an owner": lambda: os.chown(OUTSIDE / "file", os.getuid(), os.getgid()),
    "change times": lambda: os.utime(OUTSIDE / "file"),
    "set an attribute": lambda: os.setxattr(OUTSIDE / "file", "user.x", b"x"),
    "set file flags": set_flags,
    "fork": fork,
    "run a program": lambda: os.posix_spawn("/bin/true", ["true"], {}),
    "run a program by Popen": lambda: subprocess.run(["/bin/true"], check=True),
    "signal a process": lambda: os.kill(victim(), 0),
    "signal a process by pidfd": signal_by_pidfd,
    "limit a process": limit_a_process,
    "connect over tcp": connect_tcp,
    "listen on another port": lambda: bind_tcp(0),
    "listen on the port": lambda: bind_tcp(PORT),
    "send a datagram": send_datagram,
    "connect to an abstract socket": lambda: connect_unix(SPECIFICATION["abstract"]),
    "connect to a unix socket": lambda: connect_unix(SPECIFICATION["unix"]),
    "open a unix datagram socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
    "send a datagram out of a pair": send_datagram_out_of_a_pair,
    "connect over tcp by a first packet": connect_by_first_packet,
    "connect over multipath tcp": lambda: multipath(connect=True),
    "listen over multipath tcp": lambda: multipath(connect=False),
    "listen on any port": listen_unbound,
    "listen on any port again": listen_unbound,
    "pin a process to a processor": lambda: os.sched_setaffinity(victim(), {0}),
    "trace a process": lambda: raw(101, 0x4206, victim(), 0, 0),
    "read a process's memory": lambda: raw(310, victim(), *VECTORS, 0),
    "take a process's descriptor": lambda: raw(438, os.pidfd_open(victim()), 0, 0),
    "compare with a process": lambda: raw(312, victim(), victim(), 1, 0, 0),
    "queue a signal": lambda: raw(129, victim(), 0, ctypes.addressof(SIGNAL_INFORMATION)),
    "signal a process's thread": lambda: raw(234, victim(), victim(), 0),
    "renice a process": lambda: os.setpriority(os.PRIO_PROCESS, victim(), 5),
    "read a process's environment": lambda: other_process("environ"),
    "open a process's memory": lambda: other_process("mem"),
    "read a process's mappings": lambda: other_process("maps"),
    "open a process's descriptor": lambda: other_process("fd/1"),
    "reach in through a process's root": lambda: other_process("root/etc/passwd"),
    "read a key": (OUTSIDE / "file").read_bytes,
    "list the keys": lambda: os.listdir(OUTSIDE),
    "signal what it started": lambda: os.kill(STARTED[1].pid, 0),
    "stand connected": become_connected,
    "new user namespace": lambda: raw(272, 0x10000000),
    "shared memory": lambda: raw(29, 0, 4096, 0o1600),
    "message queue": lambda: raw(68, 0, 0o1600),
    "read a file": lambda: Path("/etc/passwd").read_bytes(),
    "read its own code": lambda: Path(__file__).read_bytes() and __import__("wave"),
    "work inside": work_inside,
    "start a thread": start_thread,
    "talk over ipc": lambda: talk_over(f"ipc://{INSIDE}/socket"),
    "talk over tcp": lambda: talk_over(f"tcp://127.0.0.1:{PORT}"),
    "refuse connections": seal.refuse_connections,
    "refuse networks": seal.refuse_networks,
    "every refused call": try_refused,
}


def main() -> None:
    """Become somebody, seal, attempt, report."""
    if SPECIFICATION["uid"] != os.getuid():
        os.setgroups([])
        os.setresgid(*[SPECIFICATION["uid"]] * 3)
        os.setresuid(*[SPECIFICATION["uid"]] * 3)
    STARTED.append(subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE))
    VECTORS[:] = memory_vectors()
    if SPECIFICATION["seal"] == "broker":
        ports = [PORT] if PORT else []
        seal.seal_broker(writable=[str(INSIDE)], tcp_ports=ports)
    elif SPECIFICATION["seal"] == "launcher":
        seal.seal_launcher()
    elif SPECIFICATION["seal"] == "supervisor":
        worker_seal.close_outside()
        # In the place of its zygote, which it must still be able to end.
        STARTED.append(subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE))
        worker_seal.close_files()
    outcomes = {}
    for name in SPECIFICATION["attempts"]:
        try:
            ATTEMPTS[name]()
            outcomes[name] = "done"
        except zmq.ZMQError as error:
            outcomes[name] = errno.errorcode[error.errno or 0]
        except OSError as error:
            outcomes[name] = errno.errorcode[error.errno or 0]
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
