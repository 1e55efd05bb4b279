"""The start: no socket opens weaker than it must be, and none takes what belongs to others."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys

import pytest
import zmq

from broker import gate, transport
from broker.arrivals import FrontFrames
from broker.keys import CurvePair, new_curve_pair
from broker.selftest import require_refusal
from broker.sockets import (
    TransportRefused,
    ZmqContext,
    ZmqSocket,
    require_enforcement,
)
from broker.transport import FrontSetup, Transport
from broker.zap import Doorkeeper, FrontDoor
from schemas.refusals import RefusalCode
from tests.broker.sockets_kit import House, house, run_directory


def curve_only(context: ZmqContext, pair: CurvePair, domain: bytes, enforce: int) -> ZmqSocket:
    """Make a ROUTER with CURVE and the given ZAP settings, without our checks."""
    router = context.socket(zmq.ROUTER)
    router.linger = 0
    router.curve_server = 1
    router.curve_secretkey = pair.secret.encode()
    if domain:
        router.setsockopt(zmq.ZAP_DOMAIN, domain)
    router.setsockopt(93, enforce)
    return router


def null_only(context: ZmqContext, _pair: CurvePair, _domain: bytes, _enforce: int) -> ZmqSocket:
    """Make a ROUTER that knows no mechanism."""
    return context.socket(zmq.ROUTER)


@pytest.mark.parametrize("handler", [True, False], ids=["with handler", "without handler"])
@pytest.mark.parametrize(
    ("make", "domain", "enforce", "strong"),
    [
        (curve_only, b"front.omega", 1, True),
        (curve_only, b"", 1, False),
        (curve_only, b"front.omega", 0, None),
        (null_only, b"front.omega", 1, False),
    ],
    ids=["as it must be", "empty domain", "not enforced", "no CURVE"],
)
def test_the_self_test_passes_only_a_door_that_turns_a_stranger_away(
    make, domain, enforce, strong, handler
):
    """A planted weakness stops the start, and so does a missing handler; the right door passes.

    An option that is not enforced matters only when the handler is missing.
    """
    pair = new_curve_pair()
    context: ZmqContext = zmq.Context()
    try:
        keeper = Doorkeeper(context)
        keeper.register("front.omega", FrontDoor({}, 10))
        if not handler:
            keeper.socket.unbind(keeper.socket.get_string(zmq.LAST_ENDPOINT).rstrip("\x00"))
        router = make(context, pair, domain, enforce)
        passes = handler if strong is None else strong and handler
        with run_directory() as directory:
            def attempt() -> None:
                require_refusal(
                    router, name="front.omega", server_key=pair.public, directory=directory,
                    answer=lambda: keeper.drain([]),
                )
            if passes:
                attempt()
            else:
                with pytest.raises(TransportRefused, match="stranger's key was not refused"):
                    attempt()
            assert os.listdir(directory) == []
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    ("make", "domain", "enforce", "sentence"),
    [
        (null_only, b"", 0, "without CURVE"),
        (curve_only, b"", 1, "without a ZAP domain"),
        (curve_only, b"front.omega", 0, "without ZAP enforcement"),
        (curve_only, b"front.omega", 1, "without a frame limit"),
    ],
)
def test_options_are_read_back(make, domain, enforce, sentence):
    """A socket that misses one of its options is refused with its name."""
    context: ZmqContext = zmq.Context()
    try:
        weak = make(context, new_curve_pair(), domain, enforce)
        with pytest.raises(TransportRefused, match=sentence):
            require_enforcement(weak)
    finally:
        context.destroy(linger=0)


def test_the_fronts_carry_their_domain_and_it_is_enforced():
    """The very sockets that serve read back as they must be."""
    with house() as home:
        for front in ("front.omega", "front.admin"):
            station = home.transport._fronts[front]
            require_enforcement(station.socket)
            assert station.socket.get_string(zmq.ZAP_DOMAIN).rstrip("\x00") == front
            assert station.socket.get(zmq.HANDSHAKE_IVL) == 2000
            assert station.socket.get(zmq.MAXMSGSIZE) == 4096 + 33


def test_no_plane_waits_for_the_decryption_of_another():
    """OMEGA's front, the operators' and the workers' sockets each have one thread of libzmq's."""
    with house() as home:
        home.transport.open_worker("1" * 32)
        home.transport.open_worker("2" * 32)
        sockets = [station.socket for station in home.transport._fronts.values()]
        sockets += [station.socket for station in home.transport._workers.values()]

        assert [one.get(zmq.AFFINITY) for one in sockets] == [1, 2, 4, 4]
        assert home.transport._context.get(zmq.IO_THREADS) == 3


def test_a_libzmq_below_the_floor_is_refused(monkeypatch):
    """Where the library is older than the oldest without a known remote defect, nothing opens."""
    monkeypatch.setattr(transport, "LIBZMQ_FLOOR", (*zmq.zmq_version_info()[:2], 99))
    with run_directory() as directory, pytest.raises(TransportRefused, match=r"4\.3\.5"):
        House(directory)


def test_socket_files_are_the_owners_alone_whatever_the_umask():
    """Nobody else may connect, even where the process's umask would allow it."""
    mask = os.umask(0)
    try:
        with house() as home:
            for name in ("omega", "admin"):
                status = os.stat(os.path.join(home.directory, name))
                assert stat.S_ISSOCK(status.st_mode)
                assert stat.S_IMODE(status.st_mode) & 0o077 == 0
    finally:
        os.umask(mask)


def test_a_stale_socket_file_is_replaced():
    """What a killed broker left behind does not hinder the next one."""
    with run_directory() as directory:
        path = os.path.join(directory, "omega")
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(path)
        home = House(directory)
        try:
            home.dealer().send(b"hello")
            assert home.pump_for(FrontFrames)
        finally:
            home.close()


@pytest.mark.parametrize("kind", ["a broker", "another listener", "a file", "a link", "a folder"])
def test_an_endpoint_in_use_is_refused_and_left_as_it_is(kind):
    """The sentence names the path, the code is `socket_in_use`, and the other goes on."""
    with run_directory() as directory, run_directory() as other:
        path = os.path.join(directory, "omega")
        first = None
        listener = socket.socket(socket.AF_UNIX)
        if kind == "a broker":
            first = House(directory)
        elif kind == "another listener":
            listener.bind(path)
            listener.listen(1)
        elif kind == "a file":
            with open(path, "w", encoding="ascii") as file:
                file.write("mine")
        elif kind == "a link":
            os.symlink("nowhere", path)
        else:
            os.mkdir(path)
        before = os.lstat(path)

        with pytest.raises(TransportRefused, match="omega: ") as refused:
            Transport.open(
                omega=setup(f"ipc://{path}"), admin=setup(f"ipc://{other}/admin"),
                run_directory=other,
            )

        assert refused.value.code is RefusalCode.SOCKET_IN_USE
        assert os.lstat(path).st_ino == before.st_ino
        assert os.listdir(other) == []
        if first is not None:
            first.dealer().send(b"still here")
            assert first.pump_for(FrontFrames)
            first.close()
        listener.close()


def setup(endpoint: str) -> FrontSetup:
    """Describe a front that nobody may use."""
    return FrontSetup(endpoint, new_curve_pair().secret, {}, 4096, 10, 10, 100, 100)


def refused_to_listen(endpoint: str, match: str) -> RefusalCode:
    """Try to serve OMEGA at an endpoint, which must be refused in these words; gives the code."""
    with run_directory() as directory:
        transport = Transport.open(
            omega=setup(endpoint), admin=setup(f"ipc://{directory}/admin"), run_directory=directory
        )
        try:
            with pytest.raises(TransportRefused, match=match) as refused:
                transport.listen()
        finally:
            transport.close(linger_ms=0)
        return refused.value.code


def test_a_tcp_port_in_use_is_refused():
    """The same holds for a port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        code = refused_to_listen(endpoint, "another process serves")
    assert code is RefusalCode.SOCKET_IN_USE


@pytest.mark.parametrize(
    ("name", "number"), [("_ATTACH_REUSEPORT_CBPF", 9999), ("KNOWN_MAX", 4096)]
)
def test_a_kernel_that_cannot_steer_newcomers_is_refused(monkeypatch, name, number):
    """One without the option, or that would not take the largest program, serves no TCP port."""
    monkeypatch.setattr(gate, name, number)
    code = refused_to_listen("tcp://127.0.0.1:*", "no gate can be put")
    assert code is RefusalCode.MACHINE_UNSUPPORTED


def test_nobody_can_connect_before_the_gateway_listens():
    """Opening tries the doors and leaves no endpoint; only `listen` makes it."""
    with run_directory() as directory:
        transport = Transport.open(
            omega=setup(f"ipc://{directory}/o"), admin=setup(f"ipc://{directory}/a"),
            run_directory=directory,
        )
        try:
            assert os.listdir(directory) == []
            transport.listen()
            assert sorted(os.listdir(directory)) == ["a", "o"]
        finally:
            transport.close(linger_ms=0)


def test_what_came_to_lie_at_an_endpoint_after_the_first_look_is_left_alone():
    """Between opening and listening somebody binds the path: it is refused, not replaced."""
    with run_directory() as directory, socket.socket(socket.AF_UNIX) as listener:
        transport = Transport.open(
            omega=setup(f"ipc://{directory}/o"), admin=setup(f"ipc://{directory}/a"),
            run_directory=directory,
        )
        try:
            listener.bind(f"{directory}/o")
            listener.listen(1)
            with pytest.raises(TransportRefused, match="another process serves"):
                transport.listen()
        finally:
            transport.close(linger_ms=0)
        assert os.listdir(directory) == ["o"]


def test_sockets_that_a_killed_broker_left_are_removed_and_nothing_else():
    """Stale sockets of workers and self-tests go; one that is listened on and a file stay."""
    with run_directory() as directory, socket.socket(socket.AF_UNIX) as living:
        for name in ("00.worker", "11.try", "other"):
            with socket.socket(socket.AF_UNIX) as left:
                left.bind(f"{directory}/{name}")
        living.bind(f"{directory}/22.worker")
        living.listen(8)
        with open(f"{directory}/33.worker", "w", encoding="ascii"):
            pass
        home = House(directory)
        try:
            assert sorted(os.listdir(directory)) == [
                "22.worker", "33.worker", "admin", "omega", "other"
            ]
        finally:
            home.close()


def test_a_front_can_listen_on_tcp():
    """Over tcp the same key gets in, and a stranger does not."""
    with house(endpoint="tcp://127.0.0.1:*") as home:
        home.dealer(new_curve_pair()).send(b"stranger")
        home.dealer().send(b"hello")

        assert [one.frames for one in home.pump_for(FrontFrames)
                if isinstance(one, FrontFrames)] == [[b"hello"]]


@pytest.mark.parametrize("fault", ["open to others", "missing", "a file", "a link"])
def test_a_run_folder_that_is_not_private_is_refused(fault):
    """The folder of the workers' sockets must be the owner's alone."""
    with run_directory() as directory:
        path = os.path.join(directory, "run")
        if fault == "open to others":
            os.mkdir(path)
            os.chmod(path, 0o710)
        elif fault == "a file":
            with open(path, "w", encoding="ascii"):
                pass
        elif fault == "a link":
            os.symlink(directory, path)
        with pytest.raises(TransportRefused, match="the run folder"):
            Transport.open(
                omega=setup(f"ipc://{directory}/o"), admin=setup(f"ipc://{directory}/a"),
                run_directory=path,
            )


def test_a_path_too_long_for_a_socket_is_one_sentence():
    """A path of 108 bytes is refused before libzmq sees it."""
    with run_directory() as directory:
        path = os.path.join(directory, "x" * (107 - len(directory)))
        with pytest.raises(TransportRefused, match="may have 107 bytes"):
            Transport.open(
                omega=setup(f"ipc://{path}"), admin=setup(f"ipc://{directory}/a"),
                run_directory=directory,
            )


def test_a_second_handler_in_one_process_is_impossible():
    """The ZAP address is taken within a context, so nobody can answer beside the doorkeeper."""
    context: ZmqContext = zmq.Context()
    try:
        first = Doorkeeper(context)
        with pytest.raises(zmq.ZMQError):
            Doorkeeper(context)
        assert not first.socket.closed
    finally:
        context.destroy(linger=0)


_COLLISION = """
import ctypes, struct, sys
import zmq
libc = ctypes.CDLL(None)
def first_id():  # How libzmq draws its first number: two calls of rand().
    low, high = libc.rand(), libc.rand()
    return (low | (high << 31)) & 0xFFFFFFFF
"""

_UNPROTECTED = _COLLISION + """
guess = first_id()
libc.srand(1)
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.bind("inproc://door")
thief = context.socket(zmq.DEALER)
thief.setsockopt(zmq.ROUTING_ID, b"\\0" + struct.pack(">I", guess))
thief.connect("inproc://door")
thief.send(b"")
router.recv_multipart()
victim = context.socket(zmq.DEALER)
victim.connect("inproc://door")
victim.send(b"")
router.recv_multipart()
"""

_PROTECTED = _COLLISION + """
sys.path.insert(0, sys.argv[1])
from broker.arrivals import FrontFrames
from tests.broker.sockets_kit import house
guesses = [first_id() for _ in range(4)]
libc.srand(1)
with house() as home:
    thieves = [
        home.dealer(routing_id=b"\\0" + struct.pack(">I", (guess + step) & 0xFFFFFFFF))
        for guess in guesses for step in range(-2, 12)
    ]
    for thief in thieves:
        thief.send(b"mine")
    home.pump_for(FrontFrames, len(thieves))
    victims = [home.dealer() for _ in range(12)]
    for victim in victims:
        victim.send(b"hello")
    home.pump_for(FrontFrames, len(victims))
print("alive")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a piece of Python in a process that may be aborted."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return subprocess.run(
        [sys.executable, "-c", code, root], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_peer_that_takes_the_next_routing_id_aborts_an_unprotected_router():
    """The control: on a bare ROUTER the attack ends the process, so the next test means something.

    The first number is drawn from an unseeded `rand`, which every process can predict.
    """
    assert run(_UNPROTECTED).returncode == -6


def test_a_peer_that_takes_the_next_routing_id_does_not_abort_the_broker():
    """With `rand` seeded nobody knows the next number: the broker serves on."""
    done = run(_PROTECTED)

    assert done.returncode == 0, done.stderr
    assert done.stdout == "alive\n"
